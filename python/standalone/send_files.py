"""A host's end of action plugin fetch_folder: prints files of a folder, over whatever connection Ansible has.

Needs Python 3.9 or newer; the host's own Python will do. Standard input names the files, as a JSON list of paths below
the folder. Standard output is one JSON mapping of names to contents in Base64, of the first files that together have at
most so many bytes, and of one file at least. The caller asks again for the others.

The exit code is 2 when a file cannot be read; standard error then says why, in one line.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def contents(folder: Path, names: Sequence[str], most: int) -> dict[str, str]:
    """``{name: content in Base64}`` of the first of these files that together have at most ``most`` bytes."""
    found: dict[str, str] = {}
    for name in names:
        most -= (folder / name).stat().st_size
        if found and most < 0:
            break
        found[name] = base64.b64encode((folder / name).read_bytes()).decode("ascii")
    return found


def main() -> int:
    """Print the files that are asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="send_files.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="whose files are printed")
    parser.add_argument("--most", type=int, default=64 << 20, help="bytes of one call (default 64 MB)")
    args = parser.parse_args()
    try:
        print(json.dumps(contents(args.folder, json.load(sys.stdin), args.most)))
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
