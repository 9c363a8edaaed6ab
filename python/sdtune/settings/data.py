"""Settings of the concept that is learned."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sdtune.errors import BadInput, shown
from sdtune.settings.bounds import SIDE, Between, Ge, Le, PathText, Pattern
from sdtune.settings.fields import Derived, Flag, HostPath, OnlyFor, Settings, Unit

AUTO = "auto"
"""The initializer token that stands for a search."""
PLACEHOLDER = "<concept>"
"""The placeholder token, unless the user names one."""
_WORD = "[^\\s\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff]+"  # nor what nobody sees, and so nobody types

NEW_TOKEN = OnlyFor("textual_inversion", "pivotal")
"""Marks a setting of the methods that learn a new token."""
CAPTIONED = OnlyFor("lora", "pivotal")
"""Marks a setting of the methods whose captions are the user's own."""

BUCKET_STEP = 64
"""Sides of aspect-ratio buckets are multiples of this many pixels."""


@dataclass(frozen=True, kw_only=True)
class DataArgs(Settings):
    """The concept: its pictures and its token."""

    section: ClassVar[str] = "data"

    path: Annotated[str, PathText(), Flag("train_data_dir", lora="instance_data_dir"), Derived("cluster_pictures_path")]
    """Folder of the training pictures. Beside them it may hold captions, for the methods that use them: NAME.txt for
    NAME.jpg, or one metadata.jsonl with the keys file_name and text."""
    instance_prompt: Annotated[str | None, CAPTIONED] = None
    """The caption of every picture, such as: a photo of sks toy. Unset: the captions beside the pictures; for pivotal,
    where there are none, the caption templates."""
    caption_dropout: Annotated[float, Between(0, 1, below=True), CAPTIONED] = 0.0
    """Share of the samples that are shown with an empty caption, chosen at random."""
    placeholder_token: Annotated[str, Pattern(_WORD, f"be one word, such as {PLACEHOLDER}"), NEW_TOKEN] = PLACEHOLDER
    """The new token. The model's vocabulary must not contain it yet."""
    initializer_token: Annotated[str, Pattern(r"(?s).*\S.*", "be a word of the vocabulary, such as toy"), NEW_TOKEN] = (
        "toy"
    )
    """The text whose embeddings the new ones start from: one token, or as many tokens as num_vectors. auto: the word of
    the vocabulary with the lowest validation loss, as far as a short search finds it."""
    initializer_candidates: Annotated[str | None, NEW_TOKEN] = None
    """The words, separated by commas, that initializer_token: auto chooses from. Unset: the vocabulary."""
    learnable_property: Annotated[Literal["object", "style"], NEW_TOKEN] = "object"
    """What the pictures have in common; chooses the caption templates."""
    num_vectors: Annotated[int, Ge(1), Le(1000), NEW_TOKEN] = 1
    """Embedding vectors of the placeholder token."""
    resolution: Annotated[int, Unit("pixels"), Ge(8), SIDE] = 512
    """Side of the square training pictures: a multiple of the VAE's scale factor times the UNet's halvings, which is
    64 for Stable Diffusion 1.x and 2.x."""
    center_crop: bool = False
    """Crop the largest centered square before resizing. If false, a picture is resized to a square as it is."""
    background: Annotated[
        str, Pattern("white|grey|black|#[0-9A-Fa-f]{6}", "be white, grey, black, or a color such as #f0f0f0")
    ] = "white"
    """Color behind the transparent parts of pictures."""
    aspect_ratio_buckets: bool = False
    """Keep the proportions of each picture: it gets a size of its own, with sides that are multiples of 64 and at most
    as many pixels as the square, and is cut to it in the center."""
    templates_file: Annotated[HostPath | None, NEW_TOKEN] = None
    """Text file on the hosts with caption templates, one per line, with ``{}`` for the token.
    Unset: the templates of textual inversion's authors."""

    @property
    def candidates(self) -> list[str]:
        """The words of :attr:`initializer_candidates`, each once."""
        words = (word.strip() for word in (self.initializer_candidates or "").split(","))
        return list(dict.fromkeys(word for word in words if word))

    def __post_init__(self) -> None:
        """Check the bounds, the candidates, and that the smallest bucket fits the resolution."""
        super().__post_init__()
        if self.initializer_candidates is not None:
            if self.initializer_token != AUTO:
                raise BadInput(
                    f"data.initializer_candidates: nothing is chosen from them, for data.initializer_token is "
                    f"{shown(self.initializer_token)}; set it to {AUTO}, or leave them out"
                )
            if not self.candidates:
                raise BadInput(
                    f"data.initializer_candidates: {shown(self.initializer_candidates)} holds no word; write for "
                    f"example: toy, rabbit, robot; or leave it out, to choose from the vocabulary"
                )
        if self.aspect_ratio_buckets and self.resolution < BUCKET_STEP:
            raise BadInput(
                f"data.aspect_ratio_buckets: sizes are multiples of {BUCKET_STEP} pixels, and resolution is "
                f"{self.resolution}; take at least {BUCKET_STEP}, or no buckets"
            )
