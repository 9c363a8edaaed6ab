"""Settings of the concept that is learned."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sdtune.settings.bounds import Ge, PathText, Pattern
from sdtune.settings.fields import Derived, Flag, HostPath, Settings, Unit

PLACEHOLDER = "<concept>"
"""The placeholder token, unless the user names one."""


@dataclass(frozen=True, kw_only=True)
class DataArgs(Settings):
    """The concept: its pictures and its token."""

    section: ClassVar[str] = "data"

    path: Annotated[str, PathText(), Flag("train_data_dir"), Derived("cluster_data_path")]
    """Folder of the training pictures; every file in it has to be a picture."""
    placeholder_token: Annotated[str, Pattern(r"\S+", f"be one word, such as {PLACEHOLDER}")] = PLACEHOLDER
    """The new token. The model's vocabulary must not contain it yet."""
    initializer_token: Annotated[str, Pattern(r"(?s).*\S.*", "be a word of the vocabulary, such as toy")] = "toy"
    """The text whose embeddings the new ones start from: one token, or as many tokens as num_vectors."""
    learnable_property: Literal["object", "style"] = "object"
    """What the pictures have in common; chooses the caption templates."""
    num_vectors: Annotated[int, Ge(1)] = 1
    """Embedding vectors of the placeholder token."""
    resolution: Annotated[int, Unit("pixels"), Ge(8)] = 512
    """Side of the square training pictures: a multiple of the VAE's scale factor times the UNet's halvings, which is
    64 for Stable Diffusion 1.x and 2.x."""
    center_crop: bool = False
    """Crop the largest centered square before resizing. If false, a picture is resized to a square as it is."""
    background: Annotated[
        str, Pattern("white|grey|black|#[0-9A-Fa-f]{6}", "be white, grey, black, or a color such as #f0f0f0")
    ] = "white"
    """Color behind the transparent parts of pictures."""
    templates_file: HostPath | None = None
    """Text file on the hosts with caption templates, one per line, with ``{}`` for the token.
    Unset: the templates of textual inversion's authors."""
