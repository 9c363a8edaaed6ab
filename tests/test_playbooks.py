"""The playbooks at the root: they parse with every inventory, and check mode passes where nothing is installed."""

import subprocess

import pytest
from conftest import REPOSITORY

ENTRY_POINTS = sorted(path.name for path in REPOSITORY.glob("playbooks/*.yml") if (REPOSITORY / path.name).exists())
# Those of the repository: labs come and go.
TRACKED = subprocess.run(
    ["git", "ls-files", "inventory"], cwd=REPOSITORY, capture_output=True, text=True, check=True
).stdout.split()
INVENTORIES = sorted({path.split("/")[1] for path in TRACKED})


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_syntax(playbook, inventory):
    """--syntax-check of all, in one call."""
    done = playbook("--syntax-check", "-i", f"inventory/{inventory}", *ENTRY_POINTS)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("entry", ["provision.yml", "train.yml", "generate.yml"])
def test_check_mode_passes_on_a_clean_host_and_changes_nothing(playbook, tmp_path, pictures, model, entry):
    """Check mode says what would be done, and does nothing."""
    done = playbook(entry, "--check", base_model_source=str(model), training_data_source=str(pictures))
    assert done.returncode == 0, done.stdout
    assert not done.played.failures()
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "artifacts").exists()
