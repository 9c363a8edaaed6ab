"""The folders of a run that generated images go to: ``drawn/`` while images are missing, then ``images/``."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import Image

from sdtune.errors import BadInput
from sdtune.files import hold_lock, replace_folder
from sdtune.inference.images import columns_of, contact_sheet
from sdtune.inference.plan import Plan
from sdtune.launch.run_folder import Run
from sdtune.settings import GenerationJob
from standalone import run_state

CONTACT_SHEET = "contact_sheet.png"


@contextmanager
def generation_lock(run: Run) -> Iterator[None]:
    """Hold the run's lock for generating images.

    Raises:
        BadInput: another process on this host holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(run.folder / run_state.DRAWING_LOCK, timeout=1))
        except BlockingIOError:
            raise BadInput(
                f"pictures of {run.folder} are being drawn on this host already; wait for them, or stop that process"
            ) from None
        (run.folder / run_state.DRAWING).unlink(missing_ok=True)  # the state of an earlier job
        yield


def clear_drawn(run: Run) -> None:
    """Make ``drawn/`` empty: what an earlier call left there may be of another job."""
    shutil.rmtree(run.drawn, ignore_errors=True)
    run.drawn.mkdir()


def write_images(files: Mapping[str, bytes], folder: Path) -> None:
    """Write ``files`` {name: content} into ``folder``; a reader sees each file complete or not at all."""
    for name, content in files.items():
        (folder / f".{name}").write_bytes(content)
        (folder / f".{name}").replace(folder / name)


def finish(job: GenerationJob, plan: Plan) -> list[Path]:
    """Replace ``images/`` of the run by ``drawn/``, with a contact sheet.

    Returns:
        The images, prompt by prompt, and last the contact sheet.

    Raises:
        BadInput: an image is missing.
    """
    run = Run(job.run_dir)
    names = [plan.name(request) for request in plan.requests]
    missing = [name for name in names if not (run.drawn / name).is_file()]
    if missing:
        raise BadInput(f"{run.drawn} lacks {', '.join(missing[:5])} ({len(missing)} in all); draw them first")
    for path in run.drawn.iterdir():
        if path.name not in names:
            path.unlink()
    images = [Image.open(run.drawn / name) for name in names]
    captions = [f"{r.prompt} (seed {r.seed})" for r in plan.requests]
    sheet = contact_sheet(images, captions, columns_of(len(dict.fromkeys(job.seeds))))
    sheet.save(run.drawn / CONTACT_SHEET)
    replace_folder(run.drawn, run.images)
    return [run.images / name for name in (*names, CONTACT_SHEET)]
