"""Draw pictures with a trained run, with one process for every memory node (NUMA) of this host.

python generate_images.py --job runs/demo/generation.yaml

A playbook shares the work out over hosts with --check, which prints the batches, --draw, which draws some, and
--finish, which makes the contact sheet once all are there.
"""

import argparse
import json
import shutil
import subprocess
import sys

from sdtune import cli, config
from sdtune.errors import DrawingFailed
from sdtune.generation import Plan, alone, draw_batches, finish, plan
from sdtune.runs import Run


def _draw(job_file: str, job: config.GenerationJob, planned: Plan, numbers: list[int]) -> None:
    """Draw with one process for each share of cores; with this one where there is one."""
    with alone(Run(job.run_dir)):
        shares = planned.cores[: len(numbers)]
        if len(shares) < 2:
            for cores in shares:
                draw_batches(job, planned, numbers, cores)
            return
        command = [sys.executable, __file__, "--job", job_file, "--worker"]
        workers = []
        for i, cores in enumerate(shares):
            own = [",".join(map(str, x)) for x in (cores, numbers[i :: len(shares)])]
            workers.append(subprocess.Popen([*command, *own]))
        codes = [worker.wait() for worker in workers]
        if any(codes):
            raise DrawingFailed(f"of the processes that draw, some ended with an error (exit codes {codes}); see above")


def main() -> None:
    """Parse, draw, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", required=True, help="generation job file (YAML)")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--check", action="store_true", help="look at the job and its inputs; print the plan as JSON")
    part.add_argument("--draw", metavar="N", type=int, nargs="+", help="draw these batches only, into drawn/")
    part.add_argument("--finish", action="store_true", help="make images/ of drawn/, which has to hold all pictures")
    part.add_argument("--worker", nargs=2, metavar=("CORES", "BATCHES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    job = config.read_yaml(args.job, config.GenerationJob)
    planned = plan(job, weigh=not args.worker)
    if args.check:
        names = [planned.names(i) for i in range(len(planned.batches))]
        print(json.dumps({"batches": names, "processes": len(planned.cores), "warnings": planned.warnings}))
        return
    if args.worker:
        cores, numbers = ([int(x) for x in text.split(",")] for text in args.worker)
        draw_batches(job, planned, numbers, cores)
        return
    if args.draw is not None:
        _draw(args.job, job, planned, args.draw)
        return
    if not args.finish:
        for warning in planned.warnings:
            print(f"warning: {warning}", flush=True)
        shutil.rmtree(Run(job.run_dir).drawn, ignore_errors=True)
        _draw(args.job, job, planned, list(range(len(planned.batches))))
    files = finish(job, planned)
    print(f"{len(files) - 1} pictures and {files[-1]}")


if __name__ == "__main__":
    cli.run(main)
