"""Textual inversion: learn a new token from a few pictures.

    python textual_inversion.py --job job.yaml                  # one rank, on this host
    mpirun -n 2 python textual_inversion.py --job job.yaml      # as launch.sh in a run folder does
    python textual_inversion.py --pretrained_model_name_or_path toyworld/model --train_data_dir toyworld/concept \
        --output_dir runs/toy --resolution 64 --learning_rate 5e-3 --max_train_steps 100 --train_batch_size 16

The flags are those of diffusers' script of this name. A job file contains the same settings in YAML.
"""

from sdtune import cli

cli.hide_never_used()

if __name__ == "__main__":
    cli.run(lambda: cli.train(__doc__ or "", "textual_inversion"), preload=True)
