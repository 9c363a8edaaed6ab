"""What to do about a run, by what its folder tells, and what to tell of the pictures that were drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

# {role: (key of run_state.look, what a message calls it)}: what follows when the training of a run has finished.
_AFTER_TRAINING = {
    "training": ("collected", "results"),
    "openvino_export": ("exported", "OpenVINO copy"),
    "run_report": ("reported", "report"),
}


def roles_after_training(run_tags: Collection[str], skip_tags: Collection[str]) -> list[str]:
    """The roles from the end of the training on that a call of train.yml with these tags plays."""
    everything = not {"all", "sweep"}.isdisjoint(run_tags)  # role sweep plays these roles for each of its runs
    return [role for role in _AFTER_TRAINING if role not in skip_tags and (everything or role in run_tags)]


def run_plan(seen: Mapping[str, Any], roles: Collection[str], overwrite: bool = False) -> dict[str, Any]:
    """Whether train.yml starts a run or attaches to the one that is there.

    It attaches where the run is going on, and where one that finished under its supervisor lacks what this call brings.

    Args:
        seen: What ``run_state.look`` says of the run.
        roles: What ``roles_after_training`` says of the call.
        overwrite: ``training_overwrite``: a finished run is done again.

    Returns:
        ``attach``; ``reason``: why, as a message says it after the run's name; ``left``: of a finished run that is
        attached to, the roles whose work is missing.
    """
    if seen.get("supervised"):
        reason = "is going on and is followed; the settings of this call do not apply to it"
        return {"attach": True, "reason": reason, "left": []}
    finished = seen.get("finished") and seen.get("state", {}).get("state") == "finished"
    left = [role for role, (key, _) in _AFTER_TRAINING.items() if role in roles and not seen.get(key)]
    if overwrite or not finished or not left:
        return {"attach": False, "reason": "", "left": []}
    missing = ", ".join(_AFTER_TRAINING[role][1] for role in left)
    return {"attach": True, "reason": f"has finished, and this call brings what is missing: {missing}", "left": left}


def _numbers(cores: str) -> set[int]:
    """Numbers of a list such as ``0-3,8``."""
    ranges = [part.partition("-") for part in filter(None, str(cores).replace(" ", "").split(","))]
    return {number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)}


def shares_in_the_way(shares: Iterable[Mapping[str, Any]], cores: str = "") -> str:
    """The other runs that use cores of a host, as a message names them; empty if there are none.

    Args:
        shares: What ``host_claims.py shares`` says of the host: runs of all users, without those of this call.
        cores: Those of the host that they need, such as ``0-13``; empty: all.
    """
    wanted = _numbers(cores)
    return ", ".join(
        f"run {one['run']} of user {one['user']}, on cores {one['cores']}"
        for one in shares
        if not wanted or not wanted.isdisjoint(_numbers(one["cores"]))
    )


def unfinished_runs(rows: Collection[Mapping[str, Any]]) -> str:
    """Which of the runs that went on side by side did not finish, and why.

    Args:
        rows: of their table, as ``run_state.py table`` prints it.
    """
    ended = [row for row in rows if row["state"] != "finished"]
    whys = "; ".join(
        f"{row['run']} {row['state']}: {row.get('never') or row.get('reason') or 'no reason given'}" for row in ended
    )
    return f"{len(ended)} of {len(rows)} runs did not finish ({whys}); the same command goes on with them"


def drawing_summary(state: Mapping[str, Any]) -> str:
    """How many pictures were drawn, by whom, and which hosts were lost; ``state`` as in drawing.json."""
    hosts = ", ".join(f"{host}: {batches}" for host, batches in state["hosts"].items())
    lost = "".join(f"; warning: {host} {why}" for host, why in state["lost"].items())
    return f"{state['pictures']} pictures; batches drawn by {hosts}{lost}"


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """{name: function}."""
        return {
            "roles_after_training": roles_after_training,
            "run_plan": run_plan,
            "shares_in_the_way": shares_in_the_way,
            "unfinished_runs": unfinished_runs,
            "drawing_summary": drawing_summary,
        }
