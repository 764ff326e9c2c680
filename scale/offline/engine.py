"""What answers on a worker: the package `photon` in its process, or the program `photon` beside it.

Both take a list of requests in the words of Moondream's API, with the picture's bytes, and give as many results in the
same order: {"result": {...}}, or {"error": "why"} where one request was wrong. They raise when the engine itself is gone.
"""

import base64
import importlib.util
import json
import shutil
import subprocess
import threading


def opened(engine="auto", model="demo", options=()):
    """The engine by its name: `package`, `program`, or the path of the program; `auto` prefers the package."""
    if engine == "auto":
        engine = "package" if importlib.util.find_spec("photon") else "program"
    if engine == "package":
        return Package(model, options)
    program = shutil.which("photon" if engine == "program" else engine)
    if program is None:
        raise FileNotFoundError("photon is not here: install its package, or say --engine PATH for the program")
    return Program([program, "batch", "-", "--model", model, *options])


class Package:
    """`photon.vl(...)`, whose options have the names of the program's."""

    def __init__(self, model, options):
        import photon

        named = (option.removeprefix("--").split("=", 1) for option in options)
        numbers = {name.replace("-", "_"): int(value) if value.isdigit() else value for name, value in named}
        self.model = photon.vl(model=model, **numbers)

    def answer(self, requests):
        return [
            {"error": str(one)} if isinstance(one, Exception)
            else {"result": {**one, "finish_reason": one.finish_reason}}
            for one in self.model.batch(requests)
        ]


class Program:
    """`photon batch -`, which answers lines as they come and ends with the worker, because its input does."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def answer(self, requests):
        # Another thread writes: neither end waits for the other with a full pipe.
        writer = threading.Thread(target=self._write, args=(requests,), daemon=True)
        writer.start()
        answers = [None] * len(requests)
        for _ in requests:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"photon batch ended with {self.process.wait()}; try it by hand to see why")
            line = json.loads(line)
            ok = line["status"] == "ok"
            answers[line["id"]] = {"result": line["result"]} if ok else {"error": line["error"]["message"]}
        writer.join()
        return answers

    def _write(self, requests):
        try:
            for number, request in enumerate(requests):
                picture = base64.b64encode(request["image"]).decode()
                line = json.dumps({**request, "id": number, "image": picture})
                self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # Whoever reads finds out.
