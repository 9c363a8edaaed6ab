#!/usr/bin/env bash
# Inspects a Python environment, or marks it as complete.
#
# Usage: bash -s inspect PREFIX SOURCE < environment.sh
#        bash -s complete PREFIX SOURCE < environment.sh
#
# SOURCE is one line that says what the environment is built from. `complete` writes it to PREFIX/.complete, after a list of all
# files in PREFIX/.files. `inspect` prints the state in a word: missing, outdated (another SOURCE), broken or intact; after broken,
# a second line with the reason.
set -euo pipefail

# Every file and its size; without what Python compiles later, and the certificates to which administrators add their site's.
list_files() {
    find . -name __pycache__ -prune -o -type f ! -name .files ! -name .complete ! -name cacert.pem -printf '%s %p\n' | LC_ALL=C sort
}

complete() {
    cd "$1"
    list_files >.files
    printf '%s\n' "$2" >.complete
}

inspect() {
    local lost output
    if ! [[ -f $1/.complete && -f $1/.files ]]; then
        echo missing
        return
    fi
    if [[ $(cat "$1/.complete") != "$2" ]]; then
        echo outdated
        return
    fi
    cd "$1"
    lost=$(list_files | LC_ALL=C comm -23 .files - | head -n 1 || true)
    if [[ -n $lost ]]; then
        printf 'broken\n%s is not what was installed\n' "${lost#* }"
    elif ! output=$(bin/python -I -m pip check 2>&1); then
        echo broken
        tail -n 1 <<<"$output"
    else
        echo intact
    fi
}

"$@" </dev/null # standard input is this script
