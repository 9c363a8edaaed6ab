"""Whether a model knows the words of prompts, and reads them to their end. Needs no torch, if a pipeline is our own."""

from pathlib import Path
from typing import TYPE_CHECKING

from sdtune.errors import BadInput, shown
from sdtune.methods.placeholder import TextLimit
from sdtune.models.folder import refusing, tokens_read
from sdtune.settings import GenerationJob
from sdtune.text import tokens_in

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_tokenizer(pipeline: Path) -> "Tokenizer":
    """The first tokenizer of a pipeline; all of its tokenizers read the same words.

    Raises:
        BadInput: its file cannot be read.
    """
    from tokenizers import Tokenizer

    file = pipeline / "tokenizer" / "tokenizer.json"
    if file.is_file():
        with refusing(pipeline, "holds a tokenizer in tokenizer/ that cannot be used", "source"):
            return Tokenizer.from_file(str(file))
    from transformers import CLIPTokenizerFast  # takes seconds to import; base models on a hub often have other files

    tokenizer: Tokenizer = CLIPTokenizerFast.from_pretrained(pipeline, subfolder="tokenizer").backend_tokenizer
    return tokenizer


def added_tokens(pipeline: Path) -> set[str]:
    """The tokens that were added to a pipeline's tokenizer."""
    return {token.content for token in read_tokenizer(pipeline).get_added_tokens_decoder().values()}


def check_tokens(job: GenerationJob, placeholder: str, known: set[str]) -> list[str]:
    """Refuse tokens like <this> that the model does not have; warn of prompts without the placeholder token."""
    for text in (*job.prompts, job.negative_prompt):
        for word in tokens_in(text.replace(placeholder, " ") if placeholder else text):
            if word not in known:
                raise BadInput(
                    f"prompts: the model of this run does not know {word} (in {text!r}); it has learned "
                    f"{placeholder or 'no new word, so write prompts like its captions'} "
                    f"(Ansible: image_generation_prompts)"
                )
    return [
        f"the prompt {prompt!r} does not hold the learned word {placeholder}"
        for prompt in job.prompts
        if placeholder not in prompt
    ]


def cut_off(job: GenerationJob, folder: Path, placeholder: str, num_vectors: int) -> list[str]:
    """Warnings of prompts that the text encoder does not read to their end."""
    reads = tokens_read(folder, "tokenizer", "text_encoder")
    limit = TextLimit(read_tokenizer(folder), reads, placeholder, num_vectors)
    texts = {f"the prompt {shown(prompt)}": prompt for prompt in job.prompts}
    return limit.warnings(texts | {f"the negative prompt {shown(job.negative_prompt)}": job.negative_prompt})
