"""Every role documents exactly the variables that it has, and gets one tag: its name."""

import pytest
import yaml
from conftest import REPOSITORY, ROLES

TYPES = {"str": str, "path": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}
# Roles that other roles call or depend on, and no playbook names.
HELPERS = {"cluster", "slurm", "distribution_packages", "synced_folder"}
PLAYBOOKS = sorted(path.name for path in REPOSITORY.glob("playbooks/*.yml"))


def load(path):
    """Parse a YAML file of the repository."""
    return yaml.safe_load((REPOSITORY / path).read_text())


@pytest.mark.parametrize("role", ROLES)
def test_argument_specs_and_defaults_agree(role):
    """Same names, same values, in both directions; only what is required has no default."""
    defaults = load(f"roles/{role}/defaults/main.yml")
    options = load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert defaults == {name: option["default"] for name, option in options.items() if not option.get("required")}


@pytest.mark.parametrize("role", ROLES)
def test_argument_specs_are_complete(role):
    """Each option says its type, its meaning, and has a default of that type unless it is a template."""
    options = load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    for name, option in options.items():
        assert option["description"], name
        assert option["type"] in TYPES, name
        assert option["type"] != "list" or "elements" in option, name
        default = option.get("default")
        if default is not None and "{{" not in str(default):
            assert isinstance(default, TYPES[option["type"]]), name
            assert isinstance(default, bool) == (option["type"] == "bool"), name


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_prefix_of_their_role(role):
    """Settings, and what other roles may read, are role_*; the role's own constants _role_*."""
    assert all(name.startswith(f"{role}_") for name in load(f"roles/{role}/defaults/main.yml"))
    constants = REPOSITORY / f"roles/{role}/vars/main.yml"
    if constants.exists():
        names = list(yaml.safe_load(constants.read_text()))
        assert all(name.startswith((f"_{role}_", f"{role}_")) for name in names), names


def test_each_role_is_played_under_its_own_tag():
    """--tags NAME runs the role of that name, whatever the playbook."""
    played = [role for name in PLAYBOOKS for play in load(f"playbooks/{name}") for role in play.get("roles", [])]
    assert {role["role"] for role in played} == set(ROLES) - HELPERS
    for role in played:
        tags = role["tags"] if isinstance(role["tags"], list) else [role["tags"]]
        assert set(tags) - {"always"} == {role["role"]}


@pytest.mark.parametrize("role", ROLES)
def test_role_has_a_readme(role):
    """A few lines that say what it is for."""
    assert (REPOSITORY / f"roles/{role}/README.md").read_text().startswith(f"# {role}\n")
