"""Draw pictures with a trained run.

python generate_images.py --job runs/demo/generation.yaml
"""

import argparse

from sdtune import cli, config


def main() -> None:
    """Parse, draw, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", required=True, help="generation job file (YAML)")
    job = config.read_yaml(parser.parse_args().job, config.GenerationJob)
    from sdtune.generation import generate

    files = generate(job)
    print(f"{len(files) - 1} pictures and {files[-1]}")


if __name__ == "__main__":
    cli.run(main)
