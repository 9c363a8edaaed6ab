#!/usr/bin/env bash
# Prints the path of the Python for the control node: the newest supported one that runs and has venv, or the one that the variable
# PYTHON names. Without any it fails, and says what it found.
# Usage: scripts/newest-python.sh
set -euo pipefail

supported=(3.14 3.13 3.12 3.11)
names=("${supported[@]/#/python}" python3)
[[ -z ${PYTHON:-} ]] || names=("$PYTHON")

# A command may exist and not run, such as pyenv's for a version that is not chosen.
version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

found=()
for name in "${names[@]}"; do
    command -v "$name" >/dev/null || continue
    version=$(version_of "$name")
    if [[ -z $version ]]; then
        found+=("$name does not run")
    elif [[ " ${supported[*]} " != *" $version "* ]]; then
        found+=("$name is Python $version")
    elif ! "$name" -c 'import venv, ensurepip' 2>/dev/null; then
        found+=("$name lacks venv")
    else
        command -v "$name"
        exit
    fi
done
((${#found[@]})) || found=("there is no ${PYTHON:-python3}")
printf -v here '%s, ' "${found[@]}"
echo "error: the control node needs Python ${supported[-1]} to ${supported[0]} with venv; here ${here%, }" >&2
exit 1
