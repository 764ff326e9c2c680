"""Greedy generation and scores on fresh pictures.

`evaluate.py CHECKPOINT --model demo|demo3 --pictures BINARY --tokenizer FILE [--seed S] [--count N]` scores the averaged weights
of a checkpoint.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer

from data import SIDE, Prompts, pictures, to_pixels
from model import ANSWER, CONFIGS, COORD, EOS, PREFIX, RESERVED, SIZE, VIEW, Model, attention, moondream3


class Cache:
    """K and V of every text layer for a batch of rows, with the image prefix already in."""

    def __init__(self, model, feats, rows, room):
        """`feats` `[pictures, 64, dim]`; `rows` gives each row's picture."""
        self.model, self.at, self.kv = model, PREFIX, []
        x = model.prefix(feats)
        for block in model.text_blocks:
            n = block.ln(x)
            q, k, v = block.project(n, torch.arange(PREFIX))
            store = [torch.zeros(len(rows), *t.shape[1:2], PREFIX + room, t.shape[-1]) for t in (k, v)]
            for s, t in zip(store, (k, v)):
                s[:, :, :PREFIX] = t[rows]
            self.kv.append(store)
            out = attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + block.proj(out) + block.mlp(n)

    def step(self, x):
        """One more token of every row: `[rows, dim]` to the block output `[rows, dim]`."""
        x, pos = x[:, None], torch.tensor([self.at])
        for block, (keys, values) in zip(self.model.text_blocks, self.kv):
            n = block.ln(x)
            q, k, v = block.project(n, pos)
            keys[:, :, self.at], values[:, :, self.at] = k[:, :, 0], v[:, :, 0]
            out = attention(q, keys[:, :, :self.at + 1], values[:, :, :self.at + 1]).transpose(1, 2).flatten(2)
            x = x + block.proj(out) + block.mlp(n)
        self.at += 1
        return x[:, 0]


def pick(model, hidden, skills, states):
    """The next token of each row under the rules of its skill, with its value: (id, numbers or None)."""
    logits = model.logits(hidden)
    if not moondream3(model.config):
        logits[:, ANSWER] = -torch.inf
    for i, skill in enumerate(skills):
        if skill in ("detect", "point"):
            allowed = {"x": [COORD, EOS], "y": [COORD], "size": [SIZE]}[states[i]]
            keep = logits[i, allowed].clone()
            logits[i] = -torch.inf
            logits[i, allowed] = keep
    ids = logits.argmax(-1)
    coord = model.coord_logits(hidden).argmax(-1) / 1024
    size = 2 ** (model.size_logits(hidden).argmax(-1) / 1023 * 10 - 10)
    return ids, coord, size


@torch.no_grad()
def generate(model, feats, rows, prompts, skills, most=64):
    """Runs all prompts in lockstep. Returns for each row (ids, numbers): the coordinates and sizes in order."""
    longest = max(map(len, prompts))
    cache = Cache(model, feats, torch.tensor(rows), longest + most)
    ids, numbers = [[] for _ in prompts], [[] for _ in prompts]
    done, states = [False] * len(prompts), ["x"] * len(prompts)
    x = model.wte[torch.tensor([p[0] for p in prompts])]
    for at in range(longest + most - 1):
        hidden = cache.step(x)
        picked, coord, size = pick(model, hidden, skills, states)
        x = model.wte[picked].clone()
        ec, es = model.encode_coord(coord), model.encode_size(size)
        for i, prompt in enumerate(prompts):
            if at + 1 < len(prompt):
                x[i] = model.wte[prompt[at + 1]]
                continue
            if done[i]:
                continue
            token = int(picked[i])
            ids[i].append(token)
            if token == EOS or len(ids[i]) >= most:
                done[i] = True
            elif token == COORD:
                numbers[i].append(float(coord[i]))
                x[i] = ec[i]
            elif token == SIZE:
                numbers[i] += size[i].tolist()
                x[i] = es[i]
            if skills[i] == "detect":
                states[i] = {"x": "y", "y": "size", "size": "x"}[states[i]]
            elif skills[i] == "point":
                states[i] = "y" if states[i] == "x" else "x"
        if all(done):
            break
    return ids, numbers


def boxes_of(numbers):
    return [[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h in zip(*[iter(numbers)] * 4)]


def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def path_of(ids, tokenizer):
    """The words of an outline's ids, numbers in parts of the box to three decimals."""
    def part(word):
        return f"{int(word) / VIEW:.3f}".rstrip("0").rstrip(".") if word.isdigit() else word
    return " ".join(part(tokenizer.decode([i]).strip()) for i in ids if i > RESERVED)


def mask(path, box, side=400):
    """What an outline of the commands M, L, C and Z covers of the picture, `[side, side]`."""
    corners, handles = [], []
    for command, numbers in re.findall(r"([A-Z])([^A-Z]*)", path):
        numbers = [float(n) for n in re.findall(r"[\d.]+", numbers)]
        for x, y in zip(*[iter(numbers)] * 2):
            point = np.array([box[0] + x * (box[2] - box[0]), box[1] + y * (box[3] - box[1])]) * side
            if command != "C" or not corners:
                corners.append(point)
            elif len(handles) < 2:
                handles.append(point)
            else:
                t = np.linspace(0, 1, 17)[1:, None]
                (a, b), start = handles, corners[-1]
                corners += list((1 - t)**3 * start + 3 * t * (1 - t)**2 * a + 3 * t * t * (1 - t) * b + t**3 * point)
                handles = []
    image = Image.new("1", (side, side))
    if len(corners) > 2:
        ImageDraw.Draw(image).polygon([tuple(c) for c in corners], fill=1)
    return np.asarray(image)


def matched(got, want, fits):
    """How many of `got` fit a distinct one of `want`, greedily."""
    left, hits = list(want), 0
    for g in got:
        best = max(left, key=lambda w: fits(g, w), default=None)
        if best is not None and fits(g, best) >= 0.5:
            left.remove(best)
            hits += 1
    return hits


def names(text):
    """The colored shapes a caption names, as a multiset."""
    words = text.lower().replace(",", " ").replace(".", " ").split()
    shapes = {"circle", "square", "triangle", "star", "cross"}
    return Counter((a, b) for a, b in zip(words, words[1:]) if b in shapes)


def score(skill, task, meta, text, numbers):
    """Yields (measure, hits, of) for one answer; `text` is a path for an outline."""
    if skill == "segment":
        got = mask(text, boxes_of(numbers)[0]) if len(numbers) >= 4 else np.zeros(1, bool)
        want = mask(task["path"], task["box"])
        yield "segment IoU", (got & want).sum() / (got | want).sum(), 1
    elif skill == "query":
        yield "query " + task["kind"], text == task["answer"], 1
        yield "query", text == task["answer"], 1
    elif skill == "caption":
        want = Counter((o["color"], o["shape"]) for o in meta["objects"])
        yield f"caption {task['length']} objects", names(text) == want, 1
        yield f"caption {task['length']} exact", text == task["answer"], 1
        if meta["text"]:
            yield "caption text", meta["text"]["value"] in text, 1
    elif skill == "detect":
        got = boxes_of(numbers)
        # 2 hits / (found + true) is F1.
        yield "detect F1", 2 * matched(got, task["boxes"], iou), len(got) + len(task["boxes"])
    else:
        got = list(zip(*[iter(numbers)] * 2))
        inside = lambda p, b: float(b[0] <= p[0] <= b[2] and b[1] <= p[1] <= b[3])
        yield "point", len(got) == len(task["boxes"]) == matched(got, task["boxes"], inside), 1


def sample(meta, skills, everything):
    """The first task of each kind, or all tasks, of the skills that the model has."""
    known = [task for task in meta["tasks"] if task["skill"] in skills]
    if everything:
        return known
    tasks, seen = [], Counter()
    for task in known:
        key = (task["skill"], task.get("kind"))
        seen[key] += 1
        if seen[key] <= 1:
            tasks.append(task)
    return tasks


@torch.no_grad()
def evaluate(model, binary, prompts, seed, count, everything=False, sources=None):
    """Scores on `count` pictures from `seed` on; `sources` replaces the generator's stream."""
    total = Counter(), Counter()
    batch = list(sources or pictures(binary, seed, count))
    for begin in range(0, len(batch), 48):
        part = batch[begin:begin + 48]
        feats = model.vision(to_pixels([rgb for _, rgb in part]))
        items = [(i, task) for i, (meta, _) in enumerate(part) for task in sample(meta, prompts.templates, everything)]
        # Alike in length, so that the lockstep wastes little.
        for group in (["query"], ["detect", "point"], ["caption"], ["segment"]):
            some = [(i, task) for i, task in items if task["skill"] in group]
            if not some:
                continue
            ids, numbers = generate(model, feats, [i for i, _ in some], [prompts.question(t) for _, t in some],
                                    [t["skill"] for _, t in some])
            for (i, task), out, values in zip(some, ids, numbers):
                text = (path_of(out, prompts.tokenizer) if task["skill"] == "segment"
                        else prompts.tokenizer.decode([t for t in out if t != EOS]))
                for name, hits, of in score(task["skill"], task, part[i][0], text, values):
                    total[0][name] += hits
                    total[1][name] += of
    return {name: round(total[0][name] / total[1][name], 3) for name in sorted(total[1]) if total[1][name]}


def native(binary, seed, count):
    """As `pictures`, but drawn at native size and shrunk by Pillow's Lanczos, as an engine does."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([binary, "draw", "--seed", str(seed), "--count", str(count), folder], check=True)
        for at in range(seed, seed + count):
            with open(f"{folder}/{at}.json", encoding="utf-8") as file:
                meta = json.load(file)
            image = Image.open(f"{folder}/{at}.png").convert("RGB")
            yield meta, np.asarray(image.resize((SIDE, SIDE), Image.LANCZOS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--model", choices=CONFIGS, default="demo")
    parser.add_argument("--pictures", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--seed", type=int, default=2**40)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="one task of each kind a picture, not all")
    parser.add_argument("--native", action="store_true", help="pictures at native size, shrunk by Pillow")
    args = parser.parse_args()
    model = Model(CONFIGS[args.model])
    model.load_state_dict(torch.load(args.checkpoint)["ema"], strict=False)
    prompts = Prompts(Tokenizer.from_file(args.tokenizer), model.config)
    sources = native(args.pictures, args.seed, args.count) if args.native else None
    scores = evaluate(model, args.pictures, prompts, args.seed, args.count, not args.quick, sources)
    for name, value in scores.items():
        print(f"{name:24} {value}")
