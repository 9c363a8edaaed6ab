#!/usr/bin/env bash
# Lists the packages of an environment, one a line: first what pip knows, then what conda knows, as `conda list --export` does.
# Usage: bash -s PREFIX < list_packages.sh
set -euo pipefail

list_packages() {
    "$1/bin/python" -I -m pip list --format freeze --disable-pip-version-check
    for file in "$1"/conda-meta/*.json; do
        [ ! -e "$file" ] || basename "$file" .json
    done | sed -E 's/^(.*)-([^-]+)-([^-]+)$/\1=\2=\3/'
}

list_packages "$1" </dev/null # standard input is this script
