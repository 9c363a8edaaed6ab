"""How cores are split by NUMA node, over fake folders of /sys."""

import os

import pytest

from sdtune.host import numa


def host(folder, nodes, siblings=1):
    """Fake NUMA nodes with these CPUs; each core has ``siblings`` CPUs with consecutive numbers."""
    for number, text in enumerate(nodes):
        (folder / "node" / f"node{number}").mkdir(parents=True)
        (folder / "node" / f"node{number}" / "cpulist").write_text(text + "\n")
        for cpu in numa.parse_ranges(text):
            first = cpu // siblings * siblings
            topology = folder / "cpu" / f"cpu{cpu}" / "topology"
            topology.mkdir(parents=True)
            (topology / "thread_siblings_list").write_text(",".join(str(first + i) for i in range(siblings)) + "\n")


@pytest.mark.parametrize(
    ("nodes", "siblings", "processes", "shares"),
    [
        (["0-3", "4-7"], 1, 0, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (["0-3", "4-7"], 2, 0, [[0, 2], [4, 6]]),
        (["0-3", "4-7"], 1, 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (["0-3", ""], 1, 0, [[0, 1, 2, 3]]),  # a node that has only memory
        (["0-1"], 1, 3, [[0], [1], [0]]),
    ],
    ids=["nodes", "hyper-threads", "four processes", "no cores in a node", "more processes than cores"],
)
def test_split_cores(tmp_path, monkeypatch, nodes, siblings, processes, shares):
    host(tmp_path, nodes, siblings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert numa.split_cores(processes, tmp_path) == shares


def test_only_cores_that_the_process_may_use(tmp_path, monkeypatch):
    """A container's or a batch system's limit."""
    host(tmp_path, ["0-3", "4-7"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3})
    assert numa.numa_nodes(tmp_path) == [[2, 3]]


def test_a_host_without_numa_nodes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert numa.numa_nodes(tmp_path) == [[0, 1]]
