"""Action fetch_folder and the host's end of it, without Ansible. Fake: the connection, a shell on this machine."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail

from plugins.action import fetch_folder
from plugins.modules.folder_checksums import checksums


class Fetch(fetch_folder.ActionModule):
    """The action over a shell."""

    def __init__(self, source, dest, check=False, **more):
        arguments = {"src": str(source), "dest": str(dest), "python": sys.executable, **more}
        self._task = SimpleNamespace(args=arguments, check_mode=check)
        self.calls = 0

    def _low_level_execute_command(self, command, in_data):
        self.calls += 1
        done = subprocess.run(command, shell=True, input=in_data, capture_output=True, check=False)
        return {"rc": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}


@pytest.fixture
def source(tmp_path):
    """A folder as the pictures of a run are, with an empty file and names that need care."""
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    for name in ("0.png", "1.png", "b b\n'c'.png", "deep/ü.png"):
        (folder / name).write_bytes(os.urandom(1000))
    (folder / "empty.png").touch()
    (folder / ".hidden").touch()
    return folder


def test_a_folder_arrives_in_one_call_and_once(source, tmp_path):
    dest = tmp_path / "new" / "dest"
    fetch = Fetch(source, dest)
    assert fetch.bring(checksums(source), "node1")["changed"]
    assert checksums(dest) == checksums(source)
    assert fetch.calls == 1
    assert list(dest.rglob(".*")) == []
    again = Fetch(source, dest)
    assert again.bring(checksums(source), "node1") == {"differences": [], "changed": False}
    assert again.calls == 0


def test_what_does_not_fit_into_a_call_comes_in_the_next(source, tmp_path, monkeypatch):
    """Also a file that is larger than a call."""
    monkeypatch.setattr(fetch_folder, "PART", 2100)
    (source / "1.png").write_bytes(os.urandom(5000))
    fetch = Fetch(source, tmp_path / "dest")
    fetch.bring(checksums(source), "node1")
    assert checksums(tmp_path / "dest") == checksums(source)
    assert fetch.calls == 3


def test_pictures_of_an_earlier_call_go_and_other_files_stay(source, tmp_path):
    dest = tmp_path / "dest"
    dest.mkdir()
    for name in ("0.png", "9.png", "notes.txt"):
        (dest / name).write_text("old")
    before = checksums(dest)
    found = Fetch(source, dest, check=True, remove=["*.png"]).bring(checksums(source), "node1")
    assert {"0.png", "9.png"} <= set(found["differences"])
    assert checksums(dest) == before
    Fetch(source, dest, remove=["*.png"]).bring(checksums(source), "node1")
    assert (dest / "notes.txt").read_text() == "old"
    assert not (dest / "9.png").exists()
    assert (dest / "0.png").read_bytes() == (source / "0.png").read_bytes()


def test_what_goes_wrong_is_said_in_one_line(source, tmp_path):
    lines = checksums(source)
    (source / "1.png").write_text("another picture")
    with pytest.raises(AnsibleActionFail, match=r"^node1: .*/1\.png changed meanwhile; type the same again$"):
        Fetch(source, tmp_path / "dest").bring(lines, "node1")
    (source / "1.png").unlink()
    with pytest.raises(AnsibleActionFail, match=r"^node1: .*/source cannot be fetched: .*/1\.png: No such file"):
        Fetch(source, tmp_path / "dest").bring(lines, "node1")
    for name in ("/etc/x", "../x"):
        with pytest.raises(AnsibleActionFail, match="leads out of the folder"):
            Fetch(source, tmp_path / "dest").bring([f"{'0' * 64}  {name}"], "node1")
