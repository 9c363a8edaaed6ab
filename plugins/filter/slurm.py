"""Filters of role slurm: what is wrong with a job before it is submitted, and what the nodes offer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# What Slurm says of a job that it does not take, as a pattern, and the remedy; the first that matches counts.
REFUSALS = [
    ("account", "set slurm_account to one that you may use; sacctmgr show associations user=$USER lists them"),
    ("[Qq][Oo][Ss]", "set slurm_qos to one that you may use; sacctmgr show qos lists them"),
    ("partition", "set slurm_partition to one that sinfo lists, and that you may use"),
    ("time limit|TimeLimit", "lower slurm_time_limit"),
    ("feature|constraint", "set slurm_constraint to features that sinfo -o '%N %f' lists"),
    ("[Mm]emory", "lower slurm_memory_mb, or preflight_memory_mb_per_rank if your model is smaller"),
    (
        "node configuration|[Nn]ode count",
        "lower slurm_nodes or the ranks and threads of a node, or choose another partition; sinfo -Nl lists nodes",
    ),
    ("", "ask for less, or ask the administrators; sbatch --test-only says it too"),
]


def slurm_minutes(text: str) -> float | None:
    """Minutes of a time limit as sbatch takes it: ``30``, ``30:00``, ``2:00:00``, ``1-12``; None if it is none.

    ``UNLIMITED`` is infinite; so is an empty text.
    """
    if str(text).upper() in ("", "UNLIMITED", "INFINITE", "NONE"):
        return float("inf")
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(text).strip())
    if not found:
        return None
    days, *rest = (None if part is None else int(part) for part in found.groups())
    first, second, third = rest
    if days is not None:  # days-hours[:minutes[:seconds]]
        return days * 1440 + (first or 0) * 60 + (second or 0) + (third or 0) / 60
    if third is not None:
        return (first or 0) * 60 + (second or 0) + third / 60
    return (first or 0) + (second or 0) / 60


def _number(text: str | None, other: float = float("inf")) -> float:
    return float(text) if text and text.isdigit() else other


def chosen_partition(site: Mapping[str, Any], asked: str) -> Mapping[str, str] | None:
    """The partition of a job; None if there is none of that name, or no default."""
    if asked:
        return site["partitions"].get(asked)
    return next((one for one in site["partitions"].values() if one.get("Default") == "YES"), None)


def nodes_of(site: Mapping[str, Any], partition: Mapping[str, str] | None) -> list[Mapping[str, str]]:
    """The nodes of a partition."""
    if partition is None:
        return []
    name = partition["PartitionName"]
    return [node for node in site["nodes"].values() if name in node.get("Partitions", "").split(",")]


def node_cores(node: Mapping[str, str]) -> int:
    """Physical cores of a node."""
    return int(_number(node.get("CPUTot"), 1)) // int(_number(node.get("ThreadsPerCore"), 1))


def smallest_node(site: Mapping[str, Any], partition: str) -> dict[str, Any]:
    """The node of a partition with the fewest cores: its ``name``, ``cores``, ``sockets``, ``memory_mb``."""
    nodes = nodes_of(site, chosen_partition(site, partition))
    if not nodes:
        return {"name": "", "cores": 1, "sockets": 1, "memory_mb": 0}
    smallest = min(nodes, key=node_cores)
    return {
        "name": smallest["NodeName"],
        "cores": node_cores(smallest),
        "sockets": int(_number(smallest.get("Sockets"), 1)),
        "memory_mb": int(_number(smallest.get("RealMemory"), 0)),
    }


def _size_problems(nodes: list[Mapping[str, str]], job: Mapping[str, Any], name: str) -> Iterable[tuple[str, str]]:
    """What of the nodes, cores and memory of a job the nodes of a partition do not have."""
    wanted, cores, memory = int(job["nodes"]), int(job["cores"]), int(job["memory_mb"])
    if len(nodes) < wanted:
        yield f"{wanted} nodes, and partition {name} has {len(nodes)}", f"set slurm_nodes to at most {len(nodes)}"
        return
    enough = [node for node in nodes if node_cores(node) >= cores]
    most = max(map(node_cores, nodes), default=0)
    if len(enough) < wanted:
        yield (
            f"{cores} cores on each of {wanted} nodes, and {len(enough)} nodes of partition {name} have as many (the "
            f"largest has {most})",
            "lower launch_config_ranks_per_node or launch_config_threads_per_rank",
        )
        return
    enough = [node for node in enough if _number(node.get("RealMemory"), 0) >= memory]
    most = max((int(_number(node.get("RealMemory"), 0)) for node in nodes), default=0)
    if len(enough) < wanted:
        yield (
            f"{memory} MB on each of {wanted} nodes, and {len(enough)} nodes of partition {name} have as much (the "
            f"largest has {most} MB)",
            "lower launch_config_ranks_per_node, slurm_memory_mb, or preflight_memory_mb_per_rank if your model is "
            "smaller",
        )


def _problems(site: Mapping[str, Any], job: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """What is wrong, and the remedy; the first says most."""
    if site["missing"]:
        yield (
            f"there are no Slurm commands ({', '.join(site['missing'])})",
            "name a login node of the cluster in the inventory, make the commands available to a shell without a "
            "terminal there (module load in ~/.bashrc), or set launch_config_launcher: hydra",
        )
        return
    if site["error"]:
        yield f"Slurm does not answer ({site['error']})", "try sinfo there, and ask the administrators"
        return
    open_ones = (key for key, one in site["partitions"].items() if one.get("State", "UP") == "UP")
    names = ", ".join(sorted(open_ones)) or "none"
    partition = chosen_partition(site, job["partition"])
    if partition is None and job["partition"]:
        yield f"there is no partition '{job['partition']}'", f"set slurm_partition to one of {names}"
    if partition is None:
        if not job["partition"]:
            yield "Slurm has no default partition", f"set slurm_partition to one of {names}"
        return
    name, state = partition["PartitionName"], partition.get("State", "UP")
    if state != "UP":
        yield f"partition {name} is {state}", f"set slurm_partition to one of {names}, or ask the administrators"
        return
    allowed, account = partition.get("AllowAccounts", "ALL"), job.get("account", "")
    if account and allowed != "ALL" and account not in allowed.split(","):
        yield (
            f"account {account} may not use partition {name}, which is for {allowed}",
            "set slurm_account to one of those, or choose another slurm_partition",
        )
    limit, asked = slurm_minutes(partition.get("MaxTime", "")), slurm_minutes(job["time_limit"])
    if asked is not None and limit is not None and job["time_limit"] and asked > limit:
        yield (
            f"the time limit {job['time_limit']} is above that of partition {name}, {partition['MaxTime']}",
            "lower slurm_time_limit; the run goes on from its checkpoint, in as many jobs as it takes",
        )
    most = _number(partition.get("MaxNodes"))
    if int(job["nodes"]) > most:
        yield f"{job['nodes']} nodes, and partition {name} allows {most:.0f}", f"set slurm_nodes to at most {most:.0f}"
        return
    yield from _size_problems(nodes_of(site, partition), job, name)


def slurm_rules(site: Mapping[str, Any], job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rules for hosts that a job breaks, as preflight takes them.

    Args:
        site: what ``slurm_site.py ask`` said.
        job: ``partition``, ``account``, ``nodes``, ``cores`` and ``memory_mb`` of each node, ``time_limit``.
    """
    found = list(_problems(site, job))
    if not found and site["refusal"]:
        remedy = next(remedy for pattern, remedy in REFUSALS if re.search(pattern, site["refusal"]))
        found = [(f"Slurm does not take the job: {site['refusal']}", remedy)]
    return [{"about": "slurm", "holds": False, "wrong": wrong, "remedy": remedy} for wrong, remedy in found]


def node_problems(found: Iterable[Mapping[str, Any]], mark: str, work_dir: str) -> list[str]:
    """What is wrong with nodes, with the remedy, one line each; ``found``: what ``slurm_site.py probe`` said of them.

    Args:
        found: one object a node.
        mark: what the login node has written.
        work_dir: where it has written that.
    """
    lines = []
    for node in found:
        name = node["node"]
        if node["mark"] != mark:
            lines.append(
                f"{name}: does not see work_dir {work_dir} of the login node; set work_dir to a folder on the file "
                f"system that both share"
            )
        elif not node["writable"]:
            lines.append(f"{name}: cannot write to work_dir {work_dir}; set it to a folder that can be written there")
        elif missing := ", ".join(node.get("missing", [])):
            lines.append(
                f"{name}: lacks {missing}; run ansible-playbook provision.yml with the same inventory, or let the "
                f"administrators install it there"
            )
        if "avx2" not in node["flags"]:
            lines.append(
                f"{name}: its processor ({node['model'] or 'unknown'}) has no AVX2; choose other nodes with "
                f"slurm_constraint, or slurm_arguments: [--exclude={name}]"
            )
    return lines


def nodes_answer(output: str) -> list[dict[str, Any]]:
    """The JSON lines that the nodes printed; other lines are remarks of Slurm and of login scripts."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def nodes_have_bf16(found: Iterable[Mapping[str, Any]]) -> bool:
    """Whether all nodes that were looked at have instructions for bf16."""
    nodes = list(found)
    return bool(nodes) and all({"avx512_bf16", "amx_bf16"} & set(node["flags"]) for node in nodes)


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """{name: function}."""
        functions = (slurm_minutes, smallest_node, slurm_rules, node_problems, nodes_answer, nodes_have_bf16)
        return {function.__name__: function for function in functions}
