"""How fast PyTorch runs a model of Moondream 2's dimensions on this machine's processor: the rival of
`photon bench model --synthetic moondream2`, phase by phase, with random weights.

    pip install torch numpy
    python tools/bench/pytorch.py [--dtype f32|bf16] [--threads N] [--repeats N]

The layers are written plainly with torch.nn.functional (linear, layer_norm, gelu,
scaled_dot_product_attention), as the public reference does; the key-value cache is preallocated. Like
the reference it encodes two crops for a picture that is not cut, where Photon encodes one.
"""
import argparse
import time

import torch
import torch.nn.functional as F


class Block:
    """Weights of one transformer block."""

    def __init__(self, dim, ff, dtype, norms):
        def weight(n, k):
            return (torch.randn(n, k) * 0.02).to(dtype), torch.zeros(n, dtype=dtype)

        self.ln = [(torch.ones(dim, dtype=dtype), torch.zeros(dim, dtype=dtype)) for _ in range(norms)]
        self.qkv, self.proj = weight(3 * dim, dim), weight(dim, dim)
        self.fc1, self.fc2 = weight(ff, dim), weight(dim, ff)


def norm(x, ln):
    return F.layer_norm(x, x.shape[-1:], *ln, 1e-5)


def mlp(x, b):
    return F.linear(F.gelu(F.linear(x, *b.fc1), approximate="tanh"), *b.fc2)


def heads(x, n):
    return x.view(*x.shape[:2], n, -1).transpose(1, 2)


def vision(blocks, x):
    for b in blocks:
        q, k, v = (heads(t, 16) for t in F.linear(norm(x, b.ln[0]), *b.qkv).chunk(3, -1))
        a = F.scaled_dot_product_attention(q, k, v)
        x = x + F.linear(a.transpose(1, 2).reshape(x.shape), *b.proj)
        x = x + mlp(norm(x, b.ln[1]), b)
    return x


def rope(x, cos, sin):
    a, b, rest = x[..., :16], x[..., 16:32], x[..., 32:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1).to(x.dtype)


def text(blocks, head, x, cache, start, mask):
    n = x.shape[1]
    angles = torch.arange(start, start + n)[:, None] * 1e4 ** (-torch.arange(0, 32, 2) / 32)
    cos, sin = angles.cos(), angles.sin()
    for b, (keys, values) in zip(blocks, cache):
        h = norm(x, b.ln[0])
        q, k, v = (heads(t, 32) for t in F.linear(h, *b.qkv).chunk(3, -1))
        keys[:, :, start : start + n], values[:, :, start : start + n] = rope(k, cos, sin), v
        end = start + n
        a = F.scaled_dot_product_attention(rope(q, cos, sin), keys[:, :, :end], values[:, :, :end], attn_mask=mask)
        x = x + F.linear(a.transpose(1, 2).reshape(x.shape), *b.proj) + mlp(h, b)
    return F.linear(x[:, -1], *head)


def timed(name, repeats, run, per=None):
    run()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    median = sorted(seconds)[len(seconds) // 2]
    print(f"{name:<32} {median:8.3f} s" + (f"  {per / median:.2f} tokens/s" if per else ""), flush=True)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
    args.add_argument("--threads", type=int)
    args.add_argument("--repeats", type=int, default=3)
    args.add_argument("--tokens", type=int, default=12)
    args = args.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    print(f"torch {torch.__version__}, {args.dtype}, {torch.get_num_threads()} threads")
    with torch.inference_mode():
        blocks = [Block(1152, 4304, dtype, 2) for _ in range(27)]
        for crops in (1, 2, 9):
            x = torch.randn(crops, 729, 1152).to(dtype)
            timed(f"vision, crops: {crops}", args.repeats, lambda x=x: vision(blocks, x))
        del blocks
        blocks = [Block(2048, 8192, dtype, 1) for _ in range(24)]
        head = ((torch.randn(51200, 2048) * 0.02).to(dtype), torch.zeros(51200, dtype=dtype))
        cache = [tuple(torch.zeros(1, 32, 800, 64, dtype=dtype) for _ in range(2)) for _ in blocks]
        mask = torch.ones(750, 750, dtype=torch.bool).tril()
        mask[:730, :730] = True
        x = torch.randn(1, 750, 2048).to(dtype)
        timed("prefill, 750 tokens", args.repeats, lambda: text(blocks, head, x, cache, 0, mask))

        def decode():
            for i in range(args.tokens):
                text(blocks, head, x[:, :1], cache, 770 + i, None)

        timed(f"decode, {args.tokens} tokens from 770", args.repeats, decode, args.tokens)


main()
