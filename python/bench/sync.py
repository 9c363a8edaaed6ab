"""Time of one all-reduce of the learned embeddings' gradient between hosts, without training.

Copy this file to the same path on every host, change to a run folder on the primary, and start it as launch.sh does:

    . ./env.sh
    mpirun -f nodefile -n 4 -ppn 1 bash -c '. ./env.sh; exec python /some/where/sync.py job.yaml'

A barrier before each all-reduce excludes the time that a rank waits for slower ones. Rank 0 prints one JSON object.
"""

import argparse
import json
import statistics
import sys
import time

import torch

from sdtune.settings import Job, read_yaml
from sdtune.training.distributed import start_accelerator


def main() -> None:
    """Set up the process group of the job, then time its all-reduce."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", help="job.yaml of a run folder; its ranks take part")
    parser.add_argument("--width", type=int, default=768, help="floats of one vector: 768 for Stable Diffusion 1.5")
    parser.add_argument("--vectors", type=int, default=1, help="vectors of the learned embeddings (default 1)")
    parser.add_argument("--repeats", type=int, default=300, help="exchanges that are timed (default 300)")
    args = parser.parse_args()
    accelerator = start_accelerator(read_yaml(args.job, Job))
    rank, ranks = accelerator.process_index, accelerator.num_processes
    gradient = torch.full((args.vectors, args.width), float(rank))
    times = []
    for _ in range(args.repeats + 20):
        accelerator.wait_for_everyone()
        began = time.perf_counter()
        mean = accelerator.reduce(gradient, "mean")
        times.append(time.perf_counter() - began)
    if not bool((mean == (ranks - 1) / 2).all()):
        sys.exit(f"rank {rank}: the mean over {ranks} ranks is wrong")
    slowest = torch.tensor(times[20:])  # the first ones include connection setup
    torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)  # a step waits for its slowest rank
    cuts = statistics.quantiles(slowest.tolist(), n=20)
    if accelerator.is_main_process:
        report = {"ranks": ranks, "bytes": gradient.nbytes, "median_ms": 1000 * cuts[9], "p95_ms": 1000 * cuts[18]}
        print(json.dumps({key: round(value, 3) for key, value in report.items()}))


if __name__ == "__main__":
    main()
