"""`export.py CHECKPOINT TOKENIZER OUTDIR --model demo|demo3 [--pictures BINARY]`: the averaged weights as a Moondream checkpoint.

Writes `model.safetensors` (bf16), `config.json` and `tokenizer.json`. With `--pictures` also `expected.json` and
`expected/*.png`: what these very weights, rounded to bf16 and run in f32, answer on four pictures at native size that
Pillow resizes with Lanczos. An engine can be checked against it; nothing else of the training is needed for that.
"""

import argparse
import json
import os
import shutil
import subprocess

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from data import SIDE, Prompts, pictures, to_pixels
from evaluate import generate, path_of
from model import CONFIGS, Model, moondream3

EXPECTED_SEEDS = 2**40  # Never trained on.
MAX_SIDE = 340  # Of the stored pictures, in pixels.


def names(config):
    """Pairs of Moondream's name and ours, for all tensors but the projector's first weight."""
    pairs = [("vision.pos_emb", "pos_emb"), ("text.wte", "wte")]

    def put(name, source):
        pairs.extend((f"{name}.{leaf}", f"{source}.{leaf}") for leaf in ("weight", "bias"))

    for kind, norms in (("vision", ("ln1", "ln2")), ("text", ("ln",))):
        for i in range(config[kind]["enc_n_layers" if kind == "vision" else "n_layers"]):
            ours, theirs = f"{kind}_blocks.{i}", f"{kind}.blocks.{i}"
            for norm in norms:
                put(f"{theirs}.{norm}", f"{ours}.{norm}")
            put(f"{theirs}.attn.qkv", f"{ours}.qkv")
            put(f"{theirs}.attn.proj", f"{ours}.proj")
            if kind == "text" and config[kind].get("tau_attn"):
                pairs.extend((f"{theirs}.attn.tau.{leaf}", f"{ours}.tau.{leaf}") for leaf in ("alpha", "wq", "wv"))
            if kind == "text" and moondream3(config) and i >= config[kind]["moe"]["start_layer"]:
                put(f"{theirs}.mlp.router", f"{ours}.experts.router")
                pairs.append((f"{theirs}.mlp.fc1.weight", f"{ours}.experts.up"))
                pairs.append((f"{theirs}.mlp.fc2.weight", f"{ours}.experts.down"))
            else:
                put(f"{theirs}.mlp.fc1", f"{ours}.fc1")
                put(f"{theirs}.mlp.fc2", f"{ours}.fc2")
    put("vision.patch_emb", "patch_emb")
    put("vision.post_ln", "vision_ln")
    pairs.append(("vision.proj_mlp.fc1.bias", "proj1.bias"))
    put("vision.proj_mlp.fc2", "proj2")
    put("text.post_ln", "text_ln")
    put("text.lm_head", "lm_head")
    for what in ("coord", "size"):
        pairs.append((f"region.{what}_features", f"{what}_features"))
        put(f"region.{what}_encoder", f"{what}_encoder")
        if moondream3(config):
            put(f"region.{what}_decoder", f"{what}_decoder")
        else:
            put(f"region.{what}_decoder.fc1", f"{what}1")
            put(f"region.{what}_decoder.fc2", f"{what}2")
    if moondream3(config):
        put("region.ln", "region_ln")
    return [(f"model.{theirs}", ours) for theirs, ours in pairs]


PROJECTOR = "model.vision.proj_mlp.fc1.weight"


def tensors(model):
    """The checkpoint's tensors by Moondream's names, in bf16."""
    state = model.state_dict()
    out = {theirs: state[ours] for theirs, ours in names(model.config)}
    # Both inputs of the projector are the same vector here, so each half of the weight is half of what was trained.
    half = state["proj1.weight"] / 2
    out[PROJECTOR] = torch.cat([half, half], 1)
    return {name: t.bfloat16().contiguous() for name, t in out.items()}


def read(path, config):
    """The state of an exported model, without the readers that only training has."""
    theirs = {name: t.float() for name, t in load_file(path).items()}
    state = {ours: theirs[name] for name, ours in names(config)}
    left, right = theirs[PROJECTOR].chunk(2, 1)
    state["proj1.weight"] = left + right
    return state


def rounded(model):
    """The model as an engine sees it after loading: weights that bf16 can hold, as f32."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16().float())
    return model


def shrink(image):
    """What the engine does to a picture of any size: `[112, 112, 3]` u8."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.LANCZOS))


def expected(model, prompts, binary, outdir):
    """Draws four small pictures into `outdir/expected` and returns what the model answers."""
    folder = os.path.join(outdir, "expected")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    chosen = [m for m, _ in pictures(binary, EXPECTED_SEEDS, 200)
              if max(m["width"], m["height"]) <= MAX_SIDE and len(m["objects"]) > 1]
    chosen = sorted(chosen, key=lambda m: m["text"] is None)[:2] + [m for m in chosen if m["text"] is None][:2]
    items = []
    for meta in chosen:
        subprocess.run([binary, "draw", "--seed", str(meta["seed"]), "--count", "1", folder], check=True)
        os.remove(f"{folder}/{meta['seed']}.json")
        name = f"{meta['seed']}.png"
        feats = model.vision(to_pixels([shrink(Image.open(f"{folder}/{name}"))]))
        queries = [t for t in meta["tasks"] if t["skill"] == "query"]
        text = [t for t in queries if t["kind"] == "text"] if meta["text"] else []
        tasks = [t for t in meta["tasks"] if t.get("length") == "short"] + (text + queries)[:2]
        tasks += [next(t for t in meta["tasks"] if t["skill"] == s and t["boxes"]) for s in ("detect", "point")]
        if "segment" in prompts.templates:
            tasks += [t for t in meta["tasks"] if t["skill"] == "segment"][:1]
        ids, numbers = generate(model, feats, [0] * len(tasks), [prompts.question(t) for t in tasks],
                                [t["skill"] for t in tasks])
        answers = []
        for task, out, values in zip(tasks, ids, numbers):
            answer = {k: task[k] for k in ("skill", "length", "question", "object") if k in task}
            answer |= {"prompt": [0] + prompts.question(task), "tokens": out}
            if task["skill"] == "detect":
                answer["boxes"] = [list(b) for b in zip(*[iter(values)] * 4)]  # x, y, width, height; x and y centers
            elif task["skill"] == "point":
                answer["points"] = [list(p) for p in zip(*[iter(values)] * 2)]
            elif task["skill"] == "segment":
                answer["boxes"] = [values]
                answer["path"] = path_of(out, prompts.tokenizer)
            else:
                answer["text"] = prompts.tokenizer.decode([t for t in out if t])
                answer["truth"] = task["answer"]
            answers.append(answer)
        items.append({"image": f"expected/{name}", "size": [meta["width"], meta["height"]], "answers": answers})
    return {"note": "boxes are [center x, center y, width, height] and points [x, y], in parts of the picture, paths in parts of the box",
            "pictures": items}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("tokenizer")
    parser.add_argument("outdir")
    parser.add_argument("--model", choices=CONFIGS, default="demo")
    parser.add_argument("--pictures")
    args = parser.parse_args()
    os.makedirs(args.outdir, exist_ok=True)
    model = Model(CONFIGS[args.model])
    model.load_state_dict(torch.load(args.checkpoint)["ema"], strict=False)
    model = rounded(model)
    save_file(tensors(model), f"{args.outdir}/model.safetensors", {"format": "pt"})
    with open(f"{args.outdir}/config.json", "w", encoding="utf-8") as file:
        json.dump({"config": model.config}, file, indent=1)
        file.write("\n")
    shutil.copyfile(args.tokenizer, f"{args.outdir}/tokenizer.json")
    if args.pictures:
        with torch.no_grad():
            found = expected(model, Prompts(Tokenizer.from_file(args.tokenizer), model.config), args.pictures, args.outdir)
        with open(f"{args.outdir}/expected.json", "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
            file.write("\n")
    print(f"{os.path.getsize(f'{args.outdir}/model.safetensors')} bytes of weights")
