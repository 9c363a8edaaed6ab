"""Draw pictures with a trained run, with one process for every memory node (NUMA) of this host, and of others.

python generate_images.py --job runs/demo/generation.yaml
python generate_images.py --job runs/demo/generation.yaml --host node2 198.51.100.12

Other hosts are reached by ssh, and hold the same code, environment, job file and copy of the run at the same paths.
"""

import argparse
import json
import sys
from pathlib import Path

from sdtune import cli
from sdtune.inference import pool
from sdtune.inference.generation import alone, empty, finish, plan
from sdtune.launch import detach
from sdtune.launch.run_folder import Run
from sdtune.settings import GenerationJob, read_yaml


def main() -> None:
    """Parse, draw, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", required=True, help="generation job file (YAML)")
    parser.add_argument("--check", action="store_true", help="look at the job and its inputs; print the plan as JSON")
    parser.add_argument(
        "--host", nargs=2, action="append", default=[], metavar=("NAME", "ADDRESS"), help="draw there too; repeatable"
    )
    parser.add_argument(
        "--detach", action="store_true", help="go on in the background: standalone/run_state.py tells how far"
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    job = read_yaml(args.job, GenerationJob)
    planned = plan(job, weigh=args.worker is None)
    if args.check:
        found = {"fingerprint": planned.fingerprint, "processes": len(planned.cores), "warnings": planned.warnings}
        print(json.dumps({**found, "pictures": len(planned.requests), "batches": len(planned.batches)}))
        return
    if args.worker is not None:
        pool.work(job, planned, args.worker)
        return
    run = Run(job.run_dir)
    if args.detach:
        hosts = [word for pair in args.host for word in ("--host", *pair)]
        job_file = str(Path(args.job).resolve())
        detach.start_drawing(run.folder, [sys.executable, pool.PROGRAM, "--job", job_file, *hosts])
        return
    with alone(run):
        for warning in planned.warnings:
            print(f"warning: {warning}", flush=True)
        seats = pool.seats_of(args.job, planned, dict(args.host))
        empty(run)
        shared = pool.Sharing(job, planned)
        shared.draw(seats)
        files = finish(job, planned)
        for host, why in shared.lost.items():
            print(f"warning: all pictures are there, but {host} {why}", flush=True)
        # before the lock is free, which tells whoever follows the log that it is complete
        print(f"{len(files) - 1} pictures and {files[-1]}", flush=True)


if __name__ == "__main__":
    cli.run(main)
