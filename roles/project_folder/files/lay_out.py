"""Lay out a folder in which the commands of the documentation work, for those who installed sdtune as a collection.

    python - COLLECTION FOLDER <lay_out.py

Copies the inventories and the embedded model with its pictures; writes ansible.cfg, and for each playbook a file that
imports it from the collection. What exists stays as it is. Prints the paths of what was made, one a line.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

NAME = "sdtune.sdtune"
COPIED = (
    "inventory/local",
    "inventory/example",
    "inventory/slurm",
    "toyworld/model",
    "toyworld/xl/model",
    "toyworld/concept",
)
# The settings of ansible.cfg that point into a clone: a collection brings its plugins and roles itself.
OF_A_CLONE = re.compile(r"^(roles_path|action_plugins|callback_plugins|filter_plugins|library) *=.*\n", re.MULTILINE)


def wanted(collection: Path) -> dict[str, bytes]:
    """``{path below the folder: content}`` of everything that is laid out."""
    files = {
        str(path.relative_to(collection)): path.read_bytes()
        for part in COPIED
        for path in sorted((collection / part).rglob("*"))
        if path.is_file()
    }
    for entry in sorted(collection.glob("*.yml")):
        text, found = re.subn(r"playbooks/(\w+)\.yml", rf"{NAME}.\1", entry.read_text(encoding="utf-8"))
        if found:
            files[entry.name] = text.encode()
    settings = OF_A_CLONE.sub("", (collection / "ansible.cfg").read_text(encoding="utf-8"))
    files["ansible.cfg"] = re.sub(r"^(stdout_callback = )", rf"\1{NAME}.", settings, flags=re.MULTILINE).encode()
    return files


def lay_out(collection: Path, folder: Path) -> list[str]:
    """Write what is missing in ``folder``; the paths that were written.

    Raises:
        OSError: a file cannot be written.
    """
    made = []
    for name, content in wanted(collection).items():
        path = folder / name
        if os.path.lexists(path):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        made.append(name)
    return made


if __name__ == "__main__":
    try:
        print("\n".join(lay_out(Path(sys.argv[1]), Path(sys.argv[2]))))
    except OSError as error:
        sys.exit(f"error: {sys.argv[2]} cannot be filled: {error}; choose another folder with project_folder_path")
