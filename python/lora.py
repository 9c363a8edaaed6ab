"""LoRA and DreamBooth: learn an object or a style as matrices of low rank beside the weights of the model.

    python lora.py --job job.yaml                               # one rank, on this host
    mpirun -n 2 python lora.py --job job.yaml                   # as launch.sh in a run folder does
    python lora.py --pretrained_model_name_or_path toyworld/model --instance_data_dir toyworld/concept \
        --instance_prompt "a photo of a toy" --output_dir runs/toy --resolution 64 --max_train_steps 100

The flags are those of diffusers' train_dreambooth_lora.py; those without a use here are refused or warned of.
A job file contains the same settings in YAML.
"""

from sdtune import cli

cli.hide_never_used()

if __name__ == "__main__":
    cli.run(lambda: cli.train(__doc__ or "", "lora"), preload=True)
