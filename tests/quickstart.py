"""Run the commands that README.md lists under "A cluster", on a clean clone, in a lab: `make quickstart-test`.

Not part of CI, which trains on clusters of the lab anyway: this takes as long as one more scenario. Two things replace
the reader. This file, called again, is the editor: it writes the lab's addresses into hosts.yml. A lab reaches no hub,
no conda channel and not Intel's index, so it also writes the embedded model and pictures and the stack native into
group_vars. The ssh settings are those of the lab.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = "quickstart"
LAB = [sys.executable, str(REPOSITORY / "molecule/lab/lab.py")]
LAB_INVENTORY = REPOSITORY / "inventory" / f"lab-{NAME}"
# Variables of inventory/local that replace those of inventory/example: the embedded model, and the stack native.
EMBEDDED = (
    *("software_stack", "python_env_manager", "training_backend"),
    *("base_model_name", "base_model_source", "training_data_name", "training_data_source", "training_resolution"),
    *("training_max_train_steps", "training_train_batch_size", "launch_config_ranks_per_node"),
    *("training_validation_reference_caption", "training_validation_guidance_scale", "image_generation_guidance_scale"),
)


def commands(readme: str) -> str:
    """The first console block under the heading "A cluster"."""
    found = re.search(r"^## A cluster$.*?^```console\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert found, "README.md has no console block under '## A cluster'"
    return found[1]


def edit(file: Path) -> None:
    """Edit a file as the reader would."""
    if file.name == "hosts.yml":
        shutil.copyfile(LAB_INVENTORY / "hosts.yml", file)
        return
    variables = LAB_INVENTORY / "group_vars/all"
    embedded = yaml.safe_load((variables / "10-toyworld.yml").read_text(encoding="utf-8"))
    text = "".join(f"{key}: {embedded[key]!r}\n" for key in EMBEDDED)
    text += "base_model_hub_id: ''\ntraining_data_urls: []\n"
    text += (variables / "20-lab.yml").read_text(encoding="utf-8").removeprefix("---\n")
    # Variables of the group override those of all hosts, so the example's file is not changed.
    file.with_name("cluster.yml").write_text(text, encoding="utf-8")


def main() -> None:
    """Clone, run the commands, check the results, remove everything."""
    if len(sys.argv) > 1:
        edit(Path(sys.argv[1]))
        return
    script = commands((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    hosts = os.environ.get("HOSTS", "4")
    folder = Path(tempfile.mkdtemp(prefix="quickstart-"))
    try:
        subprocess.run([*LAB, "up", NAME, "--hosts", hosts, "--mirror"], check=True)
        subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder / "sdtune"], check=True)
        environment = {**os.environ, "EDITOR": f"{sys.executable} {Path(__file__).resolve()}"}
        for name in ("VIRTUAL_ENV", "ANSIBLE_CONFIG"):
            environment.pop(name, None)
        subprocess.run(["bash", "-euxc", script], cwd=folder / "sdtune", env=environment, check=True)
        results = folder / "sdtune/artifacts/dicoo"
        report, images = results / "report.html", sorted((results / "images").glob("*.png"))
        assert report.stat().st_size > 100_000, "the report is empty"
        assert len(images) > 1, "no image was generated"
        print(f"1 passed: README's quick start, on {hosts} hosts, to {len(images) - 1} images and a report")
    finally:
        subprocess.run([*LAB, "down", NAME], check=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
