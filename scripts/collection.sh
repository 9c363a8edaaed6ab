#!/usr/bin/env bash
# Builds the collection of what git knows, with the compiled kernels and the documentation of filters inside: inventories and keys of a
# user stay at home.
# An archive of another version that lies there is removed. Usage: scripts/collection.sh ANSIBLE_GALAXY FOLDER
set -euo pipefail
galaxy=$(realpath "$1")
mkdir --parents "$2"
output=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$(mktemp --directory)
built=$(mktemp --directory --tmpdir="$output")
trap 'rm --recursive --force "$folder" "$built"' EXIT
# git also lists files that were deleted and not yet committed.
git ls-files --cached -z | while IFS= read -r -d '' path; do [[ ! -e $path ]] || printf '%s\0' "$path"; done \
    | xargs --null cp --parents --no-dereference --preserve=mode --target-directory "$folder"
find python/sdtune/ops/kernels -name '*.so' -exec cp --parents --target-directory "$folder" {} +
"${galaxy%/*}/python" -B scripts/filter_docs.py "$folder"
"$galaxy" collection build --output-path "$built" "$folder"
rm --force "$output"/sdtune-sdtune-*.tar.gz
mv "$built"/*.tar.gz "$output"
