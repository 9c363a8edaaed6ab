"""Images: root file systems of lab hosts, created once by debootstrap and kept in the user's cache."""

import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from system import MARK, LabError, kill, run

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdtune" / "lab"

BUILD = f"image {CACHE}"  # marker of the processes that build one

# A minimal server with ssh, and tini as PID 1. Roles have to install everything else that they need.
PACKAGES = (
    *("openssh-server", "python3", "sudo", "tini"),
    *("ca-certificates", "iproute2", "iputils-ping", "netbase", "procps"),
)

# Run inside the new root. It removes what debootstrap copies from this machine: resolver and host name.
# pip does not compile what it installs, which would be two thirds of its time; Python compiles modules at import.
CUSTOMISE = r"""
set -eu
useradd --create-home --shell /bin/bash admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/admin
chmod 0440 /etc/sudoers.d/admin
rm --force /etc/ssh/ssh_host_*
: > /etc/resolv.conf
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
printf '[install]\ncompile = false\n' > /etc/pip.conf
chmod 0755 /usr/sbin/policy-rc.d
rm --recursive --force /etc/hostname /var/cache/apt/archives/*.deb /var/lib/apt/lists/* /var/log/*.log
"""


@functools.cache
def apt_sources() -> list[tuple[str, str, str]]:
    """(URI, suite, component) of every binary package index in the apt configuration of this machine."""
    listing = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Identifier: Packages")
    sources = [tuple(line.split()) for line in listing.splitlines()]
    if not sources:
        raise LabError("apt has no package source on this machine; add one to /etc/apt/sources.list.d")
    return [(uri.rstrip("/"), suite, component) for uri, suite, component in sources]


def clear() -> None:
    """Remove the files of a build that was killed."""
    kill(BUILD)
    for partial in CACHE.glob("*.partial"):
        shutil.rmtree(partial)


def own_suite() -> str:
    """The release of Debian that this machine has, as its first package source names it."""
    return apt_sources()[0][1]


def sources_of(suite: str) -> list[tuple[int, str, str]]:
    """(number, suite, component) of this machine's package sources, for hosts of another release."""
    own = own_suite()
    return [
        (number, f"{suite}{other.removeprefix(own)}", component)
        for number, (_, other, component) in enumerate(apt_sources())
        if other.startswith(own)
    ]


def build(extra: list[str], suite: str) -> Path:
    """Return the folder of the image of a release with PACKAGES and `extra`; make it if it is not in the cache."""
    uri = apt_sources()[0][0]
    packages = ",".join(sorted({*PACKAGES, *extra}))
    key = hashlib.sha256(f"{suite} {packages} {CUSTOMISE}".encode()).hexdigest()[:16]
    image, partial = CACHE / key, CACHE / f"{key}.partial"
    if not image.exists():
        print(f"lab: making the image {image}, once", flush=True)
        archives = CACHE / "archives"
        archives.mkdir(parents=True, exist_ok=True)
        debootstrap = ("debootstrap", "--variant=minbase", f"--cache-dir={archives}", f"--include={packages}")
        log = CACHE / f"{key}.log"
        _sandboxed(log, *debootstrap, suite, partial, uri)
        _sandboxed(log, "chroot", partial, "/bin/sh", "-c", CUSTOMISE)
        partial.rename(image)
    return image


def _sandboxed(log: Path, *command: str | Path) -> None:
    """Run a command in namespaces of its own, so that it leaves neither mounts nor processes, even if killed."""
    sandbox = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", MARK: BUILD}
    with log.open("a") as output:
        result = subprocess.run((*sandbox, *command), stdout=output, stderr=output, env=environment, check=False)
    if result.returncode:
        raise LabError(f"{command[0]} failed; read {log}\n{log.read_text()[-1000:].rstrip()}")
