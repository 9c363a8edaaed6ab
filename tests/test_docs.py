"""The documents name what is there: files, headings, playbooks, make's targets, and variables."""

import re
import subprocess

import pytest
import yaml
from conftest import REPOSITORY, ROLES
from quickstart import commands

DOCUMENTS = sorted(
    path
    for path in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    if path != "CHANGELOG.md"
)
# set in inventories, for several roles
SHARED = {"run_name", "run_user", "work_dir", "artifacts_dir", "software_stack", "training_backend", "training_runs"}


def variables():
    """Every variable that a user can set."""
    names = set(SHARED)
    for role in ROLES:
        specs = yaml.safe_load((REPOSITORY / f"roles/{role}/meta/argument_specs.yml").read_text())
        names |= set(specs["argument_specs"]["main"]["options"])
    for inventory in ("local", "example"):
        names |= set(yaml.safe_load((REPOSITORY / f"inventory/{inventory}/group_vars/all.yml").read_text()))
    return names


def anchor(heading):
    """A heading's anchor, as the hosters of git make them."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    """Within the repository, to files and headings."""
    text = (REPOSITORY / name).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, heading = target.partition("#")
        file = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert file.exists(), target
        if heading:
            assert heading in {anchor(h) for h in re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)}, target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_and_variables_exist(name):
    """Playbooks, targets of make, variables of roles, and what -e sets."""
    text = (REPOSITORY / name).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for line in re.findall(r"ansible-playbook[^\n`]*", text):
        for playbook in re.findall(r"(?<= )[\w/]+\.yml", line):
            assert (REPOSITORY / playbook).is_file(), line
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    known = variables()
    prefixes = "|".join(ROLES)
    named = set(re.findall(rf"`((?:{prefixes})_\w+)(?::[^`]*)?`", text)) | set(re.findall(r"-e (\w+)=", text))
    assert {n for n in named - known if n not in ROLES} == set()


def test_the_quick_start_can_be_found():
    """By what does it in a lab; and it is short."""
    lines = commands((REPOSITORY / "README.md").read_text()).splitlines()
    assert [line for line in lines if "ansible-playbook" in line]
    assert len(lines) <= 8
