"""Making the OpenVINO copy of a finished run: converted, quantized if asked, made static, looked at after reload."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino
import torch
from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig, OVStableDiffusionPipeline, OVWeightQuantizationConfig
from transformers import CLIPTokenizerFast

from sdtune.data.captions import caption_templates
from sdtune.errors import BadInput
from sdtune.files import replace_folder
from sdtune.host.memory import available, peak, predicted, size_of
from sdtune.inference.drawing import Artist, likeness
from sdtune.inference.openvino import (
    Copy,
    StaticShape,
    digest,
    digest_folder,
    load,
    make_static,
    shape_of,
    static_shape,
    write_facts,
)
from sdtune.launch.run_folder import Run
from sdtune.methods.formats import load_embeddings
from sdtune.methods.placeholder import expand_placeholder, token_names
from sdtune.settings.job import Job


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export came to."""

    shape: StaticShape | None
    likeness: tuple[float, float] | None
    """PSNR in dB and mean difference of 255 levels to the float32 pictures; None where none were compared."""
    peak_bytes: int
    """Memory that the export has held at most."""
    model_bytes: int
    """Of the networks in the type that they were exported from, float32."""


def _step(model: Path) -> int:
    """The number that heights and widths have to be multiples of: the UNet halves the latents at each level."""
    unet = json.loads((model / "unet" / "config.json").read_text(encoding="utf-8"))
    return int(size_of(model).factor * 2 ** (len(unet["block_out_channels"]) - 1))


def check(job: Job) -> None:
    """Refuse what cannot be exported, before anything is converted.

    Raises:
        BadInput: the run has not learned, the shape does not fit the model, or this host has not the memory to draw.
    """
    run, shape = Run(job.run_dir), shape_of(job)
    run.require_learned()
    step = _step(run.pipeline)
    for name, side in (("height", shape.height), ("width", shape.width)):
        if side % step:
            lower = side // step * step
            raise BadInput(
                f"openvino.{name}: {side} is not a multiple of {step}, which this model's UNet needs; "
                f"take {lower or step} or {lower + step}"
            )
    if job.openvino.dynamic_shapes:
        return
    size = size_of(run.pipeline)
    needed = predicted(size, shape.pictures, shape.height, shape.width, guided=True, bf16=False)
    if needed > (free := available()):
        raise BadInput(
            f"openvino.batch_size: {shape.batch_size} x {shape.num_images_per_prompt} pictures of {shape.width} x "
            f"{shape.height} pixels at once need about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            f"free; lower batch_size or num_images_per_prompt"
        )


def _calibration_prompts(job: Job, placeholder: str, num_vectors: int) -> list[str]:
    templates = caption_templates(job.data.learnable_property, job.data.templates_file)
    return [expand_placeholder(t.format(placeholder), placeholder, num_vectors) for t in templates]


def _convert(job: Job, target: Path, prompts: list[str]) -> OVStableDiffusionPipeline:
    """Convert ``pipeline/`` of the run into ``target``, and load it with open shapes, quantized if that is asked."""
    o = job.openvino
    dtype = "fp32" if o.weights == "fp32" else "fp16"
    main_export(
        str(Run(job.run_dir).pipeline),
        output=target,
        task="text-to-image",
        library_name="diffusers",
        ov_config=OVConfig(dtype=dtype),
        # as float32 whatever it is stored in: the learned rows lie in the text encoder, and are float32
        model_loading_kwargs={"torch_dtype": torch.float32},
        local_files_only=True,
    )
    quantization = {
        "int8": lambda: OVWeightQuantizationConfig(bits=8),
        "hybrid": lambda: OVWeightQuantizationConfig(
            bits=8, quant_method="hybrid", dataset=prompts, num_samples=o.calibration_samples
        ),
    }.get(o.weights)
    return OVStableDiffusionPipeline.from_pretrained(
        target, compile=False, quantization_config=quantization() if quantization else None
    )


def export_tokenizer(tokenizer: CLIPTokenizerFast, words: list[str], target: Path) -> None:
    """Write the tokenizer as OpenVINO models, which openvino_genai reads.

    Raises:
        RuntimeError: it cuts a prompt that holds ``words`` otherwise than ``tokenizer`` does.
    """
    from openvino_tokenizers import convert_tokenizer
    from openvino_tokenizers.utils import create_string_constant_node

    model, back = convert_tokenizer(tokenizer, with_detokenizer=True)
    # The converted BPE appends the mark of a word's end to added tokens too, then reads what it appended as letters of
    # their own. So the words get it here as well. Its last inputs are their begins, ends, characters and ids.
    bpe = next(op for op in model.get_ops() if op.get_type_name() == "BPETokenizer")
    last = bpe.get_input_size() - 1
    names = tokenizer.convert_ids_to_tokens(bpe.input_value(last).get_node().get_data().tolist())
    ends = bpe.get_attributes()["end_suffix"]
    outputs = create_string_constant_node([name + ends if name in words else name for name in names])
    for i, output in enumerate(outputs):
        bpe.input(last - len(outputs) + i).replace_source_output(output)
    openvino.save_model(model, target / "openvino_tokenizer.xml")
    openvino.save_model(back, target / "openvino_detokenizer.xml")
    text = f"a photo of a {' '.join(words)}, {words[0]} again"
    cut = openvino.compile_model(target / "openvino_tokenizer.xml", "CPU")([text])["input_ids"][0].tolist()
    if cut != tokenizer(text).input_ids:
        raise RuntimeError(f"the OpenVINO tokenizer cuts {text!r} into {cut}, not {tokenizer(text).input_ids}")


def _fix_in_index(folder: Path) -> None:
    """Say in model_index.json that the shapes are static: from_pretrained takes its own default from there."""
    file = folder / "model_index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    index["dynamic_shapes"] = False
    file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _compare(job: Job, copy: Any, shape: StaticShape, prompts: list[str]) -> tuple[float, float]:
    """Draw the concept with the copy and with the float32 pipeline that it was made from."""
    from diffusers import StableDiffusionPipeline

    batch, total = shape.batch_size, job.openvino.likeness_images
    pictures: list[list[Any]] = []
    for who in ("copy", "pipeline"):
        pipeline = copy
        if who == "pipeline":
            source = Run(job.run_dir).pipeline
            pipeline = StableDiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32, use_safetensors=True)
        artist = Artist(
            pipeline,
            steps=job.openvino.likeness_steps,
            guidance_scale=4.0,
            height=shape.height,
            width=shape.width,
        )
        drawn: list[Any] = []
        while len(drawn) < total:
            seeds = [1 + len(drawn) + i for i in range(shape.pictures)]
            asked = [prompts[(len(drawn) + i) % len(prompts)] for i in range(batch)]
            if who == "copy":
                drawn += artist.draw(asked, seeds, per_prompt=shape.num_images_per_prompt)
            else:  # one at a time: torch needs the memory of one only
                each = [p for p in asked for _ in range(shape.num_images_per_prompt)]
                for prompt, seed in list(zip(each, seeds, strict=True))[: total - len(drawn)]:
                    drawn += artist.draw([prompt], [seed])
        pictures.append(drawn[:total])
    return likeness(*pictures)


def export(job: Job) -> Exported:
    """Write ``openvino/`` of the run from its ``pipeline/``, check it after reload, and tell what it came to.

    Raises:
        BadInput: as :func:`check`.
        RuntimeError: the reloaded copy has another shape.
    """
    check(job)
    run, asked, o = Run(job.run_dir), shape_of(job), job.openvino
    placeholder, rows = load_embeddings(run.learned)
    prompts = _calibration_prompts(job, placeholder, len(rows))
    raw, temporary = (run.openvino.with_name(f".{run.openvino.name}.{end}") for end in ("raw", "tmp"))
    for folder in (raw, temporary):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        pipeline = _convert(job, raw, prompts)
        if not o.dynamic_shapes:
            make_static(pipeline, asked)
        pipeline.save_pretrained(temporary)
        del pipeline
    finally:
        shutil.rmtree(raw, ignore_errors=True)
    # with transformers 4 the copy was saved with the slow tokenizer, which does not write this file
    shutil.copy(run.pipeline / "tokenizer" / "tokenizer.json", temporary / "tokenizer")
    tokenizer = CLIPTokenizerFast.from_pretrained(temporary, subfolder="tokenizer")
    export_tokenizer(tokenizer, token_names(placeholder, len(rows)), temporary / "tokenizer")
    if not o.dynamic_shapes:
        _fix_in_index(temporary)
    size = size_of(run.pipeline)
    facts = Copy(
        run_name=job.run_name,
        placeholder=placeholder,
        num_vectors=len(rows),
        resolution=job.data.resolution,
        weights=o.weights,
        shape=None if o.dynamic_shapes else asked,
        step=_step(run.pipeline),
        size=size,
        learned_sha256=digest(run.learned),
        model_sha256=digest_folder(temporary),
    )
    write_facts(temporary, facts)
    loaded = load(temporary, static=not o.dynamic_shapes, ov_config={"INFERENCE_PRECISION_HINT": "f32"})
    if not o.dynamic_shapes and (got := static_shape(loaded)) != asked:
        raise RuntimeError(f"the exported pipeline has the shape {got}, not {asked}")
    held = peak()
    compared = None
    if o.weights in ("int8", "hybrid") and o.likeness_images:
        compared = _compare(job, loaded, asked if not o.dynamic_shapes else _one(asked), prompts)
    replace_folder(temporary, run.openvino)
    return Exported(shape=facts.shape, likeness=compared, peak_bytes=held, model_bytes=4 * size.parameters)


def _one(shape: StaticShape) -> StaticShape:
    return StaticShape(batch_size=1, num_images_per_prompt=1, height=shape.height, width=shape.width)
