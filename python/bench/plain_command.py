"""What the command lines of the plain loops have in common: arguments, metrics.jsonl, and how a rank ends."""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from accelerate import Accelerator


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that all loops have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", type=Path, required=True, help="model folder")
    made.add_argument("--pictures", type=Path, required=True, help="folder of the concept's pictures")
    made.add_argument("--out", type=Path, required=True, help="folder that receives metrics.jsonl")
    made.add_argument("--steps", type=int, required=True, help="optimizer steps")
    made.add_argument("--resolution", type=int, default=512, help="pixels (default 512)")
    made.add_argument("--batch", type=int, default=1, help="samples of a rank per step (default 1)")
    made.add_argument("--seed", type=int, default=1, help="of all ranks (default 1)")
    return made


def metrics_writer(out: Path, accelerator: Accelerator) -> Callable[..., None]:
    """A function that writes its keyword arguments as a line of ``out/metrics.jsonl``, on the main process only."""
    if not accelerator.is_main_process:
        return lambda **_: None
    out.mkdir(parents=True, exist_ok=True)
    metrics = (out / "metrics.jsonl").open("w", buffering=1, encoding="utf-8")

    def write(**fields: object) -> None:
        metrics.write(json.dumps({"time": time.time(), **fields}) + "\n")

    return write


def end(accelerator: Accelerator) -> NoReturn:
    """Wait for all ranks and leave.

    At exit, DDP's reducer joins gloo's threads while it holds the interpreter lock, for which they may wait. With
    torch 2.13 a rank was seen to hang there after its last step. The engine does not use DDP.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    os._exit(0)
