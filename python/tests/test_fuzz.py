"""What parses is given random and damaged input: it reads it, or refuses it by name; nothing else.

SDTUNE_FUZZ=10000 sets the number of inputs of each test; CI takes a few, which takes seconds.
"""

import io
import json
import os
import resource
import struct
from copy import deepcopy

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from transformers import CLIPTokenizerFast

from sdtune.data.captions import caption_templates
from sdtune.data.picture_warnings import picture_warnings
from sdtune.data.pictures import load_picture, picture_problems
from sdtune.errors import BadInput
from sdtune.files import read_text
from sdtune.methods.formats import load_embeddings
from sdtune.methods.placeholder import TextLimit, add_placeholder
from sdtune.settings import DataArgs, GenerationJob, Job, build, read_yaml
from sdtune.settings.ansible import role_settings, variable_default
from sdtune.settings.fields import sections_of, settings_of
from sdtune.settings.problems import setting_rules
from sdtune.training.metrics import read_metrics
from standalone import model_folder, picture_files, run_state
from tests.conftest import REPOSITORY

fuzz = settings(
    max_examples=int(os.environ.get("SDTUNE_FUZZ", "25")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def memory():
    """Bounded: a picture that takes more than 1 GB is refused."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000


pytestmark = pytest.mark.usefixtures("memory")


def refuses(call, *args, **kwargs):
    """Call it; it may refuse its input, in one line that is not too long."""
    try:
        return call(*args, **kwargs)
    except (BadInput, model_folder.ModelError) as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 2000
    return None


@st.composite
def damaged(draw, content: bytes):
    """The bytes of a file with some of them changed, cut off, or doubled."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        data[place : place + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


JOB = {"run_name": "r", "run_dir": "/r", "model": {"path": "/m"}, "data": {"path": "/d"}}


@fuzz
@given(st.sampled_from(["model", "data", "training", "validation", "openvino", ""]), st.data())
def test_job_files(section, data):
    cls = next(c for c in sections_of(Job) if c.section == section)
    names = st.sampled_from([s.name for s in settings_of(cls)]) | st.text(max_size=8)
    values = data.draw(st.dictionaries(names, VALUES, max_size=4))
    job = {**JOB, **values} if not section else {**JOB, section: {**JOB.get(section, {}), **values}}
    refuses(build, Job, job)
    names = st.sampled_from([s.name for s in settings_of(GenerationJob)])
    refuses(build, GenerationJob, {"run_dir": "/r", "prompts": ["x"], **data.draw(st.dictionaries(names, VALUES))})


@fuzz
@given(damaged(yaml.safe_dump(JOB).encode()) | st.binary() | st.text().map(lambda t: t.encode("utf-8", "replace")))
@example(b"[" * 5000)
@example(b"? [a]\n: b")
def test_bytes_of_job_files(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "job.yaml"
    path.write_bytes(content)
    refuses(read_yaml, path, Job)


@fuzz
@given(st.sampled_from(["training", "openvino_export", "image_generation"]), st.data())
def test_variables(role, data):
    defaults = {name: variable_default(setting) for name, setting, _ in role_settings(role)}
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(defaults)), VALUES, max_size=4))
    for rule in setting_rules({**defaults, **changed}, role, data.draw(st.just([]) | st.just([changed]) | VALUES)):
        assert "\n" not in rule["wrong"]


@fuzz
@given(st.binary() | st.text().map(lambda t: t.encode("utf-8", "replace")) | damaged("für {}\na {}".encode()))
def test_templates(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "templates.txt"
    path.write_bytes(content)
    for template in refuses(caption_templates, "object", path) or ():
        assert "x" in template.format("x")
    text = refuses(read_text, path)
    assert text is None or not text.startswith("\ufeff")


@fuzz
@given(st.text() | st.lists(st.sampled_from(["toy", "<x>", "a", "<x>_1", "é", "😀"]), max_size=60).map(" ".join))
def test_prompts(text):
    tokenizer = Tokenizer.from_file(str(REPOSITORY / "toyworld/model/tokenizer/tokenizer.json"))
    tokenizer.add_tokens(["<x>", "<x>_1"])
    limit = TextLimit(tokenizer, 32, "<x>", 2)
    tokenizer.no_padding()
    tokens = len(tokenizer.encode(text.replace("<x>", "<x> <x>_1"), add_special_tokens=False).ids)
    assert tokens > 30 or not limit.lost(text)
    assert tokens <= 30 or limit.lost(text) or not text.isprintable()  # nothing is lost with characters of no width


LINE = {"kind": "step", "time": 1.0, "step": 1, "loss": 0.1, "step_s": 1, "images_per_s": 4.0}
LINES = "".join(json.dumps({**LINE, "step": n}) + "\n" for n in range(3))
# A line with other values under the names that a run writes, and with names missing.
FOREIGN = st.dictionaries(st.sampled_from(sorted(LINE)), VALUES).map(lambda more: {**LINE, **more})
FOREIGN |= st.dictionaries(st.sampled_from(sorted(LINE)), VALUES | st.sampled_from(["step", "validation"]))
FOREIGN = (FOREIGN | VALUES.map(str)).map(lambda value: f"{json.dumps(value, default=repr)}\n".encode())


@fuzz
@given(damaged(LINES.encode()) | st.binary() | FOREIGN)
def test_metrics_and_state(tmp_path_factory, content):
    run = tmp_path_factory.getbasetemp() / "run"
    run.mkdir(exist_ok=True)
    for name in ("metrics.jsonl", "state.json", "job.yaml"):
        (run / name).write_bytes(content)
    for line in refuses(read_metrics, run / "metrics.jsonl") or ():
        assert isinstance(line, dict)
    run_state.progress(run, 0)
    run_state.asked_steps(run)
    assert isinstance(run_state.read_state(run), dict)


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {}}).encode()
TENSORS = struct.pack("<Q", len(HEADER)) + HEADER + b"\0" * 16


@fuzz
@given(damaged(TENSORS) | st.binary() | VALUES.map(lambda v: as_header({"a": v})))
@example(struct.pack("<Q", 5000) + b"[" * 5000)
@example(struct.pack("<Q", 2**63) + b"{}")
def test_headers_of_weights(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "x.safetensors"
    path.write_bytes(content)
    refuses(model_folder.read_header, path)
    refuses(load_embeddings, path)


def as_header(value) -> bytes:
    text = json.dumps(value, default=str).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A model folder without weights, whose JSON files a test replaces."""
    folder = tmp_path_factory.mktemp("model")
    for path in (REPOSITORY / "toyworld/model").rglob("*.json"):
        target = folder / path.relative_to(REPOSITORY / "toyworld/model")
        target.parent.mkdir(exist_ok=True)
        if path.name not in ("tokenizer.json", "vocab.json"):  # large
            target.write_bytes(path.read_bytes())
    (folder / "tokenizer/vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\na b\n")
    return folder


@fuzz
@given(st.data())
def test_configurations_of_models(small_model, data):
    path = data.draw(st.sampled_from(sorted(small_model.rglob("*.json"))))
    before = path.read_bytes()
    config = json.loads(before)
    config |= {
        key: data.draw(VALUES) for key in data.draw(st.lists(st.sampled_from(sorted(config) or ["a"]), max_size=3))
    }
    text = json.dumps(config, default=str).encode()
    path.write_bytes(data.draw(st.just(text) | damaged(text)))
    try:
        for problem in model_folder.model_problems(small_model):
            assert "\n" not in problem
        refuses(model_folder.size_multiple, small_model)
        refuses(model_folder.used_files, small_model)
    finally:
        path.write_bytes(before)


def encoded(kind: str, mode: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((24, 16)).convert(mode).save(file, kind)
    return file.getvalue()


PICTURES = [
    encoded(kind, mode) for kind, mode in
    (("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "LA"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGBA"),
     ("BMP", "RGB"))
]  # fmt: skip


@fuzz
@given(st.sampled_from(PICTURES).flatmap(damaged) | st.binary())
def test_pictures(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "pictures"
    folder.mkdir(exist_ok=True)
    path = folder / "x.png"
    path.write_bytes(content)
    list(picture_files.problems(folder))
    if not picture_problems([path]):
        picture_warnings([path], DataArgs(path=str(folder), resolution=16))
        pixels = load_picture(path, (16, 16), False)
        assert bool(((pixels >= -1) & (pixels <= 1)).all())


@pytest.fixture(scope="module")
def clip_tokenizer():
    """Loaded once: each from_pretrained of transformers leaves 0.4 MB behind."""
    return CLIPTokenizerFast.from_pretrained(REPOSITORY / "toyworld/model/tokenizer")


@fuzz
@given(st.text(max_size=12))
def test_placeholders(clip_tokenizer, name):
    tokenizer = deepcopy(clip_tokenizer)
    job = refuses(build, Job, {**JOB, "data": {"path": "/d", "placeholder_token": name}})
    if job is not None:
        refuses(add_placeholder, tokenizer, job.data.placeholder_token, 2)
