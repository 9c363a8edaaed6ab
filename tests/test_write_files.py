"""Action write_files and the host's end of it, without Ansible. Fake: the connection, a shell on this machine."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

from plugins.action import write_files

NAMED = {"files": {"job.yaml": "a: ü\n", "packages/node 1.txt": "torch==1"}, "scripts": {"launch.sh": "#!/bin/sh\n"}}


class Write(write_files.ActionModule):
    """The action over a shell."""

    def __init__(self, folders, check=False):
        arguments = {"folders": folders, "python": sys.executable, "mode": "0640", "folder_mode": "0750"}
        self._task = SimpleNamespace(args=arguments, check_mode=check)
        self.calls = 0

    def _low_level_execute_command(self, command, in_data):
        self.calls += 1
        done = subprocess.run(command, shell=True, input=in_data, capture_output=True, check=False)
        return {"rc": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}


def written(folder, check=False, **more):
    """Write the files; the paths that were changed, below the folder."""
    action = Write({str(folder): NAMED | more}, check)
    found = [os.path.relpath(path, folder) for path in action.write("node1")]
    assert action.calls == 1
    return found


def test_files_scripts_and_folders_have_their_modes_whatever_the_umask_is(tmp_path):
    before, folder = os.umask(0o077), tmp_path / "runs/r"
    try:
        assert written(folder) == [".", "packages", "job.yaml", "packages/node 1.txt", "launch.sh"]
    finally:
        os.umask(before)
    assert (folder / "job.yaml").read_text() == "a: ü\n"
    assert (folder / "packages/node 1.txt").read_text() == "torch==1\n"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder.parent, folder, *folder.rglob("*"))}
    assert modes == {
        "runs": 0o750, "r": 0o750, "packages": 0o750, "launch.sh": 0o750, "job.yaml": 0o640, "node 1.txt": 0o640,
    }  # fmt: skip


def test_only_what_differs_is_written(tmp_path):
    written(tmp_path / "r")
    assert written(tmp_path / "r") == []
    (tmp_path / "r/job.yaml").write_text("b")
    (tmp_path / "r/launch.sh").chmod(0o600)
    assert written(tmp_path / "r") == ["job.yaml", "launch.sh"]
    assert written(tmp_path / "r") == []
    assert written(tmp_path / "r", files={}, scripts={"launch.sh": "#!/bin/bash\n"}) == ["launch.sh"]
    assert written(tmp_path / "r", above=[str(tmp_path)]) == ["..", "launch.sh"]


def test_in_check_mode_nothing_is_touched(tmp_path):
    assert len(written(tmp_path / "r", check=True)) == 5
    assert not (tmp_path / "r").exists()


def test_what_the_host_cannot_do_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(AnsibleActionFail, match=r"^node1: .*/file/r cannot be written: .*/file.*: Not a directory$"):
        written(tmp_path / "file/r")
    lost = {"rc": 255, "stdout": "", "stderr": "Connection to node1 closed by remote host."}
    monkeypatch.setattr(Write, "_low_level_execute_command", lambda *_, **__: lost)
    with pytest.raises(AnsibleConnectionFailure, match="type the same again"):
        Write({str(tmp_path / "r"): NAMED}).write("node1")


def test_the_folders_of_several_runs_are_written_in_one_call(tmp_path):
    action = Write({f"{tmp_path}/a/.staged": {"files": {"job.yaml": "a"}, "above": [f"{tmp_path}/a"]},
                    f"{tmp_path}/b": {"scripts": {"launch.sh": "b"}}})  # fmt: skip
    assert len(action.write("node1")) == 5
    assert action.calls == 1
    assert [(tmp_path / name).read_text() for name in ("a/.staged/job.yaml", "b/launch.sh")] == ["a\n", "b\n"]
    (tmp_path / "file").touch()
    with pytest.raises(AnsibleActionFail, match=rf"^node1: {tmp_path} cannot be written: .*/file/c"):
        Write({f"{tmp_path}/a": NAMED, f"{tmp_path}/file/c": NAMED}).write("node1")
