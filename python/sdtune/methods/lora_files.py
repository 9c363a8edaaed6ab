"""Files of LoRA adapters, as diffusers and as kohya's scripts write them, and weights that adapters are added to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, safe_open, save, save_file

from sdtune.errors import BadInput, shown
from standalone.model_folder import ModelError, read_header

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""{module: (A [rank, in], B [out, rank])} of one network."""


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """Adapters of a pipeline's networks."""

    networks: Mapping[str, Factors]
    """By the network's subfolder."""
    prefixes: Mapping[str, str]
    """How the names of a network's adapters begin in kohya's files, by its subfolder."""
    alpha: float
    """The product B A is multiplied by alpha / rank."""
    configs: Mapping[str, Mapping[str, Any]]
    """peft's configuration of each network's adapters, as plain data."""
    metadata: Mapping[str, str]
    """About the run, in kohya's names."""

    @property
    def rank(self) -> int:
        """Rank of all products."""
        return next(len(a) for factors in self.networks.values() for a, _ in factors.values())

    @property
    def scaling(self) -> float:
        """What the product B A is multiplied by."""
        return self.alpha / self.rank


def _tensor(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().contiguous().clone()


def _write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file completely, or not at all; the same bytes for the same content."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(_ordered(save(tensors, metadata={"format": "pt", **metadata})))
    temporary.replace(path)


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes it as its hash table has it."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)  # tensors begin at a multiple of 8 bytes
    return len(written).to_bytes(8, "little") + written + content[end:]


def save_diffusers(path: Path, lora: LoraFile) -> None:
    """Write ``pytorch_lora_weights.safetensors`` as ``save_lora_weights`` of diffusers' pipelines does."""
    tensors = {}
    for network, factors in lora.networks.items():
        for module, (a, b) in factors.items():
            tensors[f"{network}.{module}.lora_A.weight"] = _tensor(a)
            tensors[f"{network}.{module}.lora_B.weight"] = _tensor(b)
    packed = {f"{network}.{key}": value for network, made in lora.configs.items() for key, value in made.items()}
    adapter = json.dumps(packed, indent=2, sort_keys=True)
    _write(tensors, path, {"lora_adapter_metadata": adapter, **lora.metadata})


def save_kohya(path: Path, lora: LoraFile) -> None:
    """Write one file in the names of kohya's scripts, which ComfyUI, A1111, Forge and InvokeAI read.

    Its alphas are the rank, also in the metadata, and its B are multiplied by alpha / rank instead: OpenVINO GenAI
    passes over alphas.
    """
    tensors = {}
    for network, factors in lora.networks.items():
        for module, (a, b) in factors.items():
            name = f"{lora.prefixes[network]}_{module.replace('.', '_')}"
            tensors[f"{name}.lora_down.weight"] = _tensor(a)
            tensors[f"{name}.lora_up.weight"] = _tensor(b * lora.scaling)
            tensors[f"{name}.alpha"] = torch.tensor(float(lora.rank))
    _write(tensors, path, {**lora.metadata, "ss_network_alpha": str(float(lora.rank))})


def load_diffusers(path: Path) -> LoraFile:
    """Read what :func:`save_diffusers` wrote.

    Raises:
        BadInput: the file is another one.
    """
    try:
        read_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            configs = json.loads(metadata.pop("lora_adapter_metadata"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
        networks: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}
        for key in tensors:
            if key.endswith(".lora_A.weight"):
                network, _, module = key.removesuffix(".lora_A.weight").partition(".")
                pair = tensors[key], tensors[f"{network}.{module}.lora_B.weight"]
                networks.setdefault(network, {})[module] = pair
        alpha = float(configs[f"{next(iter(networks))}.lora_alpha"])
    except (ModelError, SafetensorError) as error:
        raise BadInput(f"{path} cannot be read ({' '.join(str(error).split())}); train the run again") from None
    except (ValueError, KeyError, StopIteration) as error:
        raise BadInput(f"{path} is no LoRA that sdtune wrote ({shown(error)}); train the run again") from None
    metadata.pop("format", None)
    return LoraFile(networks=networks, prefixes={}, alpha=alpha, configs={}, metadata=metadata)


def check_base_model(path: Path, model: Path) -> None:
    """Check that adapters fit a pipeline, by the headers of the files.

    Args:
        path: file of the adapters, in diffusers' format.
        model: folder of the pipeline.

    Raises:
        BadInput: the adapters are of another base model, or a file cannot be read.
    """
    try:
        adapters = read_header(path)
        downs = [key for key in adapters if key.endswith(".lora_A.weight")]
        weights = {
            f"{network}.{name}": tensor.shape
            for network in {key.partition(".")[0] for key in downs}
            for file in (model / network).glob("*.safetensors")
            for name, tensor in read_header(file).items()
        }
    except ModelError as error:
        raise BadInput(str(error)) from None
    for key in downs:
        name = key.removesuffix(".lora_A.weight")
        up = adapters.get(f"{name}.lora_B.weight")
        shape = (up.shape[0] if up else 0, adapters[key].shape[1])
        if weights.get(f"{name}.weight") != shape:
            network, _, module = name.partition(".")
            raise other_model(module, model / network)


def add_to_weights(source: Path, target: Path, deltas: Mapping[str, torch.Tensor]) -> None:
    """Copy a network's folder with ``deltas`` added to its weights.

    Weights that change are written in float32, because they were learned in float32; all others as they are stored.

    Args:
        source: subfolder of a pipeline.
        target: empty folder, with copies of all files that are no weights already.
        deltas: {module: [out, in]}.

    Raises:
        BadInput: the network has no module of such a name and shape.
    """
    missing = set(deltas)
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
        for module, delta in deltas.items():
            weight = tensors.get(f"{module}.weight")
            if weight is not None and weight.shape == delta.shape:
                tensors[f"{module}.weight"] = (weight.float() + delta).contiguous()
                missing.discard(module)
        save_file(tensors, target / file.name, metadata=metadata)
    if missing:
        raise other_model(min(missing), source)


def other_model(module: str, folder: Path) -> BadInput:
    """The error for adapters of another base model, by the first projection that does not fit."""
    return BadInput(
        f"the LoRA is of another base model: it adapts {module}, which {folder} does not have in that shape; train "
        f"it on this model, or draw with its own"
    )
