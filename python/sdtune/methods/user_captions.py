"""The user's own captions: one for all pictures, or one beside each picture; checked against the text encoders."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from sdtune.data.caption_files import find_captions
from sdtune.data.pictures import list_pictures
from sdtune.errors import BadInput, shown
from sdtune.methods.placeholder import TextLimit
from sdtune.settings import Job
from sdtune.text import is_blank, tokens_in

Problem = Callable[[str], str | None]
"""What is wrong with a caption, or None."""


def user_captions(job: Job) -> list[str]:
    """The caption of each picture, as the user wrote it; none where the user wrote none.

    :func:`caption_problems` says whether they can be used.
    """
    pictures = list_pictures(job.data.path)
    if job.data.instance_prompt is not None:
        return [job.data.instance_prompt] * len(pictures)
    return find_captions(job.data.path, pictures)[0]


def caption_problems(job: Job, tokenizers: Mapping[str, Any], needs: Problem = lambda _: None) -> list[str]:
    """What is wrong with the captions beside the pictures: missing, empty, too long, or not what the method needs.

    The captions that the settings give to pictures, the instance prompt and the class prompt, follow the same rules.

    Args:
        job: names the picture folder, the instance prompt and the class prompt.
        tokenizers: of all text encoders.
        needs: what else is wrong with a caption.

    Raises:
        BadInput: the instance prompt is wrong, or the class prompt is too long.
    """

    def too_long(caption: str) -> str | None:
        for tokenizer in tokenizers.values():
            has, fit = len(tokenizer(caption).input_ids), tokenizer.model_max_length
            if has > fit:
                return f"the caption has {has} tokens, and the text encoder takes {fit}: {caption[:60]!r}"
        return None

    def problem(caption: str) -> str | None:
        return too_long(caption) or needs(caption)

    data = job.data
    if wrong := too_long(job.prior.class_prompt or ""):
        raise BadInput(f"prior.class_prompt: {wrong}; shorten it")
    captions, problems = find_captions(data.path, list_pictures(data.path), problem)
    if data.instance_prompt is None:
        return problems
    if captions:
        raise BadInput(
            f"data.instance_prompt: {data.path} holds captions beside its pictures too; leave one of the two out"
        )
    if is_blank(data.instance_prompt):
        raise BadInput("data.instance_prompt: it is empty; write for example: a photo of sks toy")
    if wrong := problem(data.instance_prompt):
        raise BadInput(f"data.instance_prompt: {wrong}")
    return []


def literal_warnings(captions: Collection[str], known: Collection[str]) -> list[str]:
    """Warnings of what looks like a placeholder in captions and stands for nothing: the model would learn its letters.

    Args:
        captions: of the user.
        known: tokens that the tokenizers have, and those that are learned.
    """
    unknown: dict[str, list[str]] = {}
    for caption in dict.fromkeys(captions):
        for word in dict.fromkeys([*(["{}"] if "{}" in caption else []), *tokens_in(caption)]):
            if word not in known:
                unknown.setdefault(word, []).append(caption)
    return [
        f"the caption {shown(holding[0])}{f' and {len(holding) - 1} more' if holding[1:] else ''} hold"
        f"{'' if holding[1:] else 's'} {word}, which stands for nothing with this method and model, so that its "
        f"characters are learned; write words (a new token is learned by textual_inversion and pivotal)"
        for word, holding in unknown.items()
    ]


def prompt_warnings(job: Job, tokenizers: Mapping[str, Any]) -> list[str]:
    """Warnings of the job's prompts that a text encoder does not read to their end."""
    asked = {
        "validation.prompt": job.validation.prompt,
        "validation.reference_caption": job.validation.reference_caption,
    }
    texts = {name: text for name, text in asked.items() if text}
    return [
        warning
        for tokenizer in tokenizers.values()
        for warning in TextLimit(tokenizer.backend_tokenizer, tokenizer.model_max_length, "", 0).warnings(texts)
    ]
