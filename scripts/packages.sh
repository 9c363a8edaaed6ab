#!/usr/bin/env bash
# Distribution packages: prints what is missing; as root installs it, otherwise prints the command to type.
# Usage: scripts/packages.sh COMMAND:PACKAGE ...   A package without a command counts as missing.
set -euo pipefail

missing=()
for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
((${#missing[@]})) || exit 0

install="apt-get install --yes --no-install-recommends ${missing[*]}"
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "error: ${missing[*]} missing on this machine; as root: $install" >&2
    exit 1
fi
echo "Installing from the distribution: ${missing[*]}"
apt-get update --quiet --quiet
DEBIAN_FRONTEND=noninteractive $install --quiet --quiet
