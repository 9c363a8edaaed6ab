"""The content of a run folder, read once. A run that is still training, or was stopped, has a report too."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from sdtune.errors import BadInput
from sdtune.launch.run_folder import Run
from sdtune.report.formatting import NOTHING
from sdtune.training.metrics import read_metrics
from standalone import run_state


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """An image of generate_images.py, with its metadata."""

    path: Path
    """The PNG file."""
    prompt: str
    """Its prompt."""
    seed: str
    """Its seed, as text."""
    how: str
    """Source, steps and guidance, for a reader."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Means of one rank over a run."""

    number: int
    """The rank."""
    host: str
    """Where it ran."""
    compute_s: float
    """Seconds of a step that it computed."""
    sync_s: float
    """Seconds of a step for the exchange, with waiting for the slowest rank."""
    peak_rss_bytes: int
    """Its peak resident memory."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run."""

    folder: Path
    """The run folder."""
    job: dict[str, Any]
    """The job, as nested mappings."""
    start: dict[str, Any]
    """The first line of metrics.jsonl."""
    resumes: int
    """How often the run was resumed."""
    chosen: dict[str, Any] | None
    """The line of kind ``starting_point``; None: the job says where learning starts."""
    steps: list[dict[str, Any]]
    """Lines of kind ``step``, in order."""
    validations: list[dict[str, Any]]
    """Lines of kind ``validation``, in order."""
    ranks: list[Rank]
    """Every rank; empty before the first validation."""
    hosts: list[dict[str, Any]]
    """One object for each host, see :func:`sdtune.training.ranks.describe_hosts`."""
    finished: dict[str, Any] | None
    """``finished.json``; None for a run that has not finished, or does not prove it."""
    unproven: str
    """Why its ``finished.json`` does not prove that it finished; empty if it does, or if there is none."""
    concept: list[Path]
    """Small copies of the training pictures."""
    validation: dict[int, dict[int, Path]]
    """{step: {seed: image}} of the validation prompt."""
    images: list[GeneratedImage]
    """Images that were generated with the finished run."""
    packages: dict[str, str]
    """{host: the packages of its environment, one a line}"""

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.start["run_name"])

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """A setting of the job."""
        return self.job.get(section, {}).get(key, default)

    @property
    def method(self) -> str:
        """Name of the fine-tuning method, for a heading."""
        return _METHODS[self.job.get("method", "textual_inversion")]

    @property
    def learned_name(self) -> str:
        """What the concept is called in prompts: the placeholder token, or the caption of all pictures."""
        if self.job.get("method") == "lora":
            return str(self.setting("data", "instance_prompt") or "The captions of the pictures")
        return str(self.setting("data", "placeholder_token", "the placeholder token"))

    @property
    def starting_point(self) -> str:
        """What learning started from."""
        token = f"the token {self.setting('data', 'initializer_token', '?')}"
        if self.chosen:
            token = f"the token {self.chosen['point']}, the best of {len(self.chosen['losses'])} that were compared"
        base = f"the model itself, LoRA rank {self.setting('lora', 'rank', '?')}"
        return {"lora": base, "pivotal": f"{token}, LoRA rank {self.setting('lora', 'rank', '?')}"}.get(
            self.job.get("method", ""), token
        )

    def settings(self) -> list[tuple[str, str]]:
        """All settings of the job: (``section.key``, value as text)."""
        flat = []
        for key, value in self.job.items():
            if isinstance(value, dict):
                flat += [(f"{key}.{k}", _as_text(v)) for k, v in value.items()]
            else:
                flat.append((key, _as_text(value)))
        return flat


_METHODS = {"textual_inversion": "Textual inversion", "lora": "LoRA", "pivotal": "Textual inversion with LoRA"}


def _as_text(value: Any) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else str(yaml.safe_dump(value)).removesuffix("...\n").strip()


def _read_image(path: Path) -> GeneratedImage:
    with Image.open(path) as image:
        text = {k: str(v) for k, v in image.info.items() if isinstance(v, str)}
    how = [text.get("source", ""), f"{text['num_inference_steps']} steps" if "num_inference_steps" in text else ""]
    if "guidance_scale" in text:
        how.append(f"guidance {text['guidance_scale']}")
    return GeneratedImage(
        path=path,
        prompt=text.get("prompt", path.name),
        seed=text.get("seed", "?"),
        how=", ".join(filter(None, how)),
    )


def _ranks(lines: list[dict[str, Any]], hosts: list[dict[str, Any]]) -> list[Rank]:
    """Means over all lines of kind ``ranks`` since the number of ranks last changed."""
    if not lines:
        return []
    lines = [line for line in lines if len(line["compute_s"]) == len(lines[-1]["compute_s"])]
    names = {rank: host["host"] for host in hosts for rank in host["ranks"]}
    steps = sum(line["steps"] for line in lines)
    return [
        Rank(
            number=number,
            host=names.get(number, "?"),
            compute_s=sum(line["compute_s"][number] * line["steps"] for line in lines) / steps,
            sync_s=sum(line["sync_s"][number] * line["steps"] for line in lines) / steps,
            peak_rss_bytes=max(line["peak_rss_bytes"][number] for line in lines),
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
        BadInput: it holds no run that was started.
    """
    run = Run(folder)
    lines = read_metrics(run.metrics) if run.metrics.is_file() else []
    begun = [m for m in lines if m["kind"] in ("start", "resume")]
    if not begun:
        raise BadInput(
            f"{run.folder} holds no run that was started ({run.metrics.name} is missing or empty); train it first"
        )
    start, latest = begun[0], begun[-1]
    job = latest.get("job")
    if job is None:  # metrics of an older release
        job = yaml.safe_load(run.job.read_text(encoding="utf-8")) if run.job.is_file() else {}
    hosts = latest.get("hosts", [])
    unproven = run_state.why_unproven(run.folder)
    return RunRecord(
        folder=run.folder.resolve(),
        job=job,
        start=start,
        resumes=sum(m["kind"] == "resume" for m in begun),
        chosen=next((m for m in reversed(lines) if m["kind"] == "starting_point"), None),
        steps=[m for m in lines if m["kind"] == "step"],
        validations=[m for m in lines if m["kind"] == "validation"],
        ranks=_ranks([m for m in lines if m["kind"] == "ranks"], hosts),
        hosts=hosts,
        finished=None if unproven else run.facts(),
        unproven=unproven if run.finished.is_file() else "",
        concept=sorted((*run.concept.glob("*.jpg"), *run.concept.glob("*.png"))),
        validation=_validation(run.validation),
        images=[_read_image(p) for p in sorted(run.images.glob("*.png")) if p.name != "contact_sheet.png"],
        packages={
            p.stem: p.read_text(encoding="utf-8").strip() for p in sorted((run.folder / "packages").glob("*.txt"))
        },
    )
