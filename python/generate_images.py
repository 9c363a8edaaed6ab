"""Generate images with a trained run, with one process for each NUMA node of this host, and of other hosts.

python generate_images.py --job runs/demo/generation.yaml
python generate_images.py --job runs/demo/generation.yaml --host node2 198.51.100.12
sbatch draw.sbatch, which calls it with --allocation in a job of Slurm

python generate_images.py --class-pictures runs/demo/job.yaml

Other hosts are reached by ssh. They hold the same code, environment, job file, and copy of the run or of the base model
at the same paths.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from sdtune import cli
from sdtune.arguments import Parser
from sdtune.files import follow_mode
from sdtune.host.ssh import Reach, command_on
from sdtune.inference import pool
from sdtune.inference.class_pictures import class_generation, there
from sdtune.inference.plan import Plan, make_plan
from sdtune.inference.results import clear_drawn, finish, generation_lock
from sdtune.inference.worker import serve
from sdtune.launch import detach
from sdtune.launch.allocation import Allocation, step_on
from sdtune.launch.run_folder import Run
from sdtune.settings import GenerationJob, Job, read_yaml
from standalone import run_state


def _parser() -> Parser:
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--job", metavar="FILE", help="generation job file (YAML)")
    what.add_argument(
        "--class-pictures",
        metavar="FILE",
        help="training job file (YAML): draw those of its class pictures that this host does not have yet",
    )
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


def _generate(
    request: list[str], job: GenerationJob, plan: Plan, hosts: dict[str, str], reach: Reach, *, keep: bool
) -> None:
    """Draw; with ``keep`` only what ``drawn/`` lacks, and the pictures stay there."""
    run = Run(job.run_dir)
    with generation_lock(run):
        for warning in plan.warnings:
            print(f"warning: {warning}", flush=True)
        commands = pool.worker_commands(request, plan, hosts, reach)
        if not keep:
            clear_drawn(run)
        run.drawn.mkdir(exist_ok=True)
        workers = pool.WorkerPool(job, plan, there(plan, run.drawn))
        workers.run(commands)
        where = run.drawn if keep else finish(job, plan)[-1]
        for host, why in workers.lost.items():
            print(f"warning: all pictures are there, but {host} {why}", flush=True)
        # before the lock is released: that tells a reader of the log that it is complete
        print(f"{len(plan.requests)} pictures and {where}", flush=True)


def main() -> None:
    """Check, detach, serve as a worker, or generate, as the flags say."""
    args = _parser().parse_args()
    keep = args.class_pictures is not None
    job = class_generation(read_yaml(args.class_pictures, Job)) if keep else read_yaml(args.job, GenerationJob)
    request = ["--class-pictures" if keep else "--job", str(Path(args.class_pictures if keep else args.job).resolve())]
    run = Run(job.run_dir)
    follow_mode(run.folder)
    plan = make_plan(job, check_memory=args.worker is None)
    if args.check:
        found = {"fingerprint": plan.fingerprint, "processes": len(plan.cores), "warnings": plan.warnings}
        found |= {"pictures": len(plan.requests), "batches": len(plan.batches), "folder": job.run_dir}
        found |= {"missing": len(plan.batches) - (len(there(plan, run.drawn)) if keep else 0)}
        print(json.dumps({**found, "going": run_state.is_locked(run.folder / run_state.DRAWING_LOCK)}))
    elif args.worker is not None:
        serve(job, plan, args.worker)
    elif args.detach:
        hosts = [word for pair in args.host for word in ("--host", *pair)]
        run.folder.mkdir(parents=True, exist_ok=True)
        detach.start_drawing(run.folder, [sys.executable, pool.PROGRAM, *request, *hosts])
    else:
        run.folder.mkdir(parents=True, exist_ok=True)
        hosts = dict(args.host)
        if args.allocation:
            hosts |= {name: name for name in list(Allocation.of(os.environ).hosts)[1:]}
        _generate(request, job, plan, hosts, step_on if args.allocation else command_on, keep=keep)


if __name__ == "__main__":
    cli.run(main)
