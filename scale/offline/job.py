"""An offline job, whoever spreads it over workers: what is typed, what a worker does with a unit, and going on until
everything is done."""

import argparse
import json
import os
import pathlib
import sys
import time

import engine
import files

# Requests that a worker hands to its engine at once.
AT_ONCE = 64
# What follows a skill's name in what is typed.
FIELDS = {"caption": "length", "query": "question", "detect": "object", "point": "object", "segment": "object"}


class Worker:
    """Takes units, one after the other, and writes their results."""

    def __init__(self, job):
        self.job = job
        self.engine = None

    def __call__(self, unit):
        """Answers a unit; gives a line about it."""
        begun = time.monotonic()
        try:
            if self.engine is None:
                self.engine = engine.opened(self.job["engine"], self.job["model"], self.job["options"])
            lines = list(self.answered(unit))
        except Exception:
            # Whoever comes next gets another.
            self.engine = None
            raise
        files.write(lines, self.job["out"], unit["name"])
        failed = sum("error" in line for line in lines)
        return {"unit": unit["name"], "answers": len(lines), "failed": failed, "worker": os.getpid(),
                "seconds": round(time.monotonic() - begun, 3)}

    def answered(self, unit):
        """A line for each answer, questions about the same picture one after the other."""
        waiting = []
        for picture, rows in files.grouped(files.rows(unit, self.job["source"])):
            for row in rows:
                for number, ask in enumerate(files.asked(row, self.job["asks"])):
                    thinks = {"reasoning": False} if ask["skill"] == "query" else {}
                    waiting.append(({"id": row["id"], "ask": number, **ask}, {**thinks, **ask, "image": picture}))
            if len(waiting) >= AT_ONCE:
                yield from self._answers(waiting)
                waiting = []
        yield from self._answers(waiting)

    def _answers(self, waiting):
        answers = self.engine.answer([request for _, request in waiting])
        for (line, _), answer in zip(waiting, answers):
            yield {**line, **answer}


def asking(text):
    """`caption`, `caption:short`, `query:What is it?`, `detect:cat`, or a request's JSON."""
    if text.startswith("{"):
        return json.loads(text)
    skill, _, what = text.partition(":")
    if skill not in FIELDS or not (what or skill == "caption"):
        raise argparse.ArgumentTypeError(f"{text!r} is not as 'caption', 'query:What is it?' or 'detect:cat'")
    return {"skill": skill, **({FIELDS[skill]: what} if what else {})}


def parsed(doc, arguments=None):
    """The job that is typed, as a dictionary."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder with pictures, *.parquet or *.tar, that all workers see")
    parser.add_argument("out", help="the folder for results, that all workers see")
    parser.add_argument("--ask", action="append", type=asking, metavar="SKILL[:WHAT]",
                        help="what to ask of every picture, several times for several things; caption by default")
    parser.add_argument("--workers", type=int, default=2, help="how many engines, each with a model of its own")
    parser.add_argument("--cpus", type=float, default=1, help="cores of a worker")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a worker")
    parser.add_argument("--engine", default="auto", help="package, program, or where the program is")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--option", action="append", default=[], dest="options", metavar="--NAME=VALUE",
                        help="of the engine, as --option=--quant=int8")
    parser.add_argument("--together", type=int, default=64, help="pictures of a folder in one file of results")
    parser.add_argument("--attempts", type=int, default=3, help="how often to begin with what is left")
    job = vars(parser.parse_args(arguments))
    # Workers may run in another folder.
    job.update(source=str(pathlib.Path(job["source"]).resolve()), out=str(pathlib.Path(job["out"]).resolve()),
               asks=job.pop("ask") or [{"skill": "caption"}])
    return job


def run(job, spread):
    """Has `spread(job, units)` do what is left until nothing is; it yields the line of each unit that is done."""
    pathlib.Path(job["out"]).mkdir(parents=True, exist_ok=True)
    for attempt in range(job["attempts"]):
        todo = files.units(job["source"], job["out"], job["together"])
        if not todo:
            break
        try:
            for line in spread(job, todo):
                print(json.dumps(line), flush=True)
        except Exception as error:
            why = str(error).splitlines()[:1]
            print(f"attempt {attempt + 1} of {job['attempts']}: {type(error).__name__}: {why}", file=sys.stderr, flush=True)
    left = len(files.units(job["source"], job["out"], job["together"]))
    if left:
        print(f"{left} files are left to do; start it again", file=sys.stderr)
    return 1 if left else 0
