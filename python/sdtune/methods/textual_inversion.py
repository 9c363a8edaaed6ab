"""Method ``textual_inversion`` (Gal et al., arXiv 2208.01618): learn the embeddings of one placeholder token."""

from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTokenizerFast

from sdtune.data.captions import caption_templates
from sdtune.data.samples import Sample
from sdtune.files import replace_folder
from sdtune.launch.run_folder import Run
from sdtune.methods.embedding import install_embedding
from sdtune.methods.formats import save_embeddings
from sdtune.methods.method import Learned, Method
from sdtune.methods.placeholder import TextLimit, add_placeholder, expand_placeholder, initializer_ids
from sdtune.models.family import Family, Networks
from sdtune.models.pipelines import copy_pipeline
from sdtune.settings import Job

_SANE = 1000.0
"""Norm of a learned embedding, as a multiple of the vocabulary's largest, beyond which training has diverged. Useful
embeddings are larger than the vocabulary's: AdamW at 5e-3 can move each number by 5 in 1,000 steps."""


class TextualInversion(Method):
    """The placeholder token's embeddings are learned. Captions are templates with the placeholder."""

    def __init__(self, job: Job, networks: Networks) -> None:
        """Add the placeholder token to the text encoder and its tokenizer."""
        data = job.data
        self._placeholder, self._num_vectors = data.placeholder_token, data.num_vectors
        [(name, encoder)] = networks.text_encoders.items()
        start = initializer_ids(encoder.tokenizer, data.initializer_token, data.num_vectors)
        ids = add_placeholder(encoder.tokenizer, data.placeholder_token, data.num_vectors)
        embedding = install_embedding(encoder.model, ids, start)
        self._embeddings = embedding.learned
        self.learned = {
            f"{name}.embeddings": Learned(
                parameter=self._embeddings,
                learning_rate=job.training.learning_rate,
                largest=_SANE * float(embedding.weight.float().norm(dim=-1).max()),
            )
        }
        self._templates = caption_templates(data.learnable_property, data.templates_file)
        self._expanded = self.expand_prompt(data.placeholder_token)
        self.num_captions = len(self._templates)
        self.validation_caption = self._templates[0].format(self._expanded)

    @classmethod
    def check(cls, job: Job, family: Family) -> list[str]:
        """See :meth:`Method.check`: the placeholder and initializer tokens, and that captions are read to their end."""
        data, validation = job.data, job.validation
        templates = caption_templates(data.learnable_property, data.templates_file)
        texts = {"validation.prompt": validation.prompt or ""}
        if validation.reference_caption:
            texts["validation.reference_caption"] = templates[0].format(validation.reference_caption)
        warnings = []
        for tokenizer in family.load_tokenizers(Path(job.model.path)).values():
            initializer_ids(tokenizer, data.initializer_token, data.num_vectors)
            add_placeholder(tokenizer, data.placeholder_token, data.num_vectors)
            limit = TextLimit(
                tokenizer.backend_tokenizer, tokenizer.model_max_length, data.placeholder_token, data.num_vectors
            )
            limit.check_templates(templates, data.templates_file)
            warnings += limit.warnings(texts)
        return warnings

    def caption(self, sample: Sample) -> str:
        """See :meth:`Method.caption`."""
        return self._templates[sample.caption].format(self._expanded)

    def reference_caption(self, description: str) -> str:
        """See :meth:`Method.reference_caption`: the validation caption with ``description`` as the placeholder."""
        return self._templates[0].format(description)

    def expand_prompt(self, prompt: str) -> str:
        """See :meth:`Method.expand_prompt`."""
        return expand_placeholder(prompt, self._placeholder, self._num_vectors)

    def save(self, run: Run) -> list[Path]:
        """Write ``learned_embeds.safetensors``."""
        save_embeddings(run.learned, self._placeholder, self._embeddings)
        return [run.learned]

    def save_pipeline(self, model: Path, target: Path) -> None:
        """See :meth:`Method.save_pipeline`."""
        save_full_pipeline(model, target, self._placeholder, self._embeddings)


def save_full_pipeline(model: Path, target: Path, placeholder: str, embeddings: torch.Tensor) -> None:
    """Write a copy of ``model`` whose tokenizer and text encoder contain the placeholder; completely or not at all.

    All other parts are copied file by file. The text encoder is written in float32, whatever the type of its weights
    was, because the embeddings were learned in float32.

    Args:
        model: folder of the pipeline.
        target: folder of the copy.
        placeholder: the placeholder token.
        embeddings: [num_vectors, dim].
    """
    temporary = target.with_name(f".{target.name}.tmp")
    copy_pipeline(model, temporary, leave_out=("text_encoder", "tokenizer"))
    tokenizer = CLIPTokenizerFast.from_pretrained(model, subfolder="tokenizer")
    ids = add_placeholder(tokenizer, placeholder, len(embeddings))
    text_encoder = CLIPTextModel.from_pretrained(
        model, subfolder="text_encoder", dtype=torch.float32, use_safetensors=True
    )
    text_encoder.resize_token_embeddings(max(len(tokenizer), text_encoder.config.vocab_size), mean_resizing=False)
    with torch.no_grad():
        text_encoder.get_input_embeddings().weight[ids] = embeddings.detach().float()
    tokenizer.save_pretrained(temporary / "tokenizer")
    text_encoder.save_pretrained(temporary / "text_encoder")
    replace_folder(temporary, target)
