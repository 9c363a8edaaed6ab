"""Compile the kernels on the control node, before the code is copied to the hosts. Hosts need no compiler.

    python build.py [--obstacle]

Zig's C compiler, a Python package, cross-compiles. There is one library for each instruction set with bf16. They run on
any x86-64 host with glibc 2.28 or newer, whatever the control node is. Prints the names of the libraries that were
compiled, and nothing if all existed. With --obstacle, compiles nothing, and prints what prevents it from compiling.
Needs Python 3.9 and nothing of sdtune.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCES = [FOLDER / "attention.c", FOLDER / "elementwise.c"]
HEADERS = ["amx.h", "avx512.h", "common.h"]
PROCESSORS = {"AMX": "sapphirerapids", "AVX-512-BF16": "cooperlake"}
"""The oldest processor with an instruction set, by the set's name in sdtune.host.processor."""
COMPILER = [sys.executable, "-m", "ziglang"]
VERSION = "0.17.1"
"""Version of the compiler, as in requirements.txt."""
FLAGS = ["-target", "x86_64-linux-gnu.2.28", "-O3", "-shared", "-fPIC", "-s", "-Wall", "-Wextra", "-Werror"]


def _flags(instructions: str) -> list[str]:
    return [*FLAGS, f"-mcpu={PROCESSORS[instructions]}"]


def library(instructions: str) -> Path:
    """Path of the library for an instruction set.

    Its name holds a digest of the source, the compiler and its flags, so a library of another source has another name.
    """
    source = [*SOURCES, *map(SOURCES[0].with_name, HEADERS)]
    digested = b"".join(file.read_bytes() for file in source) + " ".join([VERSION, *_flags(instructions)]).encode()
    return FOLDER / f"attention-{instructions.lower()}-{hashlib.sha256(digested).hexdigest()[:12]}.so"


def _compiler(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMPILER, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def _wanted() -> dict[Path, str]:
    return {library(instructions): instructions for instructions in PROCESSORS}


def obstacle() -> str:
    """What prevents the missing libraries from being compiled, and what to do, in one line; empty if nothing does."""
    if all(made.exists() for made in _wanted()):
        return ""
    if not os.access(FOLDER, os.W_OK):
        remedy = "install the collection that make collection builds, which has them inside"
        return f"{FOLDER}, where they go, cannot be written by this user; {remedy}"
    remedy = f"type {sys.executable} -m pip install ziglang=={VERSION}"
    done = _compiler("version")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"the compiler, ziglang, does not start: {reason}; {remedy}"
    version = done.stdout.strip()
    return "" if version == VERSION else f"the compiler, ziglang, is {version}, not {VERSION}; {remedy}"


def build() -> list[Path]:
    """Compile the missing libraries, and return their paths. Two processes may do it at once.

    Raises:
        SystemExit: the compiler is missing, is another one, or fails.
    """
    if why := obstacle():
        sys.exit(f"error: the kernels were not compiled: {why}")
    wanted = _wanted()
    missing = [made for made in wanted if not made.exists()]
    # the compiler's caches would stay in the user's home
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".build-") as scratch:
        caches = {f"ZIG_{name}_CACHE_DIR": scratch for name in ("GLOBAL", "LOCAL")}

        def compile_for(made: Path) -> subprocess.CompletedProcess[str]:
            fresh = Path(scratch) / made.name
            return _compiler("cc", *_flags(wanted[made]), "-o", str(fresh), *map(str, SOURCES), "-lm", **caches)

        with ThreadPoolExecutor() as side_by_side:
            compiling = {made: side_by_side.submit(compile_for, made) for made in missing}
        for made, compiled in compiling.items():
            if compiled.result().returncode:
                sys.exit(f"error: the kernels were not compiled\n{compiled.result().stderr}")
            (Path(scratch) / made.name).replace(made)
    for old in FOLDER.glob("attention-*.so"):
        if old not in wanted:
            old.unlink(missing_ok=True)
    return missing


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--obstacle"]):
        sys.exit(__doc__)
    if sys.argv[1:]:
        if why := obstacle():
            print(why)
        sys.exit()
    for made in build():
        print(made.name)
