#!/usr/bin/env bash
# Creates .venv, the environment of the control node, from a lock file. Does nothing when it is up to date.
# Usage: scripts/control-node.sh requirements.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lock=$1

scripts/packages.sh python3:python3 ssh:openssh-client git:git
python3 -c 'import venv, ensurepip' 2>/dev/null || scripts/packages.sh :python3-venv

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $(command -v python3) is $(python3 --version); the control node needs Python 3.11 or later" >&2
    exit 1
fi

stamp=.venv/.$lock-$(sha256sum "$lock" | cut --characters=1-16)
if [[ ! -e $stamp ]] || ! .venv/bin/python -c '' 2>/dev/null; then
    echo "Creating .venv from $lock"
    .venv/bin/python -c '' 2>/dev/null || python3 -m venv --clear .venv
    # Not compiled: only a few of the tens of thousands of files are ever imported, and Python compiles those at import.
    .venv/bin/python -m pip install --quiet --no-compile --require-hashes --requirement "$lock"
    rm --force .venv/."$lock"-*
    touch "$stamp"
fi
