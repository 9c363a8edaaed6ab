"""The inputs of hostile.py: what users have, or type wrongly."""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdtune.settings import Job
from sdtune.settings.fields import sections_of, settings_of

REPOSITORY = Path(__file__).parents[2]
MODEL = REPOSITORY / "toyworld/model"
PROVISION = "provision.yml --tags base_model,training_data"
TRAIN = "train.yml --tags training,openvino_export"
GENERATE = "generate.yml --tags image_generation"


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input, and what has to become of it."""

    group: str
    """Of the table."""
    name: str
    """What is special about it."""
    expected: str
    """``refused``, ``warned``, ``used`` or ``failed``."""
    values: dict[str, Any] = field(default_factory=dict)
    """The job, or the variables of a playbook."""
    raw: bytes | None = None
    """Content of the job file, in place of ``values``."""
    train: bool = False
    """Train, instead of checking only."""
    program: str = ""
    """The playbook."""
    said: str = ""
    """Text that the answer of a playbook contains."""


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of random colors."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def job(work: Path, **sections: Any) -> dict[str, Any]:
    """A job that can run, with other values in its sections."""
    base: dict[str, Any] = {
        "run_name": "h", "run_dir": str(work / "run"), "model": {"path": str(MODEL)},
        "data": {"path": str(REPOSITORY / "toyworld/concept"), "resolution": 64, "placeholder_token": "<dicoo>"},
        "training": {
            "max_train_steps": 3, "mixed_precision": "no", "report_to": "none", "save_as_full_pipeline": False
        },
        "validation": {"steps": 0},
    }  # fmt: skip
    base["model"]["weights_cache"] = str(work / "cache")
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values} if isinstance(values, dict) else values
    return base


# --- settings --------------------------------------------------------------------------------------------------------


def _settings(work: Path) -> Iterator[Input]:
    wrong = {
        "nan": float("nan"),
        "inf": float("inf"),
        "a list": [1],
        "-1": -1,
        "true": True,
        "1e30": 10**30,
        "1e300": 1e300,
        "abc": "abc",
    }
    for section in sections_of(Job):
        for setting in settings_of(section):
            if setting.kind not in (int, float):
                continue
            for name, value in wrong.items():
                if (name == "-1" and not setting.complaint(-1)) or (
                    name in ("1e30", "abc", "true") and setting.kind is float
                ):
                    continue
                key, values = setting.section, {setting.name: value}
                one = job(work, **{key: values}) if key else job(work) | values
                yield Input(group="numbers", name=f"{setting.key}: {name}", expected="refused", values=one)
    for name, value, expected in (
        ("42", 42, "used"), ("true", True, "refused"), ("300 letters", "a" * 300, "refused"), ("", "", "refused"),
        ("a newline", "a\nb", "refused"), ("../x", "../x", "refused"), ("ünïcode", "ünïcode", "refused"),
        ("a space", "a b", "refused"), ("-e", "-e", "refused"), ("a list", ["a"], "refused"),
        ("a date", date(2024, 1, 31), "used"),
    ):  # fmt: skip
        yield Input(group="run_name", name=name, expected=expected, values=job(work) | {"run_name": value})
    for name, value in (
        ("300 letters", f"/tmp/{'a' * 300}"),
        ("a newline", "/tmp/a\nb"),
        ("5,000 letters in many folders", "/tmp" + "/abcdefgh" * 600),
        ("a line separator", "/tmp/a\u2028b"),
        ("empty", ""),
        ("NUL", "/a\0b"),
        ("among the pictures", str(REPOSITORY / "toyworld/concept/run")),
        ("the model's folder", str(MODEL)),
    ):
        yield Input(group="run_dir", name=name, expected="refused", values=job(work) | {"run_dir": value})
    for token in ("two words", "toy", "", " ", "a\tb", "a\0b", "no\u00a0break", "<toy>\u200b"):
        values = job(work, data={"placeholder_token": token})
        yield Input(group="tokens", name=f"placeholder {token!r}", expected="refused", values=values)
    for token in ("{}", "<ö>", "<x|y>"):
        values = job(work, data={"placeholder_token": token})
        yield Input(group="tokens", name=f"placeholder {token!r}", expected="used", values=values)
    for token in ("yellow robot", "", "zzzqqq", "😀"):
        yield Input(
            group="tokens", name=f"initializer {token!r}", expected="refused",
            values=job(work, data={"initializer_token": token}),
        )  # fmt: skip


def _schedules(work: Path) -> Iterator[Input]:
    for schedule, steps, expected in (("constant", 500, "warned"), ("linear", 500, "warned"), ("linear", 1, "used")):
        values = {"lr_scheduler": schedule, "lr_warmup_steps": steps}
        name = f"lr_scheduler: {schedule}, warm-up of {steps} steps of 3"
        yield Input(group="schedules", name=name, expected=expected, values=job(work, training=values))


def _job_files() -> Iterator[Input]:
    for name, raw in (
        ("empty", b""), ("a list", b"[1]"), ("not YAML", b"a: [1"), ("a tab", b"a:\n\tb: 1"),
        ("UTF-16", "a: 1".encode("utf-16")),
        ("Latin-1", "run_name: tür".encode("latin-1")), ("NUL bytes", b"a: 1\0"), ("a recursive alias", b"a: &a [*a]"),
        ("a Python object", b"!!python/object/apply:os.system ['true']"), ("an unknown key", b"run_nam: x"),
        ("a key twice", b"run_name: a\nrun_name: b"), ("an octal number", b"seed: 0777"), ("base 60", b"seed: 1:30"),
        ("a key that is a list", b"[1]: 2"), ("deep nesting", b"[" * 20000), ("text", b"hello"),
    ):  # fmt: skip
        yield Input(group="job files", name=name, expected="refused", raw=raw)


# --- words -----------------------------------------------------------------------------------------------------------


def _words(work: Path) -> Iterator[Input]:
    long = " ".join(["very"] * 60)
    for vectors, expected in ((40, "refused"), (31, "refused"), (30, "refused"), (8, "used")):
        yield Input(
            group="words", name=f"num_vectors: {vectors}, where the encoder reads 30 tokens", expected=expected,
            values=job(work, data={"num_vectors": vectors}),
        )  # fmt: skip
    for name, content, expected in (
        ("60 words, then {}", f"a {long} {{}}", "refused"), ("{} and 60 words", f"a {{}} {long}", "refused"),
        ("no {}", "a photo", "refused"), ("two {}", "{} {}", "refused"), ("another brace", "{} {x}", "refused"),
        ("empty", "", "refused"), ("with a byte order mark", "\ufeffa photo of a {}", "used"),
        ("CRLF", "a photo of a {}\r\na picture of a {}\r\n", "used"),
    ):  # fmt: skip
        file = work / f"templates-{len(name)}-{len(content)}.txt"
        file.write_text(content, encoding="utf-8", newline="")
        yield Input(
            group="templates", name=name, expected=expected, values=job(work, data={"templates_file": str(file)})
        )
    for name, data in (
        ("UTF-16", "a {}".encode("utf-16")), ("Latin-1", "für {}".encode("latin-1")), ("zero bytes", b"a\0{}"),
        ("a picture", (REPOSITORY / "toyworld/concept/0.jpg").read_bytes()),
    ):  # fmt: skip
        file = work / f"templates-{name}.bin"
        file.write_bytes(data)
        yield Input(
            group="templates", name=name, expected="refused", values=job(work, data={"templates_file": str(file)})
        )
    yield Input(
        group="templates", name="a folder", expected="refused", values=job(work, data={"templates_file": str(work)})
    )
    for name, values in (
        ("prompt that ends in the new word after 60", {"prompt": f"a {long} <dicoo>"}),
        ("reference caption of 60 words", {"reference_caption": long}),
        ("prompt without the new word", {"prompt": "a toy"}),
    ):
        yield Input(group="words", name=name, expected="warned", values=job(work, validation=values))


# --- pictures --------------------------------------------------------------------------------------------------------


def _folder(work: Path, name: str, save: Callable[[Path], object], expected: str, **data: Any) -> Input:
    path = work / f"pictures-{name.replace(' ', '-').replace('/', '-')}"
    path.mkdir()
    noise(96, 96).save(path / "0.png")
    save(path)
    return Input(group="pictures", name=name, expected=expected, values=job(work, data={"path": str(path), **data}))


def raw(name: str, data: bytes) -> Callable[[Path], object]:
    """Writes a file."""
    return lambda path: (path / name).write_bytes(data)


def image(picture: Image.Image, name: str = "1.png", **options: Any) -> Callable[[Path], object]:
    """Saves a picture."""
    return lambda path: picture.save(path / name, **options)


def _pictures(work: Path) -> Iterator[Input]:
    folder = partial(_folder, work)
    frames = [noise(96, 96, i) for i in range(3)]
    transparent = noise(96, 96, 1).convert("RGBA")
    transparent.putalpha(0)
    grey = Image.fromarray(np.linspace(0, 65535, 96 * 96, dtype=np.uint16).reshape(96, 96))
    yield folder("wholly transparent", image(transparent), "warned")
    yield folder("wholly transparent, grey", image(transparent.convert("LA")), "warned")
    yield folder("all white", image(Image.new("RGB", (96, 96), "white")), "warned")
    transparent.putpixel((50, 50), (255, 0, 0, 255))
    yield folder("transparent", image(transparent), "used")
    yield folder("grey with alpha", image(transparent.convert("LA")), "used")
    huge = Image.new("P", (9000, 9000))
    yield folder("a palette with transparency, 9000 x 9000", image(huge, transparency=0), "refused")
    yield folder("palette with transparency", image(noise(96, 96, 2).quantize(16), transparency=3), "used")
    yield folder("16-bit grey", image(grey), "used")
    yield folder("CMYK", image(noise(96, 96, 3).convert("CMYK"), "1.jpg"), "used")
    yield folder("1 bit", image(noise(96, 96, 3).convert("1")), "used")
    yield folder("animated WebP", image(frames[0], "1.webp", save_all=True, append_images=frames[1:]), "warned")
    yield folder("animated PNG", image(frames[0], "1.png", save_all=True, append_images=frames[1:]), "warned")
    yield folder("GIF", image(frames[0], "1.gif"), "refused")
    logo = Image.new("RGBA", (96, 96), (0, 0, 0, 0))
    logo.paste((0, 0, 0, 255), (20, 20, 60, 60))
    yield folder("a black logo on white", image(logo), "used")
    yield folder("a black logo on black", image(logo), "warned", background="black")
    views = {"format": "MPO", "save_all": True, "append_images": [noise(96, 96, 2)]}
    yield folder("MPO of a telephone", image(noise(96, 96, 1), "1.jpg", **views), "used")
    yield folder("20 x 15 in buckets", image(noise(20, 15)), "warned", aspect_ratio_buckets=True)
    yield folder("1 x 4000", image(noise(1, 4000)), "warned")
    yield folder("40 x 30", image(noise(40, 30)), "warned")
    yield folder("400 x 100", image(noise(400, 100)), "warned")
    yield folder("400 x 100 with center_crop", image(noise(400, 100)), "warned", center_crop=True)
    yield folder("a duplicate", image(noise(96, 96)), "warned")
    large = Image.new("RGB", (6000, 6000), "red")
    large.putpixel((0, 0), (0, 0, 0))
    yield folder("6000 x 6000", image(large), "used")
    yield folder("20000 x 20000", image(Image.new("1", (20000, 20000))), "refused")
    for color, expected in (("red", "refused"), ("#123", "refused"), ("#12fF90", "used"), (3, "refused")):
        yield Input(
            group="pictures", name=f"background: {color}", expected=expected,
            values=job(work, data={"background": color}),
        )  # fmt: skip


def _picture_files(work: Path) -> Iterator[Input]:
    folder = partial(_folder, work)
    jpeg = (REPOSITORY / "toyworld/concept/0.jpg").read_bytes()
    yield folder("empty file", raw("1.png", b""), "refused")
    yield folder("cut off", raw("1.jpg", jpeg[:-3000]), "refused")
    yield folder("text named png", raw("1.png", b"hello"), "refused")
    yield folder("HTML named jpg", raw("1.jpg", b"<!doctype html>"), "refused")
    yield folder("LFS pointer", raw("1.jpg", b"version https://git-lfs.github.com/spec/v1\n"), "refused")
    for kind, name in (("TIFF", "1.png"), ("GIF", "1.png"), ("EPS", "1.jpg")):
        yield folder(f"{kind} named {name}", image(noise(96, 96, 1), name, format=kind), "refused")
    yield folder("a FIFO named 0.txt", lambda path: os.mkfifo(path / "0.txt"), "refused")
    yield folder("METADATA.JSONL", raw("METADATA.JSONL", b"{}"), "refused")
    yield folder("notes.txt", raw("notes.txt", b"x"), "refused")
    yield folder("hidden file", raw(".DS_Store", b"x"), "used")
    yield folder("Thumbs.db", raw("Thumbs.db", b"x"), "refused")
    yield folder("name with a newline", image(noise(96, 96, 5), "a\nb.png"), "refused")
    yield folder("name with spaces and brackets", image(noise(96, 96, 5), "a [1] ü.png"), "used")
    yield folder("upper case suffix", image(noise(96, 96, 5), "1.PNG"), "used")
    yield folder("a folder inside", lambda path: (path / "more").mkdir(), "refused")
    yield folder("a link to nothing", lambda path: (path / "1.png").symlink_to("/nowhere"), "refused")
    yield folder(
        "damaged EXIF", raw("1.jpg", jpeg[:2] + b"\xff\xe1\0\x10Exif\0\0MM\0*\xff\xff\xff\xff" + jpeg[2:]), "used"
    )
    for name, path in (
        ("does not exist", work / "none"),
        ("is a file", MODEL / "model_index.json"),
        ("empty", work / "e"),
    ):
        (work / "e").mkdir(exist_ok=True)
        yield Input(
            group="pictures", name=f"folder {name}", expected="refused", values=job(work, data={"path": str(path)})
        )


# --- models ----------------------------------------------------------------------------------------------------------


UNET, TEXT_ENCODER = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


def _model(work: Path, name: str, change: Callable[[Path], object], expected: str = "refused") -> Input:
    path = work / f"model-{name.replace(' ', '-').replace('/', '-')}"
    shutil.copytree(MODEL, path)
    change(path)
    return Input(group="models", name=name, expected=expected, values=job(work, model={"path": str(path)}))


def edit(file: str, **values: Any) -> Callable[[Path], object]:
    """Changes keys of a JSON file."""

    def change(path: Path) -> None:
        target = path / file
        target.write_text(json.dumps(json.loads(target.read_text()) | values))

    return change


def rename(file: str, new: str) -> Callable[[Path], object]:
    """Gives a file another name."""
    return lambda path: (path / file).rename(path / new)


def _models(work: Path) -> Iterator[Input]:
    model = partial(_model, work)
    for name in (
        "StableDiffusionXLPipeline", "StableDiffusionInpaintPipeline", "FluxPipeline", "StableDiffusion3Pipeline",
        "LatentConsistencyModelPipeline", "StableDiffusionUpscalePipeline", "Nonsense",
    ):  # fmt: skip
        yield model(f"class {name}", edit("model_index.json", _class_name=name))
    yield model("class 5", edit("model_index.json", _class_name=5))
    yield model("a UNet of 9 channels", edit("unet/config.json", in_channels=9))
    yield model("a UNet of 8 channels", edit("unet/config.json", in_channels=8))
    yield model("a UNet for a wider text encoder", edit("unet/config.json", cross_attention_dim=768))
    yield model("a UNet with text_time", edit("unet/config.json", addition_embed_type="text_time"))
    yield model("the UNet of another size", edit("unet/config.json", block_out_channels=[320, 640]))
    yield model("a text encoder of a smaller vocabulary", edit("text_encoder/config.json", vocab_size=100))
    yield model("another text encoder class", edit("model_index.json", text_encoder=["transformers", "T5EncoderModel"]))
    yield model("prediction type sample", edit("scheduler/scheduler_config.json", prediction_type="sample"))
    yield model("in_channels: x", edit("unet/config.json", in_channels="x"))
    yield model("block_out_channels: []", edit("unet/config.json", block_out_channels=[]))
    scheduler, tokens = "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
    for file, key, values in (
        ("unet/config.json", "act_fn", ["x", 5, None]), ("unet/config.json", "norm_num_groups", [7, 0, "x"]),
        ("unet/config.json", "layers_per_block", [2, 10**9, "x"]), ("unet/config.json", "freq_shift", ["x"]),
        ("unet/config.json", "transformer_layers_per_block", [2, 10**9, [[10**9]]]),
        ("unet/config.json", "attention_head_dim", [0, "x"]), ("unet/config.json", "down_block_types", [["x"], "x"]),
        ("vae/config.json", "scaling_factor", ["x", 0, float("nan")]), ("vae/config.json", "act_fn", ["x"]),
        ("vae/config.json", "norm_num_groups", [7]), ("vae/config.json", "layers_per_block", [9, 10**9]),
        ("text_encoder/config.json", "num_hidden_layers", [0, 4, 10**9, "x"]),
        ("text_encoder/config.json", "hidden_act", ["x"]), ("text_encoder/config.json", "layer_norm_eps", ["x"]),
        ("text_encoder/config.json", "num_attention_heads", [3, 0]),
        ("text_encoder/config.json", "intermediate_size", [1, "x"]),
        (scheduler, "beta_schedule", ["x", 5]), (scheduler, "beta_start", ["x", float("nan")]),
        (scheduler, "beta_end", [5.0]), (scheduler, "num_train_timesteps", [0, 10**12, "x"]),
        (scheduler, "trained_betas", [[0.1, 0.2]]), (tokens, "eos_token", ["<zzz>"]),
        (tokens, "tokenizer_class", ["Nonsense", "T5Tokenizer", 5, None]),
        (scheduler, "timestep_spacing", ["x"]), (tokens, "model_max_length", ["x", -5, None]),
    ):  # fmt: skip
        for value in values:
            yield model(f"{file.split('.')[0]}, {key}: {value}".replace("/", " "), edit(file, **{key: value}))
    for side, expected in ((72, "refused"), (65, "refused"), (8, "refused"), (48, "used")):
        yield Input(group="resolution", name=str(side), expected=expected, values=job(work, data={"resolution": side}))
    yield Input(
        group="resolution", name="openvino.height: 72", expected="refused", values=job(work, openvino={"height": 72})
    )


def _weights(work: Path) -> Iterator[Input]:
    model = partial(_model, work)
    header = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    yield model("LFS pointer as weights", raw(UNET, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"))
    yield model("HTML as weights", raw(UNET, b"<!doctype html><html>"))
    yield model("weights cut off", lambda path: (path / UNET).write_bytes((MODEL / UNET).read_bytes()[:-100000]))
    yield model("empty weights", raw(UNET, b""))
    yield model("header of 2^60 bytes", raw(UNET, struct.pack("<Q", 2**60) + b"{}"))
    yield model("header that is no JSON", raw(UNET, struct.pack("<Q", 3) + b"abc"))
    yield model("weights of something else", raw(UNET, struct.pack("<Q", len(header)) + header + b"\0" * 8))
    yield model("pickle named safetensors", raw(UNET, b"PK\3\4" + b"\0" * 100))
    yield model("fp16 variant only", rename(UNET, "unet/diffusion_pytorch_model.fp16.safetensors"))
    yield model(".bin only", rename(TEXT_ENCODER, "text_encoder/pytorch_model.bin"))
    yield model("no weights", lambda path: (path / TEXT_ENCODER).unlink())
    yield model("a fp16 variant beside the weights", lambda path: shutil.copy(
        path / UNET, path / "unet/diffusion_pytorch_model.fp16.safetensors"), "used")  # fmt: skip
    yield model("a .ckpt beside the parts", raw("model.ckpt", b"x"), "used")
    yield model("one shard of two", rename(UNET, "unet/diffusion_pytorch_model-00001-of-00002.safetensors"))


def renamed(file: str, prefix: str) -> Callable[[Path], object]:
    """Gives the tensors of a file other names, by a prefix."""

    def change(path: Path) -> None:
        data = (path / file).read_bytes()
        length = int.from_bytes(data[:8], "little")
        tensors = json.loads(data[8 : 8 + length])
        header = json.dumps({k if k == "__metadata__" else prefix + k: v for k, v in tensors.items()}).encode()
        (path / file).write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])

    return change


def _tensors(work: Path) -> Iterator[Input]:
    model = partial(_model, work)
    for part, file in (("UNet", UNET), ("text encoder", TEXT_ENCODER), ("VAE", VAE)):
        yield model(f"the {part} of torch.compile", renamed(file, "_orig_mod."))
    for name, content in (
        ("tokenizer.json", b"{}"), ("tokenizer.json", b'{"model": 5}'), ("tokenizer.json", b"x"),
        ("merges.txt", b"\xff\xfe"), ("merges.txt", b"a b\nc\n"), ("tokenizer_config.json", b"[]"),
        ("vocab.json", b"[]"), ("added_tokens.json", b'{"<x>": 99999}'),
        ("special_tokens_map.json", b'{"eos_token": "<zzz>"}'),
    ):  # fmt: skip
        yield model(f"{name} holds {content!r}".replace("\\", ""), raw(f"tokenizer/{name}", content))


def _model_files(work: Path) -> Iterator[Input]:
    model = partial(_model, work)
    yield model("no unet/", lambda path: shutil.rmtree(path / "unet"))
    yield model("no tokenizer/ and no vae/", lambda path: [shutil.rmtree(path / p) for p in ("tokenizer", "vae")])
    yield model("no model_index.json", lambda path: (path / "model_index.json").unlink())
    yield model("model_index.json is HTML", raw("model_index.json", b"<html>"))
    yield model("model_index.json is a list", raw("model_index.json", b"[]"))
    yield model("config.json in UTF-16", raw("unet/config.json", "{}".encode("utf-16")))
    # diffusers does not read it either
    yield model("config.json with a byte order mark", lambda path: (path / "vae/config.json").write_bytes(
        b"\xef\xbb\xbf" + (MODEL / "vae/config.json").read_bytes()))  # fmt: skip
    yield model("vocab.json is missing, and tokenizer.json", lambda path: [
        (path / "tokenizer" / n).unlink() for n in ("vocab.json", "tokenizer.json")])  # fmt: skip
    yield model("no tokenizer_config.json", lambda path: (path / "tokenizer/tokenizer_config.json").unlink())
    limit = edit("tokenizer/tokenizer_config.json", model_max_length=10**30)
    yield model("a tokenizer that does not know its limit", limit, "used")
    for part in ("unet/config.json", UNET):
        yield model(f"a FIFO as {part}", lambda path, part=part: [(path / part).unlink(), os.mkfifo(path / part)])
    single = work / "single"
    single.mkdir()
    shutil.copy(MODEL / UNET, single / "v1-5-pruned.safetensors")
    for name, path in (
        ("a single-file checkpoint in a folder", single), ("a single file", single / "v1-5-pruned.safetensors"),
        ("a folder that does not exist", work / "none"), ("an empty folder", work / "e"),
    ):  # fmt: skip
        yield Input(group="models", name=name, expected="refused", values=job(work, model={"path": str(path)}))


def _captions(work: Path) -> Iterator[Input]:
    for number, (name, file, content, expected) in enumerate((
        ("UTF-16 without a byte order mark", "0.txt", "a toy".encode("utf-16-le"), "refused"),
        ("UTF-16", "0.txt", "a toy".encode("utf-16"), "refused"), ("Latin-1", "0.txt", b"f\xfcr", "refused"),
        ("a zero byte", "0.txt", b"a\0toy", "refused"), ("spaces of no width", "0.txt", "\u200b".encode(), "refused"),
        ("half a character", "metadata.jsonl", b'{"file_name": "0.png", "text": "\\ud800"}', "refused"),
        ("a name with a newline", "metadata.jsonl", b'{"file_name": "a\\nb", "text": "x"}', "refused"),
        ("a template", "0.txt", b"a photo of {}", "warned"), ("an unknown token", "0.txt", b"a <cat>", "warned"),
        ("a good caption", "0.txt", b"a toy", "used"),
    )):  # fmt: skip
        path = work / f"captions-{number}"
        path.mkdir()
        noise(96, 96).save(path / "0.png")
        (path / file).write_bytes(content)
        values = job(work, method="lora", data={"path": str(path)})
        del values["data"]["placeholder_token"]
        yield Input(group="captions", name=name, expected=expected, values=values)


def job_inputs(work: Path, ask: Callable[..., object]) -> Iterator[Input]:
    """Inputs of ``textual_inversion.py``."""
    yield Input(group="control", name="a good job", expected="used", values=job(work))
    for inputs in (_settings(work), _schedules(work), _job_files(), _words(work)):
        yield from inputs
    for some in (_pictures, _picture_files, _captions, _models, _weights, _tensors, _model_files):
        yield from some(work)
    for rate, steps in ((1000.0, 3), (500.0, 30)):
        values = job(work, training={"learning_rate": rate, "max_train_steps": steps})
        values["run_dir"] = str(work / f"run-{rate}")
        name = f"learning rate {rate:g}, {steps} steps, trained"
        yield Input(group="results", name=name, expected="failed", values=values, train=True)


def generation_inputs(work: Path, ask: Callable[..., object]) -> Iterator[Input]:
    """Inputs of ``generate_images.py``, for a run of one step."""
    file, values = work / "trained.yaml", job(work, training={"max_train_steps": 1, "save_as_full_pipeline": True})
    file.write_text(json.dumps(values), encoding="utf-8")
    ask("textual_inversion.py", "--job", str(file))
    good = {"run_dir": values["run_dir"], "source": "pipeline", "prompts": ["a photo of a <dicoo>"]}
    long = " ".join(random.Random(0).choice(["red", "yellow", "robot"]) for _ in range(60))
    for name, expected, change in (
        ("a good request", "used", {}),
        ("a prompt of 60 words", "warned", {"prompts": [f"a {long} <dicoo>"]}),
        ("an unknown token", "refused", {"prompts": ["a <nothing>"]}),
        ("an empty prompt", "refused", {"prompts": [" "]}),
        ("no prompts", "refused", {"prompts": []}),
        ("a prompt that is a number", "warned", {"prompts": [5]}),
        ("prompts that are text", "refused", {"prompts": "a photo"}),
        ("a seed of 2^70", "refused", {"seeds": [2**70]}),
        ("a negative seed", "refused", {"seeds": [-1]}),
        ("a seed of nan", "refused", {"seeds": [float("nan")]}),
        ("guidance nan", "refused", {"guidance_scale": float("nan")}),
        ("guidance inf", "refused", {"guidance_scale": float("inf")}),
        ("height 72", "refused", {"height": 72}),
        ("lcm with 60 steps", "refused", {"scheduler": "lcm", "num_inference_steps": 60}),
        ("a line separator in a prompt", "refused", {"prompts": ["a\u2028<dicoo>"]}),
        ("height 8192", "refused", {"height": 8192 * 16, "width": 8192 * 16}),
        ("a prompt with a zero byte", "refused", {"prompts": ["a\0 <dicoo>"]}),
        ("a run that is not there", "refused", {"run_dir": str(work / "none")}),
        ("a VAE as the small decoder", "refused", {"tiny_autoencoder": str(MODEL / "vae")}),
        ("a UNet as the small decoder", "refused", {"tiny_autoencoder": str(MODEL / "unet")}),
        ("a base model", "used", {"source": "model", "model": str(MODEL), "prompts": ["a toy"]}),
        ("a base model that is not there", "refused", {"source": "model", "model": str(work / "none")}),
        ("a base model that is a file", "refused", {"source": "model", "model": str(MODEL / "model_index.json")}),
        ("a base model that is a folder of pictures", "refused", {"source": "model", "model": str(work)}),
    ):
        yield Input(group="generation", name=name, expected=expected, values=good | change)


def playbook_inputs(work: Path) -> Iterator[Input]:
    """Inputs of the playbooks; those of one group are typed in one call, and all are answered at once."""
    photos = work / "photos [2024]"
    photos.mkdir()
    noise(96, 96).save(photos / "0.png")
    (photos / "more").mkdir()
    noise(96, 96).save(photos / "a\nb.png")
    inpainting = work / "inpainting"
    shutil.copytree(MODEL, inpainting)
    config = inpainting / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    latin = work / "prompts.txt"
    latin.write_bytes("für <dicoo>".encode("latin-1"))
    prompts = {"image_generation_prompts_file": str(latin)}
    pages = ["https://huggingface.co/a/b/blob/main/0.jpeg", "https://h.test/a", "0.jpg", "http://[bad/0.jpg"]
    urls = {"training_data_source": "", "training_data_urls": pages}
    for playbook, group, values, said in (
        (PROVISION, "folders", {"training_data_source": str(photos)}, "more in the picture folder"),
        (PROVISION, "folders", {}, "has a name with a line break"),
        (PROVISION, "folders", {"base_model_source": str(inpainting)}, "takes 9 channels"),
        (PROVISION, "home", {"training_data_source": "~/no-such-folder"}, "no-such-folder does not"),
        (PROVISION, "home", {"base_model_source": "no/such/model"}, "no/such/model does not exist"),
        (PROVISION, "sizes", {"training_resolution": 72}, "resolution: 72 is not a multiple of 16"),
        (PROVISION, "sizes", urls, "is the page of a file"),
        (PROVISION, "sizes", {}, "https://h.test/a of training_data_urls is no picture"),
        (PROVISION, "sizes", {}, "'0.jpg' of training_data_urls is no URL"),
        (PROVISION, "sizes", {}, "'http://[bad/0.jpg' of training_data_urls is no URL"),
        (TRAIN, "names", {"training_learning_rat": 1}, "training_learning_rat is no variable of this project"),
        (TRAIN.replace("training,", "trainig,"), "tags", {}, "no task of this playbook has that tag"),
        (TRAIN, "types", {"training_learning_rate": "abc"}, "learning_rate is 'abc', and has to be a number"),
        (TRAIN, "types", {"training_seed": "x"}, "training_seed is 'x', and has to be a whole number"),
        (TRAIN, "types", {"training_scale_lr": "perhaps"}, "scale_lr is 'perhaps', and has to be true or false"),
        (TRAIN, "types", {"training_max_train_steps": [1]}, "steps is [1], and has to be a whole number"),
        (TRAIN, "borders", {"training_adam_beta1": "inf"}, "adam_beta1: inf is no finite number"),
        (TRAIN, "borders", {"training_learning_rate": "nan"}, "learning_rate: nan is no finite number"),
        (TRAIN, "borders", {"training_seed": -1}, "training_seed: -1 is not between 0 and 2^63-1"),
        (TRAIN, "borders", {"openvino_export_batch_size": 0}, "export_batch_size: 0 is less than 1"),
        (TRAIN, "borders", {"run_name": "a" * 300}, "is no folder name"),
        (TRAIN, "name", {"run_name": "a\nb"}, "is no folder name"),
        (GENERATE, "prompts", prompts, "is not encoded in UTF-8"),
        (GENERATE, "prompts", {"image_generation_seeds": [-1]}, "generation_seeds: -1 is not between"),
    ):  # fmt: skip
        yield Input(
            group=f"{playbook.split()[0]}: {group}", name=said, expected="refused", values=values, said=said,
            program=playbook,
        )  # fmt: skip
