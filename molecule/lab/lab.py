#!/usr/bin/env python3
"""A lab: N hosts on this machine that are real to Ansible, ssh and MPI. Runs as root.

Each host has its own root file system, processes, host name, address and sshd: Linux namespaces on one bridge, over a
cached image. Hosts have no default route. Everything that a lab consists of ends with the first processes of its hosts,
so `down` can remove a lab completely, even if this program was killed:

    lab.py up try --hosts 4      create the lab `try`; repeated with another number, add or remove hosts
    lab.py exec try node2 -- ps  run a command on a host
    lab.py down try              remove it completely
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import images
import inventories
import slurm
from hosts import MIRROR_PORT, MOST_HOSTS, SECOND_LINK, SLICES, STATE, Host, Lab, Settings
from system import MARK, PLAIN, LabError, first_process, kill, marked, run

MIRROR_SCRIPT = Path(__file__).with_name("mirror.py")


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Create or remove one lab at a time. The Linux kernel releases the lock of a process that was killed."""
    images.CACHE.mkdir(parents=True, exist_ok=True)
    with (images.CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def labs() -> list[Lab]:
    """All labs with a folder, including incomplete ones."""
    return [Lab(path.name) for path in sorted(STATE.glob("*")) if path.is_dir()]


def links() -> set[str]:
    """Names of the network interfaces of this machine."""
    return {link["ifname"] for link in json.loads(run("ip", "-json", "link", "show"))}


def free_slot() -> int:
    """The first slice of addresses that neither a lab nor anything else on this machine uses."""
    taken = {lab.settings.slot for lab in labs() if lab.settings_file.exists()}
    names = links()
    for slot in range(len(SLICES)):
        if slot not in taken and f"lab{slot}" not in names:
            return slot
    raise LabError(f"all {len(SLICES)} slices of addresses are in use; remove a lab: lab.py list, lab.py down NAME")


def create(name: str, options: argparse.Namespace) -> Lab:
    """Create the folder of a new lab. Its first file already tells `remove` everything that it has to remove."""
    lab = Lab(name)
    settings = Settings(
        slot=free_slot(),
        user=options.user,
        packages=options.packages,
        mirror=options.mirror,
        suites=options.suites,
        inventory=str((options.inventory or inventories.default_folder(name)).absolute()),
    )
    if Path(settings.inventory).exists():
        raise LabError(f"{settings.inventory} exists already and is not of this lab; remove it or name another folder")
    lab.folder.mkdir(parents=True, mode=0o700)
    draft = lab.folder / "lab.json.draft"
    draft.write_text(json.dumps(asdict(settings)))
    draft.rename(lab.settings_file)
    (lab.folder / "control").mkdir(mode=0o700)
    if lab.shared:
        lab.shared.mkdir()
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"admin of lab {name}", "-f", lab.folder / "admin_key")
    return lab


def create_bridge(lab: Lab) -> None:
    """Create the bridge if it does not exist."""
    if lab.bridge not in links():
        run("ip", "link", "add", lab.bridge, "type", "bridge")
    run("ip", "address", "replace", f"{lab.address(1)}/{lab.network.prefixlen}", "dev", lab.bridge)
    run("ip", "link", "set", lab.bridge, "up")


def start_mirror(lab: Lab) -> None:
    """Serve packages on the bridge address, from a cache that all labs share."""
    if list(marked(lab.mirror_mark)):
        return
    log = lab.folder / "mirror.log"
    with log.open("a") as output:
        subprocess.Popen(
            [sys.executable, MIRROR_SCRIPT, lab.address(1), str(MIRROR_PORT), images.CACHE / "mirror"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, MARK: lab.mirror_mark},
        )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((lab.address(1), MIRROR_PORT), timeout=1):
            return
        time.sleep(0.05)
    raise LabError(f"the mirror does not answer; read {log}\n{log.read_text()[-500:].rstrip()}")


def describe(lab: Lab) -> None:
    """Write known_hosts and the inventory for the existing hosts."""
    known = "".join(
        f"{host.address},{host.name} {' '.join(key.read_text().split()[:2])}\n"
        for host in lab.hosts
        for key in sorted((host.disk / "upper/etc/ssh").glob("ssh_host_*_key.pub"))
    )
    (lab.folder / "known_hosts").write_text(known)
    settings = {
        **inventories.connection(lab.settings.user, lab.folder),
        "launch_config_pin": "false",  # the hosts share the cores of this machine
    }
    if lab.settings.slurm:
        settings |= slurm.settings(lab)
    else:
        settings |= {"run_user": "sdtune", "work_dir": "/home/sdtune/sdtune"}
    if lab.settings.mirror:
        settings["python_env_source"] = "mirror"
        settings["python_env_mirror_url"] = f"{lab.mirror_url}/pypi/simple"
    addresses = {host.name: host.address for host in lab.hosts[: 1 if lab.settings.slurm else None]}
    inventories.write(Path(lab.settings.inventory), addresses, settings)


def up(name: str, options: argparse.Namespace) -> None:
    """Create the lab, or change its number of hosts; start hosts that are down."""
    for crashed in labs():
        if not crashed.complete.exists():
            remove(crashed)
    if options.slurm:
        options.user, options.packages = slurm.USER, sorted({*options.packages, *slurm.PACKAGES})
    for suite in options.suites or [images.own_suite()]:
        images.build(options.packages, suite)
    lab = Lab(name)
    if lab.complete.exists():
        asked = (options.user, options.packages, options.mirror, options.suites)
        if asked != (lab.settings.user, lab.settings.packages, lab.settings.mirror, lab.settings.suites):
            raise LabError(f"lab {name} was made with other settings; type: lab.py down {name}")
    else:
        lab = create(name, options)
    os.environ[MARK] = lab.work_mark
    create_bridge(lab)
    if lab.settings.mirror:
        start_mirror(lab)

    for surplus in lab.hosts[options.hosts :]:
        surplus.kill()
        shutil.rmtree(surplus.disk)
    for number in range(1, options.hosts + 1):
        host = Host(lab, number)
        if not host.disk.exists():
            host.make_disk(host.image())
        if first_process(host.mark) is None:
            host.boot()
    if lab.settings.slurm:
        slurm.start(lab, lab.hosts)
    describe(lab)
    lab.complete.touch()
    print(f"lab: {name}: {', '.join(f'{host.name} {host.address}' for host in lab.hosts)}")
    print("lab: now type:")
    for playbook in ("provision.yml", "train.yml", "generate.yml"):
        print(f"  ansible-playbook -i {os.path.relpath(lab.settings.inventory)} {playbook}")


def remove(lab: Lab) -> None:
    """Remove the lab, complete or not. Its folder is removed last, so an interrupted removal can be repeated."""
    for master in (lab.folder / "control").glob("*"):
        run("ssh", "-o", f"ControlPath={master}", "-O", "exit", "lab", check=False)
    for mark in [lab.work_mark, *(Host(lab, number).mark for number in range(1, MOST_HOSTS + 1)), lab.mirror_mark]:
        kill(mark)
    if lab.settings_file.exists():
        for number in range(1, MOST_HOSTS + 1):  # the Linux kernel removes the interfaces of dead hosts with a delay
            run("ip", "link", "delete", Host(lab, number).port, check=False)
        if lab.bridge in links():
            run("ip", "link", "delete", lab.bridge)
        inventories.remove(Path(lab.settings.inventory))
    if lab.folder.exists():
        lab.complete.unlink(missing_ok=True)
        shutil.rmtree(lab.folder)
        print(f"lab: {lab.name} is gone")
    for folder in (STATE, STATE.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


def down(options: argparse.Namespace) -> None:
    """Remove one lab, or all. A lab that does not exist counts as removed."""
    for lab in labs() if options.all else [Lab(options.name)]:
        remove(lab)


def show(_: argparse.Namespace) -> None:
    """Print one line per lab, and one per host."""
    for lab in labs():
        print(f"{lab.name}: {'complete' if lab.complete.exists() else 'half-made; lab.py down ' + lab.name}")
        for host in lab.hosts if lab.settings_file.exists() else []:
            print(f"  {host.name} {host.address} {'up' if first_process(host.mark) else 'down'}")


def rate(lab: Lab, speed: str) -> None:
    """Limit the bandwidth of each host in both directions; `off` removes it. The bucket holds four GSO segments."""
    for host in lab.hosts:
        for prefix, device in (([], host.port), (host.enter(), "eth0")):
            run(*prefix, "tc", "qdisc", "delete", "dev", device, "root", check=False)
            if speed != "off":
                limit = ("rate", speed, "burst", "256kb", "latency", "50ms")
                run(*prefix, "tc", "qdisc", "add", "dev", device, "root", "tbf", *limit)


def second_link(lab: Lab, names: tuple[str, str]) -> None:
    """Connect two hosts directly, as by a cable between second network cards: eth1 on both, on addresses of its own.

    The link ends with either host.
    """
    ends = [lab.host(name) for name in names]
    pids = [first_process(host.mark) for host in ends]
    for host, pid in zip(ends, pids, strict=True):
        if pid is None:
            raise LabError(f"{host.name}: is down; type: lab.py boot {lab.name} {host.name}")
    peer = ("type", "veth", "peer", "name", "eth1", "netns", str(pids[1]))
    run("ip", "link", "add", "name", "eth1", "netns", str(pids[0]), *peer)
    for number, host in enumerate(ends):
        run(*host.enter(), "ip", "address", "add", f"{lab.address(SECOND_LINK + 1 + number)}/30", "dev", "eth1")
        run(*host.enter(), "ip", "link", "set", "eth1", "up")
        print(f"{host.name} eth1 {lab.address(SECOND_LINK + 1 + number)}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, *arguments: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text)
        for argument in arguments:
            sub.add_argument(argument)
        return sub

    make = command("up", "create a lab, or change its number of hosts", "name")
    make.add_argument(
        "--hosts",
        type=int,
        default=2,
        choices=range(1, MOST_HOSTS + 1),
        metavar="N",
        help="number of hosts (default 2)",
    )
    make.add_argument("--mirror", action="store_true", help="serve apt and pip on the bridge address")
    make.add_argument("--packages", nargs="*", default=[], metavar="P", help="packages beyond the plain image")
    make.add_argument("--suites", nargs="*", default=[], metavar="S", help="Debian releases of the hosts, in turn")
    make.add_argument("--user", default="root", choices=["root", "admin"], help="user that Ansible logs in as")
    make.add_argument("--slurm", action="store_true", help="Slurm: node1 is the login node, the others compute")
    make.add_argument("--inventory", type=Path, metavar="DIR", help="default: inventory/lab-NAME of this repository")
    gone = command("down", "remove a lab completely")
    which = gone.add_mutually_exclusive_group(required=True)
    which.add_argument("name", nargs="?")
    which.add_argument("--all", action="store_true", help="every lab of this machine")
    command("list", "show the labs and their hosts")
    command("exec", "run a command on a host as root", "name", "host").add_argument("argv", nargs="+")
    command("kill-host", "power off a host without shutdown", "name", "host")
    command("boot", "start a host that is down, from its own disk", "name", "host")
    command("link", "disconnect the network of a host, or connect it", "name", "host").add_argument(
        "to", choices=["up", "down"]
    )
    command("second-link", "connect two hosts by eth1 too, directly", "name", "host", "other")
    command("rate", "limit the network of all hosts: 1gbit, 100mbit, off", "name", "speed")
    return parser.parse_args()


def main() -> None:
    """Execute the command line."""
    options = parse()
    if isinstance(getattr(options, "name", None), str) and not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", options.name):
        raise LabError(f"'{options.name}' is no name for a lab; take up to 40 of a-z, 0-9, - and _")
    if os.geteuid() != 0:
        raise LabError("a lab needs namespaces and mounts; run this as root")
    if options.command == "exec":
        argv = Lab(options.name).host(options.host).enter(*options.argv)
        os.execve("/usr/bin/nsenter", argv, {**PLAIN, "HOME": "/root", "TERM": os.environ.get("TERM", "dumb")})
    with locked():
        match options.command:
            case "up":
                images.clear()
                up(options.name, options)
            case "down":
                images.clear()
                down(options)
            case "list":
                show(options)
            case "kill-host":
                Lab(options.name).host(options.host).kill()
            case "boot":
                host = Lab(options.name).host(options.host)
                if first_process(host.mark) is None:
                    host.boot()
                if host.lab.settings.slurm:
                    slurm.start(host.lab, [host])
            case "link":
                run("ip", "link", "set", Lab(options.name).host(options.host).port, options.to)
            case "second-link":
                second_link(Lab(options.name), (options.host, options.other))
            case "rate":
                rate(Lab(options.name), options.speed)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(f"lab: {error}")
