"""The training loop: what all ranks do, step by step, from the checked job to the finished run folder."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from sdtune.data.samples import sample_numbers
from sdtune.data.thumbnails import save_thumbnails
from sdtune.errors import Stopped
from sdtune.host.memory import peak_rss_bytes, reset_peak_rss
from sdtune.launch.run_folder import Run
from sdtune.methods.method import Method
from sdtune.methods.registry import method_of
from sdtune.models.family import Networks
from sdtune.models.registry import family_of
from sdtune.settings import Job
from sdtune.training.batches import Batches
from sdtune.training.beginning import Beginning, values_of
from sdtune.training.checkpoint import Progress, save_checkpoint
from sdtune.training.distributed import check_on_all_ranks, start_accelerator
from sdtune.training.drawing import ValidationPictures
from sdtune.training.exchange import exchange
from sdtune.training.finite import check_gradients, check_learned, check_losses
from sdtune.training.norms import FixedNorms
from sdtune.training.optimizer import make_optimizer, make_schedule
from sdtune.training.ranks import sign
from sdtune.training.recorder import Recorder
from sdtune.training.resume import resume
from sdtune.training.stopping import reason_to_stop, record_validation
from sdtune.training.validation import Validator
from standalone.run_state import job_checksum


def train(job: Job) -> dict[str, Any]:
    """Run the job on this rank; every rank calls this.

    Returns:
        The content of ``finished.json``.

    Raises:
        BadInput: the job cannot be done; nothing was written.
        TrainingFailed: a loss or a gradient is not finite.
        Stopped: a stop was requested, see :attr:`sdtune.launch.run_folder.Run.stop`; a checkpoint was written.
    """
    begun = time.perf_counter()
    accelerator = start_accelerator(job)
    identity = check_on_all_ranks(job, accelerator.process_index, accelerator.num_processes)
    networks = family_of(job.model.path).load(job)
    method = method_of(job)(job, networks)
    return Trainer(job, accelerator, networks, method, identity, begun).fit()


class Trainer:
    """Trains with one method on one model. All ranks have one, and call the same methods in the same order.

    Attributes:
        parameters: all learned parameters, by name.
        progress: how far the run is.
        global_batch: samples of an optimizer step, over all ranks and micro-steps.
    """

    def __init__(
        self,
        job: Job,
        accelerator: Accelerator,
        networks: Networks,
        method: Method,
        identity: Mapping[str, Any],
        begun: float,
    ) -> None:
        """Prepare data, optimizer and schedule; nothing is written yet.

        Args:
            job: checked on all ranks.
            accelerator: from :func:`sdtune.training.distributed.start_accelerator`.
            networks: the frozen networks, to which ``method`` has added its parameters.
            method: the fine-tuning method.
            identity: of the run, for its checkpoints.
            begun: :func:`time.perf_counter` when the run began.
        """
        self._job, self._accelerator, self._networks, self._method = job, accelerator, networks, method
        self._identity, self._begun, self._run = identity, begun, Run(job.run_dir)
        self._is_main, self._world_size = accelerator.is_main_process, accelerator.num_processes
        settings = job.training
        self._batches = Batches(job, networks, method, accelerator)
        self._pictures = ValidationPictures(job, networks, method, accelerator)

        self.parameters = {name: learned.parameter for name, learned in method.learned.items()}
        self._initial: Mapping[str, torch.Tensor] = values_of(self.parameters)
        self.global_batch = self._world_size * settings.train_batch_size * settings.gradient_accumulation_steps
        scale = self.global_batch if settings.scale_lr else 1
        self._optimizer = make_optimizer(method.learned.values(), settings, scale)
        self._schedule = make_schedule(self._optimizer, settings)

        self.progress = Progress()
        self._samples = 0  # of this rank, in this attempt
        self._validator: Validator | None = None
        self._stop_requested = False
        self._enough = ""  # why the run stops early
        self._asked = ""  # checksum of the job file

    def fit(self) -> dict[str, Any]:
        """Train to the end; see :func:`train` for what it returns and raises."""
        steps = self._job.training.max_train_steps
        self.progress = resume(
            self._job, self._identity, self.parameters, self._optimizer, self._schedule, self._accelerator
        )
        self._open_run()
        self._begin()
        self._validate_first()
        reset_peak_rss()
        hidden = None if self._is_main else True  # None: hidden where the output is not a terminal
        with tqdm(total=steps, initial=self.progress.step, disable=hidden, unit="step", smoothing=0.1) as progress_bar:
            while self.progress.step < steps and not self._enough and not self._stop_requested:
                loss = self.step()
                progress_bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                progress_bar.update()
                self._validate_if_due()
                self._draw_if_due()
                self._checkpoint_if_due()
        self._recorder.rank_times(self.progress.step)
        if self._stop_requested and self.progress.step < steps and not self._enough:
            self._stop()
        return self._finish()

    def step(self) -> float:
        """One optimizer step, on one global batch.

        Returns:
            The mean loss over all ranks.
        """
        encoded, encode_s = self._encode_pictures()
        began = time.perf_counter()
        loss, forward_s, backward_s = self._forward_backward()
        computed = time.perf_counter()
        loss, sync_bytes = self._exchange(loss)
        sync_s = time.perf_counter() - computed
        lr = self._update_parameters()
        self._recorder.step(
            self.progress.step,
            loss=loss,
            lr=lr,
            global_batch=self.global_batch,
            step_s=time.perf_counter() - began,
            forward_s=forward_s,
            backward_s=backward_s,
            sync_s=sync_s,
            sync_bytes=sync_bytes,
            encoded=encoded,
            encode_s=encode_s,
        )
        return loss

    # --- the parts of a step, in their order -------------------------------------------------------------------------

    def _encode_pictures(self) -> tuple[int, float]:
        """Encode pictures that the global batch shows for the first time. Returns how many, and the seconds."""
        began = time.perf_counter()
        encoded = self._batches.encode(range(self.progress.samples, self.progress.samples + self.global_batch))
        encode_s = time.perf_counter() - began
        if encoded and self._batches.cache.complete:
            reset_peak_rss()  # report the memory that all further steps need, without the VAE
        return encoded, encode_s

    def _forward_backward(self) -> tuple[float, float, float]:
        """Accumulate gradients over this rank's micro-steps.

        Returns:
            This rank's mean loss, and the seconds of all forward and of all backward passes.
        """
        settings, rank = self._job.training, self._accelerator.process_index
        loss = forward_s = backward_s = 0.0
        for micro in range(settings.gradient_accumulation_steps):
            numbers = sample_numbers(
                self.progress.samples, micro, rank, batch=settings.train_batch_size, world_size=self._world_size
            )
            self._samples += len(numbers)
            for samples in self._batches.groups(self._batches.samples(numbers)):
                batch = self._batches.make(samples)
                began = time.perf_counter()
                losses = self._networks.denoising_losses(batch, settings.snr_gamma)
                check_losses(losses, samples, self._batches.pictures, f"step {self.progress.step + 1}, rank {rank}")
                forward = time.perf_counter()
                weights = torch.tensor([sample.weight for sample in samples])
                group_loss = (losses * weights).sum() / len(numbers) / settings.gradient_accumulation_steps
                group_loss.backward()  # type: ignore[no-untyped-call]
                loss += group_loss.item()
                forward_s, backward_s = forward_s + forward - began, backward_s + time.perf_counter() - forward
        return loss, forward_s, backward_s

    def _exchange(self, loss: float) -> tuple[float, int]:
        """Average gradients and loss over all ranks, and find out whether rank 0 was asked to stop.

        Returns:
            The mean loss, and the bytes that were all-reduced.
        """
        stop = self._is_main and self._run.stop_requested()
        exchanged = exchange(self.parameters.values(), loss, stop, self._accelerator)
        self._stop_requested = exchanged.stop
        return exchanged.loss, exchanged.bytes

    def _update_parameters(self) -> float:
        """Optimizer and schedule step. Returns the learning rate that was used, of the first parameter group."""
        check_gradients(self.parameters.values(), self.progress.step + 1)
        for learned in self._method.learned.values():
            if self.progress.step >= learned.share_of_steps * self._job.training.max_train_steps:
                learned.parameter.grad = None  # the optimizer passes over it, weight decay included
        lr: float = self._optimizer.param_groups[0]["lr"]
        self._norms.before_step()
        self._optimizer.step()
        self._norms.after_step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        check_learned(self._method.learned, self.progress.step + 1)
        self.progress.step += 1
        self.progress.samples += self.global_batch
        return lr

    # --- before, between and after the steps -------------------------------------------------------------------------

    def _open_run(self) -> None:
        """Remove an earlier run's results, and record what runs where. Nothing was written before."""
        self._asked = job_checksum(self._run.folder)  # now: what is edited later is not what was trained
        if self._is_main:
            self._run.clear(keep_progress=self._job.training.resume_from_checkpoint is not None)
        self._accelerator.wait_for_everyone()
        pictures = self._batches.own_pictures
        if self._is_main:
            save_thumbnails(pictures, self._run.concept, self._job.data)
        self._recorder = Recorder(self._run, self._accelerator, self.progress.step)
        self._recorder.start(
            self._job, self._networks, global_batch=self.global_batch, pictures=len(pictures), begun=self._begun
        )

    def _begin(self) -> None:
        """Find out where to start, and how often which timesteps are used; once in a run."""
        beginning = Beginning(self._job, self._networks, self._method, self._batches, self._accelerator)
        self._initial = beginning.start(self.parameters, self._initial, self.progress, self._recorder)
        beginning.set_timesteps(self.parameters, self.progress)
        fixed = {name: learned.parameter for name, learned in self._method.learned.items() if learned.fixed_norm}
        self._norms = FixedNorms(fixed, self._initial)

    def _validate_first(self) -> None:
        """Measure the baseline. A new run also records its first validation and draws its first pictures."""
        settings = self._job.validation
        if settings.steps > 0:
            triples = self._batches.triples(settings.triples)
            batch_size = self._job.training.train_batch_size
            self._validator = Validator(self._networks, self._method, triples, batch_size, self._accelerator)
            self._validator.measure_baseline(self.parameters, self._initial, settings.reference_caption)
        self._initial = {}  # nothing needs it from here on; of adapters, megabytes
        if self.progress.step == 0:
            self._validate()
            self._pictures.draw(0)
        elif self._validator is not None:
            self._validator.measure()  # a run that resumes after its last step reports this loss

    def _validate_if_due(self) -> None:
        settings, step = self._job.validation, self.progress.step
        if self._validator is None or (step % settings.steps and step != self._job.training.max_train_steps):
            return
        self._recorder.rank_times(step)
        self._validate()
        self._enough = reason_to_stop(self.progress, settings)

    def _validate(self) -> None:
        """Measure the learned concept and record the result."""
        if self._validator is None:
            return
        loss = self._validator.measure()
        record_validation(self.progress, self._job.validation, loss)
        self._recorder.validation(self.progress.step, loss, self._validator.gap_closed)
        self._accelerator.wait_for_everyone()

    def _draw_if_due(self) -> None:
        steps = self._job.validation.prompt_steps
        if steps and self.progress.step % steps == 0:
            self._pictures.draw(self.progress.step)

    def _checkpoint_if_due(self) -> None:
        settings = self._job.training
        due = settings.checkpointing_steps and self.progress.step % settings.checkpointing_steps == 0
        if self._is_main and (due or self._stop_requested):
            save_checkpoint(
                self._run.checkpoints,
                self.progress,
                self.parameters,
                self._optimizer,
                self._schedule,
                self._identity,
                settings.checkpoints_total_limit,
            )

    def _stop(self) -> None:
        """End an unfinished run on request; its checkpoint was written after the last step."""
        self._recorder.stopped(self.progress.step)
        self._recorder.close()
        if self._is_main:
            self._run.stop.unlink(missing_ok=True)
        self._accelerator.wait_for_everyone()
        self._accelerator.end_training()
        raise Stopped(f"stopped on request after step {self.progress.step}, for which there is a checkpoint")

    def _finish(self) -> dict[str, Any]:
        """Draw the last pictures and write the results. Returns the content of ``finished.json``."""
        step, validator = self.progress.step, self._validator
        check_learned(self._method.learned, step)  # a run that resumes after its last step made none
        self._pictures.draw(step)
        if self._is_main and self._enough:
            print(f"stopped early at step {step}: {self._enough}")
        facts: dict[str, Any] = {
            "run_name": self._job.run_name,
            "job_sha256": self._asked,
            "steps": step,
            "stopped_early": bool(self._enough),
            "starting_point": self.progress.start,
            "world_size": self._world_size,
            "resolution": self._job.data.resolution,
            "seconds": time.perf_counter() - self._begun,
            "peak_rss_bytes": peak_rss_bytes(),
            "validation_loss": validator.latest if validator else None,
            "initializer_loss": validator.baseline if validator else None,
            "reference_loss": validator.reference if validator else None,
            **sign(self._accelerator, self._samples),
        }
        self._recorder.close()
        if self._is_main:
            files = self._method.save(self._run, facts)
            if self._job.training.save_as_full_pipeline:
                self._method.save_pipeline(self._run, Path(self._job.model.path))
            facts = self._run.finish(facts, files)
        self._accelerator.wait_for_everyone()
        self._accelerator.end_training()
        return facts
