"""What runs claim on a host: ports and cores, by one process at a time, and who has them."""

import os
import socket
import subprocess
import sys
import time

import pytest

from sdtune.launch import shared_hosts
from standalone import host_claims
from tests.conftest import PYTHON

CORES = range(9_000, 9_004)  # of a fake host with many cores: no run on this machine claims them


def other(code):
    """Another process, which prints a line once it has claimed."""
    script = (
        f"import sys, time\nfrom standalone import host_claims\n{code}\nprint('claimed', flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=PYTHON)
    assert process.stdout.readline() == "claimed\n"
    return process


@pytest.mark.parametrize(
    ("text", "numbers", "short"),
    [("0-3,8", [0, 1, 2, 3, 8], "0-3,8"), ("2,1,0", [2, 1, 0], "0-2"), ("", [], ""), ("7", [7], "7")],
)
def test_lists_of_numbers(text, numbers, short):
    assert host_claims.parse_numbers(text) == numbers
    assert host_claims.format_numbers(numbers) == short


def test_a_port_that_is_claimed_or_used_is_skipped():
    ports = range(21_300, 21_310)
    first, held = host_claims.claim_port(ports)
    with held, socket.create_server(("127.0.0.1", first + 1)):
        second, also = host_claims.claim_port(ports)
        also.close()
        assert second == first + 2
        assert f"({first + 1} by a program of user {host_claims.user_name(os.getuid())})" in host_claims.why_no_port(
            [first + 1]
        )
    assert host_claims.why_no_port([first]) == ""


def test_cores_are_claimed_by_one_run_whose_name_the_other_reads():
    process = other("held = host_claims.claim_cores('/runs/night', [9001, 9002])")
    try:
        with pytest.raises(host_claims.CoresTaken, match=r"^run night of user \w+, on cores 9001-9002$"):
            host_claims.claim_cores("day", CORES)
        for socket_ in host_claims.claim_cores(
            "day", [9000, 9003]
        ):  # disjoint cores, and nothing is left of the refusal
            socket_.close()
        found = shared_hosts.others_here("/runs/day", "9000-9002")
        assert [(one["run"], one["cores"]) for one in found] == [("night", "9001-9002")]
        assert shared_hosts.others_here("/runs/night", "9000-9002") == []
        (one,) = shared_hosts.others_here("/elsewhere/runs/night", "9000-9002")
        assert one["run"] == "night", "a run of the same name in another folder is another run"
        shares = [sys.executable, host_claims.__file__, "shares"]
        told = [
            subprocess.run([*shares, *own], capture_output=True, text=True, check=True).stdout
            for own in ([], ["/runs/night"])
        ]
        assert ["night" in text for text in told] == [True, False]
    finally:
        process.kill()
        process.wait()
    for socket_ in host_claims.claim_cores("day", CORES):
        socket_.close()


def test_of_two_that_claim_at_once_one_has_its_cores():
    code = (
        "import os\nstart = float(sys.argv[1])\nwhile time.time() < start: pass\n"
        "try: held = host_claims.claim_cores(f'r{os.getpid()}', range(9000, 9064)); print('had', flush=True)\n"
        "except host_claims.CoresTaken as taken: print(taken, flush=True)\n"
        "time.sleep(1)"
    )
    script = f"import sys, time\nfrom standalone import host_claims\n{code}"
    for _ in range(3):
        start = str(time.time() + 0.6)
        two = [
            subprocess.Popen([sys.executable, "-c", script, start], stdout=subprocess.PIPE, text=True, cwd=PYTHON)
            for _ in range(2)
        ]
        said = sorted(process.communicate()[0].strip() for process in two)
        assert said[0] == "had"
        assert said[1].startswith("run r")


def test_a_list_of_many_single_cores_is_told_in_full():
    """One claim has no room for it. Disjoint cores stay free; claims of other programs are no reason to fail."""
    odd = list(range(9_101, 9_201, 2))
    foreign = [host_claims.claim("run", *parts) for parts in ((1, 1, "f" * 8, "0-99999999999", "x"), ("x",))]
    held = host_claims.claim_cores(f"/runs/{'n' * 100}", odd)
    (mine,) = [one for one in host_claims.shares() if one["pid"] == os.getpid()]
    assert host_claims.parse_numbers(mine["cores"]) == odd
    assert shared_hosts.others_here("/runs/day", "9102,9104,9198") == []
    assert len(shared_hosts.others_here("/runs/day", "9102,9103")) == 1
    for socket_ in (*held, *foreign):
        socket_.close()


@pytest.mark.parametrize(
    ("begins", "mine", "waits"),
    [("host_claims.begin('b')", "a", True), ("host_claims.begin('b')", "c", False), ("0", "a", False)],
)
def test_of_two_that_begin_at_once_the_first_in_order_waits_for_the_other(begins, mine, waits):
    """So that of two runs that have each got one of two hosts, one trains; one that has got all of them is told of."""
    process = other(f"held = {begins}, host_claims.claim_cores('/runs/night', [9001], 'b')")
    try:
        with pytest.raises(host_claims.CoresTaken) as taken:
            host_claims.claim_cores("/runs/day", CORES, mine)
        assert taken.value.begins is waits
    finally:
        process.kill()
        process.wait()
