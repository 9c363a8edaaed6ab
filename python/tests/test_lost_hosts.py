"""Which hosts are back before a restart, which are lost, and which answer and are of no use. Fake: ssh is a script."""

import math

import pytest

from sdtune.launch import lost_hosts
from sdtune.launch.attempt import Outcome
from sdtune.launch.state import Plan
from sdtune.launch.supervisor import Supervisor


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """Say what a login does, as a shell script."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()

    def write(text: str) -> None:
        (tmp_path / "bin/ssh").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin/ssh").chmod(0o755)

    return write


def plan(**settings):
    """A plan of two hosts."""
    facts = {"ranks_per_node": 1, "gradient_accumulation_steps": 1, "stall_timeout": 9, "start_timeout": 9}
    facts |= {"host_timeout": 9, "host_wait": 0, "max_restarts": 1, "on_host_loss": "fail"}
    return Plan(hosts={"a": "10.0.0.1", "b": "10.0.0.2"}, **facts | settings)


SWEEP = "the sweep of left-over processes fails"


@pytest.mark.parametrize(
    ("login", "lost", "unswept"),
    [
        ("echo 123.5", [], {}),
        ("echo 'ssh: connect to host: No route to host' >&2; exit 255", ["b"], {}),
        ("exec sleep 60", ["b"], {}),
        ("echo 'TimeoutError: [7] do not end' >&2; exit 1", [], {"b": "TimeoutError: [7] do not end"}),
        ("exit 127", [], {"b": "it ended with code 127"}),
        ("echo welcome", [], {"b": "it printed 'welcome' instead of seconds"}),
        ("exit 0", [], {"b": "it printed '' instead of seconds"}),
    ],
)
def test_a_host_that_answers_is_not_lost(ssh, tmp_path, monkeypatch, login, lost, unswept):
    monkeypatch.setattr(lost_hosts, "_SWEEP_SECONDS", 2)
    ssh(login)
    found = lost_hosts.wait_for_hosts(tmp_path, plan(), lambda _: True, began=0)
    assert (found.lost, found.unswept) == (lost, unswept)
    assert lost_hosts.seconds_up(tmp_path, plan(), "10.0.0.1") == math.inf


def test_a_sweep_that_fails_is_told_and_tried_again(ssh, tmp_path):
    ssh(f"[ -e {tmp_path}/again ] && echo 1 || {{ touch {tmp_path}/again; echo broken >&2; exit 1; }}")
    told = []
    waits = plan(host_wait=60)
    found = lost_hosts.wait_for_hosts(tmp_path, waits, lambda absent: told.append(absent) is None, began=0)
    assert told == [[f"b (answers, but {SWEEP}: broken)"]]
    assert (found.absent, found.rebooted) == ([], ["b"])


@pytest.mark.parametrize(
    ("found", "policy", "reason"),
    [
        (lost_hosts.Hosts(lost=["b"]), "fail", "it broke; b did not come back"),
        (lost_hosts.Hosts(lost=["b"]), "continue", None),
        (lost_hosts.Hosts(unswept={"b": "x"}), "fail", f"it broke; b answers, but {SWEEP}: x"),
        (lost_hosts.Hosts(unswept={"b": "x"}), "continue", f"it broke; b answers, but {SWEEP}: x"),
        (lost_hosts.Hosts(), "fail", None),
    ],
)
def test_what_a_run_does_about_it(found, policy, reason):
    """No run goes on without a host that answers, whatever on_host_loss says of lost ones."""
    supervisor = object.__new__(Supervisor)
    supervisor.plan, supervisor.stop_request = plan(on_host_loss=policy), None
    said = {}
    supervisor._interrupted = lambda: None
    supervisor._close = lambda code, state, **facts: said.update(facts, state=state) or code
    outcome = object.__new__(Outcome)
    outcome.why = "it broke"
    code = supervisor._code_while_waiting(outcome, found)
    assert (code, said) == ((None, {}) if reason is None else (1, {"state": "failed", "reason": reason}))
