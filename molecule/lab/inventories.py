"""The inventory folder of a lab: the embedded model and pictures of inventory/local, on the lab's hosts."""

import os
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def default_folder(name: str) -> Path:
    """A folder beside the inventories of users: inventory/local names the embedded model relative to its own folder."""
    return REPOSITORY / "inventory" / f"lab-{name}"


def write(folder: Path, hosts: dict[str, str], settings: dict[str, str]) -> None:
    """Write hosts.yml and group_vars. `hosts` maps names to addresses, the primary first."""
    primary, *workers = (f"        {name}: {{ansible_host: {address}}}\n" for name, address in hosts.items())
    variables = folder / "group_vars" / "all"
    variables.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.yml").write_text(
        "---\n"
        "cluster:\n"
        "  children:\n"
        f"    primary:\n      hosts:\n{primary}"
        f"    workers:\n      hosts:{'' if workers else ' {}'}\n{''.join(workers)}"
    )
    link = variables / "10-toyworld.yml"
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(REPOSITORY / "inventory/local/group_vars/all.yml", variables))
    (variables / "20-lab.yml").write_text("---\n" + "".join(f"{key}: {value}\n" for key, value in settings.items()))


def connection(user: str, state: Path) -> dict[str, str]:
    """Connection variables: a private key of the lab, and only host keys that the lab knows."""
    options = {
        "UserKnownHostsFile": f"{state}/known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
    }
    return {
        "ansible_user": user,
        "ansible_ssh_private_key_file": f"{state}/admin_key",
        "ansible_ssh_common_args": " ".join(f"-o {key}={value}" for key, value in options.items()),
        "ansible_control_path_dir": f"{state}/control",
        "ansible_timeout": "30",  # for machines with high load
    }


def remove(folder: Path) -> None:
    """Remove the folder that `write` created."""
    if folder.exists():
        shutil.rmtree(folder)
