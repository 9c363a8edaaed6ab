"""In how many steps, and how far, does textual inversion learn? Ways of learning against today's, on toyworld.

    python bench/learning.py --out DIR [--variants default cosine ...] [--concepts ...] [--seeds 1 2 3 4 5]

Each variant learns three concepts with each seed, at a global batch of 16 unless its name says another. The target is
the loss of the best caption that a person could write, on the same 64 fixed triples. Counted are the steps to it; the
work before the first step, in steps that would take as long; and the loss after 100 steps. Every finished training is
a file in DIR, so the benchmark can be stopped and goes on; ``learning.json`` has all figures. Losses do not depend on
the machine's load; seconds do.
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from learning_variants import GLOBAL_BATCH, VARIANTS, best_caption, learn

from sdtune.files import write_atomically
from toyworld.toys import CONCEPTS

BASELINE = "default"


def cell(out: Path, variant: str, concept: str, seed: int, steps: int, *, train: bool = True) -> dict[str, Any] | None:
    """The result of one training: from its file, or trained now; None where neither."""
    file = out / f"{variant}.{concept}.{seed}.json"
    how = {"variant": repr(VARIANTS[variant]), "steps": steps}
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if found["how"] == how:
            return found
    if not train:
        return None
    made = {"how": how, **learn(VARIANTS[variant], concept, seed, steps)}
    write_atomically(file, json.dumps(made) + "\n")
    return made


def target(out: Path, concept: str, *, search: bool = True) -> tuple[str, float]:
    """The best caption of a concept, and its loss: from its file, or searched now."""
    file = out / f"caption.{concept}.json"
    if not file.is_file():
        if not search:
            sys.exit(f"error: {file} is missing; leave out --only-show to make it")
        write_atomically(file, json.dumps(best_caption(concept)) + "\n")
    caption, loss = json.loads(file.read_text(encoding="utf-8"))
    return caption, loss


def figures(found: dict[str, Any], goal: float, steps: int) -> dict[str, Any]:
    """Steps and seconds to the goal, and the last loss; a training that does not reach it counts as one step more."""
    losses = {int(step): loss for step, loss in found["losses"].items()}
    reached = next((step for step, loss in sorted(losses.items()) if loss <= goal), None)
    counted = steps + 1 if reached is None else reached
    before = found["samples_before"] / GLOBAL_BATCH
    return {
        "steps": counted,
        "before": before,
        "total": counted + before,
        "seconds": found["seconds_before"] + sum(found["step_s"][:counted]),
        "last": losses[steps],
        "relative": losses[steps] / goal,
        "missed": reached is None,
    }


def row(name: str, each: list[dict[str, Any]], base: dict[tuple[str, int], dict[str, Any]]) -> str:
    """A line of the table: medians, and the median ratio to the baseline's training of the same concept and seed."""
    columns = ("steps", "before", "total", "seconds", "relative")
    middle = {key: median(one[key] for one in each) for key in columns}
    pairs = [(one, base[one["concept"], one["seed"]]) for one in each if (one["concept"], one["seed"]) in base]
    fewer = median(b["total"] / a["total"] if a["total"] else math.inf for a, b in pairs)
    lower = median(a["last"] / b["last"] for a, b in pairs)
    return (
        f"{name:20}{middle['steps']:>6g}{middle['before']:>8.1f}{middle['total']:>7.1f}{fewer:>8.2f} x"
        f"{middle['seconds']:>9.1f}{middle['relative']:>9.4f}{100 * (lower - 1):>+9.2f} %"
        f"{sum(one['missed'] for one in each):>6}/{len(each)}"
    )


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """All variants that have results, each against the baseline."""
    base = {(one["concept"], one["seed"]): one for one in found[BASELINE]}
    titles = f"{'steps':>6}{'before':>8}{'total':>7}{'fewer':>10}{'seconds':>9}{'of goal':>9}{'last loss':>11}  missed"
    head = " " * 20 + titles
    return "\n".join([head, *(row(name, each, base) for name, each in found.items() if each)])


def main() -> None:
    """Train what is not there yet, seed by seed, and print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished trainings and of learning.json")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default all")
    parser.add_argument("--concepts", nargs="+", choices=CONCEPTS, default=list(CONCEPTS), help="default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="default 1 to 5")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of each training (default 100)")
    parser.add_argument("--only-show", action="store_true", help="print what is there, train nothing")
    args = parser.parse_args()
    train = not args.only_show
    if train:
        args.out.mkdir(parents=True, exist_ok=True)
    goals = {concept: target(args.out, concept, search=train) for concept in args.concepts}
    for concept, (caption, loss) in goals.items():
        print(f"{concept}: {caption!r} has a loss of {loss:.5f}", flush=True)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in dict.fromkeys([BASELINE, *args.variants])}
    for seed in args.seeds:
        for name, concept in itertools.product(found, args.concepts):
            made = cell(args.out, name, concept, seed, args.steps, train=train)
            if made is None:
                continue
            one = figures(made, goals[concept][1], args.steps)
            found[name].append({"concept": concept, "seed": seed, **one})
        print(f"\nup to seed {seed}\n{table(found)}", flush=True)
    if train:
        summary = {"goals": goals, "steps": args.steps, "variants": found}
        write_atomically(args.out / "learning.json", json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
