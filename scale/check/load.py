"""Many questions about few pictures, in any order, to a router: how often a server had the picture in its cache, how
evenly the servers were used, and how long answers took.

    python load.py http://localhost:3000 --servers http://localhost:2020 http://localhost:2021 --affinity

Prints a line of JSON about all rounds, each of which has other pictures. `hit_rate` is the share of answers whose
picture was found in the cache: at best 5 of 6, because there are 6 questions about each picture.
"""

import argparse
import base64
import http.client
import json
import pathlib
import random
import statistics
import sys
import threading
import time
import urllib.parse
import urllib.request

sys.path.append(str(pathlib.Path(__file__).parents[1]))
import route_key
from check import pictures

# Six of each picture, of every kind that goes over a chat completion.
QUESTIONS = (
    {"skill": "caption", "length": "short"},
    {"skill": "detect", "object": "circle"},
    {"skill": "point", "object": "square"},
    {"skill": "query", "question": "How many shapes are there?", "reasoning": False},
    {"skill": "query", "question": "What color is the circle?", "reasoning": False},
    {},  # A conversation.
)


def requests(count, seed):
    """[(key, body)] of all questions about all pictures, shuffled."""
    made = []
    for number in range(count):
        picture = pictures.png(seed * 1_000_000 + number)
        key = route_key.route_key(picture)
        url = "data:image/png;base64," + base64.b64encode(picture).decode()
        content = [{"type": "text", "text": "What is there?"}, {"type": "image_url", "image_url": {"url": url}}]
        for question in QUESTIONS:
            made.append((key, {"model": "demo", "messages": [{"role": "user", "content": content}],
                               "max_tokens": 16, "temperature": 0, **question}))
    random.Random(seed).shuffle(made)
    return made


def until_ready(router, servers, seconds):
    """Waits until the router has each server answer, which takes as many keys as it takes."""
    end, left = time.monotonic() + seconds, set(servers)
    before = {}
    number = 0
    while left:
        try:
            for server in servers:
                before.setdefault(server, answered(server))
            body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
            headers = {"Content-Type": "application/json", route_key.HEADER: route_key.route_key(str(number))}
            number += 1
            request = urllib.request.Request(f"{router}/v1/chat/completions", json.dumps(body).encode(), headers)
            urllib.request.urlopen(request, timeout=30).read()
            left = {server for server in left if answered(server) == before[server]}
        except OSError as error:
            if time.monotonic() > end:
                raise TimeoutError(f"{router} is not ready after {seconds} s: {error}") from error
            time.sleep(0.3)
        if left and time.monotonic() > end:
            raise TimeoutError(f"after {seconds} s {router} has sent nothing to {sorted(left)}")


def answered(server):
    """How many requests a server has answered so far."""
    with urllib.request.urlopen(f"{server}/v1/stats", timeout=10) as response:
        return json.load(response)["requests_processed"]


class Clients:
    """Threads that send requests, each over a connection of its own, one after the other."""

    def __init__(self, router, affinity, work):
        self.address = urllib.parse.urlsplit(router)
        self.affinity = affinity
        self.work = iter(work)
        self.lock = threading.Lock()
        self.seconds, self.hits, self.wrong = [], 0, []

    def run(self, threads):
        running = [threading.Thread(target=self._client) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    def _client(self):
        connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=60)
        while True:
            with self.lock:
                key, body = next(self.work, (None, None))
            if body is None:
                return connection.close()
            headers = {"Content-Type": "application/json", **({route_key.HEADER: key} if self.affinity else {})}
            begun = time.perf_counter()
            try:
                connection.request("POST", f"{self.address.path}/v1/chat/completions", json.dumps(body), headers)
                response = connection.getresponse()
                text = response.read()
                self._take(time.perf_counter() - begun, key, response, text)
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                with self.lock:
                    self.wrong.append(repr(error))

    def _take(self, seconds, key, response, text):
        if response.status != 200:
            raise ValueError(f"{response.status}: {text[:200]}")
        metrics = json.loads(text)["moondream"]["metrics"]
        with self.lock:
            self.seconds.append(seconds)
            # A whole picture or none is found, and a prompt has few positions besides.
            self.hits += metrics["cached_tokens"] > metrics["input_tokens"] / 2
            if response.headers.get(route_key.HEADER, key) != key:
                self.wrong.append(f"the server's key is {response.headers[route_key.HEADER]}, the client's {key}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("router")
    parser.add_argument("--servers", nargs="+", required=True, help="whose requests are counted")
    parser.add_argument("--affinity", action="store_true", help=f"send {route_key.HEADER}")
    parser.add_argument("--pictures", type=int, default=24, help="of a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--wait", type=float, default=60, help="seconds until the router must be ready")
    args = parser.parse_args()

    until_ready(args.router, args.servers, args.wait)
    work = [one for number in range(args.rounds) for one in requests(args.pictures, args.seed + number)]
    before = [answered(server) for server in args.servers]
    clients = Clients(args.router, args.affinity, work)
    begun = time.perf_counter()
    clients.run(args.clients)
    wall = time.perf_counter() - begun
    shares = [answered(server) - earlier for server, earlier in zip(args.servers, before)]
    times = sorted(clients.seconds) or [float("nan")]
    print(json.dumps({
        "requests": len(work),
        "answered": len(clients.seconds),
        "hit_rate": round(clients.hits / len(work), 4),
        "ideal_hit_rate": round(1 - 1 / len(QUESTIONS), 4),
        # Of each server: 0.5 and 0.5 is even for two.
        "balance": [round(share / max(1, sum(shares)), 3) for share in shares],
        "p50_ms": round(1000 * statistics.median(times), 2),
        "p99_ms": round(1000 * times[int(0.99 * (len(times) - 1))], 2),
        "requests_per_second": round(len(times) / wall, 1),
        "wrong": clients.wrong[:5],
    }))
    return 1 if clients.wrong or len(clients.seconds) != len(work) else 0


if __name__ == "__main__":
    sys.exit(main())
