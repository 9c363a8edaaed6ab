"""Method ``pivotal``: the embeddings of a new token and LoRA adapters together, each with its own learning rate.

The token learns in the first share of the steps only. Then the adapters go on around it, as in pivotal tuning (Roich et
al., arXiv 2106.05744).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdtune.data.samples import Sample
from sdtune.launch.run_folder import Run
from sdtune.methods.adapters import NetworkAdapters
from sdtune.methods.baking import bake
from sdtune.methods.lora_files import load_diffusers
from sdtune.methods.method import Method
from sdtune.methods.placeholder import add_placeholder, expand_placeholder, word_of
from sdtune.methods.textual_inversion import TextualInversion
from sdtune.methods.user_captions import caption_problems, user_captions
from sdtune.models.family import Family, Networks
from sdtune.settings import Job


def _captions(job: Job) -> list[str]:
    """The user's caption of each picture, with all tokens of the placeholder; none where templates are used."""
    data = job.data
    return [expand_placeholder(c, data.placeholder_token, data.num_vectors) for c in user_captions(job)]


class Pivotal(Method):
    """The new token and the adapters are learned. Captions are the user's, or textual inversion's templates."""

    def __init__(self, job: Job, networks: Networks) -> None:
        """Add the adapters, then the placeholder token: peft freezes everything but adapters."""
        self._job = job
        self._adapters = NetworkAdapters(job, networks)
        self._token = TextualInversion(job, networks)
        self.starting_points = self._token.starting_points
        self._captions = _captions(job)
        self.num_captions = 1 if self._captions else self._token.num_captions
        share = job.lora.token_share
        token = {name: replace(learned, share_of_steps=share) for name, learned in self._token.learned.items()}
        self.learned = {**token, **self._adapters.learned}

    @classmethod
    def check(cls, job: Job, family: Family) -> list[str]:
        """See :meth:`Method.check`: token, rank and targets."""
        NetworkAdapters.check(job, family)
        return TextualInversion.check_token(job, family)

    @classmethod
    def caption_problems(cls, job: Job, family: Family) -> list[str]:
        """See :meth:`Method.caption_problems`; each has to hold the placeholder token."""
        data, tokenizers = job.data, family.load_tokenizers(Path(job.model.path))
        for tokenizer in tokenizers.values():
            add_placeholder(tokenizer, data.placeholder_token, data.num_vectors)

        def needs(caption: str) -> str | None:
            if data.placeholder_token in caption:
                return None
            return f"the caption does not hold the new token {data.placeholder_token}: {caption[:60]!r}"

        return caption_problems(job, tokenizers, needs)

    @classmethod
    def example_prompts(cls, job: Job) -> list[str]:
        """See :meth:`Method.example_prompts`."""
        return list(dict.fromkeys(_captions(job))) or TextualInversion.example_prompts(job)

    def caption(self, sample: Sample) -> str:
        """See :meth:`Method.caption`."""
        if sample.chance < self._job.data.caption_dropout:
            return ""
        return self._captions[sample.picture] if self._captions else self._token.caption(sample)

    def validation_caption(self, picture: int) -> str:
        """See :meth:`Method.validation_caption`."""
        return self._captions[picture] if self._captions else self._token.validation_caption(picture)

    def reference_caption(self, description: str) -> str:
        """See :meth:`Method.reference_caption`."""
        return description if self._captions else self._token.reference_caption(description)

    def expand_prompt(self, prompt: str) -> str:
        """See :meth:`Method.expand_prompt`."""
        return self._token.expand_prompt(prompt)

    def save(self, run: Run, facts: Mapping[str, Any]) -> list[Path]:
        """Write the files of both; where the run has the name of the token, the adapters' file ends in ``-lora``."""
        name = self._job.run_name
        same = name == word_of(self._job.data.placeholder_token)
        adapters = self._adapters.save(run, facts, f"{name}-lora" if same else name)
        return [*adapters, *self._token.save(run, facts)]

    def save_pipeline(self, run: Run, model: Path) -> None:
        """See :meth:`Method.save_pipeline`: first the adapters, then the token, which only adds embeddings."""
        bake(load_diffusers(run.lora), model, run.pipeline, weight=1.0)
        self._token.save_pipeline(run, run.pipeline)
