"""An offline job on this machine, with neither Ray nor Daft: one worker, to try a job before it is spread.

    python alone.py photos results --ask caption:short --ask detect:car
"""

import sys

import job as jobs


def spread(job, todo):
    yield from map(jobs.Worker(job), todo)


if __name__ == "__main__":
    sys.exit(jobs.run(jobs.parsed(__doc__), spread))
