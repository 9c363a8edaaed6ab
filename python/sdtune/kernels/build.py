"""Compile the kernels; on the control node, before the code is copied to the hosts, which need no compiler.

    python build.py

Zig's C compiler, a Python package, cross-compiles: the libraries, one for each instruction set that has bf16, are for
any x86-64 host with glibc 2.28 or newer, whatever the control node is. Prints the names of those that were made, and
nothing where all were there. Needs a Python 3.9 and nothing of sdtune.
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
HEADERS = ["amx.h", "avx512.h"]
PROCESSORS = {"AMX": "sapphirerapids", "AVX-512-BF16": "cooperlake"}
"""The oldest that has an instruction set, by its name in sdtune.processor."""
COMPILER = [sys.executable, "-m", "ziglang"]
VERSION = "0.17.1"
"""Of the compiler, as in requirements.txt."""
FLAGS = ["-target", "x86_64-linux-gnu.2.28", "-O3", "-shared", "-fPIC", "-s", "-Wall", "-Wextra", "-Werror"]


def _flags(instructions: str) -> list[str]:
    return [*FLAGS, f"-mcpu={PROCESSORS[instructions]}"]


def library(instructions: str) -> Path:
    """Where the library for an instruction set belongs.

    Its name tells of source and compiler, so that no other can be taken for it.
    """
    source = [SOURCE, *map(SOURCE.with_name, HEADERS)]
    told = b"".join(file.read_bytes() for file in source) + " ".join([VERSION, *_flags(instructions)]).encode()
    return FOLDER / f"attention-{instructions.lower()}-{hashlib.sha256(told).hexdigest()[:12]}.so"


def _call(*arguments: str, **environment: str) -> str:
    """What the compiler prints."""
    done = subprocess.run(
        [*COMPILER, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        remedy = "pip install -r requirements.txt brings the compiler, ziglang"
        sys.exit(f"error: {SOURCE.name} was not compiled; {remedy}\n{done.stderr}")
    return done.stdout.strip()


def build() -> list[Path]:
    """Compile what is not there yet; says what that was. Two at once do no harm.

    Raises:
        SystemExit: there is no compiler, another one, or it refuses.
    """
    wanted = {library(instructions): instructions for instructions in PROCESSORS}
    missing = [made for made in wanted if not made.exists()]
    if missing and (version := _call("version")) != VERSION:
        sys.exit(f"error: ziglang is {version}, not {VERSION}; pip install -r requirements.txt brings that")
    # caches of a compiler in the user's home would outlive what needs them
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".build-") as scratch:
        caches = {f"ZIG_{name}_CACHE_DIR": scratch for name in ("GLOBAL", "LOCAL")}
        for made in missing:
            fresh = Path(scratch) / made.name
            _call("cc", *_flags(wanted[made]), "-o", str(fresh), str(SOURCE), "-lm", **caches)
            fresh.replace(made)
    for old in FOLDER.glob("attention-*.so"):
        if old not in wanted:
            old.unlink(missing_ok=True)
    return missing


if __name__ == "__main__":
    for made in build():
        print(made.name)
