"""Trains a demo model: first the vision encoder on patch labels, then everything on the tasks.

`train.py vision|joint --model demo|demo3 --pictures BINARY --until HH:MM ...`. Learning rates follow the wall clock (UTC), not steps, so a run
that shares its processors, or is paused with SIGSTOP, still ends decayed at its deadline. Checkpoints hold the state of
the optimizers; `--resume` goes on from one.

Two processes of one thread each share the parameters. In a step each takes the next part of the batch when it is free, so a
process that other programs slow down takes fewer; then each applies half of the updates.
"""

import argparse
import datetime
import os
import threading
import time

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
from data import SIDE, WEIGHT, Loader, Prompts, augment
from export import read
from model import CHARS, CONFIGS, PATCH, TEXT_LEN, Model

CENTERS = torch.from_numpy(data.CENTERS).float()
READER = ("text", "wte", "lm_head", "coord", "size", "region", "aux.named", "aux.apart")  # What is not the encoder.
FEATURES = ("coord_features", "size_features")


def orthogonalize(g, steps=5):
    """Newton-Schulz: `[n, rows, cols]` to nearly orthogonal matrices of the same row and column spaces."""
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.mT if tall else x


class Flat:
    """Parameters as views of one shared vector, with Muon's momenta and a gradient vector for each process beside it."""

    def __init__(self, model, processes=2):
        count = sum(p.numel() for p in model.parameters())
        self.values, self.momenta = torch.zeros(count).share_memory_(), torch.zeros(count).share_memory_()
        self.grads = torch.zeros(processes, count).share_memory_()
        self.values.copy_(torch.cat([p.data.flatten() for p in model.parameters()]))

    def bind(self, model, rank):
        """Moves `model` into the shared vector, its gradients into the row of `rank`; fills `at` with offsets by name."""
        self.at, at = {}, 0
        for name, p in model.named_parameters():
            self.at[name] = (at, p.shape)
            p.data, p.grad = self.view(self.values, name), self.view(self.grads[rank], name)
            at += p.numel()

    def view(self, vector, name):
        at, shape = self.at[name]
        return vector[at:at + shape.numel()].view(shape)

    def grad(self, name):
        """The sum of the processes' gradients."""
        return sum(self.view(row, name) for row in self.grads)


class Muon:
    """Momentum with orthogonalized updates for hidden matrices; q, k and v of a fused layer are separate matrices, and so
    are the experts and the halves of their first layers."""

    def __init__(self, flat, names, lr, momentum=0.95, decay=0.05):
        self.flat, self.names, self.lr, self.momentum, self.decay = flat, names, lr, momentum, decay

    @staticmethod
    def takes(name, p):
        if ".tau." in name or ".router." in name:
            return False  # They choose and scale rather than mix, and have few rows.
        return p.ndim >= 2 and ("blocks" in name or name.startswith("proj"))

    @torch.no_grad()
    def step(self, scale):
        groups = {}
        for name in self.names:
            grad, m = self.flat.grad(name), self.flat.view(self.flat.momenta, name)
            m.lerp_(grad, 1 - self.momentum)
            update = grad.lerp(m, self.momentum)
            parts = 3 if ".qkv." in name else 2 if name.endswith("experts.up") else 1
            for u, w in zip(update.chunk(parts, -2), self.flat.view(self.flat.values, name).chunk(parts, -2)):
                each = zip(u, w) if u.ndim == 3 else [(u, w)]
                groups.setdefault(u.shape[-2:], []).extend(each)
        for (rows, cols), items in groups.items():
            update = orthogonalize(torch.stack([u for u, _ in items]))
            lr = self.lr * scale
            for u, (_, w) in zip(update, items):
                w.mul_(1 - lr * self.decay).add_(u, alpha=-lr * max(1, rows / cols) ** 0.5)


def soft_ce(logits, bins, width=5.0):
    """Cross entropy against a Gaussian over the bins: near misses cost little. `[n, 1024]`, `[n]`."""
    t = torch.exp(-(((torch.arange(logits.shape[-1]) - bins[:, None]) / width) ** 2) / 2)
    t = t / t.sum(1, keepdim=True)
    return -(t * F.log_softmax(logits, -1)).sum(1).mean()


def aux_loss(model, feats, labels):
    shape, color, rank, count, chars, box, cover, letter, index = labels
    p_shape, p_color, p_box, p_rank, p_count, p_chars, p_cover, p_letter, p_index = model.aux(feats, model.early)

    def ce(logits, target):
        return F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=-100)

    loss = {"shape": 2 * ce(p_shape, shape), "color": ce(p_color, color), "rank": 0.5 * ce(p_rank, rank),
            "count": 0.3 * ce(p_count, count)}
    known = ~box[..., 0].isnan()
    loss["box"] = 2 * F.smooth_l1_loss(p_box[known], box[known], beta=0.2)
    center = (box[..., :2] * PATCH + CENTERS) / SIDE * 4 - 2
    loss["place"] = 2 * F.smooth_l1_loss(model.aux.place(feats)[known], center[known], beta=0.05)
    loss["cover"] = F.binary_cross_entropy_with_logits(p_cover, cover)
    if (letter >= 0).any():
        loss["letter"], loss["index"] = 0.5 * ce(p_letter, letter), 0.3 * ce(p_index, index)
    if (chars >= 0).any():
        loss["chars"] = ce(p_chars.unflatten(-1, (TEXT_LEN, len(CHARS) + 1)), chars)
    return loss


def task_loss(model, feats, batch):
    x = model.wte[batch.ids]
    (cr, cc), (sr, sc) = batch.coord_at.T, batch.size_at.T
    x = x.index_put((cr, cc), model.encode_coord(batch.coord)).index_put((sr, sc), model.encode_size(batch.size))
    hidden = model.text(torch.cat([model.prefix(feats), x], 1), batch.pos, batch.bias)
    told = batch.tgt >= 0
    ce = F.cross_entropy(model.logits(hidden[told]), batch.tgt[told], reduction="none")
    weight = batch.weight[told]
    loss = {"text": (ce * weight).sum() / weight.sum()}
    loss["coord"] = 0.3 * soft_ce(model.coord_logits(hidden[cr, cc - 1]), batch.coord * 1024)
    if len(sr):
        bins = (batch.size.log2() + 10) / 10 * 1023
        sizes = model.size_logits(hidden[sr, sc - 1])
        loss["size"] = 0.1 * (soft_ce(sizes[:, 0], bins[:, 0]) + soft_ce(sizes[:, 1], bins[:, 1]))
    if len(batch.name):
        rows, cols = batch.name_at.unbind(-1)
        scaled = batch.name * 4 - 2
        loss["named"] = 2 * F.smooth_l1_loss(model.aux.named(model.depths[1][rows, cols]), scaled, beta=0.05)
        apart = model.aux.apart(model.depths[2][rows[:, 1], cols[:, 1]])
        loss["apart"] = F.smooth_l1_loss(apart, scaled[:, 0] - scaled[:, 1], beta=0.05)
        loss["relation"] = ce.detach()[weight == WEIGHT["relation"]].mean()  # To be read; it is in `text`.
    routed = [block.experts.balance for block in model.text_blocks if block.experts is not None]
    if routed:
        loss["balance"] = 0.01 * sum(routed)
    return loss


@torch.no_grad()
def aux_accuracy(model, loader, batches=4):
    right, total = torch.zeros(6), torch.zeros(6)
    for _, (pixels, labels, _) in zip(range(batches), loader):
        out = model.aux(model.vision(pixels), model.early)
        objects = (labels[2] >= 0) & (labels[2] < 4)
        for i, (p, t, m) in enumerate([
            (out[0], labels[0], objects), (out[1], labels[1], objects), (out[3], labels[2], objects),
            (out[4], labels[3], objects), (out[5].unflatten(-1, (TEXT_LEN, -1)), labels[4], labels[4] > 0),
            (out[7], labels[7], labels[7] >= 0),
        ]):
            right[i] += (p.argmax(-1) == t)[m].sum()
            total[i] += m.sum()
    return dict(zip(("shape", "color", "rank", "count", "chars", "letter"), (right / total.clamp(min=1)).round(decimals=3).tolist()))


def clock(text):
    """The next HH:MM of the clock in UTC, as a timestamp."""
    now = datetime.datetime.now(datetime.timezone.utc)
    hour, minute = map(int, text.split(":"))
    then = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (then if then > now - datetime.timedelta(hours=6) else then + datetime.timedelta(days=1)).timestamp()


class Shared:
    """What the processes tell each other between steps."""

    def __init__(self, context):
        self.barrier = context.Barrier(2)
        self.part, self.stop = context.Value("i", 0), context.Value("i", 0)
        self.scale, self.mix = context.Value("d", 0.0), context.Value("d", 0.0)

    def listen(self, x):
        """`x`, of whose gradient only `mix` passes."""
        return x * self.mix.value + x.detach() * (1 - self.mix.value)


class Process:
    """One of the two processes."""

    def __init__(self, args, rank, flat, shared):
        torch.set_num_threads(1)
        torch.manual_seed(args.seed * 2 + rank)
        self.args, self.rank, self.flat, self.shared = args, rank, flat, shared
        config = CONFIGS[args.model]
        self.model, self.known = Model(config), bool(args.resume) and args.resume.endswith(EXPORTED)
        if args.resume:
            load(self.model, weights(args.resume, config))
        flat.bind(self.model, rank)
        for name, p in self.model.named_parameters():
            if args.freeze and not name.startswith(READER):
                p.requires_grad_(False)
                p.grad = None
        # Attention's matrices are half of the work, the rest of them the other half.
        names = [n for n, p in self.model.named_parameters() if Muon.takes(n, p)
                 and (".qkv." in n or ".proj." in n) == (rank == 1) and p.grad is not None and (args.phase == "joint" or "text" not in n)]
        self.muon = Muon(flat, names, args.lr)
        self.prompts = Prompts(Tokenizer.from_file(args.tokenizer), config) if args.phase == "joint" else None
        seed = (args.seed * 2 + rank) * 10**9
        self.loader = iter(Loader(args.pictures, seed, args.micro, self.prompts, args.max_objects,
                                  labels=not args.freeze, places=args.places, tokens=args.tokens))
        self.mean = {}

    def gradients(self):
        """Adds up the gradients of as many parts of the step's batch as this process gets to."""
        self.flat.grads[self.rank].zero_()
        while True:
            with self.shared.part.get_lock():
                part = self.shared.part.value
                self.shared.part.value += 1
            if part >= self.args.parts:
                return
            pixels, labels, batch = next(self.loader)
            with torch.set_grad_enabled(not self.args.freeze):
                feats = self.model.vision(augment(pixels))
            # The encoder listens to what is new by and by: at first it would only be told noise. New are the tasks, or in an
            # exported model the readers.
            if self.known:
                self.model.early = self.shared.listen(self.model.early)
            loss = {} if self.args.freeze else aux_loss(self.model, self.shared.listen(feats) if self.known else feats, labels)
            if batch is not None:
                heard = feats if self.known else self.shared.listen(feats)
                loss = {k: self.args.aux * v for k, v in loss.items()} | task_loss(self.model, heard, batch)
            (sum(v for k, v in loss.items() if k != "relation") / self.args.parts).backward()
            for k, v in loss.items():
                self.mean[k] = 0.99 * self.mean.get(k, v.item()) + 0.01 * v.item()


def load(model, state):
    """Loads a state; the fixed features are kept exact in bf16, the type they are exported in."""
    model.load_state_dict({k: v.bfloat16().float() if k in FEATURES else v for k, v in state.items()}, strict=False)


EXPORTED = ".safetensors"


def weights(path, config):
    """The model's state in a checkpoint or in an exported model."""
    return read(path, config) if path.endswith(EXPORTED) else torch.load(path)["model"]


def work(args, flat, shared):
    """The second process; it ends with the first."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    process = Process(args, 1, flat, shared)
    while True:
        shared.barrier.wait()
        if shared.stop.value:
            return
        process.gradients()
        shared.barrier.wait()
        process.muon.step(shared.scale.value)
        shared.barrier.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("phase", choices=["vision", "joint"])
    parser.add_argument("--model", choices=CONFIGS, default="demo")
    parser.add_argument("--pictures", required=True, help="the demo-pictures binary")
    parser.add_argument("--until", type=clock, required=True, help="HH:MM, UTC")
    parser.add_argument("--decay-from", type=clock, help="HH:MM at which the learning rate starts to fall to 0")
    parser.add_argument("--tokenizer")
    parser.add_argument("--resume", help="a checkpoint, or an exported model.safetensors without optimizer or readers")
    parser.add_argument("--out", default="out")
    parser.add_argument("--micro", type=int, default=8, help="pictures in a part of a batch")
    parser.add_argument("--parts", type=int, default=4, help="parts in a batch")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.006)
    parser.add_argument("--adam-lr", type=float, default=1.5e-3)
    parser.add_argument("--aux", type=float, default=1.0, help="weight of the patch labels in the joint phase")
    parser.add_argument("--mix-steps", type=int, default=400, help="steps until the tasks (the readers after an exported model) reach the encoder in full")
    parser.add_argument("--freeze", action="store_true", help="train the text model alone")
    parser.add_argument("--places", action="store_true", help="mostly boxes, points and outlines")
    parser.add_argument("--tokens", type=int, default=150, help="packed text tokens of a picture")
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--max-objects", type=int, default=4)
    parser.add_argument("--eval-every", type=float, default=420)
    parser.add_argument("--eval-pictures", type=int, default=32)
    args = parser.parse_args()

    os.makedirs(args.out, exist_ok=True)
    torch.manual_seed(args.seed)
    context = mp.get_context("spawn")
    config = CONFIGS[args.model]
    seedling, state, step = Model(config), None, 0
    if args.resume:
        load(seedling, weights(args.resume, config))
        if not args.resume.endswith(EXPORTED):
            state = torch.load(args.resume)
            step = state["step"]
    flat, shared = Flat(seedling), Shared(context)
    worker = context.Process(target=work, args=(args, flat, shared), daemon=True)
    worker.start()
    process = Process(args, 0, flat, shared)
    model, mean = process.model, process.mean
    rest = {n: p for n, p in model.named_parameters() if not Muon.takes(n, p)}
    adam = torch.optim.AdamW(rest.values(), lr=args.adam_lr, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)
    ema = Model(config)
    ema.load_state_dict(model.state_dict())
    if state:
        load(ema, state["ema"])
        # A reader added since is last among the parameters and starts without a state.
        state["adam"]["param_groups"][0]["params"] = list(range(len(rest)))
        adam.load_state_dict(state["adam"])
        for name, m in state["muon"].items():
            flat.view(flat.momenta, name).copy_(m)
    first, start, seen = step, time.time(), 0
    saved = told = evaluated = last = start

    def save(name):
        muon = {n: flat.view(flat.momenta, n).clone() for n, p in model.named_parameters() if Muon.takes(n, p)}
        plain = {k: v.clone() for k, v in model.state_dict().items()}
        state = {"model": plain, "ema": ema.state_dict(), "adam": adam.state_dict(), "muon": muon, "step": step}
        torch.save(state, f"{args.out}/{name}.tmp")
        os.replace(f"{args.out}/{name}.tmp", f"{args.out}/{name}.pt")

    def evaluate():
        torch.set_num_threads(2)
        try:
            if args.phase == "vision":
                return aux_accuracy(ema, process.loader)
            from evaluate import evaluate as tasks
            return tasks(ema, args.pictures, process.prompts, seed=2**39, count=args.eval_pictures)
        finally:
            torch.set_num_threads(1)

    while (now := time.time()) < args.until:
        scale = min(1, (step - first + 1) / 20)
        if args.decay_from and now > args.decay_from:
            scale *= (args.until - now) / (args.until - args.decay_from)
        shared.scale.value, shared.part.value = scale, 0
        shared.mix.value = min(1, (step - first) / args.mix_steps)
        shared.barrier.wait()
        process.gradients()
        shared.barrier.wait()
        live = [p for p in rest.values() if p.grad is not None]
        for name, p in rest.items():
            if p.grad is not None:
                p.grad.copy_(flat.grad(name))
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        for group in adam.param_groups:
            group["lr"] = args.adam_lr * scale
        adam.step()
        process.muon.step(scale)
        shared.barrier.wait()
        keep = min(args.ema, (step - first + 1) / (step - first + 10)) if not state else args.ema
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - keep)
        step += 1
        seen += args.micro * args.parts
        now = time.time()
        if now - told > 30:
            parts = " ".join(f"{k} {v:.3f}" for k, v in mean.items())
            print(f"{now - start:.0f}s step {step} {seen / (now - last):.0f}/s lr {scale:.2f} {parts}", flush=True)
            told, last, seen = now, now, 0
        if now - saved > 180:
            save(args.phase)
            saved = now
        if now - evaluated > args.eval_every:
            print("eval", evaluate(), f"{time.time() - now:.0f}s", flush=True)
            evaluated = last = time.time()
            seen = 0
    shared.stop.value = 1
    shared.barrier.wait()
    save(args.phase)
    print("end", step, evaluate(), flush=True)


if __name__ == "__main__":
    main()
