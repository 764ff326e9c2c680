"""An offline job as an actor pool of Ray Data.

    python ray_data.py photos results --ask caption:short --ask detect:car --workers 2

A worker that dies is started again, and what it was at is done once more; results appear file by file.
"""

import os
import pathlib
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import job as jobs
import ray


class Worker(jobs.Worker):
    """Rows as Ray Data has them."""

    def __call__(self, row):
        return super().__call__(row["unit"])


def spread(job, todo):
    if not ray.is_initialized():
        # In a cluster, RAY_ADDRESS says where it is; alone, Ray gets no more than it needs.
        alone = {} if "RAY_ADDRESS" in os.environ else {
            "num_cpus": max(1, round(job["workers"] * job["cpus"])), "include_dashboard": False,
            "object_store_memory": 200 << 20, "_node_ip_address": "127.0.0.1"}
        ray.init(runtime_env={"working_dir": str(pathlib.Path(__file__).parent)}, logging_level="ERROR", **alone)
        ray.data.DataContext.get_current().enable_progress_bars = False
    units = ray.data.from_items([{"unit": unit} for unit in todo], override_num_blocks=len(todo))
    done = units.map(
        Worker, fn_constructor_args=[job], num_cpus=job["cpus"], num_gpus=job["gpus"],
        compute=ray.data.ActorPoolStrategy(size=job["workers"]))
    yield from done.iter_rows()


if __name__ == "__main__":
    sys.exit(jobs.run(jobs.parsed(__doc__), spread))
