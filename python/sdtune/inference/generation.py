"""Pictures from a finished run: every prompt with every seed, each file telling how it was made.

What is asked for is cut into batches once, and a batch is drawn as a whole, here or on another host, by one process or
another: what is drawn beside it can change the last bits of a picture. Pictures lie in ``drawn/`` until all are there.
"""

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin

from sdtune.data.sheets import columns_of, contact_sheet
from sdtune.errors import BadInput
from sdtune.files import replace_folder
from sdtune.host import memory, numa
from sdtune.inference.openvino import Copy, StaticShape, digest_folder, load, read_facts, reshape_rows
from sdtune.launch.run_folder import Run
from sdtune.settings.job import GenerationJob
from standalone import run_state

if TYPE_CHECKING:
    from sdtune.inference.drawing import Artist


@dataclass(frozen=True)
class Request:
    """One picture that is asked for."""

    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a generation job comes to."""

    job: dict[str, Any]
    """What was asked for."""
    shape: StaticShape
    placeholder: str
    num_vectors: int
    size: memory.Size
    copy: Copy | None
    """None: the PyTorch pipeline draws."""
    model_sha256: str
    requests: list[Request]
    batches: list[list[Request]]
    cores: list[list[int]]
    """Of each process."""
    warnings: list[str]

    def name(self, request: Request) -> str:
        """The picture's file."""
        return f"{self.requests.index(request):04d}-seed{request.seed}.png"

    @property
    def fingerprint(self) -> str:
        """A digest of what is drawn and from which weights: hosts of one fingerprint draw the same pictures."""
        return hashlib.sha256(json.dumps([self.job, self.model_sha256, asdict(self.shape)]).encode()).hexdigest()

    def names(self, batch: int) -> list[str]:
        """The files of a batch."""
        return sorted({self.name(request) for request in self.batches[batch]})


def calls(requests: list[Request], shape: StaticShape) -> list[list[Request]]:
    """Group requests into calls of a static pipeline.

    Each call holds ``batch_size`` groups of ``num_images_per_prompt`` requests of one prompt; what is missing in a
    group or a call is filled with its last request, and drawn for nothing.
    """
    per_prompt, groups = shape.num_images_per_prompt, []
    for prompt in dict.fromkeys(r.prompt for r in requests):
        same = [r for r in requests if r.prompt == prompt]
        for i in range(0, len(same), per_prompt):
            group = same[i : i + per_prompt]
            groups.append(group + [group[-1]] * (per_prompt - len(group)))
    result = []
    for i in range(0, len(groups), shape.batch_size):
        batch = groups[i : i + shape.batch_size]
        batch += [batch[-1]] * (shape.batch_size - len(batch))
        result.append([request for group in batch for request in group])
    return result


def known_words(pipeline: Path) -> set[str]:
    """The words that were added to a pipeline's tokenizer."""
    tokenizer = json.loads((pipeline / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    return {token["content"] for token in tokenizer["added_tokens"]}


def _check_words(job: GenerationJob, placeholder: str, known: set[str]) -> list[str]:
    """Refuse words like <this> that the model has not; warn of prompts without the learned one."""
    for text in (*job.prompts, job.negative_prompt):
        for word in re.findall(r"<[^<>\s]+>", text):
            if word not in known:
                raise BadInput(
                    f"prompts: the model of this run does not know {word} (in {text!r}); it has learned {placeholder}"
                )
    return [
        f"the prompt {prompt!r} does not hold the learned word {placeholder}"
        for prompt in job.prompts
        if placeholder not in prompt
    ]


def _shape(job: GenerationJob, copy: Copy | None, resolution: int) -> StaticShape:
    if copy is not None and copy.shape is not None:
        for name in ("height", "width"):
            asked, has = getattr(job, name), getattr(copy.shape, name)
            if asked not in (None, has):
                raise BadInput(
                    f"{name}: the OpenVINO copy of this run is static, with a {name} of {has}, not {asked}; leave it "
                    f"out, or export again (openvino.{name}: {asked}, or dynamic_shapes: true)"
                )
        return copy.shape
    shape = StaticShape(
        batch_size=1, num_images_per_prompt=1, height=job.height or resolution, width=job.width or resolution
    )
    step = copy.step if copy is not None else 8
    for name in ("height", "width"):
        if getattr(shape, name) % step:
            raise BadInput(f"{name}: {getattr(shape, name)} is not a multiple of {step}, which this model's UNet needs")
    return shape


def _check_memory(job: GenerationJob, size: memory.Size, shape: StaticShape, processes: int) -> None:
    """Refuse what this host cannot hold, by prediction."""
    bf16 = job.precision == "bf16" and job.source == "openvino"
    one = memory.predicted(size, shape.pictures, shape.height, shape.width, guided=job.guidance_scale > 1, bf16=bf16)
    free = memory.available()
    if processes * one > free:
        raise BadInput(
            f"{processes} process(es) that draw {shape.pictures} picture(s) of {shape.width} x {shape.height} pixels "
            f"at once need about {processes * one / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; lower "
            f"processes, or export the run again with a smaller openvino.batch_size"
        )


def _check_precision(job: GenerationJob) -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if job.precision == "bf16" and job.source == "openvino" and not re.search(r"\b(avx512_bf16|amx_bf16)\b", flags):
        raise BadInput("precision: this CPU has no bf16 instructions (AVX-512 or AMX); take f32")


def plan(job: GenerationJob, *, weigh: bool = True) -> Plan:
    """Look at the run and at this host, and cut the work into batches. Loads no network.

    Not ``weigh``: the memory was looked at before the others of this host began to fill it.

    Raises:
        BadInput: the first thing that is wrong, and what to do.
    """
    run = Run(job.run_dir)
    if job.source == "openvino":
        copy = read_facts(run)
        placeholder, vectors, resolution = copy.placeholder, copy.num_vectors, copy.resolution
        size, model_sha256, folder = copy.size, copy.model_sha256, run.openvino
    else:
        from sdtune.methods.formats import load_embeddings  # torch takes seconds to import

        copy = None
        run.require_learned()
        placeholder, rows = load_embeddings(run.learned)
        vectors, resolution = len(rows), int(run.facts()["resolution"])
        size, model_sha256, folder = memory.size_of(run.pipeline), digest_folder(run.pipeline), run.pipeline
    warnings = _check_words(job, placeholder, known_words(folder))
    shape = _shape(job, copy, resolution)
    _check_precision(job)
    if job.tiny_autoencoder and not (Path(job.tiny_autoencoder) / "config.json").is_file():
        raise BadInput(f"tiny_autoencoder: {job.tiny_autoencoder} holds no AutoencoderTiny (config.json)")
    unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    if job.scheduler == "lcm" and not unet.get("time_cond_proj_dim"):
        warnings.append(
            "scheduler lcm is for models that were distilled for it; this UNet has no embedding of the guidance, so "
            "unless such weights were merged into it the pictures will be poor"
        )
    requests = list(dict.fromkeys(Request(prompt, seed) for prompt in job.prompts for seed in job.seeds))
    batches = calls(requests, shape)
    cores = numa.shares_of_cores(job.processes)[: len(batches)]
    if weigh:
        _check_memory(job, size, shape, len(cores))
    return Plan(
        job=asdict(job),
        shape=shape,
        placeholder=placeholder,
        num_vectors=vectors,
        size=size,
        copy=copy,
        model_sha256=model_sha256,
        requests=requests,
        batches=batches,
        cores=cores,
        warnings=warnings,
    )


def _metadata(fields: dict[str, Any]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, value in fields.items():
        info.add_itxt(key, value if isinstance(value, str) else json.dumps(value))
    return info


def artist(job: GenerationJob, planned: Plan, threads: int) -> "Artist":
    """The pipeline, loaded; what it compiles, it compiles when it first draws."""
    from sdtune.inference.drawing import Artist  # torch and diffusers take seconds to import

    full = (job.guidance_start, job.guidance_stop) == (0.0, 1.0)
    if planned.copy is not None:
        config = {
            "INFERENCE_PRECISION_HINT": job.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        pipeline = load(Run(job.run_dir).openvino, static=planned.copy.shape is not None, ov_config=config)
        # half the rows where some or all steps go without guidance, see GuidanceInterval
        if planned.copy.shape is not None and (job.guidance_scale <= 1 or not full):
            reshape_rows(pipeline, planned.shape.pictures)
    else:
        import torch
        from diffusers import StableDiffusionPipeline

        torch.set_num_threads(threads)
        pipeline = StableDiffusionPipeline.from_pretrained(
            Run(job.run_dir).pipeline, torch_dtype=torch.float32, use_safetensors=True
        )
    return Artist(
        pipeline,
        steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        interval=(job.guidance_start, job.guidance_stop),
        scheduler=job.scheduler,
        tiny_autoencoder=job.tiny_autoencoder,
        height=planned.shape.height,
        width=planned.shape.width,
    )


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Hold the run's lock for drawing.

    Raises:
        BadInput: another process draws for this run on this host.
    """
    with (run.folder / run_state.DRAWING_LOCK).open("w") as file:
        for attempt in range(20):  # whoever looks at the lock holds it for an instant
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if attempt == 19:
                    raise BadInput(
                        f"pictures of {run.folder} are being drawn on this host already; wait for them, or stop that "
                        f"process"
                    ) from None
                time.sleep(0.05)
        (run.folder / run_state.DRAWING).unlink(missing_ok=True)  # it tells of an earlier drawing
        yield


def keep_to(cores: Sequence[int]) -> None:
    """Bind this process to ``cores``, before it loads a library that counts them."""
    # OpenVINO falls to one core under KMP_AFFINITY, which training sets
    os.environ.pop("KMP_AFFINITY", None)
    os.sched_setaffinity(0, cores)


def draw_batch(painter: "Artist", job: GenerationJob, planned: Plan, number: int) -> dict[str, bytes]:
    """Draw a batch.

    Returns:
        {file name: PNG}, each with what it was made from in its metadata.
    """
    from sdtune.methods.placeholder import expand_placeholder

    batch, per_prompt = planned.batches[number], planned.shape.num_images_per_prompt
    prompts = [expand_placeholder(r.prompt, planned.placeholder, planned.num_vectors) for r in batch[::per_prompt]]
    pictures = painter.draw(prompts, [r.seed for r in batch], job.negative_prompt, per_prompt)
    files = {}
    for request, picture in dict(zip(batch, pictures, strict=True)).items():
        facts = {
            "prompt": request.prompt,
            "negative_prompt": job.negative_prompt,
            "seed": request.seed,
            "source": job.source,
            "num_inference_steps": job.num_inference_steps,
            "guidance_scale": job.guidance_scale,
            "guidance_interval": [job.guidance_start, job.guidance_stop],
            "scheduler": painter.scheduler,
            "precision": job.precision if planned.copy else "f32",
            "weights": planned.copy.weights if planned.copy else "fp32",
            "decoder": "tiny" if job.tiny_autoencoder else "full",
            "model_sha256": planned.model_sha256,
            "software": "sdtune",
        }
        file = io.BytesIO()
        picture.save(file, format="png", pnginfo=_metadata(facts))
        files[planned.name(request)] = file.getvalue()
    return files


def keep(files: dict[str, bytes], folder: Path) -> None:
    """Write pictures so that a whole file or none bears the name."""
    for name, png in files.items():
        (folder / f".{name}").write_bytes(png)
        (folder / f".{name}").replace(folder / name)


def finish(job: GenerationJob, planned: Plan) -> list[Path]:
    """Make ``images/`` of the run from ``drawn/``, with a contact sheet; the folder is replaced as a whole.

    Returns:
        The pictures' files, prompt by prompt, and last the contact sheet.

    Raises:
        BadInput: a picture is missing.
    """
    run = Run(job.run_dir)
    names = [planned.name(request) for request in planned.requests]
    missing = [name for name in names if not (run.drawn / name).is_file()]
    if missing:
        raise BadInput(f"{run.drawn} lacks {', '.join(missing[:5])} ({len(missing)} in all); draw them first")
    for path in run.drawn.iterdir():
        if path.name not in names:
            path.unlink()
    pictures = [Image.open(run.drawn / name) for name in names]
    captions = [f"{r.prompt} (seed {r.seed})" for r in planned.requests]
    sheet = contact_sheet(pictures, captions, columns_of(len(dict.fromkeys(job.seeds))))
    sheet.save(run.drawn / "contact_sheet.png")
    replace_folder(run.drawn, run.images)
    return [run.images / name for name in (*names, "contact_sheet.png")]


def generate(job: GenerationJob) -> list[Path]:
    """Draw all that is asked for in this process, which is bound to this host's cores from then on.

    Returns:
        As :func:`finish`.

    Raises:
        BadInput: as :func:`plan`.
    """
    planned, run = plan(job), Run(job.run_dir)
    for warning in planned.warnings:
        print(f"warning: {warning}", flush=True)
    with alone(run):
        empty(run)
        cores = [core for share in planned.cores for core in share]
        keep_to(cores)
        painter = artist(job, planned, len(cores))
        for number in range(len(planned.batches)):
            keep(draw_batch(painter, job, planned, number), run.drawn)
        return finish(job, planned)


def empty(run: Run) -> None:
    """Make ``drawn/`` new: what an earlier call left is of another job, for all that is known."""
    shutil.rmtree(run.drawn, ignore_errors=True)
    run.drawn.mkdir()
