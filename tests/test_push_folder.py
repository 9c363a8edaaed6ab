"""Action push_folder and the host's end of it, without Ansible. Fake: the connection, a shell on this machine."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from conftest import REPOSITORY

from plugins.action import push_folder
from plugins.modules.folder_checksums import checksums


class Push(push_folder.ActionModule):
    """The action over a shell; ``cut`` is the number of the call that gets only half of its bytes."""

    def __init__(self, source, dest, cut=0, check=False, **more):
        arguments = {"src": str(source), "dest": str(dest), "python": sys.executable, **more}
        self._task = SimpleNamespace(args=arguments, check_mode=check)
        self._sent, self._calls, self._cut = 0, 0, cut

    def _execute_module(self, name, arguments, task_vars):
        assert name == "folder_checksums"
        folder = push_folder.Path(arguments["path"])
        return {"lines": checksums(folder, arguments["exclude"])}

    def _low_level_execute_command(self, command, in_data):
        self._calls += 1
        if self._calls == self._cut:
            subprocess.run(command, shell=True, input=in_data[: -len(in_data) // 3], capture_output=True, check=False)
            return {"rc": 255, "stdout": "", "stderr": "Connection to node1 closed by remote host."}
        self._sent += len(in_data)
        done = subprocess.run(command, shell=True, input=in_data, capture_output=True, text=False, check=False)
        return {"rc": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}

    def push(self):
        """Run it; its result and the bytes that were sent."""
        asked = self._task.args
        source, dest = push_folder.Path(asked["src"]), asked["dest"]
        listing = self._execute_module("folder_checksums", {"path": dest, "exclude": asked.get("exclude", [".*"])}, {})
        lines = checksums(source, asked.get("exclude", [".*"]))
        return self.bring(source, lines, listing["lines"], "node1")


@pytest.fixture
def source(tmp_path):
    """A folder with a large file, equal files, an empty one, and names that need care."""
    folder = tmp_path / "source"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet/weights").write_bytes(os.urandom(900_000))
    for name in ("a", "b b\n'c'", "unet/[1] ü"):
        (folder / name).write_bytes(b"the same")
    (folder / "empty").touch()
    (folder / ".hidden").touch()
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """So that the large file takes several calls."""
    monkeypatch.setattr(push_folder, "PART", 200_000)


def test_a_folder_arrives_with_modes_that_the_umask_does_not_change(source, tmp_path):
    before = os.umask(0o077)
    try:
        found = Push(source, tmp_path / "new/dest").push()
    finally:
        os.umask(before)
    dest = tmp_path / "new/dest"
    assert found["changed"]
    assert checksums(dest) == checksums(source) == found["lines"]
    assert not (dest / ".hidden").exists()
    assert not (dest / ".incoming").exists()
    assert {path.stat().st_mode & 0o777 for path in dest.rglob("*") if path.is_file()} == {0o644}
    assert (dest / "unet").stat().st_mode & 0o777 == 0o755
    assert not Push(source, dest).push()["changed"]


def test_only_what_differs_is_sent_and_what_is_foreign_is_removed(source, tmp_path):
    dest = tmp_path / "dest"
    Push(source, dest).push()
    (dest / "a").write_text("damaged")
    (dest / "foreign/deep").mkdir(parents=True)
    (dest / "foreign/deep/x").touch()
    (dest / "empty").unlink()
    (dest / "empty").mkdir()  # a folder where a file has to be
    (dest / "empty/y").touch()
    (dest / ".kept").touch()
    push = Push(source, dest)
    found = push.push()
    assert found["differences"] == ["a", "empty", "empty/y", "foreign/deep/x"]
    assert push._sent < 20_000
    assert checksums(dest) == checksums(source)
    assert not (dest / "foreign").exists()
    assert (dest / ".kept").exists()


def test_in_check_mode_nothing_is_touched(source, tmp_path):
    assert Push(source, tmp_path / "dest", check=True).push()["changed"]
    assert not (tmp_path / "dest").exists()


def test_what_is_excluded_is_neither_sent_nor_removed(source, tmp_path):
    dest = tmp_path / "dest"
    patterns = ["/unet", "*.log"]
    (source / "deep/unet").mkdir(parents=True)
    (source / "deep/unet/x").touch()
    (source / "deep/y.log").touch()
    dest.mkdir()
    (dest / "z.log").touch()
    Push(source, dest, exclude=patterns).push()
    assert sorted(str(path.relative_to(dest)) for path in dest.rglob("*") if path.is_file()) == [
        ".hidden", "a", "b b\n'c'", "deep/unet/x", "empty", "z.log",
    ]  # fmt: skip


def test_an_interrupted_transfer_goes_on_where_it_ended(source, tmp_path):
    """The folder holds the old files until the new ones are complete."""
    dest = tmp_path / "dest"
    Push(source, dest).push()
    before = checksums(dest)
    (source / "unet/weights").write_bytes(os.urandom(900_000))
    with pytest.raises(AnsibleConnectionFailure, match="type the same again to go on"):
        Push(source, dest, cut=4).push()
    assert checksums(dest) == before
    again = Push(source, dest)
    again.push()
    assert checksums(dest) == checksums(source)
    assert again._sent < 600_000


def test_what_was_staged_of_another_file_is_not_used(source, tmp_path):
    dest = tmp_path / "dest"
    with pytest.raises(AnsibleConnectionFailure):
        Push(source, dest, cut=4).push()
    for path in (dest / ".incoming").iterdir():
        path.write_bytes(b"x" * path.stat().st_size)
    Push(source, dest).push()
    assert checksums(dest) == checksums(source)


def test_what_the_host_cannot_do_is_said_in_one_line(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AnsibleActionFail, match=r"^node1: .*/file/dest cannot be filled: .*/file: File exists$"):
        Push(source, tmp_path / "file/dest").push()


def test_too_small_a_disk_is_refused_before_anything_is_sent(source, tmp_path, monkeypatch):
    monkeypatch.setattr(push_folder.ActionModule, "_call", lambda *_: '{"files": {}, "free": 1000}')
    with pytest.raises(AnsibleActionFail, match=r"0\.001 GB of source are to be copied to .*0\.000 GB are free"):
        Push(source, tmp_path / "dest").push()


def test_nothing_opens_a_connection_of_its_own_or_skips_the_check_of_host_keys():
    """Of everything that runs on the control node: Ansible's connection is the only way to a host."""
    roles = [path for path in (REPOSITORY / "roles").rglob("*.yml") if path.is_file()]
    for path in (*roles, *(REPOSITORY / "playbooks").glob("*.yml"), REPOSITORY / "ansible.cfg"):
        text = path.read_text()
        assert "synchronize" not in text, path
        assert "StrictHostKeyChecking=no" not in text, path
        assert "host_key_checking = " not in text.lower(), path
