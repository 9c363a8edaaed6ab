"""Method ``lora`` (Hu et al., arXiv 2106.09685): learn matrices of low rank beside the projections of a frozen model.

With one caption for all pictures, such as "a photo of sks toy", this is what DreamBooth with LoRA does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdtune.data.samples import Sample
from sdtune.errors import BadInput
from sdtune.launch.run_folder import Run
from sdtune.methods.adapters import NetworkAdapters
from sdtune.methods.baking import bake
from sdtune.methods.lora_files import load_diffusers
from sdtune.methods.method import Method
from sdtune.methods.user_captions import caption_problems, literal_warnings, prompt_warnings, user_captions
from sdtune.models.family import Family, Networks
from sdtune.settings import Job


class Lora(Method):
    """Adapters of the denoising network, and of the text encoders if asked, are learned. Captions are the user's."""

    num_captions = 1

    def __init__(self, job: Job, networks: Networks) -> None:
        """Add the adapters; text encoders without adapters encode all captions and leave memory."""
        self._run_name, self._dropout = job.run_name, job.data.caption_dropout
        self._captions = user_captions(job)
        self._adapters = NetworkAdapters(job, networks)
        self.learned = self._adapters.learned
        if not job.lora.text_encoder:
            also = ("", job.validation.reference_caption, job.validation.prompt, job.prior.class_prompt)
            networks.encode_captions([*self._captions, *(text for text in also if text is not None)])

    @classmethod
    def check(cls, job: Job, family: Family) -> list[str]:
        """See :meth:`Method.check`: that there are captions, rank and targets."""
        captions = user_captions(job)
        if not captions:
            raise BadInput(
                f"data.instance_prompt: neither is it set nor has a picture in {job.data.path} a caption; set it, for "
                f"example to: a photo of sks toy; or write NAME.txt beside each picture, or metadata.jsonl"
            )
        NetworkAdapters.check(job, family)
        tokenizers = family.load_tokenizers(Path(job.model.path))
        known = {token for tokenizer in tokenizers.values() for token in tokenizer.get_vocab()}
        return literal_warnings(captions, known) + prompt_warnings(job, tokenizers)

    @classmethod
    def caption_problems(cls, job: Job, family: Family) -> list[str]:
        """See :meth:`Method.caption_problems`."""
        return caption_problems(job, family.load_tokenizers(Path(job.model.path)))

    @classmethod
    def example_prompts(cls, job: Job) -> list[str]:
        """See :meth:`Method.example_prompts`: all captions, each once."""
        return list(dict.fromkeys(user_captions(job)))

    def caption(self, sample: Sample) -> str:
        """See :meth:`Method.caption`."""
        return "" if sample.chance < self._dropout else self._captions[sample.picture]

    def validation_caption(self, picture: int) -> str:
        """See :meth:`Method.validation_caption`: the picture's own."""
        return self._captions[picture]

    def reference_caption(self, description: str) -> str:
        """See :meth:`Method.reference_caption`: as the user wrote it."""
        return description

    def expand_prompt(self, prompt: str) -> str:
        """See :meth:`Method.expand_prompt`: prompts need no change."""
        return prompt

    def save(self, run: Run, facts: Mapping[str, Any]) -> list[Path]:
        """See :meth:`NetworkAdapters.save`."""
        return self._adapters.save(run, facts, self._run_name)

    def save_pipeline(self, run: Run, model: Path) -> None:
        """See :meth:`Method.save_pipeline`: the adapters are added to the weights."""
        bake(load_diffusers(run.lora), model, run.pipeline, weight=1.0)
