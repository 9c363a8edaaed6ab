"""Pictures a minute from 1, 2 and 4 hosts: what sharing out costs.

    make lab
    ansible-playbook -i inventory/lab-try site.yml
    python bench/hosts.py ../inventory/lab-try

The hosts of a lab share the cores of one machine, so they are not faster together: of pictures a minute from one host,
several keep what sharing out leaves of them. On real servers the same figure is the speed-up over the number of hosts.
The time counts from the first process's start to the last picture's arrival on the primary, processes' start included.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

from contenders import PYTHON, say

REPOSITORY = PYTHON.parent
BIN = REPOSITORY / ".venv" / "bin"


def ansible(program: str, *arguments: str) -> str:
    """What a program of Ansible prints.

    Raises:
        RuntimeError: it failed; with what it printed.
    """
    done = subprocess.run([BIN / program, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(arguments)} failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return done.stdout


def draw(inventory: Path, hosts: list[str], pictures: int) -> tuple[float, dict[str, int]]:
    """Seconds for so many pictures by the first host's primary and the others, and {host: batches that it drew}."""
    asked = {"image_generation_seeds": list(range(1, pictures + 1))}
    ansible(
        "ansible-playbook", "-i", str(inventory), "generate.yml", "--limit", ",".join(hosts), "-e", json.dumps(asked)
    )
    state = "cat {{ work_dir }}/runs/{{ run_name }}/drawing.json"
    told = ansible("ansible", "-i", str(inventory), hosts[0], "-m", "ansible.builtin.command", "-a", state)
    drawn = json.loads(told[told.index("{") :])
    if drawn["pictures"] != pictures or drawn["lost"]:
        raise RuntimeError(f"not all was drawn, or not by all: {drawn}")
    return drawn["ended"] - drawn["began"], drawn["hosts"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inventory", type=Path, help="of hosts that are provisioned and have a finished run")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4], help="how many draw, the base first")
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    inventory = args.inventory.resolve()
    listed = ansible("ansible", "-i", str(inventory), "cluster", "--list-hosts")
    names = re.findall(r"^ +(\S+)$", listed, re.MULTILINE)
    if len(names) < max(args.hosts):
        parser.error(f"{inventory} has {len(names)} hosts: {', '.join(names)}")
    rates: dict[int, list[float]] = {count: [] for count in args.hosts}
    for number in range(1, args.rounds + 1):
        for count in args.hosts:
            seconds, shares = draw(inventory, names[:count], args.pictures)
            rates[count].append(60 * args.pictures / seconds)
            shared = ", ".join(f"{host} {batches}" for host, batches in shares.items())
            say(f"  round {number}, {count} host(s): {rates[count][-1]:.1f} pictures a minute; batches: {shared}")
    base = args.hosts[0]
    say(f"\n{args.pictures} pictures, median of {args.rounds}")
    for count in args.hosts:
        kept = sorted(r / b for r, b in zip(rates[count], rates[base], strict=True))[args.rounds // 2]
        say(f"{count} host(s): {sorted(rates[count])[args.rounds // 2]:>7.1f} a minute, {kept:.2f} x of {base} host(s)")


if __name__ == "__main__":
    main()
