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
COMPILER = ["-m", "ziglang", "cc"]
FLAGS = [
    *("-target", "x86_64-linux-gnu.2.28", "-mcpu=sapphirerapids"),
    *("-O3", "-shared", "-fPIC", "-s", "-Wall", "-Wextra", "-Werror"),
]


def library() -> Path:
    """Where the library of this source belongs: its name tells of the source, so that no other can be taken for it."""
    told = SOURCE.read_bytes() + " ".join(FLAGS).encode()
    return FOLDER / f"attention-{hashlib.sha256(told).hexdigest()[:12]}.so"


def build() -> bool:
    """Compile if need be; whether it was.

    Raises:
        SystemExit: there is no compiler, or it refuses.
    """
    made = library()
    if made.exists():
        return False
    # of this user alone: caches of a compiler in his home would outlive what needs them
    with tempfile.TemporaryDirectory() as scratch:
        caches = {f"ZIG_{name}_CACHE_DIR": scratch for name in ("GLOBAL", "LOCAL")}
        fresh = Path(scratch) / made.name
        done = subprocess.run(
            [sys.executable, *COMPILER, *FLAGS, "-o", str(fresh), str(SOURCE), "-lm"],
            env={**os.environ, **caches}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            remedy = "pip install -r requirements.txt brings the compiler, ziglang"
            sys.exit(f"error: {SOURCE.name} was not compiled; {remedy}\n{done.stderr}")
        beside = made.with_suffix(f".{os.getpid()}")
        beside.write_bytes(fresh.read_bytes())
        for old in FOLDER.glob("attention-*.so"):
            old.unlink()
        beside.replace(made)
    return True


if __name__ == "__main__":
    if build():
        print(library().name)
