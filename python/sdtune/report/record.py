"""What lies in a run folder, read once and as it is: a run that is going on, or stopped half-way, can be shown too."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from sdtune.errors import BadInput
from sdtune.launch.run_folder import Run
from sdtune.training.metrics import read_metrics


@dataclass(frozen=True)
class Drawn:
    """A picture that generate_images.py drew, with what its metadata say."""

    path: Path
    prompt: str
    seed: str
    how: str


@dataclass(frozen=True)
class Rank:
    """Means of one rank over a run: seconds of a step that it computed and that it waited, and its memory in bytes."""

    number: int
    host: str
    compute_s: float
    sync_s: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        folder: where it lies.
        job: what was asked, as nested mappings.
        start: the first line of metrics.jsonl.
        resumes: how often it went on after a stop.
        steps: lines of kind ``step``, in order; so are ``validations``.
        ranks: every rank, or none where the run did not get to its first validation.
        hosts: one object a host, see :func:`sdtune.training.ranks.describe_hosts`.
        finished: ``finished.json``, or None for a run that has not finished.
        concept: small copies of the pictures that were learned from.
        validation: {step: {seed: picture}} of the validation prompt.
        images: what was drawn afterwards.
        packages: {host: the packages of its environment}, one a line.
    """

    folder: Path
    job: dict[str, Any]
    start: dict[str, Any]
    resumes: int
    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    ranks: list[Rank]
    hosts: list[dict[str, Any]]
    finished: dict[str, Any] | None
    concept: list[Path]
    validation: dict[int, dict[int, Path]]
    images: list[Drawn]
    packages: dict[str, str]

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.start["run_name"])

    def asked(self, section: str, key: str, default: Any = None) -> Any:
        """A setting of the job."""
        return self.job.get(section, {}).get(key, default)


def _metadata(path: Path) -> Drawn:
    with Image.open(path) as image:
        text = {k: str(v) for k, v in image.info.items() if isinstance(v, str)}
    how = [text.get("source", ""), f"{text['num_inference_steps']} steps" if "num_inference_steps" in text else ""]
    if "guidance_scale" in text:
        how.append(f"guidance {text['guidance_scale']}")
    return Drawn(path, text.get("prompt", path.name), text.get("seed", "?"), ", ".join(filter(None, how)))


def _ranks(lines: list[dict[str, Any]], hosts: list[dict[str, Any]]) -> list[Rank]:
    """Means over all lines of kind ``ranks``; a run that was resumed on another number of ranks counts from then on."""
    if not lines:
        return []
    lines = [line for line in lines if len(line["compute_s"]) == len(lines[-1]["compute_s"])]
    names = {rank: host["host"] for host in hosts for rank in host["ranks"]}
    steps = sum(line["steps"] for line in lines)
    return [
        Rank(
            number,
            names.get(number, "?"),
            sum(line["compute_s"][number] * line["steps"] for line in lines) / steps,
            sum(line["sync_s"][number] * line["steps"] for line in lines) / steps,
            max(line["peak_rss_bytes"][number] for line in lines),
        )
        for number in range(len(lines[-1]["compute_s"]))
    ]


def _validation(folder: Path) -> dict[int, dict[int, Path]]:
    found: dict[int, dict[int, Path]] = {}
    for path in folder.glob("step-*/seed-*.png"):
        step, seed = re.fullmatch(r"step-(\d+)", path.parent.name), re.fullmatch(r"seed-(\d+)", path.stem)
        if step and seed:
            found.setdefault(int(step[1]), {})[int(seed[1])] = path
    return {step: dict(sorted(found[step].items())) for step in sorted(found)}


def read_run(folder: str | Path) -> RunRecord:
    """Read a run folder.

    Raises:
        BadInput: it holds no run that has begun.
    """
    run = Run(folder)
    lines = read_metrics(run.metrics) if run.metrics.is_file() else []
    begun = [m for m in lines if m["kind"] in ("start", "resume")]
    if not begun:
        raise BadInput(f"{run.folder} holds no run that has begun ({run.metrics.name} says nothing); train it first")
    start, latest = begun[0], begun[-1]
    job = latest.get("job")
    if job is None:  # of a release whose metrics did not hold it
        job = yaml.safe_load(run.job.read_text(encoding="utf-8")) if run.job.is_file() else {}
    hosts = latest.get("hosts", [])
    return RunRecord(
        folder=run.folder.resolve(),
        job=job,
        start=start,
        resumes=sum(m["kind"] == "resume" for m in begun),
        steps=[m for m in lines if m["kind"] == "step"],
        validations=[m for m in lines if m["kind"] == "validation"],
        ranks=_ranks([m for m in lines if m["kind"] == "ranks"], hosts),
        hosts=hosts,
        finished=json.loads(run.finished.read_text(encoding="utf-8")) if run.finished.is_file() else None,
        concept=sorted(run.concept.glob("*.jpg")),
        validation=_validation(run.validation),
        images=[_metadata(p) for p in sorted(run.images.glob("*.png")) if p.name != "contact_sheet.png"],
        packages={
            p.stem: p.read_text(encoding="utf-8").strip() for p in sorted((run.folder / "packages").glob("*.txt"))
        },
    )
