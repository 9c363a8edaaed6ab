"""Does on a clean clone, in a lab, what README.md says under "A cluster", to the letter: `make quickstart-test`.

Not for CI, which trains on clusters of the lab anyway: this takes as long as one more scenario. It stands in for
the reader in two things. His editor is this file, called again: it puts the lab's addresses into hosts.yml and, since
a lab reaches neither hub nor conda's channels nor Intel's index, the embedded model and pictures and the stack native
into group_vars. His ssh finds the servers as those of a lab are.
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
# of inventory/local: what the embedded model needs, where inventory/example names a hub's, and what the index serves
EMBEDDED = (
    *("software_stack", "python_env_manager", "training_backend"),
    *("base_model_name", "base_model_source", "training_data_name", "training_data_source", "training_resolution"),
    *("training_max_train_steps", "training_train_batch_size", "launch_config_ranks_per_node"),
    *("training_validation_reference_caption", "training_validation_guidance_scale", "image_generation_guidance_scale"),
)


def commands(readme: str) -> str:
    """The first console block under the heading of clusters."""
    found = re.search(r"^## A cluster$.*?^```console\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert found, "README.md has no console block under '## A cluster'"
    return found[1]


def edit(file: Path) -> None:
    """What the reader types into a file."""
    if file.name == "hosts.yml":
        shutil.copyfile(LAB_INVENTORY / "hosts.yml", file)
        return
    variables = LAB_INVENTORY / "group_vars/all"
    embedded = yaml.safe_load((variables / "10-toyworld.yml").read_text(encoding="utf-8"))
    text = "".join(f"{key}: {embedded[key]!r}\n" for key in EMBEDDED)
    text += "base_model_hub_id: ''\ntraining_data_urls: []\n"
    text += (variables / "20-lab.yml").read_text(encoding="utf-8").removeprefix("---\n")
    # variables of the group win over those of all hosts, so the example's file stays as it is
    file.with_name("cluster.yml").write_text(text, encoding="utf-8")


def main() -> None:
    """Clone, type, look at what came out, and leave nothing."""
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
        assert len(images) > 1, "no picture was drawn"
        print(f"1 passed: README's quick start, on {hosts} hosts, to {len(images) - 1} pictures and a report")
    finally:
        subprocess.run([*LAB, "down", NAME], check=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
