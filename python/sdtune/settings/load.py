"""Loading: a mapping, as YAML gives it, becomes a dataclass, or an error that names the setting."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from sdtune.errors import BadInput, shown
from sdtune.files import read_text
from sdtune.settings.fields import MISSING, Settings, settings_of
from sdtune.text import named, why_no_file

T = TypeVar("T")

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def convert(value: Any, kind: Any, where: str) -> Any:
    """``value`` as ``kind``, if YAML means it so; otherwise BadInput that names ``where``."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value is False and "no" in choices:
            raise BadInput(f'{where}: YAML reads a bare no as false; write it in quotes: "no"')
        if not isinstance(value, str) or value not in choices:
            raise BadInput(f"{where}: {shown(value)} is not one of {', '.join(choices)}")
        return value
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise BadInput(f"{where}: {shown(value)} is not a list")
        return [convert(v, typing.get_args(kind)[0], f"{where}[{i}]") for i, v in enumerate(value)]
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where)
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-4, without a dot, as text
            return float(value)
        except (ValueError, OverflowError):
            raise BadInput(f"{where}: {shown(value)} is not a number") from None
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a name such as 42, without quotes
    if kind is str and type(value) is date:
        return value.isoformat()  # a name such as 2024-01-31, as Ansible reads it without quotes
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadInput(f"{where}: {shown(value)} is not {_TYPE_NAMES[kind]}")
    return value


def build(cls: type[T], mapping: Any, where: str = "") -> T:
    """Make the dataclass ``cls`` from a mapping.

    Raises:
        BadInput: a key is unknown or missing, or a value has the wrong type or is out of range; the message names it.
    """
    if not isinstance(mapping, Mapping):
        raise BadInput(f"{where or 'the job file'}: {shown(mapping)} is not a mapping of keys to values")
    settings = {s.name: s for s in settings_of(cls)}
    former = {s.former: s.name for s in settings.values() if s.former}
    prefix = f"{where}." if where else ""
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        name = former.get(key, key) if former.get(key) not in mapping else key
        if name not in settings:
            near = difflib.get_close_matches(str(key), settings, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(settings)}"
            raise BadInput(f"unknown job key {prefix}{key if str(key).isidentifier() else shown(key)}{hint}")
        values[name] = value
    for name, setting in settings.items():
        if name not in values and setting.default is MISSING:
            raise BadInput(f"the job lacks {prefix}{name}")
    for name, value in values.items():
        setting = settings[name]
        if not (value is None and setting.optional):
            values[name] = convert(value, setting.kind, f"{prefix}{name}")
    return cls(**values)


class StrictLoader(yaml.SafeLoader):
    """YAML as people mean it: a key is there once, ``0777`` and ``1:30`` are not the numbers 511 and 90."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is there twice: one of its values would count, and nobody would know which."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        """Whole numbers are decimal; others of YAML 1.1's stay text, which a setting for a number refuses."""
        text = str(self.construct_scalar(node))
        return int(text) if re.fullmatch("[-+]?(0|[1-9][0-9]*)", text) else text

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        """Numbers with a point; ``1:30.5`` stays text."""
        return super().construct_yaml_float(node) if ":" not in node.value else node.value

    def construct_timestamp_as_text(self, node: yaml.ScalarNode) -> str:
        """A date is text, such as the name of a run."""
        return str(self.construct_scalar(node))


StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)
StrictLoader.add_constructor("tag:yaml.org,2002:float", StrictLoader.construct_yaml_float)
StrictLoader.add_constructor("tag:yaml.org,2002:timestamp", StrictLoader.construct_timestamp_as_text)


def read_yaml(path: str | Path, cls: type[T]) -> T:
    """Read a job file.

    Raises:
        BadInput: the file is missing, is not YAML, or is not a job.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"job file {named(path)} {why_no_file(path)}")
    try:
        mapping = yaml.load(read_text(path), StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"job file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    return build(cls, mapping)


def to_mapping(job: Settings) -> dict[str, Any]:
    """The job as plain dictionaries, as YAML would write it."""
    return dataclasses.asdict(job)  # type: ignore[call-overload, no-any-return]
