"""Keeping out what a host's environment brings along: variables of others, other Pythons' packages, a rank's libraries.

The variables are listed in ``foreign_variables.txt``, from which env.sh of a run is made too. Uses the standard library
only, and as little of it as possible: a foreign PYTHONPATH can hide modules of it.
"""

import os
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

CLEAN = "SDTUNE_ENVIRONMENT"
"""Set by env.sh: the variables of this process are those of a run, and none is foreign."""
CODE = Path(__file__).resolve().parents[2]
"""The folder of the code."""
_LIST = Path(__file__).with_name("foreign_variables.txt")
_OF_RANKS = ("KMP_AFFINITY", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


def patterns() -> list[str]:
    """The lines of the list: patterns of names, and with ``!`` those to be kept."""
    lines = _LIST.read_text(encoding="ascii").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def foreign(names: Iterable[str]) -> list[str]:
    """Those of the names that are foreign: the first pattern that fits a name decides."""
    known = patterns()

    def decides(name: str) -> str:
        return next((p for p in known if fnmatchcase(name, p.removeprefix("!"))), "!")

    return [name for name in names if not decides(name).startswith("!")]


def _need_folder() -> None:
    """End with one line where the current folder has been removed: every library asks for it."""
    try:
        Path.cwd()
    except FileNotFoundError:
        print("error: the current folder has been removed; change to another one, as by: cd ~", file=sys.stderr)
        raise SystemExit(2) from None


def _keep_docstrings() -> None:
    """Start this program again without PYTHONOPTIMIZE, if there is one: transformers reads its own docstrings."""
    if os.environ.pop("PYTHONOPTIMIZE", "") and sys.flags.optimize:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def isolate() -> None:
    """Remove foreign variables, and from the module search path what they and the user's own site have put there.

    To be called before anything else is imported. A PYTHONPATH that names the folder of this code stays.
    """
    _need_folder()
    _keep_docstrings()
    own = {"", str(CODE)}
    listed = {str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    user = os.environ.get("PYTHONUSERBASE") or str(Path("~/.local").expanduser())
    if not sys.flags.ignore_environment:
        sys.path[:] = [entry for entry in sys.path if entry in own or str(Path(entry).resolve()) not in listed - own]
    if Path(user).resolve() not in Path(sys.prefix).resolve().parents:
        sys.path[:] = [entry for entry in sys.path if not entry.startswith(f"{user}/lib/python")]
    if CLEAN not in os.environ:
        keep = {"PYTHONPATH"} if listed <= own else set()
        for name in foreign(os.environ):
            if name not in keep:
                del os.environ[name]
    os.environ["PYTHONNOUSERSITE"] = "1"


def leave_preload() -> None:
    """Start this program again without LD_PRELOAD, if there is one, and without the threads of a rank.

    The libraries that env.sh puts in front of a rank are for training; who has read env.sh into a shell has them in
    front of every program. OpenVINO aborts behind gperftools' allocator ("munmap_chunk(): invalid pointer", "double
    free or corruption"): its TBB opens libtbbbind with RTLD_DEEPBIND, so that this library frees with the C library
    what the preloaded allocator has allocated.
    """
    if not os.environ.pop("LD_PRELOAD", ""):
        return
    if CLEAN in os.environ:
        for name in _OF_RANKS:
            os.environ.pop(name, None)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
