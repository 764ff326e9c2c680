"""`graft.py DEMO.safetensors OUT.safetensors --pictures BINARY --tokenizer FILE`: a Moondream 3 demo model that starts from the other one.

What both have is taken over: vision, attention, embeddings, the first blocks. Tau starts as the identity. What differs is
fitted to what the old model computes on pictures: a router that tells clusters of tokens apart, experts of the neurons that
matter most in their clusters, and linear region heads. `train.py --resume OUT.safetensors` goes on from there.
"""

import argparse
import itertools
import random

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer

from data import Batch, Prompts, pictures, to_pixels
from export import read, tensors
from model import CONFIGS, PREFIX, Model, gelu
from train import load, soft_ce

SEED = 2**38  # A part of the training seeds that no run reaches.


def ridge(x, y, strength=1e-3):
    """The matrix `w` for which `x @ w` is nearest to `y`."""
    square = x.T @ x
    return torch.linalg.solve(square + strength * square.diagonal().mean() * torch.eye(len(square)), x.T @ y)


def explained(y, guess):
    return 1 - ((y - guess).square().sum() / (y - y.mean(0)).square().sum()).item()


def clusters(x, count, rounds=30):
    """k-means: `[count, dim]` centers."""
    centers = x[torch.randperm(len(x))[:count]]
    for _ in range(rounds):
        nearest = torch.cdist(x, centers).argmin(1)
        centers = torch.stack([x[nearest == i].mean(0) if (nearest == i).any() else c for i, c in enumerate(centers)])
    return centers


@torch.no_grad()
def watch(model, prompts, binary, count):
    """Runs the tasks of `count` pictures. Returns the normed inputs of each block, and what the region heads see."""
    rng, inputs, regions = random.Random(SEED), [[] for _ in model.text_blocks], {"coord": [], "size": []}
    for i, block in enumerate(model.text_blocks):
        # Nobody reads what the last block makes of the prefix.
        first = PREFIX if block is model.text_blocks[-1] else 0
        block.ln.register_forward_hook(lambda _, __, out, i=i, first=first: inputs[i].append(out[:, first:].flatten(0, 1)))
    stream = pictures(binary, SEED, count)
    while part := list(itertools.islice(stream, 16)):
        batch = Batch([meta for meta, _ in part], prompts, rng, places=rng.random() < 0.5)
        x = model.wte[batch.ids]
        (cr, cc), (sr, sc) = batch.coord_at.T, batch.size_at.T
        x[cr, cc], x[sr, sc] = model.encode_coord(batch.coord), model.encode_size(batch.size)
        feats = model.vision(to_pixels([rgb for _, rgb in part]))
        hidden = model.text(torch.cat([model.prefix(feats), x], 1), batch.pos, batch.bias)
        regions["coord"].append((hidden[cr, cc - 1], batch.coord * 1024))
        regions["size"].append((hidden[sr, sc - 1], (batch.size.log2() + 10) / 10 * 1023))
    return [torch.cat(i) for i in inputs], {k: [torch.cat(t) for t in zip(*v)] for k, v in regions.items()}


@torch.no_grad()
def fit_experts(dense, block, x):
    """Makes the experts of `block` do to `x` what the MLP of `dense` does."""
    experts = block.experts
    active = gelu(dense.fc1(x))
    want = active @ dense.fc2.weight.T
    # An expert has no biases. That after the MLP joins attention's; that of its neurons becomes a direction in which all inputs are 1.
    block.proj.bias.add_(dense.fc2.bias)
    one = ridge(x, torch.ones(len(x), 1))
    centers = clusters(x, len(experts.up))
    sharpness = 4 / torch.cdist(x, centers).square().sort(1).values[:, :2].diff().mean()
    experts.router.weight.copy_(2 * sharpness * centers)
    experts.router.bias.copy_(-sharpness * centers.square().sum(1))
    chosen = experts.router(x).topk(experts.top).indices
    inner = experts.down.shape[-1]
    for e in range(len(experts.up)):
        mine = (chosen == e).any(1)
        weight = active[mine].std(0) * dense.fc2.weight.norm(dim=0)
        best = weight.topk(inner).indices
        experts.up[e, :inner] = dense.fc1.weight[best] + dense.fc1.bias[best, None] * one.T
        experts.up[e, inner:] = 0.02 * torch.randn(inner, x.shape[1])
        made = F.gelu(x[mine] @ experts.up[e, :inner].T) * (x[mine] @ experts.up[e, inner:].T + 1)
        experts.down[e] = ridge(made, want[mine]).T
        print(f"  expert {e}: {mine.sum() / len(x):.2f} of the tokens, explains {explained(want[mine], made @ experts.down[e].T):.3f}")
    print(f"  a constant: {explained_one(x, one):.3f}; together {explained(want, experts(x)):.3f}")


def explained_one(x, one):
    return 1 - (x @ one - 1).square().mean().item()


def fit_heads(model, regions, steps=600):
    """Trains the region heads on what they will see."""
    params = [p for n, p in model.named_parameters() if n.startswith(("coord_decoder", "size_decoder", "region_ln"))]
    optimizer = torch.optim.Adam(params, lr=3e-3)
    for step in range(steps):
        loss = 0
        for what, (hidden, bins) in regions.items():
            at = torch.randint(len(hidden), (256,))
            logits = model.coord_logits(hidden[at]) if what == "coord" else model.size_logits(hidden[at])
            pairs = [(logits, bins[at])] if what == "coord" else zip(logits.unbind(1), bins[at].unbind(1))
            loss = loss + sum(soft_ce(*pair) for pair in pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
    print(f"region heads: loss {loss.item():.3f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("demo")
    parser.add_argument("out")
    parser.add_argument("--pictures", required=True)
    parser.add_argument("--tokenizer", required=True, help="the new model's")
    parser.add_argument("--count", type=int, default=256, help="pictures to fit on")
    args = parser.parse_args()
    torch.manual_seed(1)
    old, new = Model(CONFIGS["demo"]), Model(CONFIGS["demo3"])
    load(old, read(args.demo, old.config))
    state = new.state_dict()
    with torch.no_grad():
        state["lm_head.weight"].mul_(0.1)
        state["lm_head.bias"].fill_(old.lm_head.bias.min().item())
        for name, value in old.state_dict().items():
            if name in state:
                # The vocabulary grew at its end.
                state[name][:len(value)].copy_(value) if value.ndim else state[name].copy_(value)
    inputs, regions = watch(old, Prompts(Tokenizer.from_file(args.tokenizer), old.config), args.pictures, args.count)
    for i, block in enumerate(new.text_blocks):
        if block.experts is not None:
            print(f"block {i}")
            fit_experts(old.text_blocks[i], block, inputs[i])
    fit_heads(new, regions)
    save_file(tensors(new), args.out, {"format": "pt"})


if __name__ == "__main__":
    main()
