"""What a model folder is, and what is wrong with it: from its configurations and the headers of its weights.

Needs Python 3.9 or newer and nothing else: the control node asks before it copies a model, and has no torch; a host
asks after it has fetched one from a hub. Ansible sends this file to the host on standard input, so it is one file and
imports nothing of sdtune. For the arguments: ``model_folder.py --help``.

A supported kind of pipeline is one :class:`Layout` in :data:`LAYOUTS`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable


class ModelError(ValueError):
    """A model folder, or a file in it, cannot be used; the message says why, and what to do."""


def shown(value: object, most: int = 80) -> str:
    """A value as a message quotes it: on one line, and not too long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


# --- safetensors files ---------------------------------------------------------------------------------------------

_LARGEST_HEADER = 16_000_000
"""Bytes; the header of a model of a thousand tensors has a tenth of a megabyte."""
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class TensorFacts:
    """A tensor, as the header describes it."""

    dtype: str
    """Type, such as ``F32``."""
    shape: tuple[int, ...]
    """Shape."""

    @property
    def parameters(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


def _wrong_start(start: bytes) -> str:
    """What a file is that begins like this, where it is known not to be a safetensors file; else empty."""
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS in place of the weights; type git lfs pull in its folder"
    if start.lstrip()[:1] == b"<":
        return "is a page (HTML or XML) in place of the weights; download it again"
    if start.startswith((b"PK\3\4", b"\x80\2")):
        return "is a checkpoint in PyTorch's pickle format under a wrong name"
    return ""


def _numbers(value: Any) -> tuple[int, ...] | None:
    """A list of numbers that are not negative; None if it is anything else."""
    right = isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
    return tuple(value) if right else None


def _tensor(name: str, entry: Any) -> tuple[int, int, TensorFacts]:
    """Where the tensor of one entry of the header begins and ends, and what it is.

    Raises:
        ValueError: it is not as the format demands.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{shown(name)} is no object")  # noqa: TRY004 - as json does
    dtype, shape, offsets = entry.get("dtype"), _numbers(entry.get("shape")), _numbers(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{shown(name)} has the type {shown(dtype)}")
    if shape is None or offsets is None:
        raise ValueError(f"{shown(name)} has no shape or place")
    if len(offsets) != 2 or len(shape) > 16 or (offsets[1] - offsets[0]) * 8 != math.prod(shape) * _BITS[dtype]:
        raise ValueError(f"{shown(name)} has a size that its shape contradicts")
    return offsets[0], offsets[1], TensorFacts(dtype, shape)


def _tensors(header: dict[str, Any], room: int) -> dict[str, TensorFacts]:
    """The tensors of a header, which lie one after the other in ``room`` bytes.

    Raises:
        ValueError: they do not.
    """
    found = {name: _tensor(name, entry) for name, entry in header.items() if name != "__metadata__"}
    end = 0
    for begin, after, _ in sorted(found.values(), key=lambda one: one[:2]):
        if begin != end:
            raise ValueError("its tensors overlap, or leave a hole")
        end = after
    if end != room:
        raise ValueError(f"its tensors take {end} bytes, and {room} are there: it is cut off, or more was added")
    return {name: facts for name, (_, _, facts) in found.items()}


def read_header(path: Path) -> dict[str, TensorFacts]:
    """The tensors of a safetensors file, by name.

    Raises:
        ModelError: it cannot be read, is another kind of file, is cut off or damaged; the message names it.
    """
    if path.exists() and not path.is_file():
        raise ModelError(f"{path} is no file; fetch it again")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            if what := _wrong_start(start):
                raise ModelError(f"{path} {what}")
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise ModelError(f"{path} is no safetensors file, or is cut off ({size} bytes); fetch it again")
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("its header is no object")  # noqa: TRY004, TRY301 - as json does
        return _tensors(header, size - 8 - length)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is a damaged safetensors file ({error}); fetch it again") from None


# --- layouts ---------------------------------------------------------------------------------------------------------

Configs = Mapping[str, "dict[str, Any]"]
"""The configuration of each part of a pipeline, by its subfolder."""
PREDICTION_TYPES = ("epsilon", "v_prediction")
"""Prediction types of noise schedules that training has a target for."""
_CONFIG = {"scheduler": "scheduler_config.json"}
_SMALL_FILES = ("*.json", "*.txt", "*.model")
_NUMBERS = {
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "conv_in_kernel"), 10_000),
    **dict.fromkeys(("hidden_size", "intermediate_size", "projection_dim", "max_position_embeddings"), 1_000_000),
    "num_hidden_layers": 1000, "vocab_size": 10_000_000, "num_train_timesteps": 100_000,
}  # fmt: skip
"""Whole numbers of configurations, and the largest that any model has: {key: most}."""
_LAYERS = ("layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block")
_FLOATS = ("F64", "F32", "F16", "BF16")
_CONVERT = (
    'convert it once, in an environment that has diffusers: python -c "from diffusers import {cls} as P; '
    "P.{load}('{source}').save_pretrained('{target}')\""
)


@dataclass(frozen=True)
class Layout:
    """A kind of pipeline: its parts, and what has to agree between them."""

    weights: Mapping[str, str]
    """{subfolder with weights: first part of their files' names}."""
    others: tuple[str, ...]
    """Subfolders that have to exist besides."""
    tokenizers: Mapping[str, str]
    """{subfolder of a text encoder: subfolder of its tokenizer}."""
    classes: Mapping[str, tuple[str, ...]]
    """{subfolder: classes that ``model_index.json`` may name for it}."""
    check: Callable[[Configs], Iterator[str]]
    """What is wrong with the configurations."""
    shapes: Callable[[Configs], dict[str, dict[str, tuple[int, ...]]]]
    """{subfolder: {name of a tensor, without a text encoder's prefix: the shape that the configurations promise}}."""

    @property
    def parts(self) -> tuple[str, ...]:
        """All subfolders that are used."""
        return (*self.weights, *self.others)


@dataclass(frozen=True)
class Weights:
    """The weight files of one part that are used."""

    files: tuple[Path, ...]
    """One, or several shards."""
    variant: str
    """Their variant, such as ``fp16``; empty for the plain ones."""


# --- what all layouts with a UNet in latent space have in common -----------------------------------------------------


def _check_unet(configs: Configs, needs: tuple[str, ...] = ()) -> Iterator[str]:
    """Channels, conditioning other than ``needs``, prediction type."""
    unet, vae = configs["unet"], configs["vae"]
    latent, channels = vae.get("latent_channels", 4), unet.get("in_channels", 4)
    if channels == 2 * latent + 1:
        yield (
            f"is an inpainting model: its UNet takes {channels} channels (picture, mask and masked picture), not the "
            f"{latent} of the VAE; take the model that it was made from"
        )
    elif channels != latent or unet.get("out_channels", 4) != latent:
        yield (
            f"has a UNet of {channels} input and {unet.get('out_channels', 4)} output channels, and a VAE of {latent}; "
            f"take a text-to-image model"
        )
    for key in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim"):
        if unet.get(key) is not None and key not in needs:
            yield f"has a UNet that needs more than a caption ({key}: {shown(unet[key])}), which is not supported"
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        yield f"has the prediction type {shown(prediction)}, which is neither {' nor '.join(PREDICTION_TYPES)}"


def _check_width(configs: Configs, width: int, whose: str) -> Iterator[str]:
    """Whether the UNet is made for text of this width."""
    wanted = configs["unet"].get("cross_attention_dim", 1280)
    if any(dim != width for dim in (wanted if isinstance(wanted, list) else [wanted])):
        yield (
            f"has {whose} of width {width}, and a UNet for width {wanted} (cross_attention_dim): they are parts of "
            f"different models"
        )


def without_prefix(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of a text encoder by the names that all versions of transformers give them, but for what precedes."""
    return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


def _text_shapes(text: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a CLIP text encoder: its library would give random numbers to one that is missing."""
    width, inner = text.get("hidden_size", 512), text.get("intermediate_size", 2048)
    yield "embeddings.token_embedding.weight", (text.get("vocab_size", 49408), width)
    yield "embeddings.position_embedding.weight", (text.get("max_position_embeddings", 77), width)
    linear = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    layers = [f"encoder.layers.{n}" for n in range(text.get("num_hidden_layers", 12))]
    for layer in layers:
        for name, shape in linear.items():
            yield f"{layer}.{name}.weight", shape
            yield f"{layer}.{name}.bias", shape[:1]
    for norm in ("final_layer_norm", *(f"{layer}.layer_norm{n}" for layer in layers for n in (1, 2))):
        yield f"{norm}.weight", (width,)
        yield f"{norm}.bias", (width,)


def _block_shapes(prefix: str, config: dict[str, Any], layers: int, more: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The second convolution of each residual layer of a network's blocks, so that none of them is missing.

    Args:
        prefix: of the blocks' names, such as ``down_blocks``.
        config: of the network.
        layers: of a block, where the configuration does not say it.
        more: layers of a block beyond those of the configuration.
    """
    counts, channels = config.get("layers_per_block") or layers, config["block_out_channels"]
    blocks = [(width, counts[i] if isinstance(counts, list) else counts) for i, width in enumerate(channels)]
    for block, (width, count) in enumerate(blocks[::-1] if "up_blocks" in prefix else blocks):
        for layer in range(count + more):
            yield f"{prefix}.{block}.resnets.{layer}.conv2.weight", (width, width, 3, 3)


def _shapes(configs: Configs) -> dict[str, dict[str, tuple[int, ...]]]:
    unet, vae = configs["unet"], configs["vae"]
    kernel = unet.get("conv_in_kernel", 3)
    texts = {part: dict(_text_shapes(text)) for part, text in configs.items() if part.startswith("text_encoder")}
    return {
        "unet": {
            "conv_in.weight": (unet["block_out_channels"][0], unet.get("in_channels", 4), kernel, kernel),
            **dict(_block_shapes("down_blocks", unet, 2, 0)),
            **dict(_block_shapes("up_blocks", unet, 2, 1)),
        },
        "vae": {
            "encoder.conv_in.weight": (vae["block_out_channels"][0], vae.get("in_channels", 3), 3, 3),
            **dict(_block_shapes("encoder.down_blocks", vae, 1, 0)),
            **dict(_block_shapes("decoder.up_blocks", vae, 1, 1)),
        },
        **texts,
    }


_UNET = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
_UNET_CLASSES = {"unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",)}
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


# --- Stable Diffusion 1.x and 2.x ------------------------------------------------------------------------------------


def _check_sd(configs: Configs) -> Iterator[str]:
    yield from _check_unet(configs)
    yield from _check_width(configs, configs["text_encoder"].get("hidden_size", 512), "a text encoder")


_SD = Layout(
    weights={**_UNET, "text_encoder": "model"},
    others=("tokenizer", "scheduler"),
    tokenizers={"text_encoder": "tokenizer"},
    classes={**_UNET_CLASSES, "text_encoder": ("CLIPTextModel",), "tokenizer": _TOKENIZERS},
    check=_check_sd,
    shapes=_shapes,
)


# --- Stable Diffusion XL ---------------------------------------------------------------------------------------------


def _check_sdxl(configs: Configs) -> Iterator[str]:
    yield from _check_unet(configs, needs=("addition_embed_type",))
    unet, second = configs["unet"], configs["text_encoder_2"]
    width = configs["text_encoder"].get("hidden_size", 512) + second.get("hidden_size", 512)
    yield from _check_width(configs, width, "two text encoders, together")
    if unet.get("addition_embed_type") != "text_time":
        yield (
            f"has a UNet that does not know the sizes of pictures (addition_embed_type: "
            f"{shown(unet.get('addition_embed_type'))}, not 'text_time'): it is no Stable Diffusion XL"
        )
        return
    # height and width of the original, of the crop's corner, and of the result
    wanted, sizes = unet.get("projection_class_embeddings_input_dim"), 6 * (unet.get("addition_time_embed_dim") or 0)
    if wanted != sizes + (pooled := second.get("projection_dim", 512)):
        yield (
            f"has a second text encoder that pools {pooled} numbers, and a UNet for "
            f"{shown(wanted)} (projection_class_embeddings_input_dim) with {sizes} of six sizes: they are parts of "
            f"different models"
        )


_SDXL = Layout(
    weights={**_UNET, "text_encoder": "model", "text_encoder_2": "model"},
    others=("tokenizer", "tokenizer_2", "scheduler"),
    tokenizers={"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    classes={
        **_UNET_CLASSES,
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer": _TOKENIZERS,
        "tokenizer_2": _TOKENIZERS,
    },
    check=_check_sdxl,
    shapes=_shapes,
)

LAYOUTS: dict[str, Layout] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionXLPipeline": _SDXL,
}
"""Supported pipelines, by their class in ``model_index.json``."""
REASONS = {
    r"StableDiffusionXLImg2Img.*": "usually the refiner of Stable Diffusion XL; take the base model",
    r"StableDiffusion.*Inpaint.*": "an inpainting model; take the model that it was made from",
    r"StableDiffusion3.*|Flux.*|PixArt.*|Sana.*|Lumina.*": "a transformer in place of a UNet",
    r".*InstructPix2Pix.*|.*Upscale.*|.*Depth2Img.*|.*ControlNet.*": "a model that needs more than a caption",
    r"LatentConsistency.*": "a distilled model, whose training needs another target",
}
"""What the class of an unsupported pipeline stands for: {pattern: reason}."""


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_json(path: Path, model: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        ModelError: it is missing, or is no JSON object.
    """
    name = path.relative_to(model)
    if path.exists() and not path.is_file():  # a FIFO, which nobody writes to, would be read forever
        raise ModelError(f"holds a {name} that is no file; fetch the model again")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"has no {name}; fetch the model again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"holds a {name} that cannot be read ({shown(str(error))}); fetch the model again") from None
    if not isinstance(found, dict):
        raise ModelError(f"holds a {name} that is no JSON object; fetch the model again")
    for key, value in found.items():
        if isinstance(value, float) and math.isnan(value):  # infinity is a value of some noise schedules
            raise ModelError(f"says {key}: nan in {name}, which is no number; fetch the model again")
    return found


def _lists(value: Any) -> list[Any]:
    """A number, a list of numbers, or a list of lists of numbers, as the latter."""
    return [one if isinstance(one, list) else [one] for one in value] if isinstance(value, list) else [[value]]


def _are_numbers(value: Any, many: int, most: int) -> bool:
    """Whether this is a list of 1 to ``many`` whole numbers from 1 to ``most``."""
    return isinstance(value, list) and 0 < len(value) <= many and all(type(n) is int and 0 < n <= most for n in value)


def read_config(model: Path, part: str) -> dict[str, Any]:
    """The configuration of a part; its numbers are numbers.

    Raises:
        ModelError: it cannot be used.
    """
    config = _read_json(model / part / _CONFIG.get(part, "config.json"), model)
    for key, most in _NUMBERS.items():
        if key in config and (type(config[key]) is not int or not 0 < config[key] <= most):
            raise ModelError(f"says {key}: {shown(config[key])} in {part}/, which is no whole number from 1 to {most}")
    scale = config.get("scaling_factor", 1)
    if part == "vae" and (type(scale) not in (int, float) or not 0 < scale < 1_000_000):
        raise ModelError(f"says scaling_factor: {shown(scale)} in {part}/, which is no positive number")
    if part in ("unet", "vae"):
        channels: Any = config.get("block_out_channels")
        if not _are_numbers(channels, 20, 100_000):
            raise ModelError(f"says block_out_channels: {shown(channels)} in {part}/, which is no list of numbers")
        for key in _LAYERS:
            if config.get(key) is not None and not all(_are_numbers(n, 20, 100) for n in _lists(config[key])):
                raise ModelError(f"says {key}: {shown(config[key])} in {part}/, which is no number of layers")
        counts: Any = config.get("layers_per_block")
        if isinstance(counts, list) and (len(counts) != len(channels) or any(isinstance(n, list) for n in counts)):
            raise ModelError(f"says layers_per_block: {shown(counts)} in {part}/, for {len(channels)} blocks")
    return config


def layout_of(model: Path) -> Layout:
    """The layout of a model folder.

    Raises:
        ModelError: the folder is no pipeline, or of a class that is not supported.
    """
    single = [model] if model.is_file() else sorted((*model.glob("*.safetensors"), *model.glob("*.ckpt")))
    if not (model / "model_index.json").is_file():
        if not single:
            raise ModelError("has no model_index.json: it has to be a pipeline in diffusers layout")
        what = "is a single-file checkpoint" if model.is_file() else f"holds a single-file checkpoint, {single[0].name}"
        command = _CONVERT.format(
            cls="StableDiffusionPipeline", load="from_single_file", source=single[0].name, target=single[0].stem
        )
        raise ModelError(f"{what}, not a pipeline in diffusers layout; {command}")
    name = _read_json(model / "model_index.json", model).get("_class_name")
    if isinstance(name, str) and name in LAYOUTS:
        return LAYOUTS[name]
    reason = next((f" ({why})" for known, why in REASONS.items() if re.fullmatch(known, str(name))), "")
    raise ModelError(
        f"is a {shown(name) if not isinstance(name, str) else name}{reason}, which is not supported; supported: "
        f"{', '.join(LAYOUTS)}"
    )


def find_weights(model: Path, part: str, stem: str, variant: str = "") -> Weights:
    """The weight files of one part that are used: the plain ones, else the only variant, or the one that is asked for.

    Raises:
        ModelError: there are none in safetensors format, or several variants and none is asked for.
    """
    variants: dict[str, list[Path]] = {}
    name = re.compile(rf"{re.escape(stem)}(?:\.([\w-]+?))?(?:-\d{{5}}-of-(\d{{5}}))?\.safetensors")
    for path in sorted((model / part).glob("*.safetensors")):
        if found := name.fullmatch(path.name):
            variants.setdefault(found[1] or "", []).append(path)
    if not variants:
        others = sorted(p.name for pattern in ("*.bin", "*.ckpt", "*.msgpack") for p in (model / part).glob(pattern))
        if not others:
            raise ModelError(f"has no weights in {part}/ ({stem}.safetensors)")
        command = _CONVERT.format(
            cls="DiffusionPipeline", load="from_pretrained", source=model.name, target=f"{model.name}-safetensors"
        )
        raise ModelError(f"has weights in {part}/ only as {others[0]}, not as safetensors; {command}")
    chosen = variant if variant in variants else "" if "" in variants and not variant else None
    if chosen is None and len(variants) == 1 and not variant:
        chosen = next(iter(variants))
    if chosen is None:
        names = ", ".join(sorted(v or "plain" for v in variants))
        if not variant:
            raise ModelError(
                f"has several variants of the weights, none plain, in {part}/ ({names}); set base_model_variant to one"
            )
        remedy = "leave base_model_variant empty" if "" in variants else "set base_model_variant to one of them"
        raise ModelError(f"has no variant {variant} of the weights in {part}/ ({names}); {remedy}")
    files = variants[chosen]
    shards = {int(found[2]) for path in files if (found := name.fullmatch(path.name)) and found[2]}
    if shards and (len(shards) > 1 or shards != {len(files)}):
        raise ModelError(f"lacks some of the weights in {part}/ ({len(files)} of {max(shards)} files); fetch it again")
    if shards and chosen:
        raise ModelError(f"has weights in {part}/ as variant {chosen} in {len(files)} files; save them as one file")
    return Weights(tuple(files), chosen)


# --- judging ---------------------------------------------------------------------------------------------------------


def _check_index(model: Path, layout: Layout) -> Iterator[str]:
    index = _read_json(model / "model_index.json", model)
    for part, allowed in layout.classes.items():
        entry = index.get(part)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found not in allowed:
            yield f"names {shown(found)} as its {part}, which is not {' or '.join(allowed)}"


def _check_tokenizers(model: Path, layout: Layout, configs: Configs) -> Iterator[str]:
    for encoder, tokenizer in layout.tokenizers.items():
        has = {name for name in ("tokenizer.json", "vocab.json", "merges.txt") if (model / tokenizer / name).is_file()}
        if "tokenizer.json" not in has and not has >= {"vocab.json", "merges.txt"}:
            yield f"has no vocab.json and merges.txt, or tokenizer.json, in {tokenizer}/"
            continue
        files = {name: _read_json(model / tokenizer / name, model) for name in sorted(has - {"merges.txt"})}
        words, size = len(files.get("vocab.json", ())), configs[encoder].get("vocab_size", 49408)
        if words > size:
            yield (
                f"has a tokenizer of {words} tokens in {tokenizer}/, and a text encoder of {size} in {encoder}/: "
                f"they are parts of different models"
            )
        yield from _check_merges(model, f"{tokenizer}/merges.txt") if "merges.txt" in has else ()
        # without it a library guesses the token that fills up short captions, which differs between models
        config = _read_json(model / tokenizer / "tokenizer_config.json", model)
        reads, name = config.get("model_max_length", 1), config.get("tokenizer_class", _TOKENIZERS[0])
        if name not in _TOKENIZERS:
            yield f"names {shown(name)} as the class of {tokenizer}/, which is not {' or '.join(_TOKENIZERS)}"
        if type(reads) not in (int, float) or not reads >= 1:
            yield f"says model_max_length: {shown(reads)} in {tokenizer}/, which is no positive number"


def _check_merges(model: Path, name: str) -> Iterator[str]:
    """Whether each line of a tokenizer's merges holds two parts of words."""
    try:
        lines = (model / name).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        yield f"holds a {name} that cannot be read ({shown(str(error))}); fetch the model again"
        return
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#version") and len(line.split()) != 2:
            yield f"holds a {name} whose line {number} is no pair: {shown(line)}; fetch the model again"
            return


def _check_weights(model: Path, layout: Layout, configs: Configs, variant: str) -> Iterator[str]:
    promised = layout.shapes(configs)
    for part, stem in layout.weights.items():
        try:
            weights = find_weights(model, part, stem, variant)
            tensors: dict[str, TensorFacts] = {}
            for path in weights.files:
                tensors |= read_header(path)
        except ModelError as error:
            yield str(error).replace(f"{model}/", "holds a file that cannot be used: ", 1)
            continue
        yield from _contradictions(part, promised[part], without_prefix(tensors))


def _contradictions(part: str, promised: Mapping[str, Any], tensors: Mapping[str, TensorFacts]) -> Iterator[str]:
    """The first tensor of a part that its configuration promises and its weights lack, or have in another form."""
    for name, shape in promised.items():
        found = tensors.get(name)
        if found is None:
            compiled = next((other for other in tensors if "_orig_mod." in other), "")
            yield (
                f"has weights that its configuration contradicts: {name} in {part}/ does not exist, of shape "
                f"{list(shape)}"
                + (f" (but {compiled}: save the network inside of torch.compile's)" if compiled else "")
            )
            return
        if found.shape != shape:
            yield (
                f"has weights that its configuration contradicts: {name} in {part}/ has the shape {list(found.shape)}, "
                f"not {list(shape)}"
            )
            return
        if found.dtype not in _FLOATS:
            yield f"has weights of type {found.dtype} in {part}/; take them in float32, float16 or bfloat16"
            return


def _check_names(model: Path, layout: Layout) -> Iterator[str]:
    for part, stem in layout.weights.items():
        if variant := find_weights(model, part, stem).variant:
            yield (
                f"has its weights in {part}/ only as the variant {variant}; rename the file to {stem}.safetensors, as "
                f"provision.yml does"
            )


def model_problems(model: str | Path, variant: str = "", *, weights: bool = True, installed: bool = False) -> list[str]:
    """What is wrong with a model folder, each after the words "the model folder X": empty if it can be used.

    Args:
        model: the folder.
        variant: of the weights, such as ``fp16``; empty: the plain ones, or the only variant.
        weights: False looks at the configurations only, before weights are downloaded.
        installed: the model is used as it is there, so its weights need their plain names.
    """
    model = Path(model)
    try:
        layout = layout_of(model)
        absent = [part for part in layout.parts if not (model / part).is_dir()]
        if absent:
            return [f"has no {', no '.join(absent)}"]
        configs = {part: read_config(model, part) for part in layout.parts if part not in layout.tokenizers.values()}
        found = [*_check_index(model, layout), *layout.check(configs), *_check_tokenizers(model, layout, configs)]
        if weights and not found:
            found += _check_weights(model, layout, configs, variant)
        if installed and not found:
            found += _check_names(model, layout)
    except ModelError as error:
        return [str(error)]
    return found


def used_files(model: str | Path, variant: str = "") -> dict[str, str]:
    """The files of a model that are used: {name below the installed folder: name below ``model``}.

    The weights of a variant are installed under the plain name. Everything else stays behind: other variants and
    formats, single-file copies, the safety checker.

    Raises:
        ModelError: the folder is no supported pipeline.
    """
    model = Path(model)
    layout = layout_of(model)
    found = {"model_index.json": "model_index.json"}
    for part in layout.parts:
        small = {path for pattern in _SMALL_FILES for path in (model / part).glob(pattern) if path.is_file()}
        names = [f"{part}/{path.name}" for path in small if ".index." not in path.name or part not in layout.weights]
        if part in layout.weights:
            weights = find_weights(model, part, layout.weights[part], variant)
            names += [f"{part}/{path.name}" for path in weights.files if not weights.variant]
            if len(weights.files) > 1:
                names.append(f"{part}/{layout.weights[part]}.safetensors.index.json")
            if weights.variant:
                found[f"{part}/{layout.weights[part]}.safetensors"] = f"{part}/{weights.files[0].name}"
        found |= {name: name for name in names}
    return dict(sorted(found.items()))


def size_multiple(model: str | Path) -> int:
    """What the sides of pictures have to be multiples of: the VAE's factor times the UNet's halvings.

    Raises:
        ModelError: a configuration cannot be read.
    """
    model, multiple = Path(model), 1
    for part in ("vae", "unet"):  # each stage but the last halves the side
        multiple *= 2 ** (len(read_config(model, part)["block_out_channels"]) - 1)
    return multiple


def side_problem(name: str, side: int, multiple: int) -> str:
    """What is wrong with the side of a picture, in pixels, and the neighbors that fit; empty if nothing is."""
    if side % multiple == 0:
        return ""
    lower = side // multiple * multiple
    fitting = f"{lower} or {lower + multiple}" if lower else f"{multiple}"
    return f"{name}: {side} is not a multiple of {multiple}, which this model's VAE and UNet need; take {fitting}"


# --- on a host -------------------------------------------------------------------------------------------------------


def keep_used(model: Path, variant: str) -> None:
    """Remove all files but those that are used, and give the weights of a variant their plain names."""
    used = used_files(model, variant)
    for name, source in used.items():
        if name != source:
            (model / source).replace(model / name)
    for path in sorted(model.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif not path.is_dir() and path.relative_to(model).as_posix() not in used:
            path.unlink()


def main() -> None:
    """Print the problems of a folder as a JSON list; with ``--keep-used``, and if there are none, tidy it."""
    parser = argparse.ArgumentParser(prog="model_folder.py", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", default="", help="of the weights, such as fp16")
    parser.add_argument("--configurations", action="store_true", help="look at the configurations only")
    parser.add_argument("--keep-used", action="store_true", help="remove what is not used")
    options = parser.parse_args()
    found = model_problems(options.folder, options.variant, weights=not options.configurations)
    if options.keep_used and not found:
        keep_used(options.folder, options.variant)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
