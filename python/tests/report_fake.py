"""Fake run folders for tests of the report: their numbers are invented."""

import json
from pathlib import Path

from PIL import Image, PngImagePlugin

from tests.proof import proof

HOSTILE = "<script>alert('$x$ & \"y\"')</script>"


def describe_hosts(hosts: int, ranks_per_host: int, changes: dict) -> list[dict]:
    """The facts of each host, as metrics.jsonl has them."""
    return [
        {
            "host": f"node{n + 1}",
            "python": "3.11.2",
            "torch": "2.13.0+cpu",
            "instruction_set": "AVX512",
            "threads_per_rank": 14,
            "cpu": "A Processor",
            "cores": 28,
            "features": ["avx2", "avx512f", "avx512_bf16"],
            "memory_bytes": 2.7e11,
            "interface": "eth0" if hosts > 1 else "lo",
            "link_mbit": 10000 if hosts > 1 else None,
            "tcmalloc": True,
            "ranks": list(range(n * ranks_per_host, (n + 1) * ranks_per_host)),
            **(changes if n == 0 else {}),
        }
        for n in range(hosts)
    ]


def start_of(folder: Path, name: str, prompt: str, described: list[dict]) -> dict:
    """The first line of metrics.jsonl."""
    world = sum(len(host["ranks"]) for host in described)
    job = {
        "run_name": name,
        "run_dir": str(folder),
        "software_stack": "native",
        "data": {"placeholder_token": "<dicoo>", "initializer_token": "toy"},
        "training": {"learning_rate": 5e-3},
        "validation": {"prompt": prompt, "reference_caption": HOSTILE if name == HOSTILE else "yellow toy"},
    }
    return {
        "kind": "start",
        "run_name": name,
        "revision": "0123456789ab",
        "world_size": world,
        "global_batch": 4 * world,
        "stack": "native",
        "backend": "gloo",
        "seed": 1,
        "mixed_precision": "bf16",
        "pictures": 2,
        "threads_per_rank": 14,
        "hosts": described,
        "job": job,
    }


def steps_of(world: int, slow: int | None) -> list[dict]:
    """40 steps, with a validation every 10; rank ``slow`` takes twice as long."""
    lines = [{"kind": "validation", "step": 0, "loss": 0.1, "gap_closed": 0.0}]
    for step in range(1, 41):
        times = {"step_s": 2.0 if step > 1 else 9.0, "forward_s": 0.9, "backward_s": 0.8, "sync_s": 0.2}
        times |= {"images_per_s": 4.0}
        lines.append({"kind": "step", "step": step, "loss": 0.1 + 0.05 * (step % 3), "sync_bytes": 3072, **times})
        if step % 10 == 0:
            compute = [4.0 if rank == slow else 2.0 + 0.01 * rank for rank in range(world)]
            memory = [3_000_000_000] * world
            times = {"compute_s": compute, "sync_s": [0.2] * world, "peak_rss_bytes": memory}
            lines.append({"kind": "ranks", "step": step, "steps": 10, **times})
            lines.append({"kind": "validation", "step": step, "loss": 0.1 - step / 1000, "gap_closed": step / 50})
    return lines


def write_pictures(folder: Path, hosts: int, prompt: str) -> None:
    """The pictures of a run, and its lists of packages."""
    for sub in (
        "concept",
        "images",
        "packages",
        "validation/step-000000",
        "validation/step-000020",
        "validation/step-000040",
    ):
        (folder / sub).mkdir(parents=True)
    for i in range(2):
        Image.effect_noise((300, 200), 60).save(folder / "concept" / f"{i:03d}.jpg")
    for step in (0, 20, 40):
        for seed in (1, 2):
            Image.effect_noise((64, 64), step + 10).save(folder / f"validation/step-{step:06d}/seed-{seed}.png")
    for seed in (1, 2):
        info = PngImagePlugin.PngInfo()
        for key, value in {"prompt": prompt, "seed": str(seed), "source": "openvino"}.items():
            info.add_itxt(key, value)
        Image.effect_noise((512, 512), 40).save(folder / f"images/{seed:04d}.png", pnginfo=info)
    for n in range(hosts):
        (folder / "packages" / f"node{n + 1}.txt").write_text("torch==2.13.0\n", encoding="utf-8")


def write_run(
    folder: Path, *, name="r", hosts=1, ranks_per_host=2, prompt="a photo of a <dicoo>", slow=None, **changes
):
    """A finished run of 40 steps; rank ``slow`` takes twice as long; ``changes`` apply to the first host's facts."""
    folder.mkdir(parents=True)
    described = describe_hosts(hosts, ranks_per_host, changes)
    lines = [start_of(folder, name, prompt, described), *steps_of(hosts * ranks_per_host, slow)]
    text = "".join(json.dumps({"time": 1.79e9, **line}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    (folder / "learned_embeds.safetensors").write_bytes(b"learned")
    facts = {"steps": 40, "stopped_early": False, "seconds": 93.0, "reference_loss": 0.05}
    finished = proof(name, ranks=hosts * ranks_per_host, learned_embeds=b"learned") | facts
    (folder / "finished.json").write_text(json.dumps(finished), encoding="utf-8")
    (folder / "launch.sh").touch()
    write_pictures(folder, hosts, prompt)
    return folder
