"""Compile the kernels; on the control node, before the code is copied to the hosts, which need no compiler.

    python build.py

Zig's C compiler, a Python package, cross-compiles: the library is for any x86-64 host with glibc 2.28 or newer,
whatever the control node is. Prints the library's name when it was made, and nothing where it was there. Needs a
Python 3.9 and nothing of sdtune.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCE = FOLDER / "attention.c"
COMPILER = [sys.executable, "-m", "ziglang"]
VERSION = "0.17.1"
"""Of the compiler, as in requirements.txt."""
FLAGS = [
    *("-target", "x86_64-linux-gnu.2.28", "-mcpu=sapphirerapids"),
    *("-O3", "-shared", "-fPIC", "-s", "-Wall", "-Wextra", "-Werror"),
]


def library() -> Path:
    """Where the library belongs: its name tells of source and compiler, so that no other can be taken for it."""
    told = SOURCE.read_bytes() + " ".join([VERSION, *FLAGS]).encode()
    return FOLDER / f"attention-{hashlib.sha256(told).hexdigest()[:12]}.so"


def _call(*arguments: str, **environment: str) -> str:
    """What the compiler prints."""
    done = subprocess.run(
        [*COMPILER, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        remedy = "pip install -r requirements.txt brings the compiler, ziglang"
        sys.exit(f"error: {SOURCE.name} was not compiled; {remedy}\n{done.stderr}")
    return done.stdout.strip()


def build() -> bool:
    """Compile if need be; whether it was. Two at once do no harm.

    Raises:
        SystemExit: there is no compiler, another one, or it refuses.
    """
    made = library()
    if made.exists():
        return False
    if (version := _call("version")) != VERSION:
        sys.exit(f"error: ziglang is {version}, not {VERSION}; pip install -r requirements.txt brings that")
    # caches of a compiler in the user's home would outlive what needs them
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".build-") as scratch:
        fresh = Path(scratch) / made.name
        caches = {f"ZIG_{name}_CACHE_DIR": scratch for name in ("GLOBAL", "LOCAL")}
        _call("cc", *FLAGS, "-o", str(fresh), str(SOURCE), "-lm", **caches)
        fresh.replace(made)
    for old in FOLDER.glob("attention-*.so"):
        if old != made:
            old.unlink(missing_ok=True)
    return True


if __name__ == "__main__":
    if build():
        print(library().name)
