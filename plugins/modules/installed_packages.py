#!/usr/bin/python
"""Compare the packages of a Python environment with pins, file by file. Changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: installed_packages
short_description: Compare the packages of a Python environment with pins, file by file
description:
  - Reads the metadata that pip leaves beside each package, and compares every file with its recorded checksum.
  - Runs on the host's own Python. The environment's Python is not started, so a damaged environment can be asked too.
options:
  prefix:
    description: Folder of the environment.
    type: path
    required: true
  packages:
    description: Pins, each C(name==version).
    type: list
    elements: str
    required: true
  others:
    description: Whether the packages that no pin names are compared with their checksums too.
    type: bool
    default: false
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Look for what is missing or damaged
  installed_packages:
    prefix: /home/sdtune/sdtune/env/ipex
    packages: [impi-rt==2021.18.1]
  register: found
"""

RETURN = r"""
wanted:
  description: The pins whose package is missing, of another version, or damaged; what has to be installed again.
  returned: always
  type: list
  elements: str
without_record:
  description: Metadata folders of packages that pip cannot replace, because their RECORD is lost or damaged.
  returned: always
  type: list
  elements: str
problems:
  description: What is wrong with each of them, in a few words.
  returned: always
  type: dict
"""

import base64
import csv
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def normalize(name: str) -> str:
    """A package's name as PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def metadata_folders(prefix: Path) -> dict[str, Path]:
    """{normalized name: its ``.dist-info`` folder} of all packages below ``prefix``."""
    folders = sorted(prefix.glob("lib/python3.*/site-packages/*.dist-info"))
    return {normalize(folder.name.split("-")[0]): folder for folder in folders}


def version_of(folder: Path) -> str:
    """The version without its local part (``+cpu``); empty where the metadata does not say it."""
    try:
        text = (folder / "METADATA").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^Version: *(\S+)", text, re.MULTILINE)
    return found.group(1).split("+")[0] if found else ""


def read_record(folder: Path) -> list[list[str]]:
    """The lines of RECORD (path, checksum, size); empty where it is missing, empty or cut off."""
    try:
        with (folder / "RECORD").open(encoding="utf-8", newline="") as record:
            rows = list(csv.reader(record))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return rows if all(len(row) == 3 for row in rows) else []


def may_differ(path: str) -> bool:
    """Whether a whole package may have this file with other contents than RECORD says.

    Administrators add the certificates of their site to certifi's list. The wheel of IPEX 2.8.0 has a METADATA that its
    own RECORD does not match; nothing runs what is in METADATA, and ``pip check`` judges its requirements. The wheel of
    numpy 2.3.5 brings a compiled module, which Python compiles anew.
    """
    return path.endswith((".dist-info/METADATA", "/cacert.pem", ".pyc"))


def is_condas(path: str, folder: Path) -> bool:
    """Whether conda made this file: scripts in ``bin`` of a package that it installed, not all that RECORD lists."""
    installer = folder / "INSTALLER"
    return Path(path).parent.name == "bin" and installer.is_file() and installer.read_text().strip() == "conda"


def damaged_files(folder: Path) -> Iterator[str]:
    """Paths of files that are missing or differ from their checksum in RECORD, relative to site-packages."""
    rows = read_record(folder)
    if not rows:
        yield f"{folder.name}/RECORD"
    for path, checksum, _ in rows:
        if not checksum or is_condas(
            path, folder
        ):  # without one: RECORD itself, and what is compiled at the first import
            continue
        algorithm, _, wanted = checksum.partition("=")
        try:
            digest = hashlib.new(algorithm, (folder.parent / path).read_bytes()).digest()
        except (OSError, ValueError):  # ValueError: an algorithm that does not exist
            yield path
            continue
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != wanted and not may_differ(path):
            yield path


def problem_with(pin: str, folders: dict[str, Path]) -> str:
    """What is wrong with the package of ``pin``; empty where it is installed as pinned and whole."""
    name, _, version = pin.partition("==")
    folder = folders.get(normalize(name))
    if folder is None:
        return "is not installed"
    installed = version_of(folder)
    if installed != version.split("+")[0]:
        return f"is {installed or 'of an unknown version'}, not {version}"
    damaged = [Path(path).name for path in damaged_files(folder)]
    more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
    return f"is damaged ({', '.join(damaged[:3])}{more})" if damaged else ""


def unpinned(pins: Iterable[str], folders: dict[str, Path]) -> list[str]:
    """A pin, to what is installed, for each package that no pin names."""
    named = {normalize(pin.partition("==")[0]) for pin in pins}
    return [f"{name}=={version_of(folder)}" for name, folder in folders.items() if name not in named]


def without_record(pins: Iterable[str], folders: dict[str, Path]) -> list[str]:
    """The metadata folders of those packages that pip cannot replace, because they have no usable RECORD."""
    found = (folders.get(normalize(pin.partition("==")[0])) for pin in pins)
    return [str(folder) for folder in found if folder is not None and not read_record(folder)]


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "prefix": {"type": "path", "required": True},
            "packages": {"type": "list", "elements": "str", "required": True},
            "others": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    folders = metadata_folders(Path(module.params["prefix"]))
    pins = [
        *module.params["packages"],
        *(unpinned(module.params["packages"], folders) if module.params["others"] else ()),
    ]
    found = {pin: problem_with(pin, folders) for pin in pins}
    problems = {pin: problem for pin, problem in found.items() if problem}
    module.exit_json(
        changed=False,
        wanted=list(problems),
        problems=problems,
        without_record=without_record(problems, folders),
    )


if __name__ == "__main__":
    main()
