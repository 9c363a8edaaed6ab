"""From what hosts answered to rows, a table and a verdict."""

import copy
import json

import pytest

from plugins.filter import diagnosis, findings

STEPS = [json.dumps({"kind": "step", "loss": 0.25, "step_s": seconds}) for seconds in (9.0, 2.0, 1.5)]
HOST = {
    "name": "node1",
    "answers": True,
    "problem": "",
    "user": "sdtune",
    "user_exists": True,
    "broken": [],
    "facts": {"memory_mb": 64000, "free_mb": 60000, "free_disk_mb": 9000, "work_dir": "/srv/x", "clock_s": 0.02},
    "asked": {
        "imports": {}, "imports_error": "", "libraries": [], "logins": {},
    },
    "environment": ["intact"],
    "packages": {},
    "pins": ["torch==2.13.0", "typing-extensions==4.1"],
    "modules": ["torch", "sdtune"],
    "preload": ["/srv/x/env/lib/libiomp5.so", "/srv/x/lib/libtcmalloc.so"],
    "folders": {"model": "", "pictures": ""},
    "weights": {"rc": 0, "stdout_lines": [], "stderr_lines": []},
    "shape_error": "",
    "interface": "eth0",
    "trained": {
        "rc": 0, "stderr_lines": [], "stdout_lines": ["/x/libiomp5.so", "/usr/lib/libtcmalloc_minimal.so.4", *STEPS],
    },
    "losses": {"node1": [0.25] * 3, "node2": [0.25] * 3, "node3": []},
    "processors": {"node1": "a", "node2": "a", "node3": "b"},
    "fastest": 1.5,
    "slow_factor": 3,
    "mpi": ["node2 ok 2 ranks", "all ok 2 ranks: 1.5 ms"],
    "able": ["node1", "node2"],
}  # fmt: skip


def host(**more):
    """A healthy host, but for these."""
    new = copy.deepcopy(HOST)
    for key, value in more.items():
        new[key] = {**new[key], **value} if isinstance(value, dict) else value
    return new


def row(check, **more):
    """The row of a check of that host."""
    return next(row for row in findings.diagnosis_rows(host(**more)) if row["check"] == check)


def verdict(*hosts):
    """The verdict on these hosts."""
    return diagnosis.diagnosis_verdict([row for each in hosts for row in findings.diagnosis_rows(each)])


def test_a_healthy_host():
    rows = findings.diagnosis_rows(HOST)
    assert all(row["ok"] and not row["remedy"] for row in rows)
    assert {row["host"] for row in rows} == {"node1"}
    assert [row["check"] for row in rows] == [
        "answer", "memory", "disk", "clock", "environment", "packages", "imports", "model", "pictures", "weights",
        "libraries", "interface", "ssh", "training", "mapped", "loss", "speed", "mpi", "all-reduce",
    ]  # fmt: skip
    assert verdict(HOST, host(name="node2")) == "All is well with node1, node2."


def test_of_a_host_that_does_not_answer_nothing_else_is_read():
    silent = {
        "name": "node2",
        "answers": False,
        "problem": "does not answer Ansible (no route); check it; then try ping",
    }
    rows = findings.diagnosis_rows(silent)
    assert [(row["found"], row["remedy"]) for row in rows] == [
        ("does not answer Ansible (no route)", "check it; then try ping")
    ]
    assert (
        verdict(HOST, silent) == "Culprit: node2: answer: does not answer Ansible (no route); check it; then try ping"
    )


def test_a_host_without_the_user():
    rows = findings.diagnosis_rows({**host(user_exists=False), "trained": {}, "mpi": []})
    assert [row["check"] for row in rows] == ["answer", "memory", "disk", "clock", "user"]
    assert not rows[-1]["ok"]


@pytest.mark.parametrize(
    ("check", "more", "found"),
    [
        ("environment", {"environment": ["broken", "idna is not as pinned"]}, "broken: idna is not as pinned"),
        ("packages", {"packages": {"torch==2.14": "is 2.13, not 2.14"}}, "not as pinned: torch is 2.13, not 2.14"),
        ("packages", {"packages": {"idna==3": "is damaged (a, b)"}}, "not as pinned: idna is damaged (a, b)"),
        ("imports", {"asked": {"imports": {"torch": "ImportError: a", "x": "b"}}}, "ImportError: a; b"),
        ("imports", {"asked": {"imports_error": "killed"}}, "killed"),
        ("pictures", {"folders": {"pictures": "missing: 0.jpg"}}, "missing: 0.jpg"),
        ("weights", {"weights": {"rc": 0, "stdout_lines": ["unet (x)", "vae (y)"]}}, "unet (x), vae (y)"),
        ("weights", {"weights": {"rc": 1, "stderr_lines": ["a", "error: no"]}}, "error: no"),
        ("libraries", {"asked": {"libraries": ["/x/libtcmalloc.so"]}}, "/x/libtcmalloc.so cannot be read"),
        ("interface", {"shape_error": "no interface has 10.0.0.1; set ansible_host"}, "no interface has 10.0.0.1"),
        (
            "ssh", {"asked": {"logins": {"node2": {"address": "10.0.0.2", "reason": "Permission denied"}}}},
            "it cannot log in to node2 (10.0.0.2): Permission denied",
        ),
        ("training", {"trained": {"rc": 2, "stderr_lines": ["x", "error: no model", "y"]}}, "error: no model"),
        ("training", {"trained": {"rc": 137, "stderr_lines": [], "stdout_lines": []}}, "it ended with code 137"),
        ("mapped", {"trained": {"stdout_lines": ["/lib/libiomp5.so", *STEPS]}}, "the training ran without libtcmalloc"),
        ("speed", {"fastest": 0.4}, "a step takes 1.5 s, 0.4 on the fastest host"),
        ("mpi", {"mpi": ["node2 wrong nothing for 30 s (124)"]}, "with node2: nothing for 30 s (124)"),
        ("all-reduce", {"mpi": ["all wrong a sum is wrong (1)"]}, "a sum is wrong (1)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(check, more, found):
    wrong = row(check, **more)
    assert not wrong["ok"]
    assert wrong["found"] == found
    assert wrong["remedy"]


def test_a_rule_that_is_broken_replaces_what_is_fine():
    broken = [{"about": "disk", "wrong": "1 MB free", "remedy": "make room"}]
    rows = findings.diagnosis_rows(host(broken=broken))
    assert [row["ok"] for row in rows if row["check"] == "disk"] == [False]
    clock = [{"about": "clock", "wrong": "its clock differs by 9 s from node2", "remedy": "set it"}]
    assert row("clock", broken=clock)["pair"]


@pytest.mark.parametrize(
    ("losses", "processors", "ok", "found"),
    [
        ({"node2": [0.3, 0.2, 0.25]}, {}, False, "the same work gives 0.25 here and on node2 0.25"),
        ({"node2": [0.3, 0.2, 3.81]}, {"node2": "b"}, False, "the same work gives 0.25 here and on node2 3.81"),
        ({"node2": [0.25, 0.25, 0.251]}, {"node2": "b"}, True, "0.25; node2 has another processor, which rounds"),
        ({"node2": [0.25, 0.25, 0.251]}, {}, False, "the same work gives 0.25 here and on node2 0.251"),
        ({}, {}, True, "0.25, as on node2"),
        ({"node2": []}, {}, True, "0.25"),
        ({"node2": [3.0] * 3, "node3": [2.0] * 3}, {}, False, "and on node2 3 (and differs on node3)"),
    ],
)  # fmt: skip
def test_equal_work_has_to_give_equal_losses(losses, processors, ok, found):
    loss = row("loss", losses=losses, processors=processors)
    assert loss["ok"] == ok
    assert found in loss["found"]


def test_of_three_hosts_the_one_whose_loss_is_another_is_to_blame():
    losses = {"node1": [0.25] * 3, "node2": [0.25] * 3, "node3": [3.0] * 3}
    same = dict.fromkeys(losses, "a")
    steps = [json.dumps({"kind": "step", "loss": 3.0, "step_s": 1.5})] * 3
    hosts = [host(name=name, losses=losses, processors=same, mpi=[]) for name in losses]
    hosts[2]["trained"]["stdout_lines"][2:] = steps
    assert verdict(*hosts).startswith("Culprit: node3: loss: the same work gives")


def test_a_training_that_failed_has_no_speed():
    rows = findings.diagnosis_rows(host(trained={"rc": 1}))
    assert "speed" not in [row["check"] for row in rows]
    assert findings.seconds_per_step({}) == 0
    assert findings.seconds_per_step({"rc": 0, "stdout_lines": STEPS[:1]}) == 0


def test_the_first_thing_that_is_wrong_with_a_host_is_to_blame():
    bad = host(name="node2", folders={"pictures": "missing: 0.jpg"}, trained={"rc": 1, "stderr_lines": ["error: z"]})
    lost = host(mpi=["node2 wrong it ended (1)", "all wrong it ended (1)"])
    assert verdict(lost, bad).startswith("Culprit: node2: pictures: missing: 0.jpg; run ansible-playbook provision.yml")


def test_hosts_with_the_same_fault_are_named_together():
    hosts = [host(name=name, environment=["missing"]) for name in ("b", "a")] + [
        host(name="c", asked={"libraries": ["/l"]})
    ]
    said = verdict(*hosts)
    assert said.startswith("Culprit: a, b: environment: missing; ")
    assert " | c: libraries: /l cannot be read; " in said


def test_between_hosts_the_one_that_most_of_it_is_about_is_to_blame():
    every = ["a", "b", "c"]
    hosts = [
        host(name="a", able=every, mpi=["b wrong x (1)", "c ok 2 ranks", "all wrong x (1)"]),
        host(name="b", able=every, mpi=["c wrong x (1)"]),
        host(name="c", able=every, mpi=[]),
    ]
    assert verdict(*hosts).startswith("Culprit: b: mpi: with b: x (1); ")
    # what is wrong between b and c explains the sum over all, which is asked of the first host
    hosts[0]["mpi"] = ["b ok 2 ranks", "c ok 2 ranks", "all wrong y (1)"]
    assert verdict(*hosts).startswith("Culprit: b or c: mpi: with c: x (1); see the other lines; let the hosts reach")


def test_where_only_the_sum_over_all_hosts_fails_nobody_is_singled_out():
    """Pairs work, so there is no firewall in the way."""
    hosts = [host(name="a", able=["a", "b"], mpi=["b ok 2 ranks", "all wrong x (1)"]), host(name="b", mpi=[])]
    assert verdict(*hosts).startswith("Culprit: a or b: all-reduce: x (1); ")
    assert "ports" not in verdict(*hosts)


def test_a_host_that_was_lost():
    lost = diagnosis.diagnosis_lost(["node3"])
    assert diagnosis.diagnosis_verdict(lost).startswith("Culprit: node3: answer: it was lost while it was asked")


def test_the_table_is_in_columns():
    rows = findings.diagnosis_rows(host(environment=["missing"]))
    lines = diagnosis.diagnosis_table(rows)
    assert lines[0] == "node1  answer       ok     it answers Ansible"
    assert f"node1  environment  WRONG  missing; {findings.REPAIR}" in lines


def test_every_pair_of_hosts_is_tried_once():
    addresses = {"a": "10.1", "b": "10.2", "c": "10.3"}
    pairs = {name: findings.mpi_pairs(["a", "b", "c"], addresses, name) for name in "abc"}
    assert pairs == {"a": ["b=10.1,10.2", "c=10.1,10.3"], "b": ["c=10.2,10.3"], "c": []}
    assert findings.mpi_pairs(["a"], addresses, "b") == []


def test_logins_that_fail_are_named_by_pair():
    said = {"logins": {"b": {"address": "10.2", "reason": "Permission denied (publickey)."}}}
    asked = {"a": said, "b": {"skipped": True}}
    assert findings.hosts_turned_away(asked, "b") == ["a"]
    assert findings.failed_logins(asked, {}, "runner") == [
        "a -> b (10.2): Permission denied (publickey).; log in to a as runner and type ssh -v 10.2"
    ]
    assert findings.failed_logins(asked, {"b": ["sshd there accepts no keys", "x"]}, "runner") == [
        "a -> b (10.2): Permission denied (publickey).; sshd there accepts no keys | x"
    ]
