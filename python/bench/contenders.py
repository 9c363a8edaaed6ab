"""Runs of the engine and of the plain loop as whole programs, with their time and memory, for the benchmarks."""

import json
import os
import subprocess
import sys
import tempfile
import threading
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
    """Whether the engine holds no VAE: all images are encoded, or were before. The plain loop has no latent cache."""
    peak_rss_bytes: int
    """Once the first step is done, for the engine once its latent cache is complete."""
    whole_peak_rss_bytes: int
    """Of the process's whole life."""
    own_peak_bytes: int
    """Of ``peak_rss_bytes``, what is this rank's own: without the files that it maps, whose pages ranks share."""
    whole_own_peak_bytes: int
    """The same of the process's whole life."""
    mapped_bytes: int
    """Resident pages of mapped files: of the engine's weights, and of libraries."""
    host_peak_bytes: int
    """Peak of all ranks together; a page that several map counts once."""
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


class _Memory(threading.Thread):
    """Samples what a process holds in memory while it runs, its own and mapped files apart."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self.samples: list[tuple[float, int, int]] = []
        """Time, bytes of its own, bytes of mapped files."""

    def run(self) -> None:
        """Until the process ends: then it has no memory, or is gone."""
        while True:
            try:
                lines = self._status.read_text(encoding="ascii").splitlines()
            except (FileNotFoundError, ProcessLookupError):
                return
            found = {name: value for name, _, value in (line.partition(":") for line in lines)}
            if "RssAnon" not in found:
                return
            own, mapped = (1024 * int(found[name].split()[0]) for name in ("RssAnon", "RssFile"))
            self.samples.append((time.time(), own, mapped))
            time.sleep(0.02)

    def since(self, begin: float) -> tuple[int, int]:
        """The most of its own, and of mapped files, from a time on."""
        later = [sample for sample in self.samples if sample[0] >= begin] or self.samples[-1:]
        return max(sample[1] for sample in later), max(sample[2] for sample in later)


class _HostMemory(threading.Thread):
    """The peak of what processes hold together, while all of them run; a page that several map counts once."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self._files = [Path(f"/proc/{pid}/smaps_rollup") for pid in pids]
        self.peak = 0

    def run(self) -> None:
        """Until one of them ends. The kernel walks all pages for each sample, so there are few."""
        while True:
            try:
                texts = [file.read_text(encoding="ascii") for file in self._files]
            except (FileNotFoundError, ProcessLookupError):
                return
            shares = [line for text in texts for line in text.splitlines() if line.startswith("Pss:")]
            if len(shares) < len(self._files):
                return
            self.peak = max(self.peak, 1024 * sum(int(line.split()[1]) for line in shares))
            time.sleep(0.2)


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
        memory = _Memory(ranks[0].pid)
        memory.start()
        together = _HostMemory([rank.pid for rank in ranks])
        together.start()
        _, status, usage = os.wait4(ranks[0].pid, 0)
        memory.join()
        together.join()
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
    # as for peak_rss_bytes, the first step does not count, nor those that the engine's VAE takes part in
    own, mapped = memory.since(max(s["time"] for s in steps if s is steps[0] or s.get("encoded")))
    return Costs(
        first_step_begins_s=first_ends - steps[0]["step_s"] - steps[0].get("encode_s", 0.0),
        first_step_ends_s=first_ends,
        step_s=step_s,
        parts={**parts, "rest_s": step_s - sum(parts.values())},
        encode_s=median(encodes) if encodes else None,
        all_encoded=who == "plain" or sum(s.get("encoded", 0) for s in steps) in (0, 2 * pictures),
        peak_rss_bytes=ended["peak_rss_bytes"],
        whole_peak_rss_bytes=1024 * usage.ru_maxrss,
        own_peak_bytes=own,
        whole_own_peak_bytes=memory.since(0)[0],
        mapped_bytes=mapped,
        host_peak_bytes=together.peak,
        sync_bytes=steps[-1]["sync_bytes"],
        world_size=steps[-1]["world_size"],
        validation={line["step"]: line["loss"] for line in lines if line["kind"] == "validation"},
        reference_loss=ended.get("reference_loss"),
    )


def say(text: str = "") -> None:
    """Print at once, so that a long benchmark can be watched."""
    print(text, flush=True)
    sys.stdout.flush()
