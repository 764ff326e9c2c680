"""What `cargo xtask peers` and its workers say to each other.

A worker loads its model, then prints a line of JSON: its engine, and its phases, each with the ways it can be run.
From then on every line it reads is a phase, a comma and a way, and is answered with the seconds it took, or with why
it cannot be run that way.
"""
import json
import os
import sys
import time
import traceback


def serve(engine, phases):
    """`phases`: for every phase's name its ways, for every way's name what to call."""
    # Libraries print whatever they like: only what is said here goes to the harness.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        print(json.dumps(answer), file=answers, flush=True)

    say({"engine": engine, "phases": {name: list(ways) for name, ways in phases.items()}})
    for line in sys.stdin:
        phase, _, way = line.strip().partition(",")
        try:
            begun = time.perf_counter()
            phases[phase][way]()
            say({"seconds": time.perf_counter() - begun})
        except Exception as error:
            traceback.print_exc()
            say({"error": (str(error).splitlines() or [repr(error)])[0]})
