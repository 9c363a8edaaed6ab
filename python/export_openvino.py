"""Make the OpenVINO copy of a trained run, with the static shape that its job asks for.

python export_openvino.py --job runs/demo/job.yaml
"""

import argparse

from sdtune import cli, config


def main() -> None:
    """Parse, export, say the shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", required=True, help="the run's job file")
    job = config.read_yaml(parser.parse_args().job, config.Job)
    from sdtune.openvino import export

    shape = export(job)
    print(
        f"{job.run_dir}/openvino: {shape.batch_size} prompt(s) x {shape.num_images_per_prompt} picture(s), "
        f"{shape.width} x {shape.height} pixels, static after reload"
    )


if __name__ == "__main__":
    cli.run(main)
