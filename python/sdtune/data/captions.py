"""Caption templates for textual inversion: sentences with one ``{}`` for the placeholder.

Many neutral phrasings make the placeholder learn the concept and not the sentence (Gal et al., "An Image is Worth One
Word", arXiv 2208.01618). The sentences are our own.
"""

from pathlib import Path

from sdtune.errors import BadInput, shown
from sdtune.files import read_text
from sdtune.text import text_problem, why_no_file

_ARTICLES = ("a", "the", "my", "one")
_OBJECT_PHRASES = (
    "a photo of {article} {{}}",
    "a picture of {article} {{}}",
    "a good photo of {article} {{}}",
    "a close-up of {article} {{}}",
    "a rendering of {article} {{}}",
    "an image of {article} nice {{}}",
)
_STYLE_PHRASES = (
    "{article} painting in the style of {{}}",
    "{article} picture in the style of {{}}",
    "{article} drawing in the style of {{}}",
    "{article} rendering in the style of {{}}",
)

OBJECT_TEMPLATES = tuple(p.format(article=a) for p in _OBJECT_PHRASES for a in _ARTICLES)
STYLE_TEMPLATES = tuple(p.format(article=a) for p in _STYLE_PHRASES for a in _ARTICLES)


def caption_templates(learnable_property: str, templates_file: str | Path | None = None) -> tuple[str, ...]:
    """Templates for ``object`` or ``style``, or the lines of a user's file.

    Raises:
        BadInput: the property is unknown, the file is missing or empty, or a line does not have exactly one ``{}``.
    """
    if templates_file is not None:
        path = Path(templates_file)
        if not path.is_file():
            raise BadInput(
                f"data.templates_file: {path} {why_no_file(path)}; give a text file with one template per line"
            )
        lines = tuple(s.strip() for s in read_text(path).split("\n") if s.strip())
        if not lines:
            raise BadInput(f"data.templates_file: {path} is empty; write one template per line, each with one {{}}")
        for line in lines:
            if wrong := text_problem(line):
                raise BadInput(f"data.templates_file: {path}: {wrong}; type the line again")
            if line.count("{}") != 1 or line.count("{") != 1 or line.count("}") != 1:
                raise BadInput(f"data.templates_file: {path}: {shown(line)} needs exactly one {{}} and no other brace")
        return lines
    if learnable_property == "object":
        return OBJECT_TEMPLATES
    if learnable_property == "style":
        return STYLE_TEMPLATES
    raise BadInput(f"data.learnable_property: {learnable_property!r} is not one of object, style")
