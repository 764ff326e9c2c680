"""What Python costs: time to import, a call beside the same in Rust, eight threads beside eight of Rust's.

Both sides ask the same engine in this process, taking turns, so that whatever else the machine does hits both alike.
`cargo xtask wheel --bench` runs this with the wheel. Prints a table; with --check, a limit that is missed is a failure.
"""

import argparse
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import photon

PICTURE = str(Path(__file__).resolve().parents[2] / "assets" / "shapes.png")
LIMITS = {"import": 0.1, "call": 0.2, "threads": 0.95}


def import_seconds(runs=15):
    """A new Python each time; the package's files are in the system's cache after the first."""
    program = "import time; t = time.perf_counter(); import photon; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(runs + 1)]
    return times[1:]


def call(model, request, rounds=300):
    """Milliseconds of a call from Python, and of the same from Rust."""
    skill, arguments = request["skill"], {name: value for name, value in request.items() if name != "skill"}
    method, measure = getattr(model, skill), model._engine.measure
    python, rust = [], []
    for turn in range(rounds + 20):
        begun = time.perf_counter()
        method(**arguments)
        ended = time.perf_counter()
        other = measure([request], 1)
        if turn >= 20:
            python.append(1e3 * (ended - begun))
            rust.append(1e3 * other)
    return python, rust


def threads(model, requests, count=8):
    """Requests per second of threads that each take the next."""
    left, lock = iter(requests), threading.Lock()

    def work():
        while True:
            with lock:
                request = next(left, None)
            if request is None:
                return
            model.query(request["image"], request["question"], settings=request["settings"])

    workers = [threading.Thread(target=work) for _ in range(count)]
    begun = time.perf_counter()
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    return len(requests) / (time.perf_counter() - begun)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a limit is missed")
    parser.add_argument("--rounds", type=int, default=41, help="of the comparison of threads")
    args = parser.parse_args()
    rows, missed = [], []

    def row(what, value, limit, is_met):
        rows.append((what, value, limit))
        if not is_met:
            missed.append(what)

    seconds = import_seconds()
    median = statistics.median(seconds)
    row("import photon", f"{1e3 * median:.1f} ms ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})", "100 ms", median <= LIMITS["import"])

    model = photon.vl()
    image = model.encode_image(PICTURE)
    settings = {"temperature": 0, "max_tokens": 1}
    for what, given in [("no picture", None), ("a path", PICTURE), ("an encoded image", image)]:
        request = {"skill": "query", "image": given, "question": "What color is the star?", "settings": settings}
        python, rust = call(model, request)
        over = statistics.median(a - b for a, b in zip(python, rust))
        value = f"{over:+.3f} ms: {statistics.median(python):.3f} and {statistics.median(rust):.3f} ms"
        row(f"call with {what}, over Rust's", value, "0.2 ms", over <= LIMITS["call"])

    settings = {"temperature": 0, "max_tokens": 24}
    shapes = ["star", "circle", "triangle"]
    questions = [f"What color is the {shapes[i % 3]} number {i}?" for i in range(400)]
    requests = [{"skill": "query", "image": PICTURE, "question": text, "settings": settings} for text in questions]
    threads(model, requests), model._engine.measure(requests, 8)
    shares, python, rust = [], [], []
    for turn in range(args.rounds):
        one = lambda: python.append(threads(model, requests))
        other = lambda: rust.append(len(requests) / model._engine.measure(requests, 8))
        for side in (one, other) if turn % 2 else (other, one):
            side()
        shares.append(python[-1] / rust[-1])
    share = statistics.median(shares)
    value = f"{100 * share:.1f} % ({100 * min(shares):.1f} to {100 * max(shares):.1f}): {statistics.median(python):.0f} and {statistics.median(rust):.0f} requests/s"
    row("8 threads, beside 8 of Rust's", value, "95 %", share >= LIMITS["threads"])

    print(f"photon {photon.__version__}, Python {sys.version.split()[0]}, {model.device}")
    print("| what | measured | limit |\n|---|---|---|")
    for cells in rows:
        print("|", " | ".join(cells), "|")
    for what in missed:
        print(f"MISSED: {what}")
    if args.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
