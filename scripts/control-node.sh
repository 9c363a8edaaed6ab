#!/usr/bin/env bash
# Creates .venv, the environment of the control node, from a lock file. Does nothing when it is up to date.
# A new .venv has the newest supported Python of this machine; PYTHON=python3.12 names another one. A .venv of another Python than PYTHON
# is refused.
# Usage: scripts/control-node.sh requirements.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lock=$1

scripts/packages.sh python3:python3 ssh:openssh-client git:git

stamp=.venv/.$lock-$(sha256sum "$lock" | cut --characters=1-16)
works() { .venv/bin/python -c 'import pip' 2>/dev/null; } # without pip, its creation was interrupted
which_python() { "$1" -c 'import sys; print("Python %d.%d of" % sys.version_info[:2], sys.base_prefix)'; }
if [[ -n ${PYTHON:-} ]] && works; then
    python=$(scripts/newest-python.sh)
    has=$(which_python .venv/bin/python)
    asked=$(which_python "$python")
    if [[ $has != "$asked" ]]; then
        echo "error: .venv has $has, and PYTHON=$PYTHON is $asked; remove $PWD/.venv, or leave PYTHON out" >&2
        exit 1
    fi
fi
if [[ ! -e $stamp ]] || ! works; then
    if ! works; then
        # Debian's Pythons come without venv; each has a package with it.
        lacks_venv='/usr/bin/[^ ]+ is Python ([0-9.]+) without venv'
        if ! said=$(scripts/newest-python.sh 2>&1) && [[ $said =~ $lacks_venv ]]; then
            scripts/packages.sh ":python${BASH_REMATCH[1]}-venv"
        fi
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
