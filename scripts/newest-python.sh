#!/usr/bin/env bash
# Prints the path of the Python for the control node: the newest supported one that runs and has venv, or the one that the variable
# PYTHON names. Without any it fails, and says what it found. In place of the Python of a virtualenv, which may be active, it takes the
# one that the virtualenv was made with, so that .venv does not depend on another environment.
# Usage: scripts/newest-python.sh
set -euo pipefail

supported=(3.14 3.13 3.12 3.11)
names=("${supported[@]/#/python}" python3)
[[ -z ${PYTHON:-} ]] || names=("$PYTHON")

# Sets version and path of a command, both empty if it does not run: such as pyenv's for a version that is not chosen.
ask() {
    local code='import sys; print("%d.%d" % sys.version_info[:2], getattr(sys, "_base_executable", sys.executable))'
    read -r version path < <("$1" -c "$code" 2>/dev/null) || true
}

found=()
for name in "${names[@]}"; do
    command -v "$name" >/dev/null || continue
    ask "$name"
    if [[ -z $version ]]; then
        found+=("$name does not run")
    elif [[ " ${supported[*]} " != *" $version "* ]]; then
        found+=("$path is Python $version")
    elif ! "$path" -c 'import venv, ensurepip' 2>/dev/null; then
        found+=("$path is Python $version without venv") # control-node.sh reads this
    else
        echo "$path"
        exit
    fi
done

# What else is here, by number.
others=()
while read -r name; do
    [[ ! $name =~ ^python3\.([0-9]+)$ ]] || others[BASH_REMATCH[1]]=$name
done < <([[ -n ${PYTHON:-} ]] || compgen -c python3.)
for name in "${others[@]}"; do
    ask "$name"
    [[ -z $version || " ${found[*]} " == *" is Python $version "* ]] || found+=("$path is Python $version")
done
((${#found[@]})) || found=("there is no ${PYTHON:-python3}")
printf -v here '%s, ' "${found[@]}"
echo "error: the control node needs Python ${supported[-1]} to ${supported[0]} with venv; here ${here%, }" >&2
exit 1
