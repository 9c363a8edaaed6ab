"""Images per minute from 1, 2 and 4 hosts: the overhead of the worker pool.

    make lab
    ansible-playbook -i inventory/lab-try site.yml
    python bench/hosts.py ../inventory/lab-try

The hosts of a lab share the cores of one machine, so several are not faster than one: the ratio to one host's rate
shows the overhead of the pool, and of more threads than cores. One rate counts from the start of the first process. It
includes loading, which takes four processes on the same cores four times as long. The other counts from the first image
on the primary. Both end with the last image.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path
from statistics import median

from contenders import PYTHON, say

REPOSITORY = PYTHON.parent
BIN = REPOSITORY / ".venv" / "bin"


def ansible(program: str, *arguments: str) -> str:
    """Run a program of Ansible; returns its output.

    Raises:
        RuntimeError: it failed; the message holds its output.
    """
    done = subprocess.run([BIN / program, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(arguments)} failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return done.stdout


def generate(inventory: Path, hosts: list[str], pictures: int) -> tuple[float, float, dict[str, int]]:
    """Images per minute from the start, and from the first image on, and {host: its batches}."""
    asked = {"image_generation_seeds": list(range(1, pictures + 1))}
    ansible(
        "ansible-playbook", "-i", str(inventory), "generate.yml", "--limit", ",".join(hosts), "-e", json.dumps(asked)
    )
    look = "cd {{ work_dir }}/runs/{{ run_name }} && cat drawing.json && stat --format %.Y images/*-seed*.png"
    told = ansible("ansible", "-i", str(inventory), hosts[0], "-m", "ansible.builtin.shell", "-a", look)
    state, *arrivals = told[told.index("{") :].split("\n")
    drawn, times = json.loads(state), sorted(float(line) for line in arrivals if line)
    if len(times) != pictures or drawn["lost"]:
        raise RuntimeError(f"images or hosts are missing: {drawn}")
    seconds, steady = drawn["ended"] - drawn["began"], times[-1] - times[0]
    return 60 * pictures / seconds, 60 * (pictures - 1) / steady, drawn["hosts"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inventory", type=Path, help="whose hosts are provisioned and have a finished run")
    parser.add_argument(
        "--hosts", type=int, nargs="+", default=[1, 2, 4], help="numbers of hosts, the reference first (default 1 2 4)"
    )
    parser.add_argument("--pictures", type=int, default=96, help="images of a call (default 96)")
    parser.add_argument("--rounds", type=int, default=3, help="calls with each number of hosts (default 3)")
    args = parser.parse_args()
    inventory = args.inventory.resolve()
    listed = ansible("ansible", "-i", str(inventory), "cluster", "--list-hosts")
    names = re.findall(r"^ +(\S+)$", listed, re.MULTILINE)
    if len(names) < max(args.hosts):
        parser.error(f"{inventory} has {len(names)} hosts: {', '.join(names)}")
    rates: dict[int, list[tuple[float, float]]] = {count: [] for count in args.hosts}
    for number in range(1, args.rounds + 1):
        for count in args.hosts:
            whole, steady, shares = generate(inventory, names[:count], args.pictures)
            rates[count].append((whole, steady))
            shared = ", ".join(f"{host} {batches}" for host, batches in shares.items())
            speed = f"{whole:.0f} per minute, {steady:.0f} from the first image on"
            say(f"  round {number}, {count} host(s): {speed}; batches: {shared}")
    say(f"\n{args.pictures} images, medians of {args.rounds}: per minute, and ratio to {args.hosts[0]} host(s)")
    base = rates[args.hosts[0]]
    for count in args.hosts:
        told = []
        for i in (0, 1):
            rate = median(r[i] for r in rates[count])
            kept = median(r[i] / b[i] for r, b in zip(rates[count], base, strict=True))
            told.append(f"{rate:>6.0f} {kept:>5.2f} x")
        say(f"{count} host(s): {told[0]} from the start, {told[1]} from the first image on")


if __name__ == "__main__":
    main()
