"""Documents name only what exists: files, headings, playbooks, programs, make targets, variables."""

import functools
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
# Set in inventories, for several roles.
SHARED = {"run_name", "run_user", "work_dir", "artifacts_dir", "software_stack", "training_backend", "training_runs"}


def facts(node):
    """Names that the tasks in a parsed YAML file set with set_fact."""
    if isinstance(node, list):
        return {name for item in node for name in facts(item)}
    if not isinstance(node, dict):
        return set()
    return set(node.get("ansible.builtin.set_fact", {})) | facts([v for v in node.values() if isinstance(v, list)])


@functools.cache
def variables():
    """Every variable that a user can set or another role may read."""
    names = set(SHARED)
    for role in ROLES:
        folder = REPOSITORY / "roles" / role
        for path in [*folder.glob("defaults/*.yml"), *folder.glob("vars/*.yml")]:
            names |= set(yaml.safe_load(path.read_text()) or {})
        for path in folder.glob("tasks/*.yml"):
            names |= facts(yaml.safe_load(path.read_text()))
        for entry in yaml.safe_load((folder / "meta/argument_specs.yml").read_text())["argument_specs"].values():
            names |= set(entry["options"] or {})
    for inventory in ("local", "example"):
        names |= set(yaml.safe_load((REPOSITORY / f"inventory/{inventory}/group_vars/all.yml").read_text()))
    return names


def anchor(heading):
    """The anchor of a heading, as git hosting services generate it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_have_targets(name):
    """Files and headings of the repository."""
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
    """Playbooks, make targets, role variables, and the variables that -e sets."""
    text = (REPOSITORY / name).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for line in re.findall(r"ansible-playbook[^\n`]*", text):
        for playbook in re.findall(r"(?<= )[\w/]+\.yml", line):
            assert (REPOSITORY / playbook).is_file(), line
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    known = variables()
    prefixes = "|".join(ROLES)
    named = set(re.findall(rf"`((?:{prefixes})_\w+)(?::[^`]*)?`", text))
    named |= set(re.findall(r"-e (?!name=value)(\w+)=", text))
    assert {n for n in named - known if n not in ROLES} == set()


# A path of the repository in backquotes: it starts with one of these folders and holds no placeholder.
PATHS = r"`((?:docs|inventory|molecule|playbooks|plugins|python|roles|scripts|templates|tests|toyworld)/[^`\s<>*()$]*)`"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_and_modules_exist(name):
    """Files and folders in backquotes, and what is started with `python -m`."""
    text = (REPOSITORY / name).read_text()
    for path in re.findall(PATHS, text):
        if not re.search("mine|lab-|NAME", path):  # inventories and files that the reader creates
            assert (REPOSITORY / path).exists(), path
    for test in re.findall(r"\btests/(test_[a-z_]+\.py)", text):
        assert any((REPOSITORY / folder / test).is_file() for folder in ("tests", "python/tests")), test
    for module in re.findall(r"python -m (\w+(?:\.\w+)*)(?![\w.])", text):
        package = module.split(".")[0]
        if package in {"sdtune", "toyworld", "standalone"}:
            file = REPOSITORY / "python" / module.replace(".", "/")
            assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), module


def test_messages_exist():
    """A symptom that docs/troubleshooting.md quotes is a message of this project, or of ssh and Ansible."""
    sources = subprocess.run(
        ["git", "ls-files", "python/sdtune", "python/standalone", "plugins", "roles", "templates"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    said = " ".join(
        (REPOSITORY / name).read_text()
        for name in sources
        if name.endswith((".py", ".yml", ".j2")) and "/meta/" not in name
    )
    said = re.sub(r"\s+", " ", said)
    symptoms = re.findall(r"^\*\*(.*?)\*\*", (REPOSITORY / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    quoted = {text for symptom in symptoms for text in re.findall("`([^`]*)`", symptom)}
    assert len(quoted) > 8
    for text in quoted - {"Host key verification failed", "UNREACHABLE"}:
        for part in re.split(r"\.\.\.|\b[A-Z]\b|\d+|\bnan\b", text):  # numbers differ
            assert part.strip(" ,") in said, text


@pytest.mark.parametrize("name", ["README.md", *(name for name in DOCUMENTS if name.startswith("docs/"))])
def test_every_document_is_linked(name):
    """From the README, directly or from a page that it links."""
    reached, todo = set(), ["README.md"]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            for target in re.findall(r"\]\(([^)#:]+\.md)", (REPOSITORY / page).read_text()):
                todo.append(str(((REPOSITORY / page).parent / target).resolve().relative_to(REPOSITORY)))
    assert name in reached


def test_the_readme_is_short():
    """At most 150 lines."""
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


def test_the_quick_start_can_be_found():
    """tests/quickstart.py finds it, and it is short."""
    lines = commands((REPOSITORY / "README.md").read_text()).splitlines()
    assert [line for line in lines if "ansible-playbook" in line]
    assert len(lines) <= 8
