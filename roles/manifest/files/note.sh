# shellcheck shell=bash
# Usage: bash -s MANIFEST LINE... , each `tree PATH` or `holder PATH`, which is added if there is no such path yet, with its parents that
# are missing too; or `made LINE`, which is added as it is. Prints what it added; nothing is noted twice.
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
