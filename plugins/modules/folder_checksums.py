#!/usr/bin/python
"""List the files of a folder with their SHA-256, as ``sha256sum`` prints them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: folder_checksums
short_description: The files of a folder with their SHA-256
description:
  - Changes nothing. A link counts as what it leads to.
  - What is excluded is left out, with all that is below it.
  - The lines can be verified with C(sha256sum -c) in that folder.
options:
  path:
    description: The folder on the host; one that does not exist has no files.
    type: path
    required: true
  exclude:
    description: Patterns of names; one that begins with C(/) is a path below the folder.
    type: list
    elements: str
    default: [".*"]
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: List the pictures
  folder_checksums:
    path: /srv/sdtune/data/concept
  register: __example_pictures
"""

RETURN = r"""
lines:
  description: One line for each file, its SHA-256 and its path below the folder, in the order of the paths.
  type: list
  elements: str
  returned: always
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

_CHUNK = 1 << 20
HIDDEN = (".*",)


def excluded(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path below the folder is left out: by its name, or by its path where the pattern begins with /."""
    name = path.rpartition("/")[2]
    return any(fnmatch(f"/{path}", pattern) if pattern[:1] == "/" else fnmatch(name, pattern) for pattern in patterns)


def files_of(
    folder: Path, patterns: Sequence[str] = HIDDEN, below: str = "", parents: tuple[tuple[int, int], ...] = ()
) -> Iterator[str]:
    """Paths of all files below a folder that no pattern excludes, relative to it.

    Raises:
        OSError: a folder cannot be read, or a link leads to a folder that it lies in.
    """
    status = (folder / below).stat()
    here = (status.st_dev, status.st_ino)
    if here in parents:
        raise OSError(f"{folder / below} is a link to a folder that it lies in")
    with os.scandir(folder / below) as entries:
        found = [(entry.name, entry.is_dir(), entry.is_file()) for entry in entries]
    for name, is_folder, is_file in found:
        path = f"{below}/{name}" if below else name
        if excluded(path, patterns):
            continue
        if is_folder:
            yield from files_of(folder, patterns, path, (*parents, here))
        elif is_file:
            yield path


def sha256_of_start(path: Path, size: int) -> str:
    """SHA-256 of the first ``size`` bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(size, _CHUNK))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return sha256_of_start(path, path.stat().st_size)


def line_of(digest: str, name: str) -> str:
    """A line as ``sha256sum`` prints it: a name with a backslash or a line break is escaped, and the line marked."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}"


def file_of(line: str) -> str:
    """The path that a line of :func:`line_of` names."""
    name = line.partition("  ")[2]
    if not line.startswith("\\"):
        return name
    return re.sub(r"\\(.)", lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), name)


def checksums(folder: Path, patterns: Sequence[str] = HIDDEN) -> list[str]:
    """The lines of all files of a folder, in the order of their paths' bytes; none where there is no folder."""
    if not folder.is_dir():
        return []
    return [line_of(sha256_of(folder / name), name) for name in sorted(files_of(folder, patterns), key=os.fsencode)]


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "exclude": {"type": "list", "elements": "str", "default": list(HIDDEN)},
        },
        supports_check_mode=True,
    )
    try:
        lines = checksums(Path(module.params["path"]), module.params["exclude"])
    except OSError as error:
        module.fail_json(msg=f"{module.params['path']} cannot be listed: {error}")
    module.exit_json(changed=False, lines=lines)


if __name__ == "__main__":
    main()
