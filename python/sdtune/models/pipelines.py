"""Whole pipelines in diffusers layout: assembling one, copying one, drawing with one."""

import copy
import json
import shutil
from collections.abc import Collection, Hashable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from sdtune.errors import shown
from sdtune.files import write_atomically
from sdtune.models.folder import read_config, refusing, tokens_read
from sdtune.models.loading import load_network
from standalone.model_folder import layout_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTokenizerFast

_KEPT = ("*.json", "*.txt", "*.model", "*.safetensors")


def assemble(**parts: object) -> "StableDiffusionPipeline":
    """A pipeline of ``vae``, ``unet``, ``text_encoder``, ``tokenizer`` and ``scheduler``, without a safety checker."""
    from diffusers import StableDiffusionPipeline  # a slow import that most runs do not need

    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def text_config(model: Path, part: str) -> "CLIPTextConfig":
    """The configuration of a text encoder, with the id of the token that ends a text, after which it pools.

    Old configurations say 2, which stands for the largest id. That is another token once tokens were added.
    """
    from transformers import CLIPTextConfig

    with refusing(model, f"has a configuration, {part}/config.json, that cannot be used"):
        config = CLIPTextConfig.from_pretrained(model, subfolder=part)
    config.eos_token_id = load_tokenizer(model, part).eos_token_id
    return config


def load_tokenizer(model: Path, part: str) -> "CLIPTokenizerFast":
    """The tokenizer of the text encoder in the subfolder ``part``, which cuts a text off where the encoder does.

    Raises:
        BadInput: its files cannot be used.
    """
    folder = layout_of(model).tokenizers[part]
    with refusing(model, f"holds a tokenizer in {folder}/ that cannot be used"):
        files = [file for file in sorted((model / folder).resolve().glob("*")) if file.exists()]
        states = tuple(
            (file, state.st_ino, state.st_mtime_ns, state.st_size) for file in files if (state := file.stat())
        )
    tokenizer = copy.deepcopy(_read_tokenizer(model, folder, states))  # callers add tokens
    tokenizer.model_max_length = tokens_read(model, folder, part)
    return tokenizer


@lru_cache(maxsize=2)  # each that is read from files stays in memory for good, 7 MB: tokenizers 0.22
def _read_tokenizer(model: Path, folder: str, _states: Hashable) -> "CLIPTokenizerFast":
    """The tokenizer in a folder whose files are as ``_states`` says."""
    from transformers import CLIPTokenizerFast

    with refusing(model, f"holds a tokenizer in {folder}/ that cannot be used"):
        tokenizer: CLIPTokenizerFast = CLIPTokenizerFast.from_pretrained(model, subfolder=folder)
        tokenizer("a")
    return tokenizer


def tokenizer_problem(model: Path, part: str) -> str:
    """What is wrong with the tokens of a text encoder, after the words "the model folder X"; empty if nothing is.

    A token that was added to the tokenizer, as by ``added_tokens.json`` or as its end of a text, has an id too.
    """
    tokenizer, size = load_tokenizer(model, part), text_config(model, part).vocab_size
    outside = {token: number for token, number in tokenizer.get_vocab().items() if number >= size}
    if not outside:
        return ""
    token = min(outside, key=lambda name: outside[name])
    return (
        f"has a tokenizer in {layout_of(model).tokenizers[part]}/ with the token {shown(token)} of number "
        f"{outside[token]}, and a text encoder of {size} tokens in {part}/ (vocab_size)"
    )


def text_encoder_class(model: Path, part: str) -> Any:
    """The class of a text encoder, of its layout."""
    import transformers

    return getattr(transformers, layout_of(model).classes[part][0])


def load_text_encoder(model: Path, part: str, dtype: torch.dtype) -> Any:
    """The text encoder in the subfolder ``part``, see :func:`text_config`."""
    return load_network(text_encoder_class(model, part), model, part, config=text_config(model, part), dtype=dtype)


def load_pipeline(model: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The text-to-image pipeline of a model folder in PyTorch.

    Raises:
        BadInput: a part cannot be used, see :func:`load_network`.
    """
    import diffusers
    from diffusers import AutoPipelineForText2Image

    layout = layout_of(model)
    options: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
    for part in layout.weights:
        if part in layout.tokenizers:
            options[part] = load_text_encoder(model, part, dtype)
            options[layout.tokenizers[part]] = load_tokenizer(model, part)
        else:
            options[part] = load_network(getattr(diffusers, layout.classes[part][0]), model, part, torch_dtype=dtype)
    # a base model's index can name a safety checker that was not downloaded
    if "safety_checker" in json.loads((model / "model_index.json").read_text(encoding="utf-8")):
        options |= {"safety_checker": None, "requires_safety_checker": False}
    return AutoPipelineForText2Image.from_pretrained(model, **options)


def _copy_part(source: Path, target: Path, patterns: Collection[str]) -> None:
    target.mkdir(parents=True)
    for path in sorted({p for pattern in patterns for p in source.glob(pattern)}):
        shutil.copyfile(path, target / path.name)


def copy_pipeline(
    model: Path, target: Path, leave_out: Collection[str] = (), without_weights: Collection[str] = ()
) -> None:
    """Copy a pipeline folder file by file: bit-identical, without loading anything. An existing copy is replaced.

    Only the index is written anew, and the configuration of a tokenizer whose limit is above that of its text encoder:
    no library draws with such a pipeline.

    Args:
        model: folder of the pipeline.
        target: folder of the copy.
        leave_out: subfolders that the caller writes itself.
        without_weights: subfolders whose safetensors files the caller writes itself.
    """
    shutil.rmtree(target, ignore_errors=True)
    for part in sorted(p for p in model.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if part.name not in leave_out:
            _copy_part(part, target / part.name, _KEPT[:-1] if part.name in without_weights else _KEPT)
    for encoder, tokenizer in layout_of(model).tokenizers.items():
        config, reads = read_config(model / tokenizer / "tokenizer_config.json"), tokens_read(model, tokenizer, encoder)
        if tokenizer not in leave_out and config.get("model_max_length") != reads:
            text = json.dumps(config | {"model_max_length": reads}, indent=2)
            write_atomically(target / tokenizer / "tokenizer_config.json", text + "\n")
    # the index of the copy must not name parts that were not downloaded, usually the safety checker
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    for name, value in index.items():
        if isinstance(value, list) and not (model / name).is_dir():
            index[name] = [None, None]
    if index.get("safety_checker") == [None, None]:
        index["requires_safety_checker"] = False
    write_atomically(target / "model_index.json", json.dumps(index, indent=2) + "\n")


def draw(
    pipeline: "DiffusionPipeline", prompts: list[str] | None, seeds: list[int], **options: object
) -> list[Image.Image]:
    """Draw one picture for each prompt. The noise of each has its own seed, so grouping does not change a picture.

    Without prompts, ``options`` hold ``prompt_embeds`` and ``negative_prompt_embeds``.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pictures: list[Image.Image] = pipeline(prompts, generator=generators, **options).images
    return pictures
