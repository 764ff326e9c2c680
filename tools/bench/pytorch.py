"""A model of Moondream 2's dimensions in PyTorch, with random weights: a worker of `cargo xtask peers`.

The layers are written plainly with torch.nn.functional (linear, layer_norm, gelu, scaled_dot_product_attention), as
the public reference does; the key-value cache is preallocated. Every phase can be run as it stands and compiled by
torch.compile, with weights that are constants, so that they can be packed for the processor's matrix instructions; the
harness keeps the faster. Tokens are all decoded at the same position, so that what is compiled need not cope with
lengths that change.
"""
import argparse

import torch
import torch.nn.functional as F

from worker import serve

IMAGE, PROMPT, CONTEXT, SLOTS = 730, 750, 770, 800
DIM, HEADS, FF, ROTARY = 2048, 32, 8192, 32
VISION_DIM, VISION_HEADS, VISION_FF, PATCHES, PATCH_BYTES = 1152, 16, 4304, 729, 588


class Linear(torch.nn.Linear):
    """Random weights: some processors multiply zeros faster."""

    def reset_parameters(self):
        torch.nn.init.normal_(self.weight, std=0.02)
        torch.nn.init.zeros_(self.bias)


class Mlp(torch.nn.Module):
    def __init__(self, dim, ff, out):
        super().__init__()
        self.fc1, self.fc2 = Linear(dim, ff), Linear(ff, out)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Attention(torch.nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, Linear(dim, 3 * dim), Linear(dim, dim)

    def forward(self, x, attend):
        split = (t.view(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.proj(attend(*split).transpose(1, 2).reshape(x.shape))


class Vision(torch.nn.Module):
    """From crops to a picture's embeddings."""

    def __init__(self, layers):
        super().__init__()
        self.patches = Linear(PATCH_BYTES, VISION_DIM)
        self.positions = torch.nn.Parameter(torch.randn(PATCHES, VISION_DIM) * 0.02)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleList(
                [
                    torch.nn.LayerNorm(VISION_DIM),
                    Attention(VISION_DIM, VISION_HEADS),
                    torch.nn.LayerNorm(VISION_DIM),
                    Mlp(VISION_DIM, VISION_FF, VISION_DIM),
                ]
            )
            for _ in range(layers)
        )
        self.norm = torch.nn.LayerNorm(VISION_DIM)
        self.project = Mlp(2 * VISION_DIM, FF, DIM)

    def forward(self, crops):
        x = self.patches(crops) + self.positions
        for norm1, attention, norm2, mlp in self.blocks:
            x = x + attention(norm1(x), F.scaled_dot_product_attention)
            x = x + mlp(norm2(x))
        x = self.norm(x)
        # The whole picture beside what its pieces were put together to.
        return self.project(torch.cat([x[0], x[-1]], -1))


def rope(x, cos, sin):
    half = ROTARY // 2
    a, b, rest = x[..., :half], x[..., half:ROTARY], x[..., ROTARY:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1).to(x.dtype)


class Text(torch.nn.Module):
    """From embeddings to the likeliest token after the last position."""

    def __init__(self, layers):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleList([torch.nn.LayerNorm(DIM), Attention(DIM, HEADS), Mlp(DIM, FF, DIM)])
            for _ in range(layers)
        )
        self.norm, self.head = torch.nn.LayerNorm(DIM), Linear(DIM, 51200)

    def forward(self, x, cache, start, mask):
        end = start + x.shape[1]
        angles = torch.arange(start, end)[:, None] * 1e4 ** (-torch.arange(0, ROTARY, 2) / ROTARY)
        cos, sin = angles.cos(), angles.sin()
        for (norm, attention, mlp), (keys, values) in zip(self.blocks, cache):

            def attend(q, k, v):
                keys[:, :, start:end], values[:, :, start:end] = rope(k, cos, sin), v
                seen = keys[:, :, :end], values[:, :, :end]
                return F.scaled_dot_product_attention(rope(q, cos, sin), *seen, attn_mask=mask)

            h = norm(x)
            x = x + attention(h, attend) + mlp(h)
        return self.head(self.norm(x[:, -1])).argmax(-1)


def ways(module, *inputs, times=1):
    """The ways to call `module` so often with these inputs."""
    compiled = torch.compile(module, dynamic=False, options={"freezing": True})

    def repeated(call):
        def run():
            for _ in range(times):
                call(*inputs)

        return run

    return {"eager": repeated(module), "compiled": repeated(compiled)}


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--dtype", choices=["f32", "bf16"], required=True)
    args.add_argument("--threads", type=int, required=True)
    args.add_argument("--vision-layers", type=int, required=True)
    args.add_argument("--text-layers", type=int, required=True)
    args.add_argument("--decode-tokens", type=int, required=True)
    args.add_argument("--sequences", type=int, required=True)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_dtype({"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype])
    torch.set_grad_enabled(False)
    vision, text = Vision(args.vision_layers).eval(), Text(args.text_layers).eval()
    shape = (args.sequences, HEADS, SLOTS, DIM // HEADS)
    cache = [(torch.randn(shape), torch.randn(shape)) for _ in range(args.text_layers)]
    first = [(keys[:1], values[:1]) for keys, values in cache]
    # A picture's positions attend both ways.
    mask = torch.ones(PROMPT, PROMPT, dtype=torch.bool).tril()
    mask[:IMAGE, :IMAGE] = True
    x, crops = torch.randn(args.sequences, PROMPT, DIM), torch.randn(2, PATCHES, PATCH_BYTES)
    one, all_of_them = x[:1, :1].clone(), x[:, :1].clone()
    tokens = args.decode_tokens
    serve(
        f"PyTorch {torch.__version__}",
        {
            "vision 1": ways(vision, crops[:1].clone()),
            "vision 2": ways(vision, crops),
            "prefill": ways(text, x[:1].clone(), first, 0, mask),
            "decode 1": ways(text, one, first, CONTEXT, None, times=tokens),
            f"decode {args.sequences}": ways(text, all_of_them, cache, CONTEXT, None, times=tokens),
        },
    )


main()
