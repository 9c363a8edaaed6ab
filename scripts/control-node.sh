#!/usr/bin/env bash
# Makes .venv, the control node's environment, from a lock file; does nothing when it is there already.
# Usage: scripts/control-node.sh requirements.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lock=$1

# Distribution packages: name them, install them as root, else say what to type.
missing=()
command -v python3 >/dev/null || missing+=(python3)
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
command -v rsync >/dev/null || missing+=(rsync)
command -v ssh >/dev/null || missing+=(openssh-client)
command -v git >/dev/null || missing+=(git)
if ((${#missing[@]})); then
    install="apt-get install --yes --no-install-recommends ${missing[*]}"
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "error: ${missing[*]} missing on this machine; as root: $install" >&2
        exit 1
    fi
    echo "Installing from the distribution: ${missing[*]}"
    apt-get update --quiet --quiet
    DEBIAN_FRONTEND=noninteractive $install --quiet --quiet
fi

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $(command -v python3) is $(python3 --version); the control node needs Python 3.11 or later" >&2
    exit 1
fi

stamp=.venv/.$lock-$(sha256sum "$lock" | cut --characters=1-16)
if [[ ! -e $stamp ]] || ! .venv/bin/python -c '' 2>/dev/null; then
    echo "Making .venv from $lock"
    .venv/bin/python -c '' 2>/dev/null || python3 -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --require-hashes --requirement "$lock"
    rm --force .venv/."$lock"-*
    touch "$stamp"
fi
