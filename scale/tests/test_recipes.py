"""What recipes do without a cluster: units of work, going on, grouping, engines, keys.

    python -m unittest discover scale/tests
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import pathlib
import sys
import tarfile
import tempfile
import unittest

HERE = pathlib.Path(__file__).parents[1]
sys.path += [str(HERE), str(HERE / "offline"), str(HERE / "smg")]

import ask
import engine
import files
import job as jobs
import route_key
from check import pictures

# Answers with what it was asked, as the program does; ends at a picture that says `end`.
ECHO = """
import base64, json, sys
for line in iter(sys.stdin.readline, ""):
    asked = json.loads(line)
    picture = base64.b64decode(asked.pop("image")).decode()
    if picture == "end":
        break
    answer = {"status": "ok", "result": {**asked, "picture": picture}}
    if picture == "wrong":
        answer = {"status": "error", "error": {"code": "image_decode_failed", "message": "no picture"}}
    print(json.dumps({"id": asked["id"], **answer}), flush=True)
"""


def tar(path, members):
    with tarfile.open(path, "w") as out:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))


class Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.source, self.out = (pathlib.Path(folder.name) / name for name in ("in", "out"))
        self.source.mkdir()
        self.out.mkdir()

    def put(self, *names):
        for name in names:
            path = self.source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())

    def todo(self, together=2):
        return files.units(self.source, self.out, together)


class Units(Folder):
    def test_shards_are_units_and_pictures_come_together(self):
        self.put("b.png", "a.JPG", "sub/c.webp", "s/x.tar", "y.parquet", "notes.txt")
        todo = self.todo()
        self.assertEqual([unit["name"] for unit in todo if unit["kind"] != "pictures"], ["s__x.tar", "y.parquet"])
        together = [unit["paths"] for unit in todo if unit["kind"] == "pictures"]
        self.assertEqual(together, [["a.JPG", "b.png"], ["sub/c.webp"]])

    def test_what_is_done_is_not_done_again_and_what_came_since_is(self):
        self.put("a.png", "b.png", "c.png", "x.tar")
        for unit in self.todo():
            files.write([{"id": path} for path in unit["paths"]], self.out, unit["name"])
        self.assertEqual(self.todo(), [])
        self.put("aa.png", "y.tar")
        self.assertEqual([unit["paths"] for unit in self.todo()], [["y.tar"], ["aa.png"]])

    def test_results_are_there_whole_or_not_at_all(self):
        def breaks():
            yield {"id": 1}
            raise OSError("the machine stops")

        with self.assertRaises(OSError):
            files.write(breaks(), self.out, "x.tar")
        self.assertEqual(list(self.out.glob("*.jsonl")), [])
        files.write([{"id": "ü"}], self.out, "x.tar")
        self.assertEqual(list(files.results(self.out / "x.tar.jsonl")), [{"id": "ü"}])


class Rows(Folder):
    def test_samples_of_a_shard(self):
        said = json.dumps({"skill": "query", "question": "What?", "source": "the web"}).encode()
        members = [("d/1.jpg", b"one"), ("d/1.json", said), ("d/2.txt", b"none"), ("d/3.0.png", b"none"), ("d/4.png", b"four")]
        tar(self.source / "x.tar", members)
        rows = list(files.rows({"kind": "tar", "paths": ["x.tar"]}, self.source))
        first = {"id": "d/1", "image": b"one", "skill": "query", "question": "What?"}
        self.assertEqual(rows, [first, {"id": "d/4", "image": b"four"}])

    def test_rows_about_a_picture_come_together(self):
        rows = [{"id": 1, "image": b"a"}, {"id": 2, "image": b"b"}, {"id": 3, "image": b"a"}]
        self.assertEqual(files.grouped(rows), [(b"a", [{"id": 1}, {"id": 3}]), (b"b", [{"id": 2}])])

    def test_a_row_says_what_it_is_asked_or_the_job_does(self):
        asks = [{"skill": "caption"}]
        self.assertEqual(files.asked({"id": 1, "question": "Why?"}, asks), asks)
        own = {"id": 1, "skill": "detect", "object": "cat", "question": None, "weather": "fine"}
        self.assertEqual(files.asked(own, asks), [{"skill": "detect", "object": "cat"}])


class Jobs(Folder):
    def job(self, *more):
        echo = self.out / "echo"
        echo.write_text(f"#!{sys.executable}\n{ECHO}")
        echo.chmod(0o755)
        return jobs.parsed("", [str(self.source), str(self.out), "--engine", str(echo), "--together", "2", *more])

    def run_here(self, job, kill=()):
        """Runs a job in this process; the worker dies once at each unit whose number is in `kill`."""
        kill = set(kill)

        def spread(job, todo):
            worker = jobs.Worker(job)
            for number, unit in enumerate(todo):
                if number in kill:
                    kill.remove(number)
                    raise ConnectionResetError("the worker is gone")
                yield worker(unit)
            if worker.engine:
                worker.engine.process.stdin.close()
                worker.engine.process.stdout.close()
                worker.engine.process.wait()

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return jobs.run(job, spread)

    def results(self):
        return [line for path in sorted(self.out.glob("*.jsonl")) for line in files.results(path)]

    def test_every_row_is_answered_once_although_workers_die(self):
        self.put(*(f"{number}.png" for number in range(9)))
        job = self.job("--ask", "caption:short", "--ask", "query:What?")
        self.assertEqual(self.run_here(job, kill={1, 3}), 0)
        asked = [(line["id"], line["ask"], line["result"]["picture"], line["result"]["skill"]) for line in self.results()]
        skills = ("caption", "query")
        self.assertEqual(sorted(asked), [(f"{i}.png", n, f"{i}.png", skills[n]) for i in range(9) for n in range(2)])
        self.assertIs(self.results()[1]["result"]["reasoning"], False)

    def test_a_job_that_cannot_go_on_says_so_and_goes_on_later(self):
        self.put("end", "a.png")
        os.rename(self.source / "end", self.source / "b.png")
        job = self.job("--attempts", "2")
        self.assertEqual(self.run_here(job), 1)
        self.put("b.png")
        self.assertEqual(self.run_here(job), 0)
        self.assertEqual([line["id"] for line in self.results()], ["a.png", "b.png"])

    def test_what_cannot_be_answered_is_an_error_of_its_own(self):
        self.put("wrong", "b.png")
        os.rename(self.source / "wrong", self.source / "a.png")
        self.assertEqual(self.run_here(self.job()), 0)
        first, second = self.results()
        self.assertEqual((first["error"], "result" in first, "result" in second), ("no picture", False, True))

    def test_what_is_typed(self):
        self.assertEqual(jobs.asking("caption"), {"skill": "caption"})
        self.assertEqual(jobs.asking("query:Is it 5:00?"), {"skill": "query", "question": "Is it 5:00?"})
        self.assertEqual(jobs.asking('{"skill": "point", "object": "x"}'), {"skill": "point", "object": "x"})
        for wrong in ("query", "fly:high"):
            with self.assertRaises(argparse.ArgumentTypeError):
                jobs.asking(wrong)

    def test_an_engine_that_is_not_there_is_said(self):
        with self.assertRaisesRegex(FileNotFoundError, "--engine PATH"):
            engine.opened("/nowhere/photon")


class Keys(unittest.TestCase):
    def test_a_request_through_a_gateway_has_the_key_of_its_picture(self):
        picture = pictures.png(1)
        body = ask.body(picture, {"skill": "detect", "object": "circle"}, "demo")
        self.assertEqual(route_key.of_request(body), route_key.route_key(picture))
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        self.assertEqual(base64.b64decode(url.split(",")[1]), picture)

    def test_pictures_differ(self):
        self.assertEqual(len({pictures.png(seed) for seed in range(100)}), 100)
        self.assertEqual(pictures.png(7), pictures.png(7))


class Programs(unittest.TestCase):
    def test_all_are_python(self):
        programs = sorted(HERE.rglob("*.py"))
        self.assertGreater(len(programs), 10)
        for path in programs:
            ast.parse(path.read_text(encoding="utf-8"), str(path))


if __name__ == "__main__":
    unittest.main()
