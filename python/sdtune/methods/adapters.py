"""LoRA adapters of a run: which projections get one, how they start, and their learned factors by name.

Layers come from peft, so that their names and configuration are those of the ecosystem. Their computation is that of
:mod:`sdtune.ops.low_rank`, which the fused operations know.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from sdtune.data.pictures import list_pictures
from sdtune.errors import BadInput
from sdtune.launch.run_folder import Run
from sdtune.methods.lora_files import LoraFile, save_diffusers, save_kohya
from sdtune.methods.method import Learned
from sdtune.models.family import Family, Networks
from sdtune.models.folder import weight_files
from sdtune.ops.low_rank import AdaptedLinear, Dropout, adapted_projection
from sdtune.settings import Job, LoraArgs

_ATTENTION = {
    "denoiser": ("to_q", "to_k", "to_v", "to_out.0"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
}
_FEED_FORWARD = {"denoiser": ("ff.net.0.proj", "ff.net.2"), "text_encoder": ("fc1", "fc2")}
_ADAPTER = "default"
_NUMBERS = 1_000_000
"""Numbers of adapters that each network has for itself: no two adapters of a run draw the same random numbers."""
_STREAM = 4
"""Key of the random numbers of the initial factors; :class:`sdtune.data.samples.Sampler` uses 1 and 2."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The adapter of one projection."""

    module: str
    """Name of the projection within its network."""
    a: nn.Parameter
    """float32 [rank, in]."""
    b: nn.Parameter
    """float32 [out, rank]."""


def targets(settings: LoraArgs, kind: str) -> list[str]:
    """Last parts of the names of the projections that get an adapter; ``kind`` is denoiser or text_encoder."""
    also = _FEED_FORWARD[kind] if settings.targets == "attention+feed_forward" else ()
    return [*_ATTENTION[kind], *also]


def alpha_of(settings: LoraArgs) -> float:
    """Alpha, which is the rank unless the settings say otherwise."""
    return float(settings.rank) if settings.alpha is None else settings.alpha


def is_target(module: str, names: Sequence[str]) -> bool:
    """Whether a module's name ends with one of ``names``."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def check_rank(settings: LoraArgs, model: Path, part: str, kind: str) -> None:
    """Check the rank against the widths of all projections to adapt, from the headers of a network's weight files.

    Args:
        settings: rank and targets.
        model: folder of the pipeline.
        part: the network's subfolder.
        kind: denoiser or text_encoder.

    Raises:
        BadInput: the rank is above a width, or the network has no such projection.
    """
    names = targets(settings, kind)
    widths: dict[str, int] = {}
    for file in weight_files(model, [part]):
        with safe_open(file, framework="pt") as tensors:  # type: ignore[no-untyped-call]
            for key in tensors.keys():  # noqa: SIM118 - not a dictionary
                module = key.removesuffix(".weight")
                if module != key and is_target(module, names):
                    widths[module] = min(tensors.get_slice(key).get_shape())
    if not widths:
        raise BadInput(f"lora.targets: {model / part} has no projection named {', '.join(names)}; train another model")
    narrowest = min(widths, key=lambda module: widths[module])
    if settings.rank > widths[narrowest]:
        raise BadInput(
            f"lora.rank: {settings.rank} is above {widths[narrowest]}, the width of the projection {narrowest} in "
            f"{part}; take at most that, 4 to 64 are usual"
        )


@cache
def _layer_class() -> type:
    """The layer of peft, with our computation."""
    from peft.tuners.lora import Linear  # importing it takes a second, which other methods do not need

    class Layer(Linear, AdaptedLinear):  # type: ignore[misc]
        """A frozen projection with an adapter."""

        def factors(self) -> tuple[nn.Parameter, nn.Parameter, float]:
            """See :meth:`AdaptedLinear.factors`."""
            a, b = (cast(nn.Parameter, factors[_ADAPTER].weight) for factors in (self.lora_A, self.lora_B))
            return a, b, float(self.scaling[_ADAPTER])

        def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            """[..., in] -> [..., out]."""
            return adapted_projection(x, self)

    return Layer


def config(settings: LoraArgs, kind: str) -> Any:
    """The adapters of a network as peft's ``LoraConfig``."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=alpha_of(settings),  # type: ignore[arg-type] # any number will do
        target_modules=targets(settings, kind),
        lora_dropout=settings.dropout,
        init_lora_weights="gaussian",
    )


def plain_config(settings: LoraArgs, kind: str) -> dict[str, Any]:
    """The same as JSON can hold it, for those who draw: without dropout, which diffusers would go on with."""
    made = config(dataclasses.replace(settings, dropout=0.0), kind).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in made.items()}


def add_adapters(
    network: nn.Module, settings: LoraArgs, kind: str, seed: int, dropout: Dropout, first: int = 0
) -> list[Adapter]:
    """Give a frozen network its adapters, in place; it still computes the same, since B is 0.

    Args:
        network: frozen.
        settings: rank, alpha and targets.
        kind: denoiser or text_encoder.
        seed: of the run. A is normal with standard deviation 1 / rank, the same on all ranks and processors.
        dropout: of the run.
        first: number of the network's first adapter, on which its random numbers depend.
    """
    from peft import inject_adapter_in_model

    made = config(settings, kind)
    made._register_custom_module({nn.Linear: _layer_class()})
    inject_adapter_in_model(made, network, _ADAPTER)
    adapters = []
    for i, (name, layer) in enumerate((n, m) for n, m in network.named_modules() if isinstance(m, AdaptedLinear)):
        layer.dropout, layer.number = dropout, first + i
        a, b, _ = layer.factors()
        rng = np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, 0, layer.number, 0]))
        initial = rng.standard_normal(tuple(a.shape), dtype=np.float32) / settings.rank
        # the parameters stay the same objects; their data become float32, whatever the type of the network
        a.data, b.data = torch.from_numpy(initial), torch.zeros(b.shape)
        adapters.append(Adapter(module=name, a=a, b=b))
    return adapters


class NetworkAdapters:
    """The adapters of all networks of a run.

    Attributes:
        learned: their factors by name, in the same order on all ranks.
    """

    def __init__(self, job: Job, networks: Networks) -> None:
        """Add adapters to the denoising network, and to the text encoders if the job asks for that."""
        self._job, self._base_model = job, networks.kind_in_files
        dropout = Dropout(job.seed, job.lora.dropout)
        networks.on_batch.append(lambda batch: setattr(dropout, "samples", batch.numbers if batch else None))
        self._kinds = {networks.denoiser_name: "denoiser"}
        self._prefixes = {networks.denoiser_name: f"lora_{networks.denoiser_name}"}
        modules = {networks.denoiser_name: networks.denoiser}
        if job.lora.text_encoder:
            for name, encoder in networks.text_encoders.items():
                self._kinds[name], modules[name] = "text_encoder", encoder.model
                self._prefixes[name] = encoder.adapter_prefix
        self._adapters = {
            name: add_adapters(module, job.lora, self._kinds[name], job.seed, dropout, k * _NUMBERS)
            for k, (name, module) in enumerate(modules.items())
        }
        self.learned = {
            f"{network}.{adapter.module}.{factor}": Learned(parameter=value, learning_rate=job.lora.learning_rate)
            for network, adapters in self._adapters.items()
            for adapter in adapters
            for factor, value in (("lora_A", adapter.a), ("lora_B", adapter.b))
        }

    @staticmethod
    def check(job: Job, family: Family) -> None:
        """Check rank and targets.

        Raises:
            BadInput: see :func:`check_rank`.
        """
        model = Path(job.model.path)
        check_rank(job.lora, model, family.denoiser_name, "denoiser")
        if job.lora.text_encoder:
            for name in family.load_tokenizers(model):
                check_rank(job.lora, model, name, "text_encoder")

    def file(self, facts: Mapping[str, Any]) -> LoraFile:
        """What is learned, for files; ``facts`` are the content of ``finished.json``."""
        job, alpha = self._job, alpha_of(self._job.lora)
        about = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": job.lora.rank,
            "ss_network_alpha": alpha,
            "ss_output_name": job.run_name,
            "ss_base_model_version": self._base_model,  # tools hide adapters that are not for the model in use
            "ss_v2": self._base_model.startswith("sd_v2"),
            "ss_sd_model_name": Path(job.model.path).name,
            "ss_steps": facts["steps"],
            "ss_num_train_images": len(list_pictures(job.data.path)),
            "ss_learning_rate": job.lora.learning_rate,
            "ss_resolution": f"({job.data.resolution}, {job.data.resolution})",
            "ss_seed": job.seed,
        }
        return LoraFile(
            networks={n: {a.module: (a.a, a.b) for a in adapters} for n, adapters in self._adapters.items()},
            prefixes=self._prefixes,
            alpha=alpha,
            configs={n: plain_config(job.lora, kind) for n, kind in self._kinds.items()},
            metadata={key: str(value) for key, value in about.items()},
        )

    def save(self, run: Run, facts: Mapping[str, Any], name: str) -> list[Path]:
        """Write ``pytorch_lora_weights.safetensors`` for diffusers, and ``<name>.safetensors`` for other tools."""
        lora, for_tools = self.file(facts), run.file_for_tools(name)
        save_diffusers(run.lora, lora)
        save_kohya(for_tools, lora)
        return [run.lora, for_tools]
