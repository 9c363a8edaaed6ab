"""What is recorded of a run: one interface over metrics, the times of all ranks, and the lines that a user sees."""

import time
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from sdtune.host.facts import describe_host, revision
from sdtune.launch.run_folder import Run
from sdtune.models.family import Networks
from sdtune.settings import Job, to_mapping
from sdtune.training.metrics import Metrics
from sdtune.training.ranks import RankTimes, describe_hosts
from sdtune.training.starting import Start


class Recorder:
    """Records on rank 0, and gathers what other ranks have to say. All ranks have one, and call the same methods."""

    def __init__(self, run: Run, accelerator: Accelerator, first_step: int) -> None:
        """Open ``metrics.jsonl`` on rank 0; ``first_step`` is the step of the checkpoint, 0 for a new run."""
        is_main = accelerator.is_main_process
        self._metrics = Metrics(run.metrics, first_step, accelerator) if is_main else None
        self._accelerator, self._first_step = accelerator, first_step
        self._rank_times = RankTimes()

    def _write(self, kind: str, **fields: Any) -> None:
        if self._metrics is not None:
            self._metrics.write(kind, **fields)

    def start(self, job: Job, networks: Networks, *, global_batch: int, pictures: int, begun: float) -> None:
        """Record what runs where.

        Args:
            job: the job.
            networks: describe themselves.
            global_batch: samples of an optimizer step.
            pictures: number of pictures.
            begun: :func:`time.perf_counter` when the run began.
        """
        world_size, step = self._accelerator.num_processes, self._first_step
        hosts = describe_hosts(self._accelerator.process_index, world_size)
        self._write(
            "resume" if step else "start",
            **({"step": step} if step else {}),
            run_name=job.run_name,
            revision=revision(),
            world_size=world_size,
            global_batch=global_batch,
            software_stack=job.software_stack,
            backend=job.training.backend if world_size > 1 else None,
            **networks.describe(),
            seed=job.seed,
            mixed_precision=job.training.mixed_precision,
            pictures=pictures,
            start_s=time.perf_counter() - begun,
            **describe_host(),
            hosts=hosts,
            job=to_mapping(job),
        )

    def starting_point(self, start: Start, seconds: float) -> None:
        """Record and print where learning starts."""
        self._write("starting_point", **asdict(start), seconds=seconds)
        if self._metrics is not None:
            tqdm.write(
                f"starts from {start.point}, which has the lowest loss of {len(start.losses)} that were compared"
            )

    def step(self, step: int, *, global_batch: int, step_s: float, sync_s: float, **fields: Any) -> None:
        """Record one optimizer step.

        Args:
            step: its number, from 1.
            global_batch: its samples.
            step_s: seconds of the whole step.
            sync_s: seconds of the exchange, including the time that this rank waited.
            fields: everything else, see :mod:`sdtune.training.metrics`.
        """
        self._rank_times.add(step_s - sync_s, sync_s)
        self._write(
            "step",
            step=step,
            step_s=step_s,
            sync_s=sync_s,
            images_per_s=global_batch / step_s,
            world_size=self._accelerator.num_processes,
            **fields,
        )

    def rank_times(self, step: int) -> None:
        """Gather and record the mean step times of each rank since the last call."""
        if self._rank_times.steps > 0:
            self._write("ranks", step=step, **self._rank_times.gather(self._accelerator))

    def validation(self, step: int, loss: float, gap_closed: float | None) -> None:
        """Record and print the result of a validation."""
        self._write("validation", step=step, loss=loss, gap_closed=gap_closed)
        if self._metrics is not None:
            closed = "" if gap_closed is None else f", {100 * gap_closed:.0f} % of the gap to the reference caption"
            tqdm.write(f"step {step}: validation loss {loss:.5f}{closed}")

    def stopped(self, step: int) -> None:
        """Record that the run was stopped on request."""
        self._write("stopped", step=step)

    def close(self) -> None:
        """Close the file."""
        if self._metrics is not None:
            self._metrics.close()
