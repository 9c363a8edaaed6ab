"""hello.sh of role diagnose, which starts ranks on pairs of hosts. Fake: mpirun."""

import base64
import os
import subprocess

import pytest
from conftest import REPOSITORY

REMARK = "[W1126 10:00:00.1 socket.cpp:460] [c10d] The hostname of the client socket cannot be retrieved. err=-3\n"
PRELOAD = (
    "ERROR: ld.so: object '/x.so' from LD_PRELOAD cannot be preloaded (cannot open shared object file): ignored.\n"
)
IMPORT = "ImportError: libccl.so.1: cannot open shared object file\n"


@pytest.fixture
def hello(tmp_path):
    """Call it for two hosts; mpirun prints a text and ends with a code."""

    def call(text, code):
        (tmp_path / "said").write_text(text)
        mpirun = tmp_path / "mpirun"
        mpirun.write_text(f'#!/bin/sh\ncat "{tmp_path}/said"\nexit {code}\n')
        mpirun.chmod(0o755)
        environment = base64.b64encode(b"export I_MPI_ROOT=/nowhere SDTUNE_PORTS=21400-21499\n").decode()
        return subprocess.run(
            ["bash", "-s", "60", environment, "", "-m sdtune.launch.check_all_reduce", "node2=10.0.0.1,10.0.0.2"],
            stdin=(REPOSITORY / "roles/diagnose/files/hello.sh").open(),
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY / "python")},
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    return call


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{REMARK}Traceback (most recent call last):\n{IMPORT}", IMPORT),
        (f"\n{REMARK}mpirun says nothing of use\n", "mpirun says nothing of use\n"),
        ("Abort(1) on node 1\nerror: the sum is wrong\n", "error: the sum is wrong\n"),
        ("a line\nConnection refused\n", "Connection refused\n"),
        (REMARK, REMARK),
        (
            f"{PRELOAD}[1] {PRELOAD}bash: line 1: mpirun: Permission denied\n",
            "bash: line 1: mpirun: Permission denied\n",
        ),
        (PRELOAD, "it said nothing"),
    ],
)
def test_the_line_that_names_the_error_is_the_reason(hello, text, reason):
    assert hello(text, 7) == f"node2 wrong {reason.strip()} (7)\n"


def test_ranks_that_meet(hello):
    assert hello(f"{REMARK}2 ranks: 1.5 ms\n", 0) == "node2 ok 2 ranks: 1.5 ms\n"
