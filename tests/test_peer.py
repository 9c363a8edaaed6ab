"""The network test of preflight, without Ansible: one program, both ends on this machine."""

import json
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import REPOSITORY

PEER = (REPOSITORY / "python/standalone/peer.py").read_text()


def peer(*args: str) -> str:
    """Run it as Ansible does, from standard input."""
    return subprocess.run(
        [sys.executable, "-", *args], input=PEER, capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()


def eventually(condition):
    """Wait until the listener's ten seconds are over, and a little longer."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.5)


def test_a_listener_answers_and_goes_by_itself():
    """It answers with its time, and ends when its time is over."""
    port = peer("listen", "127.0.0.1", "10")
    found = json.loads(peer("connect", f"a=127.0.0.1:{port}", "b=127.0.0.1:1"))
    assert abs(found["a"]["skew"]) < 1
    assert "refused" in found["b"]["error"]
    eventually(lambda: "refused" in json.loads(peer("connect", f"a=127.0.0.1:{port}"))["a"].get("error", ""))


def test_a_clock_that_differs_is_measured():
    """A fake of a host whose clock is an hour ahead."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"%f\n" % (time.time() + 3600))

        ahead = threading.Thread(target=answer)
        ahead.start()
        found = json.loads(peer("connect", f"a=127.0.0.1:{server.getsockname()[1]}"))
        ahead.join()
    assert found["a"]["skew"] == pytest.approx(3600, abs=1)


def test_full_packets_that_are_lost_are_told_from_a_closed_port():
    """A fake of a way on which only small packets pass: the time arrives, many bytes do not."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"%f\n" % time.time())
                connection.recv(1000)

        small = threading.Thread(target=answer)
        small.start()
        found = json.loads(peer("connect", f"a=127.0.0.1:{server.getsockname()[1]}"))
        small.join()
    assert abs(found["a"]["skew"]) < 1
    assert found["a"]["packets"]


def test_a_name_that_leads_to_this_host_alone_is_no_address():
    """As Debian writes a host's own name into /etc/hosts."""
    for name, words in (("localhost", "leads to 127.0.0.1 there"), ("nowhere.invalid", "no IPv4 address of it")):
        done = subprocess.run(
            [sys.executable, "-", "listen", name, "1"], input=PEER, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert words in done.stderr


def test_usage():
    """A word that is no subcommand is refused with those that are."""
    done = subprocess.run([sys.executable, "-", "lisen"], input=PEER, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "listen" in done.stderr
