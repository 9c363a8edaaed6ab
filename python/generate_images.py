"""Generate images with a trained run, with one process for each NUMA node of this host, and of other hosts.

python generate_images.py --job runs/demo/generation.yaml
python generate_images.py --job runs/demo/generation.yaml --host node2 198.51.100.12
sbatch draw.sbatch, which calls it with --allocation in a job of Slurm

Other hosts are reached by ssh. They hold the same code, environment, job file and copy of the run at the same paths.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from sdtune import cli
from sdtune.files import follow_mode
from sdtune.host.ssh import command_on
from sdtune.inference import pool
from sdtune.inference.plan import Plan, make_plan
from sdtune.inference.results import clear_drawn, finish, generation_lock
from sdtune.inference.worker import serve
from sdtune.launch import detach
from sdtune.launch.allocation import Allocation, step_on
from sdtune.launch.run_folder import Run
from sdtune.settings import GenerationJob, read_yaml


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", required=True, metavar="FILE", help="generation job file (YAML; required)")
    parser.add_argument("--check", action="store_true", help="check the job and its inputs; print the plan as JSON")
    parser.add_argument(
        "--host",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "ADDRESS"),
        help="generate on this host too; repeatable",
    )
    parser.add_argument("--allocation", action="store_true", help="generate on all nodes of this job of Slurm too")
    parser.add_argument(
        "--detach", action="store_true", help="run in the background; standalone/run_state.py shows the progress"
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser


def _generate(job_file: str, job: GenerationJob, plan: Plan, hosts: dict[str, str], *, allocation: bool) -> None:
    reach = command_on
    if allocation:
        others = list(Allocation.of(os.environ).hosts)[1:]
        hosts, reach = {name: name for name in others}, step_on
    run = Run(job.run_dir)
    with generation_lock(run):
        for warning in plan.warnings:
            print(f"warning: {warning}", flush=True)
        commands = pool.worker_commands(job_file, plan, hosts, reach)
        clear_drawn(run)
        workers = pool.WorkerPool(job, plan)
        workers.run(commands)
        files = finish(job, plan)
        for host, why in workers.lost.items():
            print(f"warning: all pictures are there, but {host} {why}", flush=True)
        # before the lock is released: that tells a reader of the log that it is complete
        print(f"{len(files) - 1} pictures and {files[-1]}", flush=True)


def main() -> None:
    """Check, detach, serve as a worker, or generate, as the flags say."""
    args = _parser().parse_args()
    job = read_yaml(args.job, GenerationJob)
    follow_mode(Path(job.run_dir))
    plan = make_plan(job, check_memory=args.worker is None)
    if args.check:
        found = {"fingerprint": plan.fingerprint, "processes": len(plan.cores), "warnings": plan.warnings}
        print(json.dumps({**found, "pictures": len(plan.requests), "batches": len(plan.batches)}))
    elif args.worker is not None:
        serve(job, plan, args.worker)
    elif args.detach:
        hosts = [word for pair in args.host for word in ("--host", *pair)]
        job_file = str(Path(args.job).resolve())
        detach.start_drawing(Run(job.run_dir).folder, [sys.executable, pool.PROGRAM, "--job", job_file, *hosts])
    else:
        _generate(args.job, job, plan, dict(args.host), allocation=args.allocation)


if __name__ == "__main__":
    cli.run(main)
