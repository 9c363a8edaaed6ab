"""Textual inversion (Gal et al., arXiv 2208.01618): learn the rows of one new word, everything else frozen."""

import math
import platform
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from diffusers.optimization import get_scheduler
from torch import nn
from tqdm.auto import tqdm

from sdtune.checkpoint import identity, load_checkpoint, save_checkpoint
from sdtune.checks import check_job, check_world_size, launched_world_size
from sdtune.config import Job
from sdtune.data import Draw, Sampler, list_pictures, sample_numbers
from sdtune.embedding import expand_placeholder, save_rows
from sdtune.errors import BadInput, TrainingFailed
from sdtune.latents import LatentCache, encode_pictures
from sdtune.metrics import Metrics, describe_host
from sdtune.networks import denoising_losses, load_frozen
from sdtune.pipelines import draw_validation, save_full_pipeline
from sdtune.runs import Run
from sdtune.templates import caption_templates
from sdtune.validation import Validator, make_triples


def start_accelerator(job: Job) -> Accelerator:
    """Join the other ranks.

    Raises:
        BadInput: the backend is not in this torch, or the ranks are not as many as the job asks for.
    """
    check_world_size(job)
    if launched_world_size() > 1:
        try:
            PartialState(cpu=True, backend=job.training.backend)
        except ValueError as error:
            raise BadInput(f"training.backend: {job.training.backend!r} is not in this environment ({error})") from None
    accelerator = Accelerator(cpu=True)
    # without cpu=True, or its launcher's variables, Accelerate would start N separate runs; that must never pass
    asked = job.training.world_size
    if asked is not None and accelerator.num_processes != asked:
        raise BadInput(f"the job asks for {asked} ranks but Accelerate joined {accelerator.num_processes}")
    return accelerator


def check_together(job: Job, world_size: int) -> dict[str, Any]:
    """Look at the job on every rank, and let all ranks know what any of them found, so that none is left waiting.

    Returns:
        :func:`sdtune.checkpoint.identity` of the run, which is the same on every rank.

    Raises:
        BadInput: on every rank, with one line for each host where something is wrong or differs from rank 0's.
    """
    who: dict[str, Any] = {}
    problem = None
    try:
        check_job(job)
        who = identity(job, world_size)
    except BadInput as error:
        problem = str(error)
    found = gather_object([(platform.node(), problem, who)])
    problems: dict[tuple[str, str], None] = {}  # each once, in the order of the ranks
    first_host, _, first = found[0]
    for host, its_problem, its_who in found:
        if its_problem is not None:
            problems[host, its_problem] = None
        elif first and its_who != first:
            key = next(k for k in first if its_who[k] != first[k])
            problems[host, f"its {key} differ from those of {first_host}; give all hosts the same"] = None
    if problems:
        several = len({host for host, _, _ in found}) > 1
        raise BadInput("; ".join(f"{host}: {p}" if several else p for host, p in problems))
    return who


class Batches:
    """Turns the samples' numbers into tensors."""

    def __init__(self, sampler: Sampler, cache: LatentCache, template_ids: torch.Tensor) -> None:
        self.sampler, self.cache, self.template_ids = sampler, cache, template_ids

    def __call__(self, numbers: range) -> tuple[list[Draw], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draws, latents [b, c, h, w], noise [b, c, h, w], timesteps [b], token ids [b, tokens]."""
        draws = [self.sampler(n) for n in numbers]
        latents = torch.stack([self.cache.sample(d.picture, d.mirrored, d.latent_noise) for d in draws])
        noise = torch.stack([d.noise for d in draws])
        return (
            draws,
            latents,
            noise,
            torch.tensor([d.timestep for d in draws]),
            self.template_ids[[d.template for d in draws]],
        )


def _refuse_not_finite(losses: torch.Tensor, draws: list[Draw], step: int, rank: int, pictures: list[Path]) -> None:
    for value, draw in zip(losses.tolist(), draws, strict=True):
        if not math.isfinite(value):
            raise TrainingFailed(
                f"the loss is {value} at step {step + 1}, rank {rank}, picture {pictures[draw.picture].name}, "
                f"timestep {draw.timestep}; the last checkpoint is untouched; "
                f'try a lower learning_rate or mixed_precision "no"'
            )


def train(job: Job) -> dict[str, Any]:
    """Run the job on this rank; every rank calls this. Returns what ``finished.json`` says.

    Raises:
        BadInput: the job cannot be done; nothing was written.
        TrainingFailed: the loss is not a number any more.
    """
    begun = time.perf_counter()
    accelerator = start_accelerator(job)
    rank, world_size, is_main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    t, d, run = job.training, job.data, Run(job.run_dir)

    who = check_together(job, world_size)
    pictures = list_pictures(d.path)
    cache = encode_pictures(
        job.model.path,
        pictures,
        d.resolution,
        d.center_crop,
        rank=rank,
        world_size=world_size,
        sum_over_ranks=lambda x: accelerator.reduce(x, "sum"),
    )
    frozen = load_frozen(job)
    rows: nn.Parameter = frozen.embedding.rows
    start = rows.detach().clone()
    templates = caption_templates(d.learnable_property, d.templates_file)
    word = expand_placeholder(d.placeholder_token, d.placeholder_token, d.num_vectors)
    sampler = Sampler(job.seed, len(pictures), len(templates), frozen.scheduler.config.num_train_timesteps, cache.shape)
    batches = Batches(sampler, cache, frozen.token_ids([template.format(word) for template in templates]))

    global_batch = world_size * t.train_batch_size * t.gradient_accumulation_steps
    rate = t.learning_rate * (global_batch if t.scale_lr else 1)
    optimizer = torch.optim.AdamW(
        [rows], lr=rate, betas=(t.adam_beta1, t.adam_beta2), weight_decay=t.adam_weight_decay, eps=t.adam_epsilon
    )
    schedule = get_scheduler(
        t.lr_scheduler, optimizer, num_warmup_steps=t.lr_warmup_steps, num_training_steps=t.max_train_steps
    )
    first = 0
    if t.resume_from_checkpoint is not None:
        first = load_checkpoint(run.checkpoints, t.resume_from_checkpoint, rows, optimizer, schedule, who)
        if first > t.max_train_steps:
            raise BadInput(f"training.max_train_steps: {t.max_train_steps} is less than the checkpoint's {first} steps")

    if is_main:  # from here on the run folder is written to
        run.clear(keep_progress=t.resume_from_checkpoint is not None)
    accelerator.wait_for_everyone()
    metrics = Metrics(run.metrics, first) if is_main else None
    if metrics is not None and first == 0:
        metrics.write(
            "start",
            run_name=job.run_name,
            world_size=world_size,
            global_batch=global_batch,
            stack=job.software_stack,
            backend=t.backend if world_size > 1 else None,
            seed=job.seed,
            mixed_precision=t.mixed_precision,
            pictures=len(pictures),
            start_s=time.perf_counter() - begun,
            **describe_host(),
        )

    triples = make_triples(cache, job.validation.triples, frozen.scheduler.config.num_train_timesteps)
    validator = Validator(frozen, triples, templates[0], t.train_batch_size, accelerator)
    validating = job.validation.steps > 0

    def report(step: int) -> None:
        loss, share = validator.measure(word), validator.gap_closed
        if metrics is not None:
            metrics.write("validation", step=step, loss=loss, gap_closed=share)
            closed = "" if share is None else f", {100 * share:.0f} % of the gap to the reference caption"
            tqdm.write(f"step {step}: validation loss {loss:.5f}{closed}")
            if job.validation.prompt is not None:
                draw_validation(job, frozen.unet, frozen.text_encoder, frozen.tokenizer, step)
        accelerator.wait_for_everyone()

    if validating:
        validator.start(word, start, job.validation.reference_caption)
        if first == 0:
            report(0)
        else:
            validator.measure(word)

    progress = tqdm(
        total=t.max_train_steps, initial=first, disable=None if is_main else True, unit="step", smoothing=0.1
    )
    for step in range(first, t.max_train_steps):
        began = time.perf_counter()
        loss = 0.0
        for micro in range(t.gradient_accumulation_steps):
            numbers = sample_numbers(
                step,
                micro,
                rank,
                batch=t.train_batch_size,
                accumulation=t.gradient_accumulation_steps,
                world_size=world_size,
            )
            draws, latents, noise, timesteps, ids = batches(numbers)
            losses = denoising_losses(frozen, latents, noise, timesteps, ids, t.snr_gamma)
            _refuse_not_finite(losses, draws, step, rank, pictures)
            micro_loss = losses.mean() / t.gradient_accumulation_steps
            micro_loss.backward()  # type: ignore[no-untyped-call]
            loss += micro_loss.item()

        synced = time.perf_counter()
        if world_size > 1:
            rows.grad = accelerator.reduce(rows.grad, "mean")
        sync_s = time.perf_counter() - synced
        assert rows.grad is not None
        if not bool(rows.grad.isfinite().all()):
            raise TrainingFailed(f"the gradient is not finite at step {step + 1}; see the other ranks' messages")

        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        step_s = time.perf_counter() - began
        done = step + 1
        if metrics is not None:
            metrics.write(
                "step",
                step=done,
                loss=loss,
                lr=lr,
                step_s=step_s,
                images_per_s=global_batch / step_s,
                sync_bytes=rows.nbytes if world_size > 1 else 0,
                sync_s=sync_s,
                world_size=world_size,
            )
            progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
            progress.update()
            if t.checkpointing_steps and done % t.checkpointing_steps == 0:
                save_checkpoint(run.checkpoints, done, rows, optimizer, schedule, who, t.checkpoints_total_limit)
        if validating and (done % job.validation.steps == 0 or done == t.max_train_steps):
            report(done)

    progress.close()
    facts: dict[str, Any] = {
        "run_name": job.run_name,
        "steps": t.max_train_steps,
        "world_size": world_size,
        "resolution": d.resolution,
        "seconds": time.perf_counter() - begun,
        "validation_loss": validator.latest,
        "initializer_loss": validator.baseline if validating else None,
        "reference_loss": validator.reference,
    }
    if metrics is not None:
        metrics.close()
        save_rows(run.learned, d.placeholder_token, rows)
        if t.save_as_full_pipeline:
            save_full_pipeline(Path(job.model.path), run.pipeline, d.placeholder_token, rows)
        run.finish(facts)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return facts
