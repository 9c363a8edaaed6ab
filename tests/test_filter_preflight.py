"""Rules and their report, and what hosts answered, as role preflight judges them."""

import re

import pytest
import yaml
from conftest import REPOSITORY

from plugins.filter import preflight


@pytest.mark.parametrize(
    ("run", "skip", "names"),
    [
        (["all"], [], {"preflight_host_rules", "python_env_host_rules", "training_host_rules"}),
        (["python_env"], [], {"preflight_host_rules", "python_env_host_rules"}),
        (["all"], ["training"], {"preflight_host_rules", "python_env_host_rules"}),
        (["python_env", "training"], ["training"], {"preflight_host_rules", "python_env_host_rules"}),
    ],
)
def test_rules_of_the_roles_that_will_run(run, skip, names):
    pattern = preflight.preflight_rule_names("host", run, skip)
    known = [
        "preflight_host_rules",
        "python_env_host_rules",
        "training_host_rules",
        "training_inventory_rules",
        "_x_host_rules",
    ]
    assert {name for name in known if re.search(pattern, name)} == names


def test_what_a_rule_says_is_only_read_when_it_does_not_hold():
    class Undefined(dict):
        def __getitem__(self, key):
            assert key == "holds", "the facts that it speaks of may be undefined"
            return super().__getitem__(key)

    broken = {"about": "disk", "holds": False, "wrong": "1 MB free \n", "remedy": "make room"}
    found = preflight.preflight_broken([Undefined(holds=True), broken, {**broken, "about": "memory"}])
    assert [rule["about"] for rule in found] == ["disk", "memory"]
    assert preflight.preflight_lines(found[:1]) == ["1 MB free; make room"]


def test_a_problem_of_several_hosts_is_one_line():
    report = preflight.preflight_report({"a": ["x", "y"], "b": ["y"], "c": []})
    assert report == "a: x\na, b: y"
    assert preflight.preflight_report({"a": [], "b": []}) == ""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Failed to connect to the host via ssh: ssh: connect to host 10.0.0.1 port 22: No route to host",
            "does not answer Ansible (ssh: connect to host 10.0.0.1 port 22: No route to host); check ansible_host and "
            "the network, then try ansible node1 -m ping with the same inventory",
        ),
        (
            "warning: something\nadmin@10.0.0.1: Permission denied (publickey).",
            "does not answer Ansible (admin@10.0.0.1: Permission denied (publickey).); let your key in, with "
            "ssh-copy-id admin@10.0.0.1, or name another user or key",
        ),
        (
            "Host key verification failed.",
            "ssh-keygen -R 10.0.0.1 and log in once with ssh; if not, find out which host answers",
        ),
        ("@ REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "ssh-keygen -R 10.0.0.1"),
        (
            "The module interpreter '/no/python' was not found.",
            "install python3 there as root, or set ansible_python_interpreter",
        ),
        (
            'MODULE FAILURE\nPlease login as the user "debian" rather than the user "root".\nbye',
            '(Please login as the user "debian" rather than the user "root".); set ansible_user: debian in the',
        ),
        ("", "does not answer Ansible (no reason given); check ansible_host"),
    ],
)
def test_remedies_of_a_host_that_does_not_answer(message, expected):
    assert expected in preflight.preflight_unreachable(message, "node1", "10.0.0.1", "admin")


def test_a_login_without_a_user_is_that_of_the_control_node():
    assert "ssh-copy-id node1," in preflight.preflight_unreachable("Permission denied", "node1", "node1")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["avx2", "avx512f", "avx512_bf16", "amx_bf16"], "AMX"),
        (["avx2", "avx512f", "avx512_bf16"], "AVX-512 with bf16"),
        (["avx2", "avx512f"], "AVX-512 without"),
        (["avx2"], "AVX2 only"),
    ],
)
def test_the_best_instruction_set_counts(flags, words):
    assert preflight.instruction_set(flags).startswith(words)


def test_only_hosts_that_listen_are_asked():
    listeners = {"a": "41000", "b": "42000", "c": "", "d": "Traceback"}
    addresses = {name: f"10.0.0.{number}" for number, name in enumerate("abcd")}
    assert preflight.peer_targets(listeners, addresses, "a") == ["b=10.0.0.1:42000"]


def test_answers_of_other_hosts():
    answers = {"b": {"skew": -12.5}, "c": {"skew": 5.1}, "d": {"skew": 5.0}, "e": {"error": "timed out"}}
    assert preflight.peers_unreachable(answers) == "e (timed out)"
    assert preflight.peers_losing_packets({**answers, "f": {"skew": 0, "packets": "timed out"}}) == "f (timed out)"
    assert preflight.clock_differences(answers, 5) == "12.5 s from b, 5.1 s from c"
    assert preflight.largest_clock_difference(answers) == 12.5
    assert preflight.clock_differences({}, 5) == preflight.peers_unreachable({}) == ""
    assert preflight.largest_clock_difference({"e": {"error": "timed out"}}) == 0


def test_the_cause_of_lost_packets_is_told_as_likely_only():
    """What was seen comes first; why is not known."""
    rules = yaml.safe_load((REPOSITORY / "roles/preflight/vars/main.yml").read_text())["preflight_host_rules"]
    (rule,) = (rule for rule in rules if "64 KB" in rule["wrong"])
    seen, _, cause = rule["wrong"].partition(", most likely ")
    assert seen == "a few bytes reach {{ _preflight_lost_packets }}, and 64 KB do not"
    assert "MTU" in cause
    assert "set one MTU" in rule["remedy"]
