"""Fixtures: an untrained pipeline of toyworld's shape (a fake: its weights are random), pictures, jobs, and ranks."""

import os
import random
from dataclasses import asdict
from pathlib import Path

# Tests run beside others: threads that wait for each other on busy cores cost more time than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import yaml

from sdtune.host.processor import has_bf16, instruction_set
from sdtune.launch.run_folder import Run
from sdtune.methods.formats import load_embeddings
from sdtune.methods.lora_files import load_diffusers
from sdtune.ops import kernels
from sdtune.ops.kernels.build import PROCESSORS
from sdtune.settings import Job, build
from tests.ranks import PATIENCE, free_port, run_ranks, start_ranks  # noqa: F401 - tests import them from here
from toyworld.captions import examples
from toyworld.drawings import draw_toy
from toyworld.layouts import ExtraLarge, Layout, Plain
from toyworld.networks import make_vae
from toyworld.tokenizer import make_tokenizer
from toyworld.toys import KINDS, random_pose, random_toy

PYTHON = Path(__file__).parents[1]
REPOSITORY = PYTHON.parent
CLASS_PROMPT = "a photo of a toy"
CAPTIONS = [*(e.caption for e in examples(300, 20, seed=1)), CLASS_PROMPT, *KINDS]
# As training_mixed_precision: auto: without such instructions, torch computes bf16 many times slower.
PRECISION = "bf16" if has_bf16() else "no"
CPU_FLAGS = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
FLAGS = {"AMX": "amx_bf16", "AVX-512-BF16": "avx512_bf16"}
"""What Linux calls the sets of instructions that there are kernels for."""
LIMITS = {"AMX": "", "AVX-512-BF16": "AVX512_CORE_BF16"}
"""Value of ONEDNN_MAX_CPU_ISA, for a processor that has more, to use a set of instructions."""


# What fakes of two ranks call to finish a run: rank 0 writes what training would, with the token of the attempt.
FINISH = """
import json, os
from sdtune.files import write_atomically
from sdtune.launch.meeting import Attempt
from standalone.run_state import asked_name
from tests.proof import proof
from pathlib import Path
def finish():
    if rank == 0:
        write_atomically(Path("learned_embeds.safetensors"), "learned")
        token = Attempt.of(os.environ).digest or 16 * "0"
        name, job = asked_name(Path()) or Path.cwd().name, Path("job.yaml").read_bytes()
        facts = proof(name, ranks=2, token_sha256=token, job=job, learned_embeds=b"learned")
        write_atomically(Path("finished.json"), json.dumps(facts))
"""


@pytest.fixture(params=PROCESSORS)
def the_kernel(request, monkeypatch):
    """The kernel for a set of instructions. A test is skipped only where Linux says that the processor lacks them."""
    if FLAGS[request.param] not in CPU_FLAGS:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", LIMITS[request.param])
    assert instruction_set() == request.param
    kernels._load.cache_clear()
    yield
    kernels._load.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def weights_cache(tmp_path_factory):
    """Converted weights of the tests' models, out of the user's own cache; ranks inherit the variable."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def save_untrained(layout: Layout, folder: Path) -> Path:
    layout.pipeline(make_vae(), layout.networks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory):
    """A pipeline folder with random weights: everything about training but the pictures can be tested on it."""
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    tokenizer = make_tokenizer(CAPTIONS, folder / "tokenizer")
    return save_untrained(Plain(tokenizer, []), folder)


@pytest.fixture(scope="session")
def untrained_xl(tmp_path_factory):
    """The same in the layout of Stable Diffusion XL."""
    folder = tmp_path_factory.mktemp("untrained-xl")
    torch.manual_seed(0)
    tokenizers = [make_tokenizer(CAPTIONS, folder / "tokenizer"), make_tokenizer(CAPTIONS, folder / "tokenizer_2", "!")]
    return save_untrained(ExtraLarge(tokenizers, [], []), folder)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Three small pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = random.Random(0)
    for i in range(3):
        draw_toy(random_toy(rng), random_pose(rng), 96).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def mapping(untrained_model, pictures, tmp_path):
    """A small job as YAML has it: one rank, float32, two steps. Tests change what they are about."""
    return {
        "run_name": "t",
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(untrained_model)},
        "data": {"path": str(pictures), "resolution": 32},
        "training": {
            "world_size": 1,
            "max_train_steps": 2,
            "train_batch_size": 2,
            "learning_rate": 1e-2,
            "mixed_precision": "no",
            "save_as_full_pipeline": False,
        },
        "validation": {"steps": 0, "triples": 6},
    }


@pytest.fixture
def job(mapping):
    """The small job."""
    return build(Job, mapping)


@pytest.fixture
def lora_job(mapping, tmp_path):
    """Makes small LoRA jobs: ``lora_job(name, section={...})``."""

    def make(name="run", **sections):
        new = {**mapping, "method": "lora", "run_dir": str(tmp_path / name)}
        training = {k: v for k, v in mapping["training"].items() if k != "learning_rate"}
        defaults = {"data": {"instance_prompt": CLASS_PROMPT}, "lora": {"rank": 4, "learning_rate": 1e-2}}
        for section in ("data", "training", "lora", "prior", "validation", "model"):
            base = training if section == "training" else mapping.get(section, {})
            new[section] = {**base, **defaults.get(section, {}), **sections.get(section, {})}
        return build(Job, new)

    return make


def learned_rows(job):
    """The learned embeddings of a run with one text encoder."""
    [rows] = load_embeddings(Run(job.run_dir).learned)[1].values()
    return rows


def learned_adapters(job):
    """All learned numbers of a LoRA run."""
    lora = load_diffusers(Run(job.run_dir).lora)
    return torch.cat([x.flatten() for factors in lora.networks.values() for pair in factors.values() for x in pair])


def write_job(path: Path, job) -> Path:
    path.write_text(yaml.safe_dump(job if isinstance(job, dict) else asdict(job)), encoding="utf-8")
    return path
