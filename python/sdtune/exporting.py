"""Making the OpenVINO copy of a finished run: converted, made static, looked at after reload."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import openvino
import torch
from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig, OVStableDiffusionPipeline
from transformers import CLIPTokenizer

from sdtune.config import Job
from sdtune.embedding import load_rows, token_names
from sdtune.errors import BadInput
from sdtune.memory import available, peak, predicted, size_of
from sdtune.openvino import (
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
from sdtune.runs import Run, replace_folder


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export came to."""

    shape: StaticShape | None
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


def _convert(job: Job, target: Path) -> OVStableDiffusionPipeline:
    """Convert ``pipeline/`` of the run into ``target``, and load it with open shapes."""
    main_export(
        str(Run(job.run_dir).pipeline),
        output=target,
        task="text-to-image",
        library_name="diffusers",
        ov_config=OVConfig(dtype=job.openvino.weights),
        # as float32 whatever it is stored in: the learned rows lie in the text encoder, and are float32
        model_loading_kwargs={"torch_dtype": torch.float32},
        local_files_only=True,
    )
    return OVStableDiffusionPipeline.from_pretrained(target, compile=False)


def export_tokenizer(tokenizer: CLIPTokenizer, words: list[str], target: Path) -> None:
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


def export(job: Job) -> Exported:
    """Write ``openvino/`` of the run from its ``pipeline/``, check it after reload, and tell what it came to.

    Raises:
        BadInput: as :func:`check`.
        RuntimeError: the reloaded copy has another shape.
    """
    check(job)
    run, asked, o = Run(job.run_dir), shape_of(job), job.openvino
    placeholder, rows = load_rows(run.learned)
    raw, temporary = (run.openvino.with_name(f".{run.openvino.name}.{end}") for end in ("raw", "tmp"))
    for folder in (raw, temporary):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        pipeline = _convert(job, raw)
        if not o.dynamic_shapes:
            make_static(pipeline, asked)
        pipeline.save_pretrained(temporary)
        del pipeline
    finally:
        shutil.rmtree(raw, ignore_errors=True)
    tokenizer = CLIPTokenizer.from_pretrained(temporary, subfolder="tokenizer")
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
    replace_folder(temporary, run.openvino)
    return Exported(shape=facts.shape, peak_bytes=peak(), model_bytes=4 * size.parameters)
