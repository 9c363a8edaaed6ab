#!/usr/bin/env bash
# Creates .venv, the environment of the control node, from a lock file. Does nothing when it is up to date.
# A new .venv has the newest supported Python of this machine; PYTHON=python3.12 names another one.
# Usage: scripts/control-node.sh requirements.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lock=$1

scripts/packages.sh python3:python3 ssh:openssh-client git:git

stamp=.venv/.$lock-$(sha256sum "$lock" | cut --characters=1-16)
works() { .venv/bin/python -c 'import pip' 2>/dev/null; } # without pip, its creation was interrupted
if [[ ! -e $stamp ]] || ! works; then
    if ! works; then
        # Debian's python3 comes without venv.
        missing=$(scripts/newest-python.sh 2>&1 >/dev/null) || [[ $missing != *'lacks venv'* ]] || scripts/packages.sh :python3-venv
        python=$(scripts/newest-python.sh)
        echo "Creating .venv with $("$python" --version), $python"
        "$python" -m venv --clear .venv
    fi
    echo "Installing $lock in .venv"
    # Not compiled: only a few of the tens of thousands of files are ever imported, and Python compiles those at import.
    .venv/bin/python -m pip install --quiet --no-compile --require-hashes --requirement "$lock"
    rm --force .venv/."$lock"-*
    touch "$stamp"
fi
