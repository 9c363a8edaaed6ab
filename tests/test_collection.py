"""The repository as a collection: built, installed without a network, used from a folder without the repository."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile

import yaml
from conftest import COLLECTION, REPOSITORY, call

GALAXY = yaml.safe_load((REPOSITORY / "galaxy.yml").read_text())
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
).stdout.splitlines()
# What of the repository stays at home: folders, and files at the root.
DEVELOPMENT = (
    *("molecule/", "tests/", "python/tests/", "python/bench/", "python/toyworld/"),
    *("scripts/", "execution-environment/", "."),
)
TOOLS = {"Makefile", "galaxy.yml", "ruff.toml"}
SPEC = importlib.util.spec_from_file_location("lay_out", REPOSITORY / "roles/project_folder/files/lay_out.py")
layout = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(layout)


def test_the_name_is_the_one_that_is_documented():
    assert f"{GALAXY['namespace']}.{GALAXY['name']}" == COLLECTION


def test_the_version_is_the_packages():
    code = (REPOSITORY / "python/sdtune/__init__.py").read_text()
    assert re.search('^__version__ = "(.*)"$', code, re.MULTILINE)[1] == GALAXY["version"]


def test_everything_travels_but_what_only_development_needs(archive):
    """Nothing that git does not know, except the compiled kernels and the documentation of filters."""
    with tarfile.open(archive) as tar:
        files = {member.name for member in tar if not member.isdir()} - {"MANIFEST.json", "FILES.json"}
    kernels = {path for path in files if re.fullmatch(r"python/sdtune/ops/kernels/[\w-]+\.so", path)}
    wanted = {path for path in TRACKED if not path.startswith((*DEVELOPMENT, "requirements-")) and path not in TOOLS}
    wanted |= {path for path in TRACKED if path.startswith("tests/sanity/")}  # ansible-test reads it there
    documents = {path for path in files if re.fullmatch(r"plugins/filter/\w+\.yml", path)}
    assert files - kernels - documents == wanted


def test_what_a_user_keeps_in_a_clone_stays_at_home(tmp_path):
    """Inventories with their vaults, keys, pictures: git does not know them. An archive of another version goes."""
    clone, built = tmp_path / "a clone", tmp_path / "built"
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, clone], check=True)
    for name in ("collection.sh", "filter_docs.py"):
        shutil.copy(REPOSITORY / "scripts" / name, clone / "scripts")
    for name in ("inventory/mine/group_vars/vault.yml", "id_rsa", "pictures/a.jpg", "toyworld/mine/a"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("mine")
    (clone / "galaxy.yml").write_text((clone / "galaxy.yml").read_text() + "# changed\n")  # not committed yet
    (clone / "LICENSE").unlink()
    built.mkdir()
    (built / "sdtune-sdtune-0.0.1.tar.gz").touch()
    done = call("scripts/collection.sh", shutil.which("ansible-galaxy"), str(built), cwd=clone)
    assert done.returncode == 0, done.stderr
    (archive,) = built.iterdir()
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
    assert {"README.md", "inventory/example/hosts.yml", "roles/preflight/tasks/main.yml"} <= names
    assert not [name for name in names if "mine" in name or name.startswith(("id_rsa", "pictures", "LICENSE"))]


def test_nothing_of_another_collection_is_needed():
    """ansible-core is all that a control node has to have."""
    assert GALAXY["dependencies"] == {}
    pattern = re.compile(r"^\s+(?:- )?((?!ansible\.builtin)[a-z_]+\.[a-z_]+\.[a-z_]+):", re.MULTILINE)
    files = [path for path in TRACKED if path.startswith(("roles/", "playbooks/")) and path.endswith(".yml")]
    assert [found for path in files for found in pattern.findall((REPOSITORY / path).read_text())] == []


def test_sanity_tests_that_need_no_network(project):
    """`make sanity` runs all of them."""
    names = (
        *("action-plugin-docs", "changelog", "compile", "empty-init", "ignores", "line-endings", "no-assert"),
        *("no-get-exception", "no-illegal-filenames", "no-smart-quotes", "replace-urlopen", "shebang", "symlinks"),
        *("use-argspec-type-path", "use-compat-six"),
    )
    version = "{}.{}".format(*sys.version_info)
    asked = [argument for name in names for argument in ("--test", name)]
    home = {"HOME": str(project.folder), "PWD": str(project.collection), "LC_ALL": "C.UTF-8"}
    done = call("ansible-test", "sanity", "--python", version, *asked, cwd=project.collection, **home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout + done.stderr  # as all files are that git ignores


def test_every_plugin_is_documented(project):
    """By ansible-doc, with examples and results; callbacks have neither. That of an action is in a module."""
    files = REPOSITORY.glob("plugins/filter/*.py")
    modules = [importlib.import_module(f"plugins.filter.{path.stem}") for path in files]
    names = {
        "module": {path.stem for kind in ("modules", "action") for path in REPOSITORY.glob(f"plugins/{kind}/*.py")},
        "filter": {name for module in modules for name in module.FilterModule().filters()},
        "callback": {path.stem for path in REPOSITORY.glob("plugins/callback/*.py")},
    }
    for kind, plugins in names.items():
        wanted = sorted(f"{COLLECTION}.{name}" for name in plugins)
        done = call(
            "ansible-doc", "--json", "--type", kind, *wanted,
            cwd=project.folder, HOME=str(project.folder), ANSIBLE_CONFIG=str(project.folder / "none"),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert sorted(found) == wanted
        for name, about in found.items():
            assert about["doc"]["description"], name
            if kind != "callback":
                assert about["examples"], name
                assert about["return"], name
                keys = {key for option in about["doc"].get("options", {}).values() for key in option}
                assert keys <= {"description", "type", "elements", "required", "default", "choices"}, name


def test_a_project_folder_has_the_commands_of_a_clone(tmp_path):
    """The same entry points, from the collection; what is there already stays."""
    made = layout.lay_out(REPOSITORY, tmp_path)
    assert {path for path in made if "/" not in path} == {
        *(path.name for path in (REPOSITORY / "playbooks").glob("*.yml") if path.name != "project.yml"), "ansible.cfg",
    }  # fmt: skip
    assert f"import_playbook: {COLLECTION}.train\n" in (tmp_path / "train.yml").read_text()
    assert f"stdout_callback = {COLLECTION}.reason_first\n" in (tmp_path / "ansible.cfg").read_text()
    assert "plugins" not in (tmp_path / "ansible.cfg").read_text()
    (tmp_path / "train.yml").write_text("mine\n")
    (tmp_path / "stop.yml").unlink()
    assert layout.lay_out(REPOSITORY, tmp_path) == ["stop.yml"]
    assert (tmp_path / "train.yml").read_text() == "mine\n"


def test_a_project_folder_is_where_the_call_was_typed(project, tmp_path):
    """Whatever PWD says, also below it; never inside of the collection, which the next installation replaces."""
    where = tmp_path / "q 3"
    for pwd, asked, folder in (("/", [], where), ("", ["-e", "project_folder_path=deep"], where / "deep")):
        folder.mkdir(parents=True, exist_ok=True)
        done = project.play_in(where, f"{COLLECTION}.project", *asked, PWD=pwd)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (folder / "inventory/example/hosts.yml").exists()
        assert f"in {folder} type" in " ".join(done.stdout.split())
    before = set(project.collection.rglob("*"))
    done = project.play_in(project.collection / "roles", f"{COLLECTION}.project")
    assert done.returncode == 2
    assert "is inside of the collection" in " ".join(done.stdout.split())
    assert set(project.collection.rglob("*")) == before


def test_variables_have_types_without_a_configuration(project, tmp_path):
    """Where the playbook is named by its collection, and no ansible.cfg is read: the callbacks come along."""
    inventory = str(project.folder / "inventory/local")
    settings = {"ANSIBLE_CONFIG": str(tmp_path / "none"), "HOME": str(project.folder)}
    asked = ("-i", inventory, "-e", "stop_timeout=30", "-e", "status_seconds=soon")
    done = call("ansible-playbook", f"{COLLECTION}.stop", *asked, cwd=tmp_path, **settings)
    assert done.returncode == 2
    assert "status_seconds is 'soon'" in done.stdout + done.stderr
    assert "stop_timeout" not in done.stdout + done.stderr


def test_provision_from_the_project_folder(project, tmp_path):
    """In check mode, to the end: every role, filter, module and file is found; the collection is only read."""
    before = set(project.collection.rglob("*"))
    settings = json.dumps({"work_dir": str(tmp_path / "work"), "python_env_torch_index": "default"})
    done = project.play("provision.yml", "--check", "-e", settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DEPRECATION" not in done.stdout + done.stderr
    assert not (tmp_path / "work").exists()
    made = {path for path in set(project.collection.rglob("*")) - before if "__pycache__" not in path.parts}
    assert {path for path in made if path.suffix != ".so"} == set()


def test_a_wheelhouse_is_not_in_the_collection(project, tmp_path):
    """Relative paths begin where the call was typed. No wheel is there; pip asks with the Python of the hosts."""
    inventory, before = str(project.folder / "inventory/local"), set(project.collection.rglob("*"))
    settings = {
        "work_dir": str(tmp_path / "work"), "artifacts_dir": "out", "python_env_source": "wheelhouse",
        "python_env_mirror_url": tmp_path.as_uri(), "python_env_torch_index": "default",
    }  # fmt: skip
    other = tmp_path / "out/.wheelhouse/native/.pip/bin/pip"  # made by another Python
    other.parent.mkdir(parents=True)
    other.touch()
    asked = ("-i", inventory, "--tags", "python_env", "-e", json.dumps(settings))
    done = project.play_in(tmp_path, f"{COLLECTION}.provision", *asked)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, said
    assert f"missing in the wheelhouse {tmp_path}/out/.wheelhouse/native; put the wheels for Python" in said
    version = "{}.{}".format(*sys.version_info)
    assert (other.parents[2] / f".pip-{version}/bin/python").exists()
    made = {path for path in set(project.collection.rglob("*")) - before if "__pycache__" not in path.parts}
    assert made == set()


def test_what_is_written_here_is_not_in_the_collection(project, tmp_path):
    """A relative path begins where the call was typed, not beside the playbook."""
    inventory, before = str(project.folder / "inventory/local"), set(project.collection.rglob("*"))
    settings = json.dumps({"work_dir": str(tmp_path / "work"), "artifacts_dir": "out"})
    done = project.play_in(tmp_path, f"{COLLECTION}.diagnose", "-i", inventory, "-e", settings)
    assert done.returncode == 2, done.stdout + done.stderr  # nothing is provisioned
    assert (tmp_path / "out/diagnosis.json").exists()
    made = {path for path in set(project.collection.rglob("*")) - before if "__pycache__" not in path.parts}
    assert made == set()


def test_the_execution_environment_gets_the_compiler_of_the_control_node():
    """And what the collection says of its needs exists."""
    compiler = [line for line in (REPOSITORY / "meta/requirements.txt").read_text().splitlines() if "#" not in line]
    assert len(compiler) == 1
    assert compiler[0] in (REPOSITORY / "requirements.in").read_text().splitlines()
    needs = yaml.safe_load((REPOSITORY / "meta/execution-environment.yml").read_text())["dependencies"]
    assert all((REPOSITORY / path).is_file() for path in needs.values())


def test_the_execution_environment_has_the_versions_of_the_lock():
    definition = yaml.safe_load((REPOSITORY / "execution-environment/execution-environment.yml").read_text())
    assert definition["version"] == 3
    locked = {line.split(" ")[0] for line in (REPOSITORY / "requirements.txt").read_text().splitlines()}
    parts = definition["dependencies"]
    assert {parts[part]["package_pip"] for part in ("ansible_core", "ansible_runner")} <= locked
