"""An offline job as a class of Daft, each of whose instances is a process.

    python daft_job.py photos results --ask caption:short --ask detect:car --workers 2

Results appear file by file. When a worker dies the query fails, and is begun again with what is left.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
# Daft's processes look for what is beside this file.
os.environ["PYTHONPATH"] = os.pathsep.join([str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

import daft
import job as jobs


class Worker(jobs.Worker):
    """Units and lines as texts, which every version of Daft has."""

    def __call__(self, unit: str) -> str:
        return json.dumps(super().__call__(json.loads(unit)))


def spread(job, todo):
    worker = daft.cls(Worker, max_concurrency=job["workers"], use_process=True, cpus=job["cpus"], gpus=job["gpus"])(job)
    units = daft.from_pydict({"unit": [json.dumps(unit) for unit in todo]}).into_batches(1)
    for row in units.select(worker(units["unit"]).alias("line")).iter_rows():
        yield json.loads(row["line"])


if __name__ == "__main__":
    sys.exit(jobs.run(jobs.parsed(__doc__), spread))
