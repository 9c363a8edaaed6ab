"""Where the time of OpenVINO's UNet goes, for the shapes of Stable Diffusion 1.5, and ways to run it.

    python bench/unet_profile.py KEPT/run/openvino          # a static copy, of bench/generation.py --keep KEPT
    python bench/unet_profile.py KEPT/run/openvino --ways   # one call or two for guidance, threads, streams, precision

Prints the time of each kind of operation from OpenVINO's performance counters, with the kernels that computed it; with
``--ways`` also the seconds of a guided evaluation in each way, and in torch with the operations of training and with
diffusers' own. ``--memory`` prints the resident memory instead.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from contenders import say
from diffusers import UNet2DConditionModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from sd15 import make

from sdtune.host.processor import has_bf16
from sdtune.inference.feature_cache import count_branches, split
from sdtune.models.registry import family_of
from sdtune.settings import Job, build

FAST = "bf16" if has_bf16() else "f32"


def resident() -> tuple[float, float]:
    """MB of resident memory of this process: its own, and mapped files."""
    lines = [line.split() for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()]
    found = {line[0]: int(line[1]) / 1000 for line in lines if line[0].startswith("Rss")}
    return found["RssAnon:"], found["RssFile:"]


def inputs_of(model: openvino.CompiledModel) -> dict[str, np.ndarray]:
    """Random inputs."""
    rng = np.random.default_rng(0)
    return {
        port.any_name: np.array([500])
        if port.any_name == "timestep"
        else rng.standard_normal(port.shape, dtype=np.float32)
        for port in model.inputs
    }


def compiled(unet: openvino.Model, **config: Any) -> openvino.CompiledModel:
    """The UNet, compiled as sdtune does, but for ``config``."""
    usual = {"INFERENCE_PRECISION_HINT": FAST, "PERFORMANCE_HINT": "LATENCY"}
    usual["INFERENCE_NUM_THREADS"] = len(os.sched_getaffinity(0))
    return openvino.Core().compile_model(unet, "CPU", usual | config)


def seconds(model: openvino.CompiledModel, rounds: int) -> float:
    """The fastest of some evaluations, after one."""
    inputs, times = inputs_of(model), []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        model(inputs, share_inputs=True)
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def with_batch(unet: openvino.Model, batch: int) -> openvino.Model:
    """The same UNet for another batch size."""
    changed = unet.clone()
    shapes = {port: port.get_partial_shape() for port in changed.inputs}
    for port, shape in shapes.items():
        if port.any_name != "timestep":
            shape[0] = batch
    changed.reshape(shapes)
    return changed


def profile(unet: openvino.Model) -> None:
    """Print the time of each kind of operation."""
    request = compiled(unet, PERF_COUNT=True).create_infer_request()
    for _ in range(2):
        request.infer(inputs_of(request.get_compiled_model()))
    spent: dict[str, float] = defaultdict(float)
    kernels: dict[str, set[str]] = defaultdict(set)
    for one in request.get_profiling_info():
        spent[one.node_type] += one.real_time.total_seconds()
        if one.real_time.total_seconds():
            kernels[one.node_type].add(one.exec_type)
    total = sum(spent.values())
    say(f"\n{'operation':28}{'ms':>8}{'share':>8}  kernels")
    for kind, time_spent in sorted(spent.items(), key=lambda item: -item[1]):
        if time_spent > 0.002 * total:
            say(f"{kind:28}{1000 * time_spent:>8.1f}{time_spent / total:>8.1%}  {', '.join(sorted(kernels[kind]))}")
    say(f"{'all':28}{1000 * total:>8.1f}")


def peak_of(file: Path, branch: int | None) -> tuple[float, float]:
    """Resident memory with a compiled UNet, or with the two of feature caching; called in a process of its own."""
    unet = openvino.Core().read_model(file)
    kept = [compiled(model) for model in ([unet] if branch is None else split(unet, branch))]
    del unet
    for model in kept:
        model(inputs_of(model))
    return resident()


def memory(file: Path, branches: int) -> None:
    """Print the resident memory without feature caching, and with it at each branch."""
    for branch in (None, *range(branches)):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            own, mapped = fresh.submit(peak_of, file, branch).result()
        what = "one UNet" if branch is None else f"two UNets, branch {branch}"
        say(f"{what}: {own:.0f} MB of its own, {mapped:.0f} MB of mapped files")


def torch_unets(model: Path) -> dict[str, UNet2DConditionModel]:
    """Stable Diffusion 1.5's UNet in torch: as training computes it, and as diffusers does."""
    settings = {"mixed_precision": "bf16" if FAST == "bf16" else "no"}
    run = {"run_name": "profile", "run_dir": "/nowhere", "model": {"path": str(model)}, "training": settings}
    job = build(Job, {**run, "data": {"path": "/nowhere", "resolution": 512, "initializer_token": "toy"}})
    trained: Any = family_of(model).load(job)
    dtype = torch.bfloat16 if FAST == "bf16" else torch.float32
    plain = UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=dtype)
    return {"in torch, with the operations of training": trained.unet, "in torch, with diffusers' own": plain}


@torch.no_grad()
def torch_seconds(unet: UNet2DConditionModel, pair: int, rounds: int) -> float:
    """The fastest of some evaluations, after one."""
    samples, times = torch.randn(pair, 4, 64, 64, dtype=unet.dtype), []
    hidden = torch.randn(pair, 77, unet.config.cross_attention_dim, dtype=unet.dtype)
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        unet(samples, torch.tensor([500]), hidden)
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def ways(unet: openvino.Model, rounds: int, model: Path | None) -> None:
    """Print the seconds of a guided evaluation in each way; in torch too, with the pipeline ``model``."""
    pair = unet.input("sample").shape[0]
    one = seconds(compiled(unet), rounds)
    say(f"\nguidance in one call of {pair} samples: {one:.3f} s")

    def line(what: str, value: float) -> None:
        say(f"{what}: {value:.3f} s, {one / value:.2f} x")

    half = with_batch(unet, pair // 2)
    line(f"in two calls of {pair // 2}", 2 * seconds(compiled(half), rounds))
    asynchronous = compiled(half, PERFORMANCE_HINT="THROUGHPUT", NUM_STREAMS=2)
    requests = [asynchronous.create_infer_request() for _ in range(2)]
    given, times = inputs_of(asynchronous), []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        for request in requests:
            request.start_async(given)
        for request in requests:
            request.wait()
        times.append(time.perf_counter() - begun)
    line("in two streams at once", min(times[1:]))
    for precision in {"f32", "f16", "bf16"} - {FAST}:
        line(f"computed in {precision}", seconds(compiled(unet, INFERENCE_PRECISION_HINT=precision), rounds))
    line("hyper-threads too", seconds(compiled(unet, ENABLE_HYPER_THREADING=True), rounds))
    line("threads not bound to cores", seconds(compiled(unet, ENABLE_CPU_PINNING=False), rounds))
    for branch in range(min(4, count_branches(unet))):
        whole, shallow = split(unet, branch)
        line(f"whole, with the feature of branch {branch}", seconds(compiled(whole), rounds))
        line(f"shallow at branch {branch}", seconds(compiled(shallow), rounds))
    for what, made in torch_unets(model).items() if model else ():
        line(what, torch_seconds(made, pair, rounds))


def main() -> None:
    """Profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("copy", type=Path, help="folder of an OpenVINO copy with static shapes")
    parser.add_argument("--ways", action="store_true", help="measure other ways to run it too")
    parser.add_argument("--memory", action="store_true", help="measure the memory of feature caching, for each branch")
    parser.add_argument("--rounds", type=int, default=3, help="evaluations of each way; the fastest counts (default 3)")
    args = parser.parse_args()
    file = args.copy / "unet" / "openvino_model.xml"
    unet = openvino.Core().read_model(file)
    if args.memory:
        memory(file, count_branches(unet))
        return
    profile(unet)
    if args.ways:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdtune" / "bench"
        shapes = [list(unet.input(name).shape)[1:] for name in ("sample", "encoder_hidden_states")]
        is_sd15 = shapes == [[4, 64, 64], [77, 768]]  # of Stable Diffusion 1.5 at 512 pixels
        ways(unet, args.rounds, make(cache / "sd15") if is_sd15 else None)


if __name__ == "__main__":
    main()
