"""Runs of the engine and of the plain loop as whole programs, with their time and memory, for the benchmarks."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import yaml

PYTHON = Path(__file__).parents[1]
Who = Literal["engine", "plain"]


@dataclass(frozen=True)
class Stage:
    """What both programs do: same model, pictures, batch and steps, same interpreter and libraries."""

    python: Path
    stack: Literal["native", "ipex"]
    model: Path
    pictures: Path
    resolution: int
    steps: int
    ranks: int = 1
    batch: int = 1
    seed: int = 1
    placeholder: str = "<dicoo>"
    initializer: str = "toy"
    validation_steps: int = 0
    reference_caption: str | None = None
    preload: str = ""
    method: Literal["textual_inversion", "lora"] = "textual_inversion"
    mixed_precision: Literal["bf16", "no"] = "bf16"


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes of one run, of rank 0."""

    first_step_begins_s: float
    first_step_ends_s: float
    step_s: float
    """Median over the steps after the first."""
    parts: dict[str, float]
    """Medians of a step's parts."""
    encode_s: float | None
    """Median seconds to encode one picture, outside ``step_s``; None where that is part of every step."""
    all_encoded: bool
    """Whether the engine's steps have filled the latent cache; the plain loop has none."""
    peak_rss_bytes: int
    """Once the first step is done, for the engine once its latent cache is complete."""
    whole_peak_rss_bytes: int
    """Of the process's whole life."""
    sync_bytes: int
    world_size: int
    validation: dict[int, float]
    """Loss at each step that was validated."""
    reference_loss: float | None
    """Loss of the reference caption; only the engine measures it."""


def _command(who: Who, stage: Stage, scratch: Path) -> list[str]:
    if who == "plain" and stage.method == "lora":
        command = [str(PYTHON / "bench" / "plain_lora_loop.py"), "--model", str(stage.model), "--out", str(scratch)]
        command += ["--pictures", str(stage.pictures), "--steps", str(stage.steps), "--seed", str(stage.seed)]
        return [*command, "--resolution", str(stage.resolution), "--batch", str(stage.batch)]
    if who == "plain":
        command = [str(PYTHON / "bench" / "plain_loop.py"), "--model", str(stage.model), "--out", str(scratch)]
        command += ["--pictures", str(stage.pictures), "--steps", str(stage.steps), "--seed", str(stage.seed)]
        command += ["--resolution", str(stage.resolution), "--batch", str(stage.batch)]
        command += ["--placeholder", stage.placeholder, "--initializer", stage.initializer]
        command += ["--validation-steps", str(stage.validation_steps), "--mixed-precision", stage.mixed_precision]
        return [*command, "--ipex"] if stage.stack == "ipex" else command
    new_token = {"placeholder_token": stage.placeholder, "initializer_token": stage.initializer}
    job = {
        "run_name": "bench",
        "method": stage.method,
        "run_dir": str(scratch),
        "seed": stage.seed,
        "software_stack": stage.stack,
        "model": {"path": str(stage.model)},
        "data": {
            "path": str(stage.pictures),
            "resolution": stage.resolution,
            **({"instance_prompt": "a photo of sks toy"} if stage.method == "lora" else new_token),
        },
        "training": {
            "world_size": stage.ranks,
            "max_train_steps": stage.steps,
            "train_batch_size": stage.batch,
            "mixed_precision": stage.mixed_precision,
            "checkpointing_steps": 0,
            "report_to": "none",
            "save_as_full_pipeline": False,
        },
        "validation": {"steps": stage.validation_steps, "reference_caption": stage.reference_caption},
    }
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    return [str(PYTHON / "textual_inversion.py"), "--job", str(scratch / "job.yaml")]


def environment(stage: Stage, rank: int = 0) -> dict[str, str]:
    """What a run folder's env.sh sets, for ranks on loopback."""
    cores = os.cpu_count() or 1
    variables = {
        **os.environ,
        "PYTHONPATH": str(PYTHON),
        "OMP_NUM_THREADS": str(max(1, cores // stage.ranks)),
        "KMP_BLOCKTIME": "1",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    if stage.preload:
        variables["LD_PRELOAD"] = stage.preload
    if stage.ranks == 1:
        variables["KMP_AFFINITY"] = "granularity=fine,compact,1,0"
    else:
        variables |= {"RANK": str(rank), "WORLD_SIZE": str(stage.ranks), "LOCAL_RANK": str(rank)}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "GLOO_SOCKET_IFNAME": "lo"}
    return variables


def run(who: Who, stage: Stage) -> Costs:
    """Run to the end.

    Raises:
        RuntimeError: a rank failed; what it printed is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="sdtune-bench-") as folder:
        scratch = Path(folder) / "run"
        command = [str(stage.python), *_command(who, stage, scratch)]
        begun = time.time()
        ranks = []
        for rank in range(stage.ranks):
            log = (Path(folder) / f"rank-{rank}.log").open("w", encoding="utf-8")
            ranks.append(subprocess.Popen(command, env=environment(stage, rank), stdout=log, stderr=subprocess.STDOUT))
        _, status, usage = os.wait4(ranks[0].pid, 0)
        codes = [os.waitstatus_to_exitcode(status), *(rank.wait() for rank in ranks[1:])]
        if any(codes):
            logs = "\n".join((Path(folder) / f"rank-{r}.log").read_text(encoding="utf-8") for r in range(stage.ranks))
            raise RuntimeError(f"{who}: exit codes {codes}\n{logs}")
        lines = [json.loads(x) for x in (scratch / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        ended: dict[str, Any] = (
            json.loads((scratch / "finished.json").read_text(encoding="utf-8")) if who == "engine" else lines[-1]
        )
    steps = [line for line in lines if line["kind"] == "step"]
    pictures = sum(1 for file in stage.pictures.iterdir() if file.is_file())
    later = steps[1:] or steps
    names = [n for n in ("pictures_s", "vae_s", "forward_s", "backward_s", "optimizer_s", "sync_s") if n in steps[0]]
    parts = {name: median(s[name] for s in later) for name in names}
    step_s = median(s["step_s"] for s in later)
    encodes = [s["encode_s"] / s["encoded"] for s in steps if s.get("encoded")]
    first_ends = steps[0]["time"] - begun
    return Costs(
        first_step_begins_s=first_ends - steps[0]["step_s"] - steps[0].get("encode_s", 0.0),
        first_step_ends_s=first_ends,
        step_s=step_s,
        parts={**parts, "rest_s": step_s - sum(parts.values())},
        encode_s=median(encodes) if encodes else None,
        all_encoded=who == "plain" or sum(s.get("encoded", 0) for s in steps) == 2 * pictures,
        peak_rss_bytes=ended["peak_rss_bytes"],
        whole_peak_rss_bytes=1024 * usage.ru_maxrss,
        sync_bytes=steps[-1]["sync_bytes"],
        world_size=steps[-1]["world_size"],
        validation={line["step"]: line["loss"] for line in lines if line["kind"] == "validation"},
        reference_loss=ended.get("reference_loss"),
    )


def say(text: str = "") -> None:
    """Print at once, so that a long benchmark can be watched."""
    print(text, flush=True)
    sys.stdout.flush()
