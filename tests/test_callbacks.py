"""What a play without hosts, or a failure, says first."""

import pytest
import yaml
from conftest import REPOSITORY
from play import play

from plugins.callback.no_hosts import why_no_hosts
from plugins.callback.reason_first import reason

PRELOAD = "ERROR: ld.so: object '/x.so' from LD_PRELOAD cannot be preloaded (cannot open shared object file): ignored."


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ({"msg": "node1: no; say yes"}, "node1: no; say yes"),
        ({"msg": "Task failed: a disk is full"}, "a disk is full"),
        ({"msg": "non-zero return code", "rc": 2, "stdout": "x", "stderr": "note\nerror: no\nmore"}, "error: no"),
        ({"msg": "non-zero return code", "rc": 1, "stderr": "Traceback\n  File\nValueError: x\n"}, "ValueError: x"),
        ({"msg": "non-zero return code", "rc": 1, "stderr": "", "stdout": "only here"}, "only here"),
        ({"msg": "failed to validate", "exit_status": 2, "stderr": "error: lr is 'abc'"}, "error: lr is 'abc'"),
        ({"msg": "MODULE FAILURE\nSee stdout", "module_stderr": "sudo: who are you?"}, "sudo: who are you?"),
        ({"msg": "MODULE FAILURE", "module_stderr": f"{PRELOAD}\nerror: no"}, "error: no"),
        ({"msg": "non-zero return code", "stderr": PRELOAD, "stdout": "only here"}, "only here"),
        ({"msg": "", "rc": 137}, "no reason given"),
        ({"msg": "non-zero return code", "rc": 137}, "non-zero return code"),
    ],
)  # fmt: skip
def test_the_reason_is_what_the_program_said(result, why):
    assert reason(result) == why


def test_a_play_without_hosts_names_the_inventory_or_the_limit():
    assert why_no_hosts("cluster", ["/x/hosts"], None, []).startswith(
        "nothing was done: /x/hosts has no hosts in group cluster; name your inventory with -i"
    )
    assert "--limit node2 leaves none of the hosts of group primary (node1)" in why_no_hosts(
        "primary", ["/x"], "node2", ["node1"]
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["status.yml", "-i", "/nowhere/hosts"], "Completely failed to parse inventory source /nowhere/hosts"),
        (["status.yml", "-i", "EMPTY"], "has no hosts in group cluster; name your inventory"),
        (["stop.yml", "-i", "inventory/example", "--limit", "node2"], "--limit node2 leaves none of the hosts"),
        (["stop.yml", "-i", "inventory/example", "--limit", "node9"], "leaves us with no hosts to target"),
        (["stop.yml", "-i", "BARE"], "fatal: [a]: a: work_dir, artifacts_dir, run_name, software_stack are not set;"),
    ],
    ids=["no inventory", "no group", "limit of others", "limit of none", "no group_vars"],
)  # fmt: skip
def test_nothing_done_is_no_success(tmp_path, args, words):
    """As a user types it, without the variables of a test."""
    (tmp_path / "EMPTY").write_text("[others]\nx\n")
    (tmp_path / "BARE").write_text("[primary]\na\n[cluster:children]\nprimary\n")
    done = play(*[str(tmp_path / arg) if arg.isupper() else arg for arg in args])
    assert done.rc != 0
    assert words in " ".join(done.stdout.split())


def test_text_after_e_gets_its_type_or_is_refused_by_name(playbook):
    """The timeout is added to a number; the list is no list."""
    done = playbook("stop.yml", "-e", "stop_timeout=30", "-e", "status_seconds=soon", "-e", "training_data_urls=a,b")
    assert done.returncode == 2
    assert [line.partition(", and has")[0] for line in done.played.failures()[0].splitlines()] == [
        "localhost: status_seconds is 'soon'", "localhost: training_data_urls is 'a,b'",
    ]  # fmt: skip
    assert playbook("stop.yml", "-e", "stop_timeout=30").returncode == 0


def test_names_that_do_not_exist_are_refused_before_the_first_task(playbook, tmp_path):
    """Of the command line all at once; of the inventory with what else is wrong with its variables."""
    done = playbook("train.yml", "--tags", "trainig", "-e", "training_step=5", "-e", "work_dirr=x")
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "TASK" not in said
    assert "no task of this playbook has that tag; did you mean training;" in said
    assert "training_step is no variable of this project; did you mean" in said
    assert "work_dirr is no variable of this project; did you mean work_dir;" in said
    hosts = tmp_path / "hosts"
    hosts.write_text("[cluster]\nlocalhost ansible_connection=local stop_timout=3 run_name=x\n[primary]\nlocalhost\n")
    done = play("stop.yml", "-i", str(hosts))
    assert done.rc == 2
    assert "stop_timout is no variable of this project; did you mean stop_timeout" in " ".join(done.stdout.split())


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("playbooks/*.yml")), ids=lambda path: path.name)
def test_each_play_begins_with_its_variables_and_is_not_changed_by_b(path):
    for each in yaml.safe_load(path.read_text()):
        if "hosts" in each:
            assert each["become"] is False
        if each.get("hosts", "localhost") != "localhost":  # a play on the control node has no cluster
            assert each["pre_tasks"][0]["ansible.builtin.import_role"] == {"name": "cluster", "tasks_from": "variables"}
