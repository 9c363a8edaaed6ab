"""Measure an all-reduce over all ranks, and check its sum. Prints one table.

Started by the Ansible role cluster_check, one process a host, with env.sh read:

    python -m sdtune.launch meet mpirun ... python -m sdtune.launch.check_all_reduce --backend gloo --model MODEL

The small message has the size of the learned embeddings, which training sums in every step. Each time is that of the
slowest rank. Gbit/s is what each of n ranks sends in a ring all-reduce: 2 (n - 1) / n of the bytes.
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import distributed

from sdtune import cli
from sdtune.errors import TrainingFailed
from sdtune.training.backends import check_backend, load_backend
from sdtune.training.joining import join


def all_reduce(floats: int, repeats: int) -> list[float]:
    """Sum ``floats`` float32 numbers over all ranks, ``repeats`` times.

    Returns:
        Seconds of each all-reduce, on the slowest rank.

    Raises:
        TrainingFailed: a sum is wrong.
    """
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    expected = ranks * (ranks + 1) / 2
    numbers = torch.empty(floats)
    seconds = []
    for _ in range(repeats):
        numbers.fill_(rank + 1)
        began = time.perf_counter()
        distributed.all_reduce(numbers)
        seconds.append(time.perf_counter() - began)
        if not bool((numbers == expected).all()):
            wrong = numbers[numbers != expected][0].item()
            raise TrainingFailed(f"{platform.node()}: rank {rank} of {ranks} got the sum {wrong:g}, not {expected:g}")
    slowest = torch.tensor(seconds)
    distributed.all_reduce(slowest, distributed.ReduceOp.MAX)
    return slowest.tolist()


def main() -> None:
    """Set up the process group, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="gloo", help="gloo, ccl or mpi")
    parser.add_argument(
        "--model", type=Path, required=True, help="pipeline folder, whose text encoder has the embeddings' width"
    )
    parser.add_argument("--vectors", type=int, default=1, help="learned embedding vectors")
    parser.add_argument("--megabytes", type=int, default=100, help="size of the large message")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for a rank")
    args = parser.parse_args()
    encoders = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(args.model.glob("text_encoder*/config.json"))]

    load_backend(args.backend)
    timeout = datetime.timedelta(seconds=args.timeout)
    if args.backend == "mpi":
        distributed.init_process_group(args.backend, timeout=timeout)
    else:
        join("of the cluster check", args.backend, timeout)
    check_backend(args.backend)
    ranks = distributed.get_world_size()
    hosts: list[str | None] = [None] * ranks
    distributed.all_gather_object(hosts, platform.node())

    small = args.vectors * sum(config["hidden_size"] for config in encoders)
    large = args.megabytes * 1_000_000 // 4
    all_reduce(small, 20)  # sets up the connections
    seconds_small = all_reduce(small, 100)
    all_reduce(large, 1)
    seconds_large = all_reduce(large, 2)
    if distributed.get_rank() == 0:
        print(f"{ranks} ranks on {', '.join(map(str, dict.fromkeys(hosts)))} over {args.backend}: all sums are right")
        print(f"{'all-reduce of':16}{'bytes':>12}{'median':>14}{'95 % within':>14}{'a rank sends':>16}")
        median, within = statistics.median(seconds_small), statistics.quantiles(seconds_small, n=20)[18]
        print(f"{'embeddings':16}{4 * small:>12,}{1000 * median:>11.2f} ms{1000 * within:>11.2f} ms")
        median = statistics.median(seconds_large)
        rate = 2 * (ranks - 1) / ranks * 32 * large / median / 1e9
        print(f"{f'{args.megabytes} MB':16}{4 * large:>12,}{1000 * median:>11.2f} ms{'':14}{rate:>9.2f} Gbit/s")
    distributed.destroy_process_group()


if __name__ == "__main__":
    cli.run(main, preload=True)
