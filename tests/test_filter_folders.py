"""Folders with the same files on all hosts: their checksums, what differs, and who copies from whom."""

import importlib.util
import subprocess

import pytest
from ansible.plugins.loader import filter_loader
from conftest import REPOSITORY

filter_loader.add_directory(str(REPOSITORY / "plugins/filter"))


def apply(name, *args, **options):
    """The filter as Ansible finds it."""
    return filter_loader.get(name).j2_function(*args, **options)


def load_module(name):
    """A module of plugins/modules, imported from its file."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / f"plugins/modules/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """A folder with names that sort, hide and escape."""
    root = tmp_path / "folder"
    for name in ("b/x.txt", "a.txt", "B.txt", "ä.txt", "with  two spaces", "back\\slash", "empty/.keep", ".hidden/y"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/linked.txt").write_text("linked")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "link.txt").symlink_to(tmp_path / "elsewhere/linked.txt")
    (root / "broken").symlink_to(tmp_path / "nowhere")
    return root


def test_checksums_are_those_of_sha256sum(folder):
    """Hidden files are left out; links count as what they lead to. Earlier versions wrote the same list."""
    lines = load_module("folder_checksums").checksums(folder)
    names = [line.partition("  ")[2] for line in lines]
    assert names == [
        "B.txt", "a.txt", "b/x.txt", "back\\\\slash", "link.txt", "link/linked.txt", "with  two spaces", "ä.txt",
    ]  # fmt: skip
    listed = "\n".join(lines) + "\n"
    subprocess.run(["sha256sum", "--check", "--quiet", "-"], input=listed, text=True, cwd=folder, check=True)


def test_a_folder_that_is_not_there_has_no_files(tmp_path):
    assert load_module("folder_checksums").checksums(tmp_path / "none") == []


def test_a_link_to_its_own_folder_is_refused(folder):
    (folder / "b/again").symlink_to(folder)
    with pytest.raises(OSError, match="is a link to a folder that it lies in"):
        load_module("folder_checksums").checksums(folder)


def test_paths_that_exist(folder):
    """A link to something that was removed does not."""
    paths = [str(folder / name) for name in ("b", "nothing", "broken", "link.txt")]
    found = load_module("path_check").check(paths)
    assert found == {"present": [paths[0], paths[3]], "missing": [paths[1], paths[2]]}


def test_changed_files():
    """Missing, different or foreign; each once."""
    wanted = ["1  same", "2  other", "3  gone away"]
    assert apply("changed_files", wanted, ["1  same", "9  other", "4  new"]) == ["gone away", "new", "other"]
    assert apply("changed_files", wanted, wanted[::-1]) == []


def test_names_in_a_message():
    assert apply("some_names", ["a", "b"]) == "a, b"
    assert apply("some_names", list("abcdef")) == "a, b, c, d, e and more"
    assert apply("some_names", []) == ""


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 16, 17])
def test_each_host_copies_once_from_a_host_that_has_it(count):
    """The hosts that have the files double every round; none serves two at a time."""
    hosts = [f"h{i}" for i in range(count)]
    have = {hosts[0]}
    for now in range(apply("copy_rounds", hosts)):
        pulling = [host for host in hosts if apply("copy_round", hosts, host) == now]
        sources = [apply("copy_source", hosts, host) for host in pulling]
        assert set(sources) <= have
        assert len(set(sources)) == len(sources)
        assert not have & set(pulling)
        have |= set(pulling)
    assert have == set(hosts)
