"""Unattended upgrades in small: hold dpkg's lock until somebody has refreshed apt's lists and waits for the lock."""

import fcntl
import subprocess
import time
from pathlib import Path


def refreshing() -> bool:
    """Whether apt-get update is running."""
    return subprocess.run(["pgrep", "--full", "apt-get update"], stdout=subprocess.DEVNULL, check=False).returncode == 0


if __name__ == "__main__":
    with Path("/var/lib/dpkg/lock-frontend").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        while not refreshing():
            time.sleep(0.05)
        while refreshing():
            time.sleep(0.05)
        time.sleep(3)
