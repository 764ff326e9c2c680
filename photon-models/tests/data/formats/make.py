"""Writes one tiny model in every layout that is read: `make.py OUTDIR`, with PyTorch, safetensors and numpy.

`md3.safetensors` has the Hugging Face names of Moondream 3 in bf16 and is the truth for the others: `kestrel.pt` and
`kestrel.safetensors` hold the same under the names of Moondream's engine, the first with e4m3 experts and scales.
`md2.safetensors` is a Moondream 2 and `int4.safetensors` the same with 4-bit matrices; `adapter.pt` is an adapter to the
Moondream 3. What codes stand for is written to `*_truth.safetensors` in f32, as PyTorch computes it.
"""

import json
import sys

import torch
from safetensors.torch import save_file

DIM, FF, HEADS, VOCAB, EXPERTS, INNER, ENC, PATCHES = 32, 48, 2, 16, 4, 8, 16, 9
CONFIG = {
    "text": {"dim": DIM, "ff_dim": FF, "n_layers": 2, "vocab_size": VOCAB, "max_context": 64, "n_heads": HEADS,
             "n_kv_heads": HEADS, "prefix_attn": 1 + PATCHES, "rotary_dims": 8},
    "vision": {"enc_dim": ENC, "enc_patch_size": 14, "enc_n_layers": 1, "enc_ff_dim": 24, "enc_n_heads": 2,
               "proj_out_dim": DIM, "crop_size": 42, "overlap_margin": 1, "proj_inner_dim": 24},
    "region": {"dim": DIM, "coord_feat_dim": 8, "coord_out_dim": 16, "size_feat_dim": 8, "size_out_dim": 32, "inner_dim": 24},
    "tokenizer": {"templates": {"caption": {"short": [1], "normal": [1], "long": [1]},
                                "query": {"prefix": [1], "suffix": [3]}, "detect": {"prefix": [1], "suffix": [3]},
                                "point": {"prefix": [1], "suffix": [3]}}},
}
MOE = {"moe": {"num_experts": EXPERTS, "start_layer": 1, "experts_per_token": 2, "expert_inner_dim": INNER}, "tau_attn": True}

torch.manual_seed(1)


def noise(*shape):
    return (torch.rand(shape) * 2 - 1).bfloat16()


def dense(out, name, n, k):
    out[f"{name}.weight"], out[f"{name}.bias"] = noise(n, k), noise(n)


def norm(out, name, dim):
    out[f"{name}.weight"], out[f"{name}.bias"] = noise(dim), noise(dim)


def model(md3, dim=DIM, ff=FF):
    out = {"model.text.wte": noise(VOCAB, dim)}
    for i in range(2):
        block = f"model.text.blocks.{i}"
        norm(out, f"{block}.ln", dim)
        dense(out, f"{block}.attn.qkv", 3 * dim, dim)
        dense(out, f"{block}.attn.proj", dim, dim)
        if md3:
            out[f"{block}.attn.tau.alpha"] = noise(HEADS)
            for leaf in ("wq", "wv"):
                out[f"{block}.attn.tau.{leaf}"] = noise(HEADS, 3 * dim)
        if md3 and i == 1:
            dense(out, f"{block}.mlp.router", EXPERTS, dim)
            out[f"{block}.mlp.fc1.weight"] = noise(EXPERTS, 2 * INNER, dim)
            out[f"{block}.mlp.fc2.weight"] = noise(EXPERTS, dim, INNER)
        else:
            dense(out, f"{block}.mlp.fc1", ff, dim)
            dense(out, f"{block}.mlp.fc2", dim, ff)
    norm(out, "model.text.post_ln", dim)
    dense(out, "model.text.lm_head", VOCAB, dim)
    dense(out, "model.vision.patch_emb", ENC, 588)
    out["model.vision.pos_emb"] = noise(1, PATCHES, ENC)
    block = "model.vision.blocks.0"
    for leaf in ("ln1", "ln2"):
        norm(out, f"{block}.{leaf}", ENC)
    for leaf, n, k in (("attn.qkv", 3 * ENC, ENC), ("attn.proj", ENC, ENC), ("mlp.fc1", 24, ENC), ("mlp.fc2", ENC, 24)):
        dense(out, f"{block}.{leaf}", n, k)
    norm(out, "model.vision.post_ln", ENC)
    dense(out, "model.vision.proj_mlp.fc1", 24, 2 * ENC)
    dense(out, "model.vision.proj_mlp.fc2", dim, 24)
    out["model.region.coord_features"], out["model.region.size_features"] = noise(1, 4), noise(2, 4)
    dense(out, "model.region.coord_encoder", dim, 8)
    dense(out, "model.region.size_encoder", dim, 8)
    for what, bins in (("coord", 16), ("size", 32)):
        if md3:
            dense(out, f"model.region.{what}_decoder", bins, dim)
        else:
            dense(out, f"model.region.{what}_decoder.fc1", 24, dim)
            dense(out, f"model.region.{what}_decoder.fc2", bins, 24)
    if md3:
        norm(out, "model.region.ln", dim)
    return out


TEXT = {"attn.qkv": "mixer.Wqkv", "attn.proj": "mixer.out_proj", "mlp.router": "gate", "mlp.fc1.weight": "mlp.experts.weight",
        "mlp.fc2.weight": "mlp.output_experts.weight", "attn.tau.alpha": "tau_alpha"}


def kestrel(tensors):
    out = {}
    for name, t in tensors.items():
        new = name
        if name == "model.text.wte":
            new = "text_model.transformer.embd.wte.weight"
        elif name.startswith("model.text.blocks."):
            index, leaf = name.removeprefix("model.text.blocks.").split(".", 1)
            if leaf in ("attn.tau.wq", "attn.tau.wv"):
                continue
            experts = t.ndim == 3
            for theirs, ours in TEXT.items():
                if leaf.startswith(theirs) and (experts or not theirs.endswith(".weight")):
                    leaf = ours + leaf.removeprefix(theirs)
            new = f"text_model.transformer.h.{index}.{leaf}"
        for theirs, ours in (("model.text.post_ln.", "text_model.lm_head.ln."), ("model.text.lm_head.", "text_model.lm_head.linear."),
                             ("model.vision.patch_emb.", "vision_encoder.encoder.model.visual.patch_embed.linear."),
                             ("model.vision.pos_emb", "vision_encoder.encoder.model.visual.pos_embed"),
                             ("model.vision.post_ln.", "vision_encoder.encoder.model.visual.norm."),
                             ("model.vision.blocks.", "vision_encoder.encoder.model.visual.blocks."),
                             ("model.vision.proj_mlp.", "vision_encoder.projection.mlp."),
                             ("model.region.coord_encoder.", "region_model.coordinate_encoder."),
                             ("model.region.coord_decoder.", "region_model.coordinate_head."),
                             ("model.region.size_encoder.", "region_model.size_encoder."),
                             ("model.region.size_decoder.", "region_model.size_head."), ("model.region.ln.", "region_model.ln.")):
            new = new.replace(theirs, ours)
        if "visual.blocks" in new:
            new = new.replace(".ln1.", ".norm1.").replace(".ln2.", ".norm2.")
        if name.endswith("_features"):
            new = {"model.region.coord_features": "region_model.coordinate_features.weight",
                   "model.region.size_features": "region_model.size_features.weight"}[name]
            t = t.t().contiguous()
        out[new] = t
    for i in range(2):
        parts = [tensors[f"model.text.blocks.{i}.attn.tau.{leaf}"] for leaf in ("wq", "wv")]
        out[f"text_model.transformer.h.{i}.tau_wqwv"] = torch.cat(parts)
    return out


def fp8_experts(tensors):
    """The same with e4m3 experts, and what those stand for by their usual names."""
    out, truth = dict(tensors), {}
    for leaf, scale, usual in (("mlp.experts.weight", "up_scale", "fc1"), ("mlp.output_experts.weight", "down_scale", "fc2")):
        name = f"text_model.transformer.h.1.{leaf}"
        t = out[name].float()
        scales = t.abs().amax(-1) / 448
        codes = (t / scales[..., None]).to(torch.float8_e4m3fn)
        out[name], out[f"text_model.transformer.h.1.moe_quant.{scale}"] = codes, scales
        truth[f"model.text.blocks.1.mlp.{usual}.weight"] = codes.float() * scales[..., None]
    out["text_model.transformer.h.1.kv_quantizer.k_scale"] = torch.tensor([0.5])
    out["text_model.transformer.h.1.kv_quantizer.v_scale"] = torch.tensor([0.25])
    return out, truth


def int4(tensors):
    """The published 4-bit packing of the text model's matrices, and what they stand for."""
    out, truth = dict(tensors), {}
    for name, t in tensors.items():
        if not (name.startswith("model.text.blocks.") and name.endswith(".weight") and t.ndim == 2):
            continue
        groups = t.float().reshape(-1, 128)
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        scale = ((high - low) / 15).bfloat16()
        zero = (-low / scale.float()).bfloat16()
        q = (groups / scale.float() + zero.float()).round().clamp(0, 15).to(torch.uint8)
        half = q.shape[0] // 2
        del out[name]
        out[f"{name}.packed"] = q[:half] << 4 | q[half:]
        out[f"{name}.scale"], out[f"{name}.zero_point"] = scale, zero
        truth[name] = ((q.float() - zero.float()) * scale.float()).reshape(t.shape)
    return out, truth


def main(out):
    md3 = model(True)
    save_file(md3, f"{out}/md3.safetensors")
    theirs = kestrel(md3)
    save_file(theirs, f"{out}/kestrel.safetensors")
    coded, truth = fp8_experts(theirs)
    torch.save(coded, f"{out}/kestrel.pt")
    save_file(truth, f"{out}/kestrel_truth.safetensors")
    # Rows of 32 are shorter than a group of 4-bit weights; the second Moondream 2 is wide enough for whole groups.
    md2 = model(False, dim=DIM, ff=128)
    save_file(md2, f"{out}/md2.safetensors")
    coded, truth = int4(md2)
    save_file(coded, f"{out}/int4.safetensors")
    save_file(truth, f"{out}/int4_truth.safetensors")
    lora = {"text_lora": {"dense": [{"up_a": noise(2, DIM), "up_b": noise(FF, 2)}],
                          "moe": [{"down_a": noise(EXPERTS, 2, INNER), "down_b": noise(EXPERTS, DIM, 2)}]}, "rank": 4}
    torch.save(lora, f"{out}/adapter.pt")
    for name, text in (("md3", CONFIG["text"] | MOE), ("md2", CONFIG["text"] | {"ff_dim": 128})):
        with open(f"{out}/{name}.json", "w", encoding="utf-8") as file:
            json.dump({"config": CONFIG | {"text": text}}, file, indent=1)
            file.write("\n")


main(sys.argv[1])
