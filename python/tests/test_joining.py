"""Ranks meet only those of their own attempt: others are refused and told, and cost the run nothing."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

from sdtune.launch.meeting import Attempt, digest_of
from sdtune.training import joining
from standalone import host_claims
from tests.conftest import PATIENCE, PYTHON, free_port

RANK = """
import os, sys
from datetime import timedelta
from sdtune import cli
from sdtune.training.joining import join
def main():
    from torch import distributed
    join(sys.argv[1], "gloo", timedelta(seconds=400))
    print("joined", flush=True)
    distributed.barrier()
    names = [None] * distributed.get_world_size()
    distributed.all_gather_object(names, sys.argv[1])
    print("met", *names, flush=True)
cli.run(main)
"""


def rank(run, number, port, token, attempt=1):
    """Start a rank that joins, and then exchanges its run's name with the others."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_", "MPI_", "SDTUNE_"))}
    env |= {"PYTHONPATH": str(PYTHON), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    env |= {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number), "GLOO_SOCKET_IFNAME": "lo"}
    env |= {"SDTUNE_TOKEN": token, "SDTUNE_ATTEMPT": str(attempt)}
    command = [sys.executable, "-c", RANK, run]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_other_processes_at_the_port_cost_a_run_nothing():
    """A rank of another run, one of an earlier attempt, a second rank 0, and garbage; then the run's own rank."""
    port = free_port()
    first = rank("day", 0, port, "secret")
    while True:  # rank 0 is there
        try:
            garbage = socket.create_connection(("127.0.0.1", port), timeout=1)
            break
        except OSError:
            assert first.poll() is None, first.communicate()
    garbage.sendall(b"GET / HTTP/1.0\r\n\r\n" + os.urandom(4096))
    others = [rank("night", 1, port, "other"), rank("day", 1, port, "old", 2), rank("night", 0, port, "other")]
    said = [other.communicate(timeout=PATIENCE) for other in others]
    assert [other.returncode for other in others] == [2, 2, 2], said
    refusal = f"error: port {port} on 127.0.0.1 belongs to run day (attempt 1), not to this one, run"
    assert f"{refusal} night (attempt 1)" in said[0][1]
    assert f"{refusal} day (attempt 2)" in said[1][1]
    assert (
        f"error: port {port} on {os.uname().nodename}, where the ranks meet, is taken by a program of user"
        in said[2][1]
    )
    second = rank("day", 1, port, "secret")
    for process in (first, second):
        out, err = process.communicate(timeout=PATIENCE)
        assert out == "joined\nmet day day\n", err
    garbage.close()


def test_what_is_shown_of_a_token_is_not_the_token():
    attempt = Attempt.of({"SDTUNE_TOKEN": "secret", "SDTUNE_ATTEMPT": "3"})
    assert (attempt.number, attempt.digest) == (3, digest_of("secret"))
    assert "secret" not in attempt.digest
    assert Attempt.of({}).digest == ""


def test_a_launch_gets_a_port_and_a_token_that_no_command_line_shows():
    """What mpirun would be started with; two launches at once get two ports."""
    show = "echo $MASTER_PORT $SDTUNE_TOKEN $(tr '\\0' ' ' < /proc/$$/cmdline); exec sleep 60"
    env = {k: v for k, v in os.environ.items() if not k.startswith("SDTUNE_")}
    env |= {"SDTUNE_PORTS": "21400-21401", "PYTHONPATH": str(PYTHON), "MASTER_ADDR": "127.0.0.1"}
    launch = [sys.executable, "-P", "-m", "sdtune.launch", "meet", "bash", "-c", show]
    both = [subprocess.Popen(launch, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        lines = [process.stdout.readline().split(maxsplit=2) for process in both]
        third = subprocess.run(launch, env=env, capture_output=True, text=True, check=False)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert {line[0] for line in lines} == {"21400", "21401"}
    assert lines[0][1] != lines[1][1]
    assert all(line[1] not in line[2] for line in lines)
    assert third.returncode == 2
    assert "all ports of 21400-21401 are taken, and the ranks have to meet at one; wait for the runs" in third.stderr


def test_a_run_waits_for_one_that_begins_at_once_and_comes_after_it(monkeypatch, tmp_path):
    """The other one is refused on another host meanwhile, and ends."""
    code = (
        "import time\nfrom standalone import host_claims\n"
        "held = host_claims.begin('z'), host_claims.claim_cores('/runs/night', [9301])\n"
        "print(flush=True)\ntime.sleep(1.5)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=PYTHON)
    other.stdout.readline()
    for name, value in {"SDTUNE_TOKEN": "secret", "SDTUNE_CORES": "9301"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPI_LOCALRANKID", raising=False)
    joining.claim_cores(SimpleNamespace(run_dir=str(tmp_path)))
    assert other.wait(5) == 0
    assert [one["cores"] for one in host_claims.shares() if one["pid"] == os.getpid()] == ["9301"]
    joining.all_have_met()
    assert not [name for name in host_claims.claimed() if name[:2] == ["begins", str(os.getpid())]]
    while joining._CLAIMS:
        joining._CLAIMS.pop().close()
