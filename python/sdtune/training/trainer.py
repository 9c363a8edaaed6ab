"""Textual inversion (Gal et al., arXiv 2208.01618): learn the rows of one new word, everything else frozen."""

import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from diffusers.optimization import get_scheduler
from torch import nn
from tqdm.auto import tqdm

from sdtune.data.captions import caption_templates
from sdtune.data.latents import LatentCache
from sdtune.data.pictures import list_pictures
from sdtune.data.samples import Draw, Sampler, sample_numbers
from sdtune.data.thumbnails import save_thumbnails
from sdtune.errors import BadInput, Stopped, TrainingFailed
from sdtune.host.facts import describe_host, revision
from sdtune.host.memory import peak_rss_bytes, reset_peak_rss
from sdtune.launch.run_folder import Run
from sdtune.methods.formats import save_rows
from sdtune.methods.textual_inversion import expand_placeholder
from sdtune.models.pipelines import draw_validation, save_full_pipeline, save_validation, seeds_of_rank
from sdtune.models.sd import convolution_of, denoising_losses, load_frozen
from sdtune.settings import Job, to_mapping
from sdtune.training.checkpoint import Progress, find_checkpoint, restore, save_checkpoint
from sdtune.training.distributed import check_together, of_first_rank, start_accelerator
from sdtune.training.metrics import Metrics
from sdtune.training.ranks import RankTimes, describe_hosts
from sdtune.training.validation import Validator, make_triples


class Batches:
    """Turns the samples' numbers into tensors."""

    def __init__(self, sampler: Sampler, cache: LatentCache, template_ids: torch.Tensor) -> None:
        self.sampler, self.cache, self.template_ids = sampler, cache, template_ids

    def encode(self, numbers: range) -> int:
        """Make sure that the pictures of ``numbers``, the samples of all ranks, are in the cache; all ranks call this.

        Returns:
            How many pictures had to be encoded.
        """
        return 0 if self.cache.complete else self.cache.need(map(self.sampler.shown, numbers))

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
                f"the loss is {value} at step {step}, rank {rank}, picture {pictures[draw.picture].name}, "
                f"timestep {draw.timestep}; the last checkpoint is untouched; "
                f'try a lower learning_rate or mixed_precision "no"'
            )


def train(job: Job) -> dict[str, Any]:
    """Run the job on this rank; every rank calls this. Returns what ``finished.json`` says.

    Raises:
        BadInput: the job cannot be done; nothing was written.
        TrainingFailed: the loss is not a number any more.
        Stopped: someone asked for it, see :attr:`sdtune.launch.run_folder.Run.stop`; a checkpoint was written.
    """
    begun = time.perf_counter()
    accelerator = start_accelerator(job)
    rank, world_size, is_main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    t, d, v, run = job.training, job.data, job.validation, Run(job.run_dir)

    who = check_together(job, rank, world_size)
    pictures = list_pictures(d.path)
    cache = LatentCache(
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
    progress = Progress()
    if (which := t.resume_from_checkpoint) is not None:
        found = of_first_rank(rank, lambda: find_checkpoint(run.checkpoints, which, who, reshard=t.resume_reshard))
        if found is not None:
            progress = restore(found, rows, optimizer, schedule)
            if found.resharded and is_main:
                warnings.warn(found.resharded, stacklevel=2)
        if progress.step > t.max_train_steps:
            raise BadInput(
                f"training.max_train_steps: {t.max_train_steps} is less than the checkpoint's {progress.step} steps"
            )

    if is_main:  # from here on the run folder is written to
        run.clear(keep_progress=t.resume_from_checkpoint is not None)
    accelerator.wait_for_everyone()
    metrics = Metrics(run.metrics, progress.step, accelerator) if is_main else None
    hosts = describe_hosts(rank, world_size)
    if metrics is not None:
        save_thumbnails(pictures, run.concept)
        metrics.write(
            "resume" if progress.step else "start",
            **({"step": progress.step} if progress.step else {}),
            run_name=job.run_name,
            revision=revision(),
            world_size=world_size,
            global_batch=global_batch,
            software_stack=job.software_stack,
            backend=t.backend if world_size > 1 else None,
            attention=t.attention,
            convolution=convolution_of(job),
            seed=job.seed,
            mixed_precision=t.mixed_precision,
            pictures=len(pictures),
            start_s=time.perf_counter() - begun,
            **describe_host(),
            hosts=hosts,
            job=to_mapping(job),
        )
    times = RankTimes()

    validator: Validator | None = None
    if v.steps > 0:
        triples = make_triples(cache, v.triples, frozen.scheduler.config.num_train_timesteps)
        validator = Validator(frozen, triples, templates[0], t.train_batch_size, accelerator)
        validator.start(word, start, v.reference_caption)

    def validate() -> None:
        if validator is None:
            return
        loss, share = validator.measure(word), validator.gap_closed
        progress.validated(loss, v.early_stopping_min_delta)
        if metrics is not None:
            metrics.write("validation", step=progress.step, loss=loss, gap_closed=share)
            closed = "" if share is None else f", {100 * share:.0f} % of the gap to the reference caption"
            tqdm.write(f"step {progress.step}: validation loss {loss:.5f}{closed}")
        accelerator.wait_for_everyone()

    def gather_times() -> None:
        if times.steps > 0:
            found = times.gather(accelerator)
            if metrics is not None:
                metrics.write("ranks", step=progress.step, **found)

    drawn_steps: set[int] = set()

    def draw_prompt() -> None:
        if v.prompt is None or progress.step in drawn_steps:
            return
        drawn_steps.add(progress.step)
        mine = draw_validation(job, frozen, seeds_of_rank(v.num_images, rank, world_size))
        drawn = gather_object(mine)
        if is_main:
            save_validation(run.validation, progress.step, drawn)

    if progress.step == 0:
        validate()
        draw_prompt()
    elif validator is not None:
        validator.measure(word)

    bar = tqdm(
        total=t.max_train_steps, initial=progress.step, disable=None if is_main else True, unit="step", smoothing=0.1
    )
    reset_peak_rss()
    stopped_early = asked_to_stop = False
    while progress.step < t.max_train_steps and not stopped_early and not asked_to_stop:
        began = time.perf_counter()
        encoded = batches.encode(range(progress.samples, progress.samples + global_batch))
        encode_s = time.perf_counter() - began
        if encoded and cache.complete:
            reset_peak_rss()  # of interest is what every further step needs

        began = time.perf_counter()
        loss = forward_s = backward_s = 0.0
        for micro in range(t.gradient_accumulation_steps):
            numbers = sample_numbers(progress.samples, micro, rank, batch=t.train_batch_size, world_size=world_size)
            draws, latents, noise, timesteps, ids = batches(numbers)
            forward = time.perf_counter()
            losses = denoising_losses(frozen, latents, noise, timesteps, ids, t.snr_gamma)
            _refuse_not_finite(losses, draws, progress.step + 1, rank, pictures)
            backward = time.perf_counter()
            micro_loss = losses.mean() / t.gradient_accumulation_steps
            micro_loss.backward()  # type: ignore[no-untyped-call]
            loss += micro_loss.item()
            forward_s, backward_s = forward_s + backward - forward, backward_s + time.perf_counter() - backward

        synced = time.perf_counter()
        asked_to_stop = is_main and run.stop.exists()
        assert rows.grad is not None
        if world_size > 1:  # one more number goes along: all ranks stop after the same step, without another exchange
            flag = rows.grad.new_tensor([float(asked_to_stop)])
            mean = accelerator.reduce(torch.cat([rows.grad.flatten(), flag]), "mean")
            rows.grad, asked_to_stop = mean[:-1].view_as(rows), mean[-1].item() > 0
        sync_s = time.perf_counter() - synced
        if not bool(rows.grad.isfinite().all()):
            raise TrainingFailed(
                f"the gradient is not finite at step {progress.step + 1}; see the other ranks' messages"
            )

        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        step_s = time.perf_counter() - began
        times.add(step_s - sync_s, sync_s)
        progress.step += 1
        progress.samples += global_batch
        if metrics is not None:
            metrics.write(
                "step",
                step=progress.step,
                loss=loss,
                lr=lr,
                step_s=step_s,
                images_per_s=global_batch / step_s,
                forward_s=forward_s,
                backward_s=backward_s,
                sync_s=sync_s,
                sync_bytes=rows.nbytes + rows.itemsize if world_size > 1 else 0,
                world_size=world_size,
                encoded=encoded,
                encode_s=encode_s,
            )
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
        if validator is not None and (progress.step % v.steps == 0 or progress.step == t.max_train_steps):
            gather_times()
            validate()
            stopped_early = 0 < v.early_stopping_patience <= progress.stale
        if v.prompt_steps and progress.step % v.prompt_steps == 0:
            draw_prompt()
        due = t.checkpointing_steps and progress.step % t.checkpointing_steps == 0
        if is_main and (due or asked_to_stop):
            save_checkpoint(run.checkpoints, progress, rows, optimizer, schedule, who, t.checkpoints_total_limit)

    bar.close()
    gather_times()
    if asked_to_stop and progress.step < t.max_train_steps and not stopped_early:
        if metrics is not None:
            metrics.write("stopped", step=progress.step)
            metrics.close()
            run.stop.unlink(missing_ok=True)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        raise Stopped(f"stopped on request after step {progress.step}, for which there is a checkpoint")
    draw_prompt()
    if is_main and stopped_early:
        print(f"stopped at step {progress.step}: {progress.stale} validations in a row brought nothing")
    facts: dict[str, Any] = {
        "run_name": job.run_name,
        "steps": progress.step,
        "stopped_early": stopped_early,
        "world_size": world_size,
        "resolution": d.resolution,
        "seconds": time.perf_counter() - begun,
        "peak_rss_bytes": peak_rss_bytes(),
        "validation_loss": validator.latest if validator else None,
        "initializer_loss": validator.baseline if validator else None,
        "reference_loss": validator.reference if validator else None,
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
