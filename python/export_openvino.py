"""Export a trained run to OpenVINO, with the static shape that its job asks for.

python export_openvino.py --job runs/demo/job.yaml
"""

import dataclasses
import json
from pathlib import Path

from sdtune import cli
from sdtune.arguments import Parser
from sdtune.errors import BadInput
from sdtune.files import follow_mode
from sdtune.settings import Job, OpenVINOArgs, build, read_yaml


def _openvino(text: str) -> OpenVINOArgs:
    """The section ``openvino`` from its JSON."""
    try:
        return build(OpenVINOArgs, json.loads(text), "openvino")
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--openvino is not valid JSON: {error}") from None


def main() -> None:
    """Export; print the shape, the peak memory and the similarity to the float32 pipeline's images."""
    parser = Parser(__doc__)
    parser.add_argument("--job", required=True, help="the run's job file (required)")
    parser.add_argument("--openvino", metavar="JSON", help="settings in place of the section openvino of the job file")
    args = parser.parse_args()
    job = read_yaml(args.job, Job)
    if args.openvino is not None:
        job = dataclasses.replace(job, openvino=_openvino(args.openvino))
    follow_mode(Path(job.run_dir))
    from sdtune.inference.export import export

    done = export(job)
    shape = (
        f"{done.shape.batch_size} prompt(s) x {done.shape.num_images_per_prompt} picture(s), "
        f"{done.shape.width} x {done.shape.height} pixels, static after reload"
        if done.shape
        else "any number of prompts and pixels (dynamic)"
    )
    print(f"{job.run_dir}/openvino: {shape}; weights {job.openvino.weights}")
    print(f"peak memory {done.peak_bytes / 1e9:.2f} GB, for networks of {done.model_bytes / 1e9:.2f} GB in float32")
    if done.similarity:
        psnr, difference = done.similarity
        print(
            f"similarity to the float32 pictures: PSNR {psnr:.1f} dB, mean difference {difference:.2f} of 255, over "
            f"{job.openvino.similarity_images} pictures of {job.openvino.similarity_steps} steps"
        )


if __name__ == "__main__":
    cli.run(main)
