# shellcheck shell=bash
# Usage: bash -s MANIFEST LINE... , each `tree PATH` or `holder PATH`, which is recorded if there is no such path yet, with those of its
# parents that do not exist either; or `made LINE`, which is recorded as it is. Prints what it adds; nothing is recorded twice.
set -euo pipefail
manifest=$1
shift
note() {
    ! grep --quiet --line-regexp --fixed-strings -- "$1" "$manifest" 2> /dev/null || return 0
    wanted+=("$1")
}

wanted=()
for line; do
    path=${line#* }
    if [[ $line == made\ * ]]; then
        note "${line#made }"
    elif [[ ! -e $path && ! -L $path ]]; then
        note "$line"
        while path=$(dirname "$path") && [[ ! -e $path ]]; do
            note "holder $path"
        done
    fi
done
((${#wanted[@]})) || exit 0
mkdir --parents "$(dirname "$manifest")"
printf '%s\n' "${wanted[@]}" | awk '!seen[$0]++' | tee --append "$manifest"
