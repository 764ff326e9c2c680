"""Pictures and tasks from `demo-pictures stream`, turned into batches.

The prompts of a picture are packed behind one image prefix: each is a segment that sees the prefix and itself, and its
positions restart after the prefix, so a packed prompt is computed exactly as it would be alone.
Loss weights cover answers only.
"""

import json
import queue
import random
import re
import struct
import subprocess
import threading

import numpy as np
import torch

from model import CHARS, COORD, EOS, GRAIN, GRID, PATCH, PREFIX, SIZE, TEXT_LEN, VIEW, moondream3, number_token

SHAPE_NAMES = ["circle", "square", "triangle", "star", "cross"]
COLOR_NAMES = ["red", "green", "blue", "yellow", "purple", "orange", "black", "white"]
CHAR_ID = {c: i + 1 for i, c in enumerate(CHARS)}
SIDE = PATCH * GRID


def pictures(binary, seed, count=0, size=SIDE):
    """Yields (meta, `[size, size, 3]` u8) from the generator."""
    command = [binary, "stream", "--seed", str(seed), "--count", str(count), "--size", str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=1 << 20) as process:
        try:
            while head := process.stdout.read(4):
                meta = json.loads(process.stdout.read(struct.unpack("<I", head)[0]))
                rgb = process.stdout.read(size * size * 3)
                yield meta, np.frombuffer(rgb, np.uint8).reshape(size, size, 3)
        finally:
            process.kill()


def to_pixels(rgb):
    """`[rows, 112, 112, 3]` u8 to the encoder's `[rows, 3, 112, 112]` f32."""
    return torch.from_numpy(np.stack(rgb)).permute(0, 3, 1, 2).float() / 127.5 - 1


EDGES = np.arange(GRID) * PATCH
CENTERS = np.stack(np.meshgrid(EDGES + PATCH / 2, EDGES + PATCH / 2), -1).reshape(-1, 2)


def overlap(box):
    """The share of each patch that `box` (in pixels of 112) covers, `[8, 8]`."""
    x = np.clip(np.minimum(EDGES + PATCH, box[2]) - np.maximum(EDGES, box[0]), 0, None)
    y = np.clip(np.minimum(EDGES + PATCH, box[3]) - np.maximum(EDGES, box[1]), 0, None)
    return y[:, None] * x[None] / PATCH**2


def cells(mask):
    """A `[112, 112]` mask as the share of each of a patch's 7 x 7 cells, `[64, 49]`."""
    share = mask.reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3)).reshape(GRID, 7, GRID, 7)
    return share.transpose(0, 2, 1, 3).reshape(GRID * GRID, 49)


def crop_of(rgb, box):
    """The pixels of `box` and their slices."""
    x0, y0, x1, y1 = (int(v) for v in (*np.floor(box[:2]), *np.ceil(box[2:])))
    at = slice(max(y0, 0), y1), slice(max(x0, 0), x1)
    return rgb[at].astype(np.float32), at


def patch_labels(meta, rgb):
    """What each of the 64 patches shows; -100 and NaN mean no label.

    shape, color, rank, count `[64]`, the whole text `[64, 6]`, box `[64, 4]`, cover `[64, 49]`, the letter at the patch's
    middle and its index `[64]`.
    """
    n = GRID * GRID
    shape, color, rank = np.full(n, 5), np.full(n, 8), np.full(n, 4)
    count = np.full(n, len(meta["objects"]))
    chars, letter, index = np.full((n, TEXT_LEN), -100), np.full(n, -100), np.full(n, -100)
    box, best = np.full((n, 4), np.nan, np.float32), np.zeros(n)
    mask = np.zeros((SIDE, SIDE), np.float32)
    if meta["text"]:
        b = np.array(meta["text"]["box"]) * SIDE
        share = overlap(b).ravel()
        shape[share > 0.2] = 6
        shape[(share > 0) & (share <= 0.2)] = -100
        value = [CHAR_ID[c] for c in meta["text"]["value"].lower() if c in CHAR_ID][:TEXT_LEN]
        chars[share > 0.2] = value + [0] * (TEXT_LEN - len(value))
        # Letters are 5 cells wide and 1 apart.
        at = np.floor((CENTERS[:, 0] - b[0]) / (b[2] - b[0]) * (len(value) - 1 / 6)).astype(int)
        inside = (share > 0.35) & (at >= 0) & (at < len(value))
        letter[inside], index[inside] = np.array(value)[at[inside]], at[inside]
        crop, where = crop_of(rgb, b)
        light = crop.mean(-1)
        middle = np.median(light)
        low, high = light.min(), light.max()
        mask[where] = light < (middle + low) / 2 if middle - low > high - middle else light > (middle + high) / 2
        best = share
    for i, item in enumerate(meta["objects"]):
        b = np.array(item["box"]) * SIDE
        share = overlap(b).ravel()
        here = (share > 0) & (share >= best)
        clear = here & (share > 0.15)
        shape[here], color[here], rank[here] = -100, -100, -100
        shape[clear], color[clear], rank[clear] = SHAPE_NAMES.index(item["shape"]), COLOR_NAMES.index(item["color"]), i
        middle, extent = (b[:2] + b[2:]) / 2, (b[2:] - b[:2])
        box[here] = np.nan
        box[clear] = np.concatenate(
            [(middle - CENTERS[clear]) / PATCH, np.broadcast_to(np.log(extent / 32), (clear.sum(), 2))], 1)
        best = np.maximum(best, share)
        # Every shape covers the middle of its box; an outline is a darker shade of the same color, and may be the shade
        # of what is behind.
        crop, where = crop_of(rgb, b)
        own = rgb[int(middle[1]), int(middle[0])].astype(np.float32)
        y0, x0 = max(where[0].start - 1, 0), max(where[1].start - 1, 0)
        behind = np.median(rgb[[y0, y0, min(where[0].stop, SIDE - 1)], [x0, min(where[1].stop, SIDE - 1), x0]], 0)
        edge = (np.square(crop - 0.55 * own).sum(-1) < 48**2) & (np.square(crop - behind).sum(-1) > 48**2)
        mask[where] = np.maximum(mask[where], edge | (np.square(crop - own).sum(-1) < 48**2))
    return shape, color, rank, count, chars, box, cells(mask), letter, index


class Prompts:
    """Token ids of prompts and answers; a prompt is (ids, answer start, weight, coords, sizes)."""

    def __init__(self, tokenizer, config):
        self.tokenizer, self.cache, self.config = tokenizer, {}, config
        self.templates = config["tokenizer"]["templates"]

    def enc(self, text):
        if text not in self.cache:
            self.cache[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.cache[text]

    def ends(self, question, objects):
        """Of a relation, where each of the two names ends in the prompt, with the center of what it names."""
        found = RELATION.fullmatch(question.lower())
        spans = self.tokenizer.encode(question, add_special_tokens=False).offsets
        start = len(self.templates["query"]["prefix"])
        return [(start + max(i for i, (a, _) in enumerate(spans) if a < found.end(n)), *named(objects, found[n])) for n in (1, 2)]

    def question(self, task):
        """The prompt's ids after BOS and the image."""
        t = self.templates
        match task["skill"]:
            case "caption":
                return list(t["caption"][task["length"]])
            case "query":
                suffix = t["query"]["suffix"]
                # Moondream 2 closes the question and opens the answer; Moondream 3 only opens.
                suffix = suffix if moondream3(self.config) else suffix + suffix
                return t["query"]["prefix"] + self.enc(task["question"]) + suffix
            case "segment":
                return t["segment"]["prefix"] + self.enc(task["object"]) + t["segment"]["suffix"]
            case skill:
                return t[skill]["prefix"] + self.enc(" " + task["object"]) + t[skill]["suffix"]

    def answer(self, task):
        """(ids with eos, coords [(index, value)], sizes [(index, w, h)])."""
        ids, coords, sizes = [], [], []
        if task["skill"] == "detect":
            for x0, y0, x1, y1 in task["boxes"]:
                coords += [(len(ids), (x0 + x1) / 2), (len(ids) + 1, (y0 + y1) / 2)]
                sizes.append((len(ids) + 2, x1 - x0, y1 - y0))
                ids += [COORD, COORD, SIZE]
        elif task["skill"] == "point":
            for x, y in task["points"]:
                coords += [(len(ids), x), (len(ids) + 1, y)]
                ids += [COORD, COORD]
        elif task["skill"] == "segment":
            x0, y0, x1, y1 = task["box"]
            coords = [(0, (x0 + x1) / 2), (1, (y0 + y1) / 2)]
            sizes = [(2, x1 - x0, y1 - y0)]
            ids = [COORD, COORD, SIZE] + self.path_ids(task["path"])
        else:
            ids = list(self.enc(task["answer"]))
        return ids + [EOS], coords, sizes


    def path_ids(self, path):
        """An outline's ids: one for each command, and one for each number, rounded to the grain of those."""
        def token(word):
            return word if word.isalpha() else number_token(round(float(word) * VIEW / GRAIN) * GRAIN)
        return [self.tokenizer.token_to_id(token(word)) for word in path.split()]


APART = 0.12  # The generator's least difference of centers for a relation.
SIDES = {("left", True): ("left of", "to the left of"), ("left", False): ("right of", "to the right of"),
         ("above", True): ("above", "higher than"), ("above", False): ("below", "lower than")}
RELATION = re.compile(r"is the (.+?) (?:to the )?(?:left of|right of|above|below|higher than|lower than) the (.+?)\??")


def center(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def relations(objects, rng, most):
    """More questions in the generator's words about where two objects are to each other."""
    kinds = [(o["color"], o["shape"]) for o in objects]
    pairs = [(i, j, word, axis) for i in range(len(objects)) for j in range(len(objects)) for axis, word in enumerate(("left", "above"))
             if i != j and kinds.count(kinds[i]) == 1 == kinds.count(kinds[j])
             and abs(center(objects[i]["box"])[axis] - center(objects[j]["box"])[axis]) > APART]
    rng.shuffle(pairs)
    tasks = []
    for i, j, word, axis in pairs[:most]:
        holds, yes = center(objects[i]["box"])[axis] < center(objects[j]["box"])[axis], rng.random() < 0.5
        relation = rng.choice(SIDES[word, holds == yes])
        first, second = (o["shape"] if sum(o["shape"] == p["shape"] for p in objects) == 1 and rng.random() < 0.3
                         else f"{o['color']} {o['shape']}" for o in (objects[i], objects[j]))
        question = f"Is the {first} {relation} the {second}?"
        question = rng.choice([question] * 4 + [question[0].lower() + question[1:], question[:-1]])
        tasks.append({"skill": "query", "kind": "relation", "question": question, "answer": "Yes" if yes else "No"})
    return tasks


def named(objects, name):
    """The center of the only object of that name."""
    *color, shape = name.split()
    found = [o for o in objects if o["shape"] == shape and color in ([], [o["color"]])]
    return center(found[0]["box"])


WEIGHT = {"caption": 0.6, "query": 1.5, "detect": 0.6, "point": 0.6, "segment": 0.3, "relation": 2.0}


def choose(tasks, rng, places=False):
    """An order of preference that mixes the skills, or puts `places` first; the packer takes tasks while they fit."""
    captions = [t for t in tasks if t["skill"] == "caption"]
    weights = [{"short": 6, "normal": 2, "long": 1}[t["length"]] for t in captions]
    by = {s: [t for t in tasks if t["skill"] == s] for s in ("query", "detect", "point", "segment")}
    for group in by.values():
        rng.shuffle(group)
    # What is learned last comes first.
    by["query"].sort(key=lambda t: t["kind"] != "relation")
    if places:
        first = by["detect"][:2] + by["point"] + by["segment"][:1] + by["query"][:2] + rng.choices(captions, weights)[:1]
        return first + by["detect"][2:] + by["query"][2:]
    first = rng.choices(captions, weights)[:1] + by["query"][:6] + by["detect"][:1] + by["point"][:1] + by["segment"][:1]
    rest = by["query"][6:] + by["detect"][1:2] + by["point"][1:2]
    rng.shuffle(rest)
    return first + rest


class Batch:
    """Packed prompts of several pictures as tensors; see `Prompts`."""

    def __init__(self, metas, prompts, rng, places=False, tokens=150):
        n = len(metas)
        ids, tgt = np.zeros((n, tokens), np.int64), np.full((n, tokens), -100)
        seg, pos = np.full((n, tokens), -1), np.full((n, tokens), PREFIX)
        weight = np.zeros((n, tokens), np.float32)
        coords, sizes, ends = [], [], []
        for row, meta in enumerate(metas):
            at = 0
            known = [task for task in meta["tasks"] if task["skill"] in prompts.templates]
            for k, task in enumerate(choose(known + relations(meta["objects"], rng, 2), rng, places)):
                question = prompts.question(task)
                answer, c, s = prompts.answer(task)
                whole = question + answer
                m, q = len(whole) - 1, len(question)  # The last id is only a target.
                if at + m > tokens:
                    continue
                ids[row, at:at + m], tgt[row, at + q - 1:at + m] = whole[:-1], answer
                seg[row, at:at + m], pos[row, at:at + m] = k, np.arange(PREFIX, PREFIX + m)
                weight[row, at + q - 1:at + m] = WEIGHT.get(task.get("kind"), WEIGHT[task["skill"]])
                coords += [(row, at + q + i, v) for i, v in c]
                sizes += [(row, at + q + i, w, h) for i, w, h in s]
                if task.get("kind") == "relation":
                    ends.append([(row, at + i, x, y) for i, x, y in prompts.ends(task["question"], meta["objects"])])
                at += m
        self.ids, self.tgt, self.weight = map(torch.from_numpy, (ids, tgt, weight))
        self.pos = torch.cat([torch.arange(PREFIX).expand(n, PREFIX), torch.from_numpy(pos)], 1)
        same = (seg[:, :, None] == seg[:, None, :]) & np.tril(np.ones((tokens, tokens), bool))
        seen = np.concatenate([np.ones((n, tokens, PREFIX), bool), same], 2)
        self.bias = torch.from_numpy(np.where(seen, np.float32(0), np.float32(-1e9)))[:, None]
        # Row and column of each coord or size token; the head reads the position before it.
        c, s = np.array(coords, np.float64).reshape(-1, 3), np.array(sizes, np.float64).reshape(-1, 4)
        self.coord_at, self.size_at = (torch.from_numpy(a[:, :2].astype(np.int64)) for a in (c, s))
        # The two names of each relation, `[relations, 2, 4]`.
        e = np.array(ends, np.float64).reshape(-1, 2, 4)
        self.name_at, self.name = torch.from_numpy(e[..., :2].astype(np.int64)), torch.from_numpy(e[..., 2:].astype(np.float32))
        self.coord, self.size = torch.from_numpy(c[:, 2].astype(np.float32)), torch.from_numpy(s[:, 2:].astype(np.float32))


class Loader:
    """Reads pictures in a thread and yields (pixels, labels, Batch or None)."""

    def __init__(self, binary, seed, rows, prompts, max_objects=4, labels=True, places=False, tokens=150):
        self.queue = queue.Queue(6)
        self.labels, self.places, self.tokens = labels, places, tokens
        self.args = (binary, seed, rows, prompts, max_objects)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        binary, seed, rows, prompts, max_objects = self.args
        rng = random.Random(seed)
        group = []
        for meta, rgb in pictures(binary, seed):
            if len(meta["objects"]) > max_objects:
                continue
            group.append((meta, rgb))
            if len(group) == rows:
                self.queue.put(self.make(group, prompts, rng))
                group = []

    def make(self, group, prompts, rng):
        labels = None
        if self.labels:
            labels = [torch.from_numpy(np.stack(a)) for a in zip(*(patch_labels(m, rgb) for m, rgb in group))]
        batch = Batch([m for m, _ in group], prompts, rng, self.places, self.tokens) if prompts else None
        return to_pixels([rgb for _, rgb in group]), labels, batch

    def __iter__(self):
        while True:
            yield self.queue.get()


def augment(pixels):
    """A little brightness, contrast and blur: what a camera or a resize may change without changing the answer."""
    n = pixels.shape[0]
    gain, shift = 1 + 0.1 * (2 * torch.rand(n, 1, 1, 1) - 1), 0.08 * (2 * torch.rand(n, 1, 1, 1) - 1)
    amount = torch.where(torch.rand(n, 1, 1, 1) < 0.5, torch.rand(n, 1, 1, 1) * 0.25, torch.zeros(()))
    around = torch.nn.functional.pad(pixels, (1, 1, 1, 1), mode="replicate")
    cross = (around[:, :, 2:, 1:-1] + around[:, :, :-2, 1:-1] + around[:, :, 1:-1, 2:] + around[:, :, 1:-1, :-2]) / 4
    return (((1 - amount) * pixels + amount * cross) * gain + shift).clamp(-1, 1)
