"""The lab creates real hosts, and can be removed completely, however it was ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LAB = REPOSITORY / "molecule" / "lab" / "lab.py"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root")


class Sandbox:
    """The lab tool with its own state folder; images come from the user's cache."""

    def __init__(self, folder: Path, *, cache: Path | None = None) -> None:
        self.folder = folder
        self.inventory = folder / "inventory"
        self.state = folder / "state"
        self.inventory.mkdir()
        self.state.mkdir()
        self.environment = {**os.environ, "XDG_STATE_HOME": str(self.state)}
        if cache:
            self.environment["XDG_CACHE_HOME"] = str(cache)

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(LAB), *args],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *args: str, fails: bool = False) -> str:
        process = self.start(*args)
        output, _ = process.communicate(timeout=600)
        assert bool(process.returncode) == fails, output
        return output

    def up(self, name: str, *args: str) -> subprocess.Popen[str]:
        return self.start("up", name, "--inventory", str(self.inventory / name), *args)

    def settings(self, name: str) -> dict[str, object]:
        return json.loads((self.state / "sdtune/lab" / name / "lab.json").read_text())


def traces(sandbox):
    """What could remain of a lab: names of namespaces and interfaces, mounts, processes, files."""
    processes = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # A process of the lab sees its disks mounted, or has its paths in its environment or arguments.
                text = b"".join((entry / part).read_bytes() for part in ("mountinfo", "environ", "cmdline"))
            except OSError:
                continue
            if str(sandbox.folder).encode() in text and int(entry.name) != os.getpid():
                processes.add(entry.name)
    return {
        "namespaces": subprocess.check_output(["ip", "netns"], text=True),
        "interfaces": {link["ifname"] for link in json.loads(subprocess.check_output(["ip", "-j", "link"]))},
        "mounts": Path("/proc/mounts").read_text(),
        "processes": processes,
        "files": sorted(str(path) for path in sandbox.folder.rglob("*")),
    }


def pid_of(sandbox: Sandbox, name: str, host: str) -> str:
    """The PID namespace of a host, which changes with each boot."""
    return sandbox("exec", name, host, "--", "readlink", "/proc/1/ns/pid")


@pytest.fixture
def sandbox(tmp_path):
    tool = Sandbox(tmp_path)
    yield tool
    tool("down", "--all")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A lab of two hosts with a mirror, for tests that do not change it."""
    tool = Sandbox(tmp_path_factory.mktemp("pair"))
    output, _ = (process := tool.up("pair", "--hosts", "2", "--mirror")).communicate(timeout=600)
    assert process.returncode == 0, output
    yield tool
    tool("down", "pair")


def running(lab: Sandbox, host: str) -> bool:
    return f"{host} " in lab("list") and "up" in next(row for row in lab("list").splitlines() if host in row)


# The moments at which `up` is killed: as soon as the condition holds.
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "at its first file": lambda lab: lab.exists(),
    "when the lab has a key": lambda lab: (lab / "admin_key").exists(),
    "while the first disk is made": lambda lab: (lab / ".node1").exists(),
    "while the first host boots": lambda lab: (lab / "node1/console.log").exists(),
    "when the first host is up": lambda lab: (lab / ".node2").exists(),
    "while the second host boots": lambda lab: (lab / "node2/console.log").exists(),
    "while the inventory is written": lambda lab: (lab / "known_hosts").exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_down_removes_what_a_killed_up_has_left(sandbox, moment):
    before = traces(sandbox)
    assert not before["processes"]
    process = sandbox.up("crash", "--hosts", "2", "--mirror")
    while not MOMENTS[moment](sandbox.state / "sdtune/lab/crash"):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lab = sandbox.state / "sdtune/lab/crash"
    ours = f"lab{sandbox.settings('crash')['slot']}" if (lab / "lab.json").exists() else "none yet"

    sandbox("down", "crash")
    after = traces(sandbox)
    # Other labs may be created and removed meanwhile: only traces of this one count.
    assert after["files"] == before["files"]
    assert not after["processes"]
    assert str(sandbox.folder) not in after["mounts"]
    assert after["namespaces"] == before["namespaces"]
    assert not [name for name in after["interfaces"] if name.startswith(ours)]


def test_up_clears_what_a_killed_up_has_left(sandbox):
    process = sandbox.up("first", "--hosts", "2")
    while not (sandbox.state / "sdtune/lab/first/node2").exists():
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()

    output, _ = (other := sandbox.up("second", "--hosts", "1")).communicate(timeout=600)
    assert other.returncode == 0, output
    assert "first" not in sandbox("list")
    assert not (sandbox.inventory / "first").exists()


def test_down_ends_the_building_of_an_image(tmp_path):
    tool = Sandbox(tmp_path, cache=tmp_path / "cache")
    process = tool.up("image", "--hosts", "1")
    while not list((tmp_path / "cache/sdtune/lab").glob("*.partial/var")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    tool("down", "image")
    after = traces(tool)
    assert after["processes"] == set()
    assert str(tmp_path) not in after["mounts"]
    assert not list((tmp_path / "cache/sdtune/lab").glob("*.partial"))


def test_a_lab_that_is_gone_frees_its_interfaces(sandbox):
    before = traces(sandbox)
    output, _ = (process := sandbox.up("links", "--hosts", "2")).communicate(timeout=600)
    assert process.returncode == 0, output
    slot = sandbox.settings("links")["slot"]
    ours = {f"lab{slot}", f"lab{slot}n1", f"lab{slot}n2"}
    assert ours <= traces(sandbox)["interfaces"]
    sandbox("down", "links")
    assert not ours & traces(sandbox)["interfaces"]
    assert traces(sandbox)["files"] == before["files"]


def test_two_labs_at_once_do_not_see_each_other(sandbox):
    processes = {name: sandbox.up(name, "--hosts", "1") for name in ("left", "right")}
    for process in processes.values():
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    slots = {name: sandbox.settings(name)["slot"] for name in processes}
    assert slots["left"] != slots["right"]
    other = f"198.51.100.{32 * slots['right'] + 11}"
    assert "unreachable" in sandbox("exec", "left", "node1", "--", "ping", "-c", "1", "-W", "1", other, fails=True)

    sandbox("down", "left")
    assert running(sandbox, "node1")
    assert "node1" in sandbox("exec", "right", "node1", "--", "hostname")


def test_up_again_adds_and_removes_hosts_and_leaves_the_others_alone(pair):
    before = [pid_of(pair, "pair", host) for host in ("node1", "node2")]
    for hosts in ("2", "3", "2"):
        output, _ = (process := pair.up("pair", "--hosts", hosts, "--mirror")).communicate(timeout=600)
        assert process.returncode == 0, output
        assert ("node3" in pair("list")) == (hosts == "3")
        assert ("node3" in (pair.inventory / "pair/hosts.yml").read_text()) == (hosts == "3")
        assert [pid_of(pair, "pair", host) for host in ("node1", "node2")] == before


def test_other_settings_are_refused(pair):
    output, _ = (process := pair.up("pair", "--hosts", "2")).communicate(timeout=600)
    assert process.returncode != 0
    assert "lab pair was made with other settings; type: lab.py down pair" in output


def test_hosts_are_real_to_ansible(pair):
    ansible = Path(sys.executable).with_name("ansible")
    output = subprocess.run(
        [ansible, "--inventory", pair.inventory / "pair", "cluster", "-m", "command", "-a", "hostname"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "node1 | CHANGED | rc=0 >>\nnode1" in output
    assert "node2 | CHANGED | rc=0 >>\nnode2" in output


def test_each_host_has_its_own_keys_and_another_key_is_refused(pair):
    state = pair.state / "sdtune/lab/pair"
    known = (state / "known_hosts").read_text().splitlines()
    keys = [line.split()[-1] for line in known]
    assert len(keys) == len(set(keys)) == 6

    address = known[0].split(",")[0]
    strict = ["-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
    ssh = ["ssh", "-i", state / "admin_key", *strict, "-o"]
    for login in ("root", "admin"):
        subprocess.run([*ssh, f"UserKnownHostsFile={state}/known_hosts", f"{login}@{address}", "true"], check=True)
    other_key = pair.folder / "known_hosts"
    other_key.write_text(known[-1].replace(known[-1].split(",")[0], address) + "\n")  # the key of another host
    refused = subprocess.run(
        [*ssh, f"UserKnownHostsFile={other_key}", f"root@{address}", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Host key verification failed" in refused.stderr


def test_a_host_has_no_default_route(pair):
    assert "unreachable" in pair("exec", "pair", "node1", "--", "ip", "route", "get", "203.0.113.1", fails=True)


def test_orphans_are_reaped(pair):
    pair("exec", "pair", "node1", "--", "sh", "-c", "(sh -c 'sleep 0.1 & exec true' &) ; sleep 0.5")
    assert "Z" not in pair("exec", "pair", "node1", "--", "ps", "-e", "-o", "stat=").split()


def test_a_killed_host_keeps_its_disk(pair):
    pair("exec", "pair", "node2", "--", "sh", "-c", "echo kept > /root/note")
    pair("kill-host", "pair", "node2")
    assert "node2: is down; type: lab.py boot pair node2" in pair("exec", "pair", "node2", "--", "true", fails=True)
    pair("boot", "pair", "node2")
    assert pair("exec", "pair", "node2", "--", "cat", "/root/note") == "kept\n"


def test_the_network_of_a_host_can_be_disconnected(pair):
    ping = ("exec", "pair", "node1", "--", "ping", "-c", "1", "-W", "1", "node2")
    pair("link", "pair", "node2", "down")
    pair(*ping, fails=True)
    pair("link", "pair", "node2", "up")
    pair(*ping)


def test_two_hosts_can_have_a_second_link(pair):
    other = pair("second-link", "pair", "node1", "node2").splitlines()[1].split()[-1]
    pair("exec", "pair", "node1", "--", "ping", "-c", "1", "-W", "1", other)
    assert "dev eth1" in pair("exec", "pair", "node1", "--", "ip", "route", "get", other)


def test_the_rate_is_limited_both_ways(pair):
    slot = pair.settings("pair")["slot"]
    pair("rate", "pair", "1gbit")
    assert "rate 1Gbit" in subprocess.check_output(["tc", "qdisc", "show", "dev", f"lab{slot}n1"], text=True)
    assert "rate 1Gbit" in pair("exec", "pair", "node1", "--", "tc", "qdisc", "show", "dev", "eth0")
    pair("rate", "pair", "off")
    assert "rate" not in pair("exec", "pair", "node1", "--", "tc", "qdisc", "show", "dev", "eth0")


def test_the_mirror_serves_both_package_managers(pair, tmp_path):
    assert "Reading package lists" in pair("exec", "pair", "node1", "--", "apt-get", "update")
    url = f"http://198.51.100.{32 * int(str(pair.settings('pair')['slot'])) + 1}:3141/pypi/simple"
    pip = [sys.executable, "-m", "pip", "--isolated", "download", "--no-deps", "--no-cache-dir", "--dest", tmp_path]
    download = subprocess.run(
        [*pip, "--index-url", url, "--trusted-host", url.split("/")[2].split(":")[0], "iniconfig"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert download.returncode == 0, download.stderr
    assert url.split("/")[2] in download.stdout
    assert list(tmp_path.glob("iniconfig-*"))


@pytest.mark.parametrize("name", ["../x", "a b", "", "UP"])
def test_names_that_are_no_names_are_refused(sandbox, name):
    assert "is no name for a lab" in sandbox("up", name, fails=True)
