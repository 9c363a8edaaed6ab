"""The run folder, on the primary: the one folder for everything that a run produces."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput, TrainingFailed
from sdtune.files import is_writable, nearest_folder, write_atomically
from standalone import run_state

_RESULTS = ("*.safetensors", "pipeline", "openvino", "drawn", "images", "report.html", ".collected")
_PROGRESS = ("metrics.jsonl", "checkpoints", "concept", "validation", "tensorboard")


class Run:
    """Paths in a run folder, and the rules for writing to it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.metrics = self.folder / "metrics.jsonl"
        self.learned = self.folder / "learned_embeds.safetensors"
        self.lora = self.folder / "pytorch_lora_weights.safetensors"
        self.pipeline = self.folder / "pipeline"
        self.openvino = self.folder / "openvino"
        self.images = self.folder / "images"
        self.drawn = self.folder / "drawn"
        self.validation = self.folder / "validation"
        self.concept = self.folder / "concept"
        self.packages = self.folder / "packages"
        self.report = self.folder / "report.html"
        self.job = self.folder / "job.yaml"
        self.checkpoints = self.folder / "checkpoints"
        self.finished = self.folder / "finished.json"
        self.stop = self.folder / "stop"
        """When this file exists, the run stops after its next step."""

    def file_for_tools(self, name: str) -> Path:
        """``<name>.safetensors``, for tools that show a file's name; names of the run's own files get an underscore."""
        path = self.folder / f"{name}.safetensors"
        return self.folder / f"{name}_.safetensors" if path in (self.learned, self.lora) else path

    def check_writable(self, *, overwrite: bool, resume: bool) -> None:
        """Refuse a finished run, checkpoints that would be lost, and a folder that cannot be written to.

        Raises:
            BadInput: with the remedy.
        """
        if self.finished.exists() and not overwrite:
            unproven = run_state.why_unproven(self.folder)
            held = "holds a finished run"
            if unproven:
                held = f"holds a run that is not known to have finished ({unproven})"
            raise BadInput(
                f"{self.folder} {held}, which is not overwritten unasked; choose another "
                f"run_name, or allow it with --overwrite (Ansible: -e training_overwrite=true)"
            )
        if not resume and not overwrite and any(self.checkpoints.glob("step-*")):
            raise BadInput(
                f"{self.folder} holds checkpoints of an unfinished run; go on with resume_from_checkpoint: auto "
                f"(Ansible: -e training_resume_from_checkpoint=auto), or start anew with --overwrite "
                f"(-e training_overwrite=true)"
            )
        nearest = nearest_folder(self.folder)
        if not is_writable(nearest):
            raise BadInput(f"run_dir: {nearest} cannot be written to by this user; choose another folder or its owner")

    def stop_requested(self) -> bool:
        """Whether the run is to stop after its next step.

        Raises:
            TrainingFailed: the run folder is gone, and with it all that could be saved.
        """
        if not self.folder.is_dir():
            raise TrainingFailed(f"the run folder {self.folder} was deleted while the run was going on")
        return self.stop.exists()

    def clear(self, *, keep_progress: bool) -> None:
        """Remove an earlier run's results, ``finished.json`` first; the files that launch the run stay.

        With ``keep_progress`` everything that a resumed run continues also stays: metrics, checkpoints, validation
        pictures.
        """
        self.finished.unlink(missing_ok=True)
        names = _RESULTS if keep_progress else (*_RESULTS, *_PROGRESS)
        for path in [path for name in names for path in self.folder.glob(name)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def prove_writable(self, size: int = 1 << 20) -> None:
        """Write ``size`` bytes and remove them: permissions do not show a full disk, and do not apply to root.

        Raises:
            BadInput: with the message of the operating system.
        """
        probe = self.folder / ".probe"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with probe.open("wb") as f:
                f.write(b"\0" * size)
                f.flush()
                os.fsync(f.fileno())
        except OSError as error:
            raise BadInput(f"run_dir: {self.folder} cannot be written to ({error.strerror}); make room") from None
        finally:
            probe.unlink(missing_ok=True)

    def finish(self, facts: dict[str, Any], files: Iterable[Path]) -> dict[str, Any]:
        """Write ``finished.json``, the last file that training writes: ``facts``, and the SHA-256 of what was learned.

        Args:
            facts: what else it says.
            files: those of the run folder that hold what was learned.

        Returns:
            Its content.
        """
        learned = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        write_atomically(self.finished, json.dumps({**facts, "learned": learned}, indent=2) + "\n")
        return {**facts, "learned": learned}

    def facts(self) -> dict[str, Any]:
        """The contents of ``finished.json``.

        Raises:
            BadInput: the run has not finished, or does not prove it.
        """
        if not self.finished.is_file():
            raise BadInput(f"{self.folder} holds no finished run; train it first, or go on with resume_from_checkpoint")
        try:
            return run_state.read_proof(self.folder)
        except run_state.Unproven as why:
            raise BadInput(f"{self.folder} holds no finished run: {why}; train it again") from None

    def require_learned(self) -> None:
        """Refuse a run that has no learned parameters, or no pipeline.

        Raises:
            BadInput: names what is missing.
        """
        learned = self.learned.is_file() or self.lora.is_file()
        if not learned or not self.pipeline.is_dir():
            missing = self.pipeline if learned else self.learned
            raise BadInput(f"{missing} does not exist; train the run first, with save_as_full_pipeline")
