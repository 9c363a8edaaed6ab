"""Filters of role slurm: a job that cannot run is refused before it is submitted, with the remedy."""

import math

import pytest

from plugins.filter import slurm

PARTITION = {"PartitionName": "cpu", "Default": "YES", "State": "UP", "MaxTime": "2-00:00:00", "MaxNodes": "UNLIMITED"}
NODE = {"CPUTot": "112", "ThreadsPerCore": "2", "Sockets": "2", "RealMemory": "64000", "Partitions": "cpu,small"}
JOB = {"partition": "", "nodes": 2, "cores": 56, "memory_mb": 32000, "time_limit": "1-00"}


def site(**changes):
    """What slurm_site.py says of a cluster of three nodes."""
    small = PARTITION | {"PartitionName": "small", "Default": "NO", "MaxTime": "30:00", "MaxNodes": "1"}
    answer = {
        "missing": [],
        "error": "",
        "refusal": "",
        "partitions": {"cpu": PARTITION, "small": small, "old": PARTITION | {"PartitionName": "old", "State": "DOWN"}},
        "nodes": {name: {"NodeName": name, **NODE} for name in ("n1", "n2")}
        | {"n3": {"NodeName": "n3", **NODE, "CPUTot": "64", "Partitions": "cpu"}},
    }
    return answer | changes


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("30", 30),
        ("30:30", 30.5),
        ("2:00:00", 120),
        ("1-12", 2160),
        ("1-00:30", 1470),
        ("2-00:00:00", 2880),
        ("UNLIMITED", math.inf),
        ("", math.inf),
        ("two hours", None),
        ("1:2:3:4", None),
    ],
)
def test_time_limits(text, minutes):
    assert slurm.slurm_minutes(text) == minutes


def test_a_job_that_fits_breaks_no_rule():
    assert slurm.slurm_rules(site(), JOB) == []


@pytest.mark.parametrize(
    ("cluster", "job", "wrong", "remedy"),
    [
        ({"missing": ["sbatch", "srun"]}, {}, "no Slurm commands (sbatch, srun)", "name a login node"),
        ({"error": "Unable to contact slurm controller"}, {}, "Slurm does not answer (Unable", "ask the admin"),
        ({}, {"partition": "gpu"}, "no partition 'gpu'", "set slurm_partition to one of cpu, small"),
        ({"partitions": {}}, {}, "no default partition", "set slurm_partition to one of none"),
        ({}, {"partition": "old"}, "partition old is DOWN", "set slurm_partition to one of cpu, small, or ask"),
        (
            {},
            {"partition": "small", "nodes": 1, "time_limit": "31"},
            "the time limit 31 is above",
            "lower slurm_time_limit",
        ),
        ({}, {"partition": "small", "time_limit": "9"}, "2 nodes, and partition small allows 1", "at most 1"),
        ({}, {"nodes": 4}, "4 nodes, and partition cpu has 3", "set slurm_nodes to at most 3"),
        (
            {},
            {"nodes": 3},
            "56 cores on each of 3 nodes, and 2 nodes of partition cpu have as many",
            "lower launch_config",
        ),
        ({}, {"memory_mb": 65000}, "65000 MB on each of 2 nodes, and 0 nodes", "lower launch_config_ranks_per_node"),
        (
            {"refusal": "Batch job submission failed: Invalid account or account/partition combination specified"},
            {},
            "Slurm does not take the job: Batch job submission failed: Invalid account",
            "set slurm_account",
        ),
        (
            {"partitions": {"cpu": PARTITION | {"AllowAccounts": "physics,math"}}},
            {"account": "chemistry"},
            "account chemistry may not use partition cpu, which is for physics,math",
            "set slurm_account to one of those",
        ),
        ({"refusal": "Invalid qos specification"}, {}, "Invalid qos", "set slurm_qos"),
        ({"refusal": "Invalid feature specification"}, {}, "Invalid feature", "set slurm_constraint"),
        ({"refusal": "Requested node configuration is not available"}, {}, "node configuration", "lower slurm_nodes"),
    ],
)
def test_a_job_that_cannot_run_is_refused(cluster, job, wrong, remedy):
    found = slurm.slurm_rules(site(**cluster), JOB | job)
    assert [rule["holds"] for rule in found] == [False]
    assert wrong in found[0]["wrong"]
    assert remedy in found[0]["remedy"]


def test_the_node_with_the_fewest_cores_decides():
    assert slurm.smallest_node(site(), "") == {"name": "n3", "cores": 32, "sockets": 2, "memory_mb": 64000}
    assert slurm.smallest_node(site(), "small")["cores"] == 56
    assert slurm.smallest_node(site(), "none")["name"] == ""


def test_nodes_are_judged_by_what_they_say():
    good = {
        "node": "n1",
        "model": "Xeon",
        "flags": ["avx2", "avx512_bf16"],
        "mark": "abc",
        "writable": True,
        "cores": 2,
    }
    old = good | {"node": "n2", "flags": []}
    elsewhere = good | {"node": "n3", "mark": ""}
    bare = good | {"node": "n4", "missing": ["/usr/lib64/libpmi2.so"]}
    lines = slurm.node_problems([good, old, elsewhere, bare], "abc", "/home/me/sdtune")
    assert lines[0].startswith("n2: its processor (Xeon) has no AVX2; choose other nodes with slurm_constraint")
    assert lines[1].startswith("n3: does not see work_dir /home/me/sdtune of the login node; set work_dir")
    assert lines[2].startswith("n4: lacks /usr/lib64/libpmi2.so; run ansible-playbook provision.yml")
    assert len(lines) == 3
    assert slurm.nodes_have_bf16([good])
    assert not slurm.nodes_have_bf16([good, old])
    assert not slurm.nodes_have_bf16([])


def test_remarks_between_the_answers_are_left_out():
    assert slurm.nodes_answer('srun: job 7 queued\n{"node": "n1"}\nWelcome!\n') == [{"node": "n1"}]
