"""How a setting is declared: a dataclass field with a type, a default, bounds, and a docstring that is its meaning.

Everything else is derived from the declaration: loading and its errors (:mod:`.load`), flags and their help
(:mod:`.flags`), variables of Ansible roles and the reference page (:mod:`.ansible`, :mod:`.reference`).
"""

import ast
import dataclasses
import inspect
import math
import textwrap
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from sdtune.errors import BadInput, shown
from sdtune.settings.bounds import Bound, Ge, Gt, PathText
from sdtune.text import text_problem

MISSING = dataclasses.MISSING
SAME = object()
"""Stands for the default of the field itself."""
ZERO_COUNTS = "auto"
"""What an inventory writes for no value, where 0 is one."""
LARGEST = 2**63 - 1
"""Largest whole number of any setting: what torch and NumPy hold."""


@dataclass(frozen=True)
class Unit:
    """What a number counts, such as ``seconds``."""

    name: str


@dataclass(frozen=True)
class Flag:
    """The command-line flag, where it is not named like the field: diffusers' name for it."""

    name: str
    """In ``textual_inversion.py``."""
    lora: str = ""
    """In ``lora.py``, where diffusers' two scripts differ."""


@dataclass(frozen=True)
class Formerly:
    """The field's name in an earlier release; job files and flags may still use it."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Variable:
    """The Ansible variable, where it is not ``<prefix of the section><name>`` with the same default."""

    name: str | None = None
    """Name of the variable."""
    type: str | None = None
    """Type in ``argument_specs``."""
    default: Any = SAME
    """The role's own default."""
    choices: tuple[str, ...] = ()
    """Choices that only the role accepts, such as ``auto``; listed first."""
    meaning: str = ""
    """Text for the role, after the field's docstring."""
    value: str | None = None
    """Jinja expression for the job file, where the role resolves the variable first, such as ``auto``."""
    in_job: bool = True
    """Whether the job file contains it. False: it is an argument of each start."""


@dataclass(frozen=True)
class Derived:
    """The playbooks compute the value with a Jinja expression; the role has no variable of its own for it."""

    expression: str


@dataclass(frozen=True)
class OnlyFor:
    """The fine-tuning methods that use the setting. For any other method it has to have its default."""

    methods: tuple[str, ...]

    def __init__(self, *methods: str) -> None:
        object.__setattr__(self, "methods", methods)

    def __str__(self) -> str:
        return " and ".join(self.methods)


HostPath = Annotated[str, PathText(), Variable(type="path")]
"""A path on the hosts."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One declared setting, as loading, flags and the generated files see it."""

    section: str
    """Section of the job file, or empty for the file's top level."""
    name: str
    """Name of the field."""
    kind: Any
    """Type without ``Annotated`` and without None."""
    optional: bool
    """Whether None is a value."""
    default: Any
    """Default, or MISSING."""
    meaning: str
    """The field's docstring in one line."""
    markers: tuple[Any, ...]
    """What ``Annotated`` holds."""

    @property
    def key(self) -> str:
        """Name in messages, such as ``training.learning_rate``."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that are allowed, where the type is a Literal."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()

    @property
    def nested(self) -> "type[Settings] | None":
        """The section that the field stands for, or None."""
        return self.kind if isinstance(self.kind, type) and issubclass(self.kind, Settings) else None

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """The rules that a value has to follow."""
        return tuple(m for m in self.markers if isinstance(m, Bound))

    def flag(self, method: str) -> str:
        """Name of its flag in the program of a method, without dashes."""
        marker = next((m for m in self.markers if isinstance(m, Flag)), Flag(self.name))
        return marker.lora or marker.name if method == "lora" else marker.name

    @property
    def former(self) -> str | None:
        """Its name in an earlier release, or None."""
        return next((m.name for m in self.markers if isinstance(m, Formerly)), None)

    @property
    def variable(self) -> Variable:
        """The declared Ansible variable; a field's own marker overrides that of its type."""
        return next((m for m in reversed(self.markers) if isinstance(m, Variable)), Variable())

    @property
    def only_for(self) -> OnlyFor | None:
        """The methods that use it, or None for all."""
        return next((m for m in self.markers if isinstance(m, OnlyFor)), None)

    def is_for(self, method: str) -> bool:
        """Whether a method uses it; where no method is named, any does."""
        return self.only_for is None or not method or method in self.only_for.methods

    @property
    def unset(self) -> Any:
        """What an inventory writes for None: 0 where it is no value of its own, as of a number of steps, else auto."""
        if self.kind not in (int, float):
            return ""
        return ZERO_COUNTS if self.optional and not self.complaint(self.kind(0)) else 0

    def misplaced(self, value: Any, method: str) -> str:
        """What is wrong with a value that a method does not use; empty if it is the default, or is used."""
        if value == self.default or self.is_for(method):
            return ""
        return (
            f"{shown(value)} is of no use to the method {method}, it is a setting of {self.only_for}; leave it out, or "
            f"change the method (Ansible: training_method)"
        )

    @property
    def derived(self) -> str | None:
        """The playbooks' expression for it, or None if an inventory sets it."""
        return next((m.expression for m in self.markers if isinstance(m, Derived)), None)

    def complaint(self, value: Any) -> str:
        """What is wrong with a value of the right type; empty if nothing is, and for None."""
        if value is None:
            return ""
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, float) and not math.isfinite(item):
                return f"{item} is no finite number"
            if isinstance(item, str) and (wrong := text_problem(item)):
                return wrong
            if isinstance(item, int) and not -LARGEST <= item <= LARGEST:
                return f"{shown(item, 24)} is too large; whole numbers go up to 2^63-1"
        broken = next((bound for bound in self.bounds if not bound.allows(value)), None)
        return broken.complaint(value) if broken else ""

    def described(self, unset: str = "Unset") -> str:
        """The meaning with unit and bounds; ``unset`` is how "no value" is written."""
        facts = [f"in {m.name}" for m in self.markers if isinstance(m, Unit)]
        facts += [str(b) for b in self.bounds if b not in (Ge(0), Gt(0), PathText())]  # goes without saying
        meaning = self.meaning.replace("Unset:", f"{unset}:")
        if facts:
            sentence = ", ".join(facts)
            meaning = f"{meaning} {sentence[0].upper()}{sentence[1:]}."
        return f"{meaning} Only for {self.only_for}." if self.only_for else meaning


class Settings:
    """Base of the sections of a job: checks each value against the bounds of its field.

    A rule about several values at once is a section's own ``__post_init__``, which calls this one first.
    """

    section: ClassVar[str] = ""
    """Name of the section in the job file; empty for the top level."""
    role: ClassVar[str] = "training"
    """Ansible role that declares the section's variables."""
    prefix: ClassVar[str] = "training_"
    """What the names of these variables begin with."""

    def __post_init__(self) -> None:
        """Check all bounds.

        Raises:
            BadInput: names the setting and its value.
        """
        for setting in settings_of(type(self)):
            if complaint := setting.complaint(getattr(self, setting.name)):
                raise BadInput(f"{setting.key}: {complaint}")


def _meanings(cls: type) -> dict[str, str]:
    """The docstring below each field, which Python does not store: {field: text in one line}."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    if not isinstance(tree, ast.ClassDef):
        raise TypeError(f"{cls} is no class")
    found = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[statement.target.id] = " ".join(following.value.value.split())
    return found


_KNOWN: dict[type, tuple[Setting, ...]] = {}


def settings_of(cls: type[Any]) -> tuple[Setting, ...]:
    """The settings that a dataclass declares, in order; a field that is a section of its own counts as one."""
    if cls not in _KNOWN:
        hints, meanings = typing.get_type_hints(cls, include_extras=True), _meanings(cls)
        _KNOWN[cls] = tuple(
            _setting(cls, field, hints[field.name], meanings.get(field.name, "")) for field in dataclasses.fields(cls)
        )
    return _KNOWN[cls]


def _setting(cls: type[Any], field: "dataclasses.Field[Any]", hint: Any, meaning: str) -> Setting:
    """What a field declares. ``Annotated`` may stand around ``X | None`` and around ``X``; outer markers come last."""
    hint, markers = _unwrap(hint)
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if optional:
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        hint, inner = _unwrap(hint)
        markers = (*inner, *markers)
    return Setting(
        section=cls.section,
        name=field.name,
        kind=hint,
        optional=optional,
        default=field.default if field.default_factory is MISSING else field.default_factory(),
        meaning=meaning,
        markers=markers,
    )


def _unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type hint without ``Annotated``, and what that held."""
    return (hint.__origin__, hint.__metadata__) if typing.get_origin(hint) is Annotated else (hint, ())


def sections_of(cls: type[Any]) -> tuple[type[Settings], ...]:
    """A job's dataclass and those of its sections, in order."""
    return (cls, *(s.nested for s in settings_of(cls) if s.nested))
