"""The demo models: the architectures of Moondream 2 and 3 at a size that trains on a laptop.

Numbers live in `CONFIGS`, of which one is written out as `config.json`; names of the exported tensors are made in `export.py`.
Two shortcuts are exact: the picture is its own only crop, so the projector's first layer sees the same vector twice and is
trained as one half; and the last text block ends at the text, since nobody reads its output for the image prefix.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

PATCH, GRID, ROTARY = 14, 8, 32
PREFIX = 1 + GRID * GRID

DEMO = {
    "text": {
        "dim": 192, "ff_dim": 512, "n_layers": 4, "vocab_size": 512, "max_context": 512,
        "n_heads": 3, "n_kv_heads": 3, "prefix_attn": PREFIX,
    },
    "vision": {
        "enc_dim": 160, "enc_patch_size": PATCH, "enc_n_layers": 6, "enc_ff_dim": 480, "enc_n_heads": 5,
        "proj_out_dim": 192, "crop_size": PATCH * GRID, "in_channels": 3, "max_crops": 1, "overlap_margin": 1,
        "proj_inner_dim": 384,
    },
    "region": {
        "dim": 192, "coord_feat_dim": 256, "coord_out_dim": 1024, "size_feat_dim": 512, "size_out_dim": 2048,
        "inner_dim": 128,
    },
    "tokenizer": {
        "bos_id": 0, "eos_id": 0, "answer_id": 3, "thinking_id": 4, "coord_id": 5, "size_id": 6,
        "start_ground_points_id": 7, "end_ground_id": 9,
        "templates": {
            "caption": {"short": [1, 10, 2, 11, 3], "normal": [1, 10, 2, 12, 3], "long": [1, 10, 2, 13, 3]},
            "query": {"prefix": [1, 14, 2], "suffix": [3]},
            "detect": {"prefix": [1, 15, 16, 2], "suffix": [3]},
            "point": {"prefix": [1, 17, 2], "suffix": [3]},
        },
    },
}
GRAIN = 32  # An outline's numbers are multiples of this in a box of `VIEW`; each has an id of its own.
VIEW = 960
NUMBERS = range(0, VIEW + 1, GRAIN)
DEMO3 = {
    "text": DEMO["text"] | {
        "vocab_size": DEMO["text"]["vocab_size"] + len(NUMBERS), "rope_theta": 10000.0, "tau_attn": True,
        "moe": {"num_experts": 8, "start_layer": 2, "experts_per_token": 2, "expert_inner_dim": 128},
    },
    "vision": DEMO["vision"],
    "region": {key: value for key, value in DEMO["region"].items() if key != "inner_dim"},
    "tokenizer": DEMO["tokenizer"] | {
        "templates": DEMO["tokenizer"]["templates"] | {"segment": {"prefix": [1, 18, 2], "suffix": [3]}},
    },
}
CONFIGS = {"demo": DEMO, "demo3": DEMO3}
RESERVED = 20  # Control and template ids before the 256 bytes.
BOS = EOS = 0
ANSWER, COORD, SIZE = 3, 5, 6

SHAPES = 7  # The generator's five, no object, text.
COLORS = 9  # The generator's eight, none.
CHARS = "abcdefghijklmnopqrstuvwxyz0123456789"
TEXT_LEN = 6


def moondream3(config):
    """Whether a model is of the later family: the one with tau and experts."""
    return "moe" in config["text"]


def number_token(value):
    """How the vocabulary writes a number of an outline: with a space, which no text's merges reach."""
    return f"\u0120{value}"


def gelu_tanh(x):
    # The tanh form, written with a sigmoid: equal, and faster on a CPU.
    return x * torch.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


# Fused by the compiler: 8 ms there and back for 4 M values, against 15 ms for `F.gelu` (2 cores, AVX2).
gelu = torch.compile(gelu_tanh, dynamic=True)


def attention(q, k, v):
    # Two products and a softmax: half the time of the fused call at 64 tokens on a CPU.
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v


class VisionBlock(nn.Module):
    def __init__(self, dim, heads, ff):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, ff), nn.Linear(ff, dim)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(attention(q, k, v).transpose(1, 2).reshape(b, t, d))
        return x + self.fc2(gelu(self.fc1(self.ln2(x))))


def rotate(x, cos, sin):
    """Rotates dims j and j+16 of the first 32 by the position's angle; `cos` and `sin` are `[.., tokens, 16]`."""
    a, b, rest = x[..., :16], x[..., 16:ROTARY], x[..., ROTARY:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)


class Tau(nn.Module):
    """Factors of queries and values by content and position; at the start all are 1."""

    def __init__(self, dim, heads):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(heads))
        self.wq, self.wv = (nn.Parameter(torch.zeros(heads, 3 * dim)) for _ in range(2))

    def forward(self, qkv, pos):
        """`[rows, tokens, 3 dim]` to two factors `[rows, heads, tokens, 1]`; `pos` `[.., tokens]`."""
        by_place = torch.sigmoid(self.alpha * torch.log(pos.float() + 1)[..., None]) + 0.5
        seen = gelu_tanh(qkv)
        return ((torch.tanh(F.linear(seen, w)) + by_place).mT[..., None] for w in (self.wq, self.wv))


class Experts(nn.Module):
    """Gated experts in place of an MLP; each token goes to the `top` that the router rates highest."""

    def __init__(self, dim, num_experts, experts_per_token, expert_inner_dim, **_):
        super().__init__()
        self.top = experts_per_token
        self.router = nn.Linear(dim, num_experts)
        self.up = nn.Parameter(torch.randn(num_experts, 2 * expert_inner_dim, dim) * dim**-0.5)
        self.down = nn.Parameter(torch.randn(num_experts, dim, expert_inner_dim) * 0.02)

    def forward(self, n):
        x = n.flatten(0, -2)
        logits = self.router(x)
        rated, chosen = logits.topk(self.top)
        weights, out = rated.softmax(-1), torch.zeros_like(x)
        for expert in range(len(self.up)):
            token, rank = (chosen == expert).nonzero(as_tuple=True)
            h, g = F.linear(x[token], self.up[expert]).chunk(2, -1)
            y = F.linear(F.gelu(h) * (g + 1), self.down[expert])
            out.index_add_(0, token, y * weights[token, rank, None])
        # 1 when all experts have equal shares, more when a few have most; for training only.
        share = F.one_hot(chosen, len(self.up)).sum(1).float().mean(0) / self.top
        self.balance = len(self.up) * (share * logits.softmax(-1).mean(0)).sum()
        return out.view_as(n)


class TextBlock(nn.Module):
    def __init__(self, text, layer):
        super().__init__()
        dim, moe = text["dim"], text.get("moe")
        self.heads = text["n_heads"]
        self.ln = nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.tau = Tau(dim, self.heads) if text.get("tau_attn") else None
        self.experts = Experts(dim, **moe) if moe and layer >= moe["start_layer"] else None
        if self.experts is None:
            self.fc1, self.fc2 = nn.Linear(dim, text["ff_dim"]), nn.Linear(text["ff_dim"], dim)

    def project(self, n, pos):
        """`[rows, tokens, dim]` to rotated q, k and v, each `[rows, heads, tokens, head_dim]`; `pos` `[.., tokens]`."""
        b, t, _ = n.shape
        qkv = self.qkv(n)
        q, k, v = qkv.view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.tau is not None:
            by_q, by_v = self.tau(qkv, pos)
            q, v = q * by_q, v * by_v
        cos, sin = (a.unsqueeze(-3) for a in angles(pos))
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def mlp(self, n):
        return self.fc2(gelu(self.fc1(n))) if self.experts is None else self.experts(n)

    def forward(self, x, pos, bias):
        """One block over prefix and text; `bias` `[rows, 1, text, PREFIX + text]` is the text's attention bias."""
        b, t, d = x.shape
        n = self.ln(x)
        q, k, v = self.project(n, pos)
        prefix = attention(q[:, :, :PREFIX], k[:, :, :PREFIX], v[:, :, :PREFIX])
        text = F.scaled_dot_product_attention(q[:, :, PREFIX:], k, v, attn_mask=bias)
        out = torch.cat([prefix, text], 2).transpose(1, 2).reshape(b, t, d)
        return x + self.proj(out) + self.mlp(n)

    def last(self, x, pos, bias):
        """As `forward`, for the text positions only."""
        b, t, d = x.shape
        n = self.ln(x)
        q, k, v = self.project(n, pos)
        out = F.scaled_dot_product_attention(q[:, :, PREFIX:], k, v, attn_mask=bias).transpose(1, 2).reshape(b, t - PREFIX, d)
        return x[:, PREFIX:] + self.proj(out) + self.mlp(n[:, PREFIX:])


def angles(pos):
    """`[..]` positions to cos and sin `[.., 16]`."""
    a = pos.float()[..., None] * 1e4 ** (-torch.arange(0, ROTARY, 2).float() / ROTARY)
    return a.cos(), a.sin()


def sincos(dim):
    """A start for the position table that already knows the grid: `[1, 64, dim]`."""
    y, x = torch.meshgrid(torch.arange(GRID).float(), torch.arange(GRID).float(), indexing="ij")
    w = math.pi / GRID * torch.linspace(0.5, GRID / 2, dim // 4)
    waves = [f(v.flatten()[:, None] * w) for v in (x, y) for f in (torch.sin, torch.cos)]
    return 0.5 * torch.cat(waves, 1)[None]


class Aux(nn.Module):
    """Linear readers for training only, which tell the encoder what each patch shows.

    `read` sees the projected image tokens. `early` sees the output of block `EARLY` and asks for what does not need the
    neighbors: which of the patch's 7 x 7 cells an object or letter covers, and the letter at its middle.
    """

    EARLY = 2
    CHAR = len(CHARS) + 1
    SPLIT = [SHAPES, COLORS, 4, 5, 6, TEXT_LEN * CHAR]
    EARLY_SPLIT = [49, CHAR, TEXT_LEN]

    def __init__(self, vision_dim, dim):
        super().__init__()
        self.read = nn.Linear(dim, sum(self.SPLIT))
        self.early_ln = nn.LayerNorm(vision_dim)
        self.early = nn.Linear(vision_dim, sum(self.EARLY_SPLIT))
        self.place = nn.Linear(dim, 2)  # The object's center in the picture, -2..2: what the coordinates need.
        # At the end of an object's name after two text blocks, its center; at the end of a relation's second name after
        # three, how far the first is from it.
        self.named, self.apart = nn.Linear(dim, 2), nn.Linear(dim, 2)

    def forward(self, feats, early):
        return self.read(feats).split(self.SPLIT, -1) + self.early(self.early_ln(early)).split(self.EARLY_SPLIT, -1)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        t, v, r = config["text"], config["vision"], config["region"]
        e, d = v["enc_dim"], t["dim"]
        self.patch_emb = nn.Linear(3 * PATCH * PATCH, e)
        self.pos_emb = nn.Parameter(sincos(e))
        self.vision_blocks = nn.ModuleList(
            VisionBlock(e, v["enc_n_heads"], v["enc_ff_dim"]) for _ in range(v["enc_n_layers"]))
        self.vision_ln = nn.LayerNorm(e)
        self.proj1, self.proj2 = nn.Linear(e, v["proj_inner_dim"]), nn.Linear(v["proj_inner_dim"], d)
        self.wte = nn.Parameter(torch.randn(t["vocab_size"], d) * 0.5)
        self.text_blocks = nn.ModuleList(TextBlock(t, layer) for layer in range(t["n_layers"]))
        self.text_ln = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, t["vocab_size"])
        for name, rows, dim in (("coord_features", 1, r["coord_feat_dim"]), ("size_features", 2, r["size_feat_dim"])):
            # Fixed; exact in bf16, the type they are exported in.
            self.register_buffer(name, torch.randn(rows, dim // 2).bfloat16().float())
        self.coord_encoder, self.size_encoder = nn.Linear(r["coord_feat_dim"], d), nn.Linear(r["size_feat_dim"], d)
        if moondream3(config):
            self.region_ln = nn.LayerNorm(d)
            self.coord_decoder, self.size_decoder = nn.Linear(d, r["coord_out_dim"]), nn.Linear(d, r["size_out_dim"])
        else:
            self.coord1, self.coord2 = nn.Linear(d, r["inner_dim"]), nn.Linear(r["inner_dim"], r["coord_out_dim"])
            self.size1, self.size2 = nn.Linear(d, r["inner_dim"]), nn.Linear(r["inner_dim"], r["size_out_dim"])
        self.aux = Aux(e, d)
        for block in [*self.vision_blocks, *self.text_blocks]:
            # Blocks start close to the identity.
            for layer in (m for m in (block.proj, getattr(block, "fc2", None)) if m is not None):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(layer.in_features / 128))
        for layer in [m for m in self.modules() if isinstance(m, nn.Linear)]:
            nn.init.zeros_(layer.bias)

    def vision(self, pixels):
        """`[rows, 3, 112, 112]` in -1..1 to projected tokens `[rows, 64, dim]`."""
        b = pixels.shape[0]
        x = pixels.view(b, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(b, GRID * GRID, -1)
        x = self.patch_emb(x) + self.pos_emb
        for i, block in enumerate(self.vision_blocks):
            x = block(x)
            if i == Aux.EARLY:
                self.early = x
        return self.proj2(gelu(self.proj1(self.vision_ln(x))))

    def prefix(self, feats):
        """BOS and image tokens, `[rows, PREFIX, dim]`."""
        return torch.cat([self.wte[BOS].expand(feats.shape[0], 1, -1), feats], 1)

    def text(self, x, pos, bias):
        """The block output at the text positions, `[rows, text, dim]`; `pos` `[rows, PREFIX + text]`."""
        self.depths = []
        for block in self.text_blocks[:-1]:
            x = block(x, pos, bias)
            self.depths.append(x[:, PREFIX:])
        return self.text_blocks[-1].last(x, pos, bias)

    def logits(self, hidden):
        return self.lm_head(self.text_ln(hidden))

    @staticmethod
    def fourier(x, features):
        f = 2 * math.pi * x @ features
        return torch.cat([f.cos(), f.sin()], -1)

    def encode_coord(self, value):
        """`[n]` coordinates in 0..1 to `[n, dim]`."""
        return self.coord_encoder(self.fourier(value[:, None], self.coord_features))

    def encode_size(self, wh):
        """`[n, 2]` widths and heights in 0..1 to `[n, dim]`."""
        return self.size_encoder(self.fourier(wh, self.size_features))

    def coord_logits(self, hidden):
        if moondream3(self.config):
            return self.coord_decoder(self.region_ln(hidden))
        return self.coord2(gelu(self.coord1(hidden)))

    def size_logits(self, hidden):
        """`[n, dim]` to `[n, 2, 1024]`."""
        if moondream3(self.config):
            return self.size_decoder(self.region_ln(hidden)).unflatten(-1, (2, -1))
        return self.size2(gelu(self.size1(hidden))).unflatten(-1, (2, -1))
