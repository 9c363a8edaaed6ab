"""Roles hold data and short expressions. Programs are files or plugins, which linters and unit tests reach."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, ROLES

LONGEST = 200  # characters of a Jinja expression, with its white space collapsed
CONDITIONS = {"when", "failed_when", "changed_when", "until", "that", "var"}  # Jinja without braces
SHELLS = re.compile(r"(^|/)(sh|bash|dash|python[0-9.]*)$")
# A line that only a shell or Python program has.
PROGRAM = re.compile(
    r"^\s*(set -[a-z]|for \w+;? (in|do)|while |if \[|case |cd |exec |import \w|from \w+ import|def \w+\()", re.MULTILINE
)
FILES = sorted(
    str(path.relative_to(REPOSITORY))
    for role in ROLES
    for folder in ("vars", "tasks", "defaults", "handlers")
    for path in (REPOSITORY / "roles" / role / folder).rglob("*.yml")
)
# Playbooks, templates and scenarios: the same, but templates may have loops.
OTHERS = sorted(
    str(path.relative_to(REPOSITORY))
    for pattern in ("*.yml", "playbooks/*.yml", "templates/*.j2", "tests/*.yml", "molecule/**/*.yml")
    for path in REPOSITORY.glob(pattern)
)
SOURCES = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in ("python", "plugins", "roles", "scripts", "molecule", "tests")
    for path in (REPOSITORY / folder).rglob("*.py")
)
LONGEST_FUNCTION = 60  # lines
PRIVATE = re.compile(r"\b__?([a-z][a-z0-9_]*)")


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a YAML document, each with the key that it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, key)
    elif isinstance(value, str):
        yield key, value


def lists(value: Any) -> Iterator[list[Any]]:
    """All lists of a YAML document."""
    if isinstance(value, dict):
        value = list(value.values())
    elif isinstance(value, list):
        yield value
    else:
        return
    for inner in value:
        yield from lists(inner)


def load(file: str) -> Any:
    """Parse a YAML file of the repository."""
    return yaml.safe_load((REPOSITORY / file).read_text(encoding="utf-8"))


def owner(name: str) -> str:
    """The role that a variable belongs to by its prefix: the longest that fits, or none."""
    return max((role for role in ROLES if name.startswith(f"{role}_")), key=len, default="")


@pytest.mark.parametrize("file", FILES)
def test_no_jinja_statements(file):
    """Loops, branches and assignments are logic: a filter in plugins/filter holds them."""
    assert "{%" not in (REPOSITORY / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES + OTHERS)
def test_expressions_are_short(file):
    """What is longer than two lines is not read at a glance."""
    template = file.endswith(".j2")
    for key, text in [("", (REPOSITORY / file).read_text(encoding="utf-8"))] if template else strings(load(file)):
        found = re.findall(r"\{\{.*?\}\}", text, re.DOTALL) + ([text] if key in CONDITIONS else [])
        for expression in found:
            assert len(" ".join(expression.split())) <= LONGEST, expression


def test_functions_are_short():
    """One that is longer does several things."""
    found = [
        f"{file}: {node.name}"
        for file in SOURCES
        for node in ast.walk(ast.parse((REPOSITORY / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    ]
    assert found == []


def test_flags_have_help():
    """Meaning, and where it is not obvious, the default."""
    found = [
        f"{file}:{call.lineno}"
        for file in SOURCES
        if not file.startswith("tests/")  # fakes have the flags of others
        for call in ast.walk(ast.parse((REPOSITORY / file).read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "add_argument"
        and any(isinstance(name, ast.Constant) and str(name.value).startswith("-") for name in call.args)
        and not {"help", None} & {keyword.arg for keyword in call.keywords}
    ]
    assert found == []


@pytest.mark.parametrize("file", FILES)
def test_no_programs_in_yaml(file):
    """Scripts are in files/, where shellcheck and ruff see them; `-c` may only take the content of such a file."""
    document = load(file)
    for items in lists(document):
        for shell, flag, program in zip(items, items[1:], items[2:], strict=False):
            if flag == "-c" and SHELLS.search(str(shell).rstrip("} ").rstrip()):
                assert "ansible.builtin.file'" in str(program), program
    for key, text in strings(document):
        assert key != "ansible.builtin.shell", text
        assert not re.search(r"""['"]-c['"],(?! *lookup\('ansible.builtin.file')""", text), text
        assert not PROGRAM.search(text), text


@pytest.mark.parametrize("role", ROLES)
def test_private_variables_stay_in_their_role(role):
    """`_role_x` and `__role_x` are the role's own; what others need has a public name."""
    for path in (REPOSITORY / "roles" / role).rglob("*"):
        if path.suffix in (".yml", ".j2"):
            names = {match[1] for match in PRIVATE.finditer(path.read_text(encoding="utf-8"))}
            foreign = {name for name in names if owner(name) not in ("", role)}
            assert not foreign, f"{path.relative_to(REPOSITORY)}: {sorted(foreign)}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "playbooks").glob("*.yml")), ids=lambda path: path.name)
def test_no_role_is_listed_only_for_its_variables(path: Path):
    """`tasks_from: settings` brings a role's variables, and runs nothing."""
    for play in yaml.safe_load(path.read_text(encoding="utf-8")):
        for role in play.get("roles", []):
            assert role.get("when") is not False, role["role"]
