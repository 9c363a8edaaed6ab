"""Textual inversion: learn a new token from a few pictures.

    python textual_inversion.py --job job.yaml                  # one rank, on this host
    mpirun -n 2 python textual_inversion.py --job job.yaml      # as launch.sh in a run folder does
    python textual_inversion.py --pretrained_model_name_or_path toyworld/model --train_data_dir toyworld/concept \
        --output_dir runs/toy --resolution 64 --learning_rate 5e-3 --max_train_steps 100 --train_batch_size 16

The flags are those of diffusers' script of this name. A job file contains the same settings in YAML.
"""

import json
import sys
from pathlib import Path

from sdtune import cli
from sdtune.files import follow_mode
from sdtune.settings import training_job

# Text generation in transformers and a few noise schedules in diffusers import scikit-learn and SciPy, which training
# never calls: almost a second and 75 MB on every rank. A module that is None counts as not installed.
for _name in ("scipy", "sklearn"):
    sys.modules[_name] = None  # type: ignore[assignment]


def main() -> None:
    """Parse, check, train."""
    job, flags = training_job(None, __doc__ or "")
    follow_mode(Path(job.run_dir))
    if flags.check:
        from sdtune.data.pictures import list_pictures, picture_warnings
        from sdtune.training.checks import check_job

        warnings = check_job(job)
        warnings += picture_warnings(list_pictures(job.data.path), job.data.resolution, job.data.center_crop)
        for warning in warnings:
            print(f"warning: {warning}", flush=True)
        if flags.warnings:
            Path(flags.warnings).write_text(json.dumps(warnings) + "\n", encoding="utf-8")
        print(f"the job {job.run_name} can run")
        return
    from sdtune.training.trainer import train  # after the flags: importing torch takes seconds

    train(job)


if __name__ == "__main__":
    cli.run(main, preload=True)
