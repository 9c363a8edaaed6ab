"""The limits of cgroups, over fake folders of /proc and /sys."""

import os
from pathlib import Path

import pytest

from sdtune.host import numa
from standalone import limits

GIGABYTE = 1 << 30


@pytest.fixture
def process(tmp_path):
    """Fake the process's cgroups; files are given below the mount point."""

    def fake(own: str, mounts: str, files: dict[str, str]) -> Path:
        folder = tmp_path / "proc"
        folder.mkdir()
        (folder / "cgroup").write_text(own)
        (folder / "mountinfo").write_text(mounts.format(sys=tmp_path / "sys"))
        for name, text in files.items():
            (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "sys" / name).write_text(text)
        return folder

    return fake


VERSION_2 = "30 25 0:26 / {sys} rw - cgroup2 cgroup2 rw\n"
CONTAINER = "30 25 0:26 /docker/abc {sys} rw - cgroup2 cgroup2 rw\n"
VERSION_1 = (
    "31 25 0:27 /docker/abc {sys}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 25 0:28 /docker/abc {sys}/memory rw - cgroup cgroup rw,memory\n"
    "33 25 0:29 / {sys}/unified rw - cgroup2 cgroup2 rw\n"
)


@pytest.mark.parametrize(
    ("own", "mounts", "files", "quota"),
    [
        ("0::/a/b\n", VERSION_2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a\n", VERSION_2, {"a/cpu.max": "400000 100000\n", "cpu.max": "800000 100000\n"}, 4),
        ("0::/a\n", VERSION_2, {"a/cpu.max": "max 100000\n"}, None),
        ("0::/docker/abc\n", CONTAINER, {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../other\n", VERSION_2, {"cpu.max": "200000 100000\n"}, 2),
        (
            "4:cpu,cpuacct:/docker/abc\n0::/\n", VERSION_1,
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3,
        ),
        (
            "4:cpu,cpuacct:/docker/abc\n0::/\n", VERSION_1,
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None,
        ),
    ],
    ids=["ancestor", "own", "none", "container", "outside the namespace", "version 1", "version 1 without"],
)  # fmt: skip
def test_quota(process, own, mounts, files, quota):
    assert limits.cpu_quota(process(own, mounts, files)) == quota


def test_memory_of_all_ancestors_and_without_pages_of_files(process):
    """What is left is that of the cgroup that has least; files do not count, as the kernel drops them."""
    folder = process("0::/a/b\n", VERSION_2, {
        "a/b/memory.max": f"{8 * GIGABYTE}\n", "a/b/memory.current": f"{3 * GIGABYTE}\n",
        "a/b/memory.stat": f"anon 5\ninactive_file {GIGABYTE}\nactive_file {GIGABYTE}\n",
        "a/memory.max": f"{6 * GIGABYTE}\n", "a/memory.current": f"{5 * GIGABYTE}\n", "a/memory.stat": "anon 5\n",
        "memory.max": "max\n",
    })  # fmt: skip
    assert list(limits.memory_limits(folder)) == [(8 * GIGABYTE, 7 * GIGABYTE), (6 * GIGABYTE, GIGABYTE)]
    assert limits.total_memory(folder) <= 6 * GIGABYTE
    assert limits.available_memory(folder) <= GIGABYTE


def test_memory_of_version_1(process):
    files = {
        "memory/memory.limit_in_bytes": f"{4 * GIGABYTE}\n", "memory/memory.usage_in_bytes": f"{2 * GIGABYTE}\n",
        "memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIGABYTE}\ntotal_active_file 0\n",
    }  # fmt: skip
    own = "5:memory:/docker/abc\n0::/\n"
    folder = process(own, VERSION_1, files)
    assert list(limits.memory_limits(folder)) == [(4 * GIGABYTE, 3 * GIGABYTE)]
    (folder.parent / "sys/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert list(limits.memory_limits(folder)) == []


def test_without_cgroups_the_host_counts(tmp_path):
    assert limits.cpu_quota(tmp_path) is None
    assert limits.total_memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_cores_under_a_quota(process, tmp_path, monkeypatch):
    """At least one; hyper-threads are no cores, whoever allows them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for cpu in range(8):
        topology = tmp_path / f"cpus/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    folder = process("0::/\n", VERSION_2, {"cpu.max": "max 100000\n"})
    for text, cores in (("max", 4), ("300000", 3), ("50000", 1), ("900000", 4)):
        (tmp_path / "sys/cpu.max").write_text(f"{text} 100000\n")
        assert limits.usable_cores(folder, tmp_path / "cpus") == cores


def test_image_generation_leaves_cores_beyond_the_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(numa, "cpu_quota", lambda: 2.5)
    assert numa.split_cores(0, tmp_path) == [[0, 1]]
