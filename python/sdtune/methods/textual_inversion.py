"""Method ``textual_inversion`` (Gal et al., arXiv 2208.01618): learn the embeddings of one placeholder token."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdtune.data.caption_files import unused_captions
from sdtune.data.captions import caption_templates
from sdtune.data.samples import Sample
from sdtune.errors import shown
from sdtune.files import replace_folder
from sdtune.launch.run_folder import Run
from sdtune.methods.embedding import LearnedEmbedding, install_embedding
from sdtune.methods.formats import save_embeddings
from sdtune.methods.initializer import InitializerWords, candidate_words
from sdtune.methods.method import Learned, Method
from sdtune.methods.placeholder import TextLimit, add_placeholder, expand_placeholder, initializer_ids, word_of
from sdtune.models.family import Family, Networks
from sdtune.models.pipelines import copy_pipeline, load_text_encoder, load_tokenizer
from sdtune.settings import Job
from sdtune.settings.data import AUTO
from standalone.model_folder import layout_of

_SANE = 1000.0
"""Norm of a learned embedding, as a multiple of the vocabulary's largest, beyond which training has diverged. Useful
embeddings are larger than the vocabulary's: AdamW at 5e-3 can move each number by 5 in 1,000 steps."""


class TextualInversion(Method):
    """The placeholder token's embeddings are learned. Captions are templates with the placeholder."""

    def __init__(self, job: Job, networks: Networks) -> None:
        """Add the placeholder token to the text encoder and its tokenizer."""
        data = job.data
        self._placeholder, self._num_vectors = data.placeholder_token, data.num_vectors
        self._embeddings: dict[str, torch.Tensor] = {}
        self._in_files: dict[str, torch.Tensor] = {}
        learned = {}
        installed: dict[str, LearnedEmbedding] = {}
        tokenizers = {name: encoder.tokenizer for name, encoder in networks.text_encoders.items()}
        word = data.initializer_token
        if word == AUTO:
            word = candidate_words(data, list(tokenizers.values()))[0]
        for name, encoder in networks.text_encoders.items():
            start = initializer_ids(encoder.tokenizer, word, data.num_vectors)
            ids = add_placeholder(encoder.tokenizer, data.placeholder_token, data.num_vectors)
            embedding = installed[name] = install_embedding(encoder.model, ids, start)
            self._embeddings[name] = self._in_files[encoder.name_in_files] = embedding.learned
            learned[f"{name}.embeddings"] = Learned(
                parameter=embedding.learned,
                learning_rate=job.training.learning_rate,
                fixed_norm=job.training.embedding_norm == "fixed",
                largest=_SANE * float(embedding.weight.float().norm(dim=-1).max()),
            )
        self.learned = learned
        self._templates = caption_templates(data.learnable_property, data.templates_file)
        self._expanded = self.expand_prompt(data.placeholder_token)
        self.num_captions = len(self._templates)
        if data.initializer_token == AUTO:
            self.starting_points = InitializerWords(data, tokenizers, installed, self._expanded)

    @classmethod
    def check(cls, job: Job, family: Family) -> list[str]:
        """See :meth:`Method.check`: the placeholder and initializer tokens, and that captions are read to their end."""
        return cls.check_token(job, family)

    @classmethod
    def caption_problems(cls, job: Job, family: Family) -> list[str]:
        """See :meth:`Method.caption_problems`: this method has captions of its own."""
        return unused_captions(Path(job.data.path))

    @staticmethod
    def check_token(job: Job, family: Family) -> list[str]:
        """Check templates and tokens.

        Returns:
            Warnings for the user.

        Raises:
            BadInput: names the setting.
        """
        data, validation = job.data, job.validation
        templates = caption_templates(data.learnable_property, data.templates_file)
        texts = {"validation.prompt": validation.prompt or ""}
        if validation.reference_caption:
            texts["validation.reference_caption"] = templates[0].format(validation.reference_caption)
        warnings = []
        if validation.prompt and data.placeholder_token not in validation.prompt:
            warnings.append(
                f"validation.prompt: {shown(validation.prompt)} does not hold the new token {data.placeholder_token}, "
                f"so its pictures show nothing of what is learned"
            )
        tokenizers = list(family.load_tokenizers(Path(job.model.path)).values())
        if data.initializer_token == AUTO:
            candidate_words(data, tokenizers)
        for tokenizer in tokenizers:
            if data.initializer_token != AUTO:
                initializer_ids(tokenizer, data.initializer_token, data.num_vectors)
            add_placeholder(tokenizer, data.placeholder_token, data.num_vectors)
            limit = TextLimit(
                tokenizer.backend_tokenizer, tokenizer.model_max_length, data.placeholder_token, data.num_vectors
            )
            limit.check_templates(templates, data.templates_file)
            warnings += limit.warnings(texts)
        return warnings

    @classmethod
    def example_prompts(cls, job: Job) -> list[str]:
        """See :meth:`Method.example_prompts`: the placeholder in every template."""
        data = job.data
        word = expand_placeholder(data.placeholder_token, data.placeholder_token, data.num_vectors)
        return [t.format(word) for t in caption_templates(data.learnable_property, data.templates_file)]

    def caption(self, sample: Sample) -> str:
        """See :meth:`Method.caption`."""
        return self._templates[sample.caption].format(self._expanded)

    def validation_caption(self, picture: int) -> str:
        """See :meth:`Method.validation_caption`: the first template, for every picture."""
        return self._templates[0].format(self._expanded)

    def reference_caption(self, description: str) -> str:
        """See :meth:`Method.reference_caption`: the validation caption with ``description`` as the placeholder."""
        return self._templates[0].format(description)

    def expand_prompt(self, prompt: str) -> str:
        """See :meth:`Method.expand_prompt`."""
        return expand_placeholder(prompt, self._placeholder, self._num_vectors)

    def save(self, run: Run, facts: Mapping[str, Any]) -> list[Path]:
        """Write ``learned_embeds.safetensors`` for diffusers, and ``<word>.safetensors`` for other tools."""
        for_tools = run.file_for_tools(word_of(self._placeholder))
        # diffusers takes a single tensor's name for the token, and asks for those of several tensors
        one = len(self._in_files) == 1
        named = {self._placeholder if one else name: learned for name, learned in self._in_files.items()}
        save_embeddings(run.learned, self._placeholder, named)
        save_embeddings(for_tools, self._placeholder, self._in_files)
        return [run.learned, for_tools]

    def save_pipeline(self, run: Run, model: Path) -> None:
        """See :meth:`Method.save_pipeline`."""
        save_full_pipeline(model, run.pipeline, self._placeholder, self._embeddings)


def save_full_pipeline(model: Path, target: Path, placeholder: str, embeddings: Mapping[str, torch.Tensor]) -> None:
    """Write a copy of ``model`` whose tokenizers and text encoders contain the placeholder; completely or not at all.

    All other parts are copied file by file. The text encoders are written in float32, whatever the type of their
    weights was, because the embeddings were learned in float32.

    Args:
        model: folder of the pipeline.
        target: folder of the copy.
        placeholder: the placeholder token.
        embeddings: {subfolder of a text encoder: [num_vectors, dim]}.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    tokenizers = layout_of(model).tokenizers
    copy_pipeline(model, temporary, leave_out=(*embeddings, *(tokenizers[part] for part in embeddings)))
    for part, learned in embeddings.items():
        tokenizer, encoder = load_tokenizer(model, part), load_text_encoder(model, part, torch.float32)
        ids = add_placeholder(tokenizer, placeholder, len(learned))
        encoder.resize_token_embeddings(max(len(tokenizer), encoder.config.vocab_size), mean_resizing=False)
        with torch.no_grad():
            encoder.get_input_embeddings().weight[ids] = learned.detach().float()
        tokenizer.save_pretrained(temporary / tokenizers[part])
        encoder.save_pretrained(temporary / part)
    replace_folder(temporary, target)
