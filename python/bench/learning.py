"""Steps until the learned embedding reaches the loss of the best caption that a person could write, on toyworld.

    python bench/learning.py [--ranks 2 4] [--seeds 1 2 3 4 5]

The engine and the plain loop have the same global batch of 16, learning rate and optimizer, and are validated on the
same 64 triples every second step. In the plain loop all ranks draw the same noise and timesteps, as in diffusers'
``textual_inversion.py``, so with more ranks its batch of 16 has fewer different samples.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

from contenders import PYTHON, Stage, run, say

REPOSITORY = PYTHON.parent
GLOBAL_BATCH = 16


def steps_to(losses: dict[int, float], target: float) -> int | None:
    """The first validated step whose loss is at most ``target``; None if there is none."""
    return next((step for step, loss in sorted(losses.items()) if loss <= target), None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of ranks (default 2 4)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="one training each (default 1 to 5)"
    )
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps (default 80)")
    parser.add_argument(
        "--caption",
        default="yellow robot with glasses and a green hat",
        help="whose loss is the target (default: the best one by hand)",
    )
    args = parser.parse_args()

    for ranks in args.ranks:
        found: dict[str, list[int | None]] = {"engine": [], "plain": []}
        last: dict[str, list[float]] = {"engine": [], "plain": []}
        for seed in args.seeds:
            stage = Stage(
                python=Path(sys.executable),
                stack="native",
                model=REPOSITORY / "toyworld" / "model",
                pictures=REPOSITORY / "toyworld" / "concept",
                resolution=64,
                steps=args.steps,
                ranks=ranks,
                batch=GLOBAL_BATCH // ranks,
                seed=seed,
                validation_steps=2,
                reference_caption=args.caption,
            )
            engine = run("engine", stage)
            target = engine.reference_loss
            if target is None:
                raise RuntimeError("the engine did not measure the reference caption")
            for who, costs in (("engine", engine), ("plain", run("plain", stage))):
                found[who].append(steps_to(costs.validation, target))
                last[who].append(costs.validation[args.steps])
            steps, losses = (", ".join(f"{who} {values[who][-1]}" for who in values) for values in (found, last))
            say(f"  {ranks} ranks, seed {seed}: caption {target:.5f}; steps to it: {steps}; at the end: {losses}")
        say(f"{ranks} ranks, median of {len(args.seeds)} seeds:")
        for who in ("engine", "plain"):
            reached = sorted(s if s is not None else args.steps + 1 for s in found[who])
            never = sum(s is None for s in found[who])
            say(
                f"  {who:6} {median(reached):g} steps ({never} of {len(reached)} seeds not within {args.steps}), "
                f"loss at the end {median(last[who]):.5f}"
            )


if __name__ == "__main__":
    main()
