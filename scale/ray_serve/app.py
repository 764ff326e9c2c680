"""Photon behind Ray Serve: replicas that each run a `photon serve`, and a router that sends equal keys to the same one.

    export RAY_SERVE_SESSION_ID_HEADER_KEY=x-photon-route-key
    serve run app:build replicas=2 model=moondream2      # in a cluster, or on this machine alone
    python app.py --replicas 2 --model moondream2        # the same, in a Ray of its own that is kept small

Ray's consistent-hash router reads the key as the id of a session. Whatever Photon's server answers passes through
unchanged: every dialect, streams, the page.
"""

import argparse
import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys

# Ray's proxies read it when they start, so it is set before Ray is.
os.environ.setdefault("RAY_SERVE_SESSION_ID_HEADER_KEY", "x-photon-route-key")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import aiohttp
from ray import serve
from ray.serve.config import RequestRouterConfig
from starlette.requests import Request
from starlette.responses import StreamingResponse

POLICIES = {
    "affinity": "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter",
    "round_robin": "ray.serve.experimental.round_robin_router:RoundRobinRouter",
    "power_of_two": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",
}
# What belongs to a connection and not to what passes through it (RFC 9110, 7.6.1).
HOPS = {"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
# What Ray's proxy says itself.
OWN = {"date", "server", "x-request-id"}
READY = re.compile(r"photon: serving .* on (http://\S+)")


def end_with_parent():
    """A replica that is killed takes its server with it (on Linux)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@serve.deployment(max_ongoing_requests=64, health_check_period_s=5)
class Server:
    """A `photon serve` on a port of its own, and requests handed to it."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=end_with_parent)
        said = ""
        for line in self.process.stderr:
            said += line
            if ready := READY.search(line):
                self.address = ready[1]
                break
        else:
            raise RuntimeError(f"{' '.join(command)} ended: {said}")
        # Nobody reads what it says from here on, but it must not block on a full pipe.
        self.log = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=sys.stderr)
        self.session = None

    async def __call__(self, request: Request):
        if self.session is None:
            self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False)
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOPS]
        answer = await self.session.request(
            request.method, f"{self.address}{request.url.path}", params=request.url.query, headers=headers,
            data=await request.body())
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOPS | OWN}

        async def pieces():
            # A client that goes away ends this, which closes the connection, which cancels the request.
            async with answer:
                async for piece in answer.content.iter_any():
                    yield piece

        return StreamingResponse(pieces(), status_code=answer.status, headers=kept)

    def check_health(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"photon serve ended with {self.process.returncode}")

    def __del__(self):
        process = getattr(self, "process", None)
        if process is not None and process.poll() is None:
            process.terminate()


def application(replicas, policy="affinity", cpus=1, gpus=0, program="photon", model="demo", port=2021, options=()):
    """The application; each replica takes the first free port from `port` on."""
    command = [program, "serve", "--model", model, "--port", str(port), "--port-tries", "200", *options]
    return Server.options(
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        request_router_config=RequestRouterConfig(request_router_class=POLICIES[policy]),
    ).bind(command)


def build(args: dict):
    """For `serve run app:build key=value ...`."""
    numbers = {name: int(args[name]) for name in ("cpus", "gpus", "port") if name in args}
    texts = {name: args[name] for name in ("policy", "program", "model") if name in args}
    return application(int(args.get("replicas", 2)), options=args.get("options", "").split(), **numbers, **texts)


async def until_told():
    done = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    await done.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--policy", choices=POLICIES, default="affinity")
    parser.add_argument("--listen", type=int, default=8000, help="the port that clients ask")
    parser.add_argument("--port", type=int, default=2021, help="the first port of the servers behind it")
    parser.add_argument("--cpus", type=float, default=1, help="cores of a replica")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a replica")
    parser.add_argument("--program", default="photon")
    parser.add_argument("--model", default="demo")
    parser.add_argument("options", nargs="*", help="of photon serve, behind --")
    args = parser.parse_args()

    import ray

    # The controller and the proxy take no core, but each replica has its own.
    ray.init(num_cpus=max(1, round(args.replicas * args.cpus)), include_dashboard=False, object_store_memory=200 << 20,
             _node_ip_address="127.0.0.1")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": args.listen})
        serve.run(application(args.replicas, args.policy, args.cpus, args.gpus, args.program, args.model, args.port,
                              args.options))
        print(f"ready on http://127.0.0.1:{args.listen}", flush=True)
        asyncio.run(until_told())
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
