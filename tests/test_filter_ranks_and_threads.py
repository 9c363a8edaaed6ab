"""Ranks, threads, precision and interfaces, from what hosts offer."""

import pytest
from ansible.plugins.loader import filter_loader
from conftest import REPOSITORY

filter_loader.add_directory(str(REPOSITORY / "plugins/filter"))


def apply(name, *args, **options):
    """The filter as Ansible finds it."""
    return filter_loader.get(name).j2_function(*args, **options)


@pytest.mark.parametrize(
    ("ranges", "count"), [("0", 1), ("0-1", 2), ("0-7", 8), ("0,2", 2), ("0-3,8\n", 5), ("", 1), (None, 1)]
)
def test_numa_nodes_are_counted_from_ranges(ranges, count):
    assert apply("numa_count", ranges) == count


@pytest.mark.parametrize(
    ("cores", "numa_nodes", "memory_mb", "ranks"),
    [
        (112, 2, 10**6, 4),  # two sockets of 56: 4 x 28
        (112, 8, 10**6, 8),  # no rank spans two NUMA nodes
        (64, 1, 10**6, 3),
        (16, 2, 10**6, 2),
        (2, 1, 10**6, 1),
        (112, 2, 7999, 3),  # only so many fit in memory
        (112, 2, 100, 1),  # at least one, whatever it needs
    ],
)
def test_ranks_of_a_host(cores, numa_nodes, memory_mb, ranks):
    assert apply("host_ranks", cores, numa_nodes, 28, memory_mb, 2000) == ranks
    assert apply("host_ranks", str(cores), numa_nodes, "28", str(memory_mb), "2000") == ranks, "-e gives text"


BIG = {"cores": 112, "ranks": 4, "bf16": True}
SMALL = {"cores": 48, "ranks": 2, "bf16": False}


def test_hosts_that_are_alike():
    shape = apply("job_shape", {"a": BIG, "b": BIG}, 2)
    assert (shape["ranks"], shape["threads"], shape["world_size"]) == (4, 28, 8)
    assert apply("job_summary", shape, "no") == "8 ranks, 4 on each host, of 28 threads"
    assert apply("job_summary", shape, "auto") == "8 ranks, 4 on each host, of 28 threads; in bf16"


def test_the_smallest_host_decides():
    shape = apply("job_shape", {"a": BIG, "b": SMALL}, 2)
    assert (shape["ranks"], shape["threads"], shape["world_size"]) == (2, 24, 4)
    assert apply("job_summary", shape, "auto") == (
        "4 ranks, 2 on each host, of 24 threads; the smallest host decides: b has 48 cores, others up to 112; "
        "in float32, as b without instructions for bf16 would be slower in it"
    )


def test_what_is_set_wins():
    shape = apply("job_shape", {"a": BIG, "b": SMALL}, 3, "2", "5", "1")
    assert (shape["ranks"], shape["threads"], shape["world_size"]) == (2, 5, 6)


def test_cores_that_are_left_to_communication():
    assert apply("job_shape", {"a": BIG}, 1, comm_workers=1)["threads"] == 27
    assert apply("job_shape", {"a": BIG}, 1, ranks_per_host=112, comm_workers=1)["threads"] == 1


@pytest.mark.parametrize(
    ("asked", "hosts", "precision"),
    [
        ("auto", [BIG, BIG], "bf16"),
        ("auto", [BIG, SMALL], "no"),
        ("bf16", [SMALL], "bf16"),
        ("no", [BIG], "no"),
    ],
)
def test_the_precision(asked, hosts, precision):
    shape = apply("job_shape", dict(zip("ab", hosts, strict=False)), len(hosts))
    assert apply("job_precision", shape, asked) == precision


@pytest.mark.parametrize(
    ("flags", "found"), [(["avx2", "amx_bf16"], True), (["avx512_bf16"], True), (["avx512f", "avx512bw"], False)]
)
def test_instructions_for_bf16(flags, found):
    assert apply("has_bf16", flags) is found


FACTS = {
    "interfaces": ["lo", "eth0.100", "br-lab", "down"],
    "lo": {"device": "lo", "ipv4": {"address": "127.0.0.1"}},
    "eth0.100": {"device": "eth0.100", "ipv4": {"address": "198.51.100.7"}},
    "br_lab": {
        "device": "br-lab",
        "ipv4": {"address": "198.51.100.1"},
        "ipv4_secondaries": [{"address": "198.51.100.2"}],
    },
    "down": {"device": "down"},
}


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        ("198.51.100.7", "eth0.100"),
        ("198.51.100.1", "br-lab"),
        ("198.51.100.2", "br-lab"),
        ("198.51.100.9", ""),
        ("", ""),
    ],
)
def test_the_interface_of_an_address(address, interface):
    assert apply("interface_of", FACTS, address) == interface


def test_addresses_of_an_inventory():
    variables = {
        "a": {"cluster_address": "198.51.100.1", "ansible_host": "a.example"},
        "b": {"ansible_host": "198.51.100.2", "cluster_address": ""},
        "c": {},
    }
    found = apply("host_addresses", ["c", "a", "b"], variables)
    assert found == {"c": "c", "a": "198.51.100.1", "b": "198.51.100.2"}
    assert list(found) == ["c", "a", "b"], "rank 0 first"


def test_programs_learn_of_proxy_and_certificates_under_all_names():
    assert apply("web_environment", "", ["a"], "") == {}
    found = apply("web_environment", "http://p:1", ["localhost", "10.0.0.1", "localhost"], "")
    assert found["https_proxy"] == found["HTTP_PROXY"] == "http://p:1"
    assert found["no_proxy"] == found["NO_PROXY"] == "localhost,10.0.0.1"
    assert set(apply("web_environment", "", [], "/ca.pem").values()) == {"/ca.pem"}
