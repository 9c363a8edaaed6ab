"""A lab: its folder, its slice of addresses, its hosts. State that the system can report is not stored."""

import ipaddress
import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import images
from system import MARK, PLAIN, LabError, first_process, kill, run

STATE = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "sdtune" / "lab"
HOST_SCRIPT = Path(__file__).with_name("host.sh")
MIRROR_PORT = 3141

# Documentation addresses, cut into one slice for each lab: .1 is the bridge, .11 the first host.
SLICES = list(ipaddress.IPv4Network("198.51.100.0/24").subnets(new_prefix=27))
FIRST_HOST = 11
MOST_HOSTS = 16
# Of a slice, the four addresses of the second link between two hosts: a subnet of its own, with its own route.
SECOND_LINK = 28


@dataclass(frozen=True)
class Settings:
    """The options that a lab was created with."""

    slot: int
    user: str
    packages: list[str]
    mirror: bool
    inventory: str
    suites: list[str] = field(default_factory=list)
    """Releases of Debian that the hosts have in turn; none: this machine's."""

    @property
    def slurm(self) -> bool:
        """Whether the lab has a batch system, see slurm.py."""
        return "slurmctld" in self.packages


@dataclass(frozen=True)
class Lab:
    """A lab, by its name; its state is read from the system each time."""

    name: str

    @property
    def mirror_url(self) -> str:
        """URL of the mirror of this lab."""
        return f"http://{self.address(1)}:{MIRROR_PORT}"

    @property
    def work_mark(self) -> str:
        """Marker of the commands that create the lab: one of them may continue after lab.py was killed."""
        return f"work {self.folder}"

    @property
    def mirror_mark(self) -> str:
        """Marker of the mirror process."""
        return str(self.folder / "mirror")

    @property
    def folder(self) -> Path:
        """Folder of everything that the lab has on disk."""
        return STATE / self.name

    @property
    def shared(self) -> Path | None:
        """The folder that all hosts of a lab with Slurm see at /shared."""
        return self.folder / "shared" if self.settings.slurm else None

    @property
    def settings_file(self) -> Path:
        """The first file of a lab."""
        return self.folder / "lab.json"

    @property
    def complete(self) -> Path:
        """Exists when the lab was created completely."""
        return self.folder / "complete"

    @cached_property
    def settings(self) -> Settings:
        """The options that the lab was created with."""
        try:
            return Settings(**json.loads(self.settings_file.read_text()))
        except FileNotFoundError:
            raise LabError(f"there is no lab {self.name}; type: lab.py up {self.name}") from None

    @property
    def network(self) -> ipaddress.IPv4Network:
        """The lab's slice of addresses."""
        return SLICES[self.settings.slot]

    @property
    def bridge(self) -> str:
        """Name of the bridge, on this machine."""
        return f"lab{self.settings.slot}"

    def address(self, number: int) -> str:
        """Address within the lab: 1 is the bridge."""
        return str(self.network[number])

    @property
    def hosts(self) -> list["Host"]:
        """The hosts that have a disk, running or not, in order."""
        numbers = sorted(int(path.name.removeprefix("node")) for path in self.folder.glob("node*") if path.is_dir())
        return [Host(self, number) for number in numbers]

    def host(self, name: str) -> "Host":
        """The host of this name."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"lab {self.name} has no host {name}, but {', '.join(host.name for host in self.hosts)}")


@dataclass(frozen=True)
class Host:
    """One host of a lab, node1 to node16."""

    lab: Lab
    number: int

    @property
    def name(self) -> str:
        """Host name, and name in the inventory."""
        return f"node{self.number}"

    @property
    def mark(self) -> str:
        """Marker of the first processes of this host."""
        return str(self.disk)

    @property
    def disk(self) -> Path:
        """Folder of the overlay's upper layer, with its work folder and mount point."""
        return self.lab.folder / self.name

    @property
    def address(self) -> str:
        """The address that Ansible, ssh and MPI use."""
        return self.lab.address(FIRST_HOST + self.number - 1)

    @property
    def port(self) -> str:
        """Name of the interface on the bridge that is the peer of the host's eth0."""
        return f"{self.lab.bridge}n{self.number}"

    @property
    def suite(self) -> str:
        """The release of Debian that this host has."""
        suites = self.lab.settings.suites or [images.own_suite()]
        return suites[(self.number - 1) % len(suites)]

    def image(self) -> Path:
        """The image that this host's disk lies over; made if it is not in the cache."""
        return images.build(self.lab.settings.packages, self.suite)

    def enter(self, *command: str) -> list[str]:
        """Command line that runs `command` on this host."""
        pid = first_process(self.mark)
        if pid is None:
            raise LabError(f"{self.name}: is down; type: lab.py boot {self.lab.name} {self.name}")
        return ["nsenter", f"--target={pid}", "--all", "--root", "--wd", *command]

    def make_disk(self, image: Path) -> None:
        """Create the upper layer, with the files that differ between hosts. It is renamed into place when complete."""
        draft = self.lab.folder / f".{self.name}"
        if draft.exists():
            shutil.rmtree(draft)
        for folder in ("upper/etc/ssh", "work", "root"):
            (draft / folder).mkdir(parents=True)
        run("ssh-keygen", "-q", "-A", "-f", draft / "upper")
        self._write_settings(draft / "upper", image)
        draft.rename(self.disk)

    def _write_settings(self, upper: Path, image: Path) -> None:
        key = (self.lab.folder / "admin_key.pub").read_text()
        # All possible hosts, so that a new one changes nothing on the others.
        peers = "".join(f"{Host(self.lab, n).address} {Host(self.lab, n).name}\n" for n in range(1, MOST_HOSTS + 1))
        # The apt sources of this machine, through the mirror.
        sources = "".join(
            f"deb {self.lab.mirror_url}/apt/{i} {suite} {component}\n"
            for i, suite, component in (images.sources_of(self.suite) if self.lab.settings.mirror else [])
        )
        for path, text in (
            ("etc/hostname", f"{self.name}\n"),
            ("etc/hosts", f"127.0.0.1 localhost\n{peers}"),
            ("etc/apt/sources.list", sources),
            ("root/.ssh/authorized_keys", key),
            ("home/admin/.ssh/authorized_keys", key),
        ):
            _write(upper, image, path, text)

    def boot(self) -> None:
        """Start the host, connect it to the bridge, and wait until its sshd answers."""
        image = self.image()
        console = self.disk / "console.log"
        address = f"{self.address}/{self.lab.network.prefixlen}"
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child=KILL")
        with console.open("a") as log:
            process = subprocess.Popen(
                ["unshare", *namespaces, HOST_SCRIPT, self.name, address, image, self.disk, self.lab.shared or ""],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**PLAIN, MARK: self.mark},
            )
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "namespaces\n":
            raise LabError(f"{self.name}: does not boot; read {console}\n{console.read_text()[-500:].rstrip()}")
        run("ip", "link", "delete", self.port, check=False)  # the Linux kernel removes it with a delay after a kill
        run("ip", "link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        run("ip", "link", "set", self.port, "master", self.lab.bridge, "up")
        process.stdin.write("go\n")
        process.stdin.close()
        process.stdout.close()
        self.wait(console)

    def wait(self, console: Path, *, seconds: float = 60) -> None:
        """Wait until sshd sends its greeting."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                with socket.create_connection((self.address, 22), timeout=1) as connection:
                    if connection.recv(4) == b"SSH-":
                        return
            except OSError:
                time.sleep(0.05)
        raise LabError(f"{self.name}: sshd does not answer; read {console}\n{console.read_text()[-500:].rstrip()}")

    def kill(self) -> None:
        """End the host as a power failure would: the disk stays."""
        kill(self.mark)
        run("ip", "link", "delete", self.port, check=False)


def _write(upper: Path, image: Path, path: str, text: str) -> None:
    """Write a file over the image. It gets the owner of the nearest parent folder that exists in the image."""
    target = upper / path
    for folder in reversed(target.relative_to(upper).parents):
        above, below = upper / folder, image / folder
        if not above.exists():
            above.mkdir(mode=0o700)
        if below.exists():
            above.chmod(below.stat().st_mode & 0o7777)
            owner = below.stat()
        os.chown(above, owner.st_uid, owner.st_gid)
    target.write_text(text)
    target.chmod(0o644)
    os.chown(target, owner.st_uid, owner.st_gid)
