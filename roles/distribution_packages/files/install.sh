#!/bin/sh
# Installs packages of Debian's, once no other process holds the lock of dpkg. Ansible's own module waits for it only where python3-apt is
# installed already. Prints what apt says, on standard error if it fails, without the line of each second for which it waits.
# Usage: sh -s SECONDS PACKAGE ... < install.sh
seconds=$1
shift
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
output=$(mktemp) || exit
trap 'rm -f "$output"' EXIT
# Into a file: a daemon that a package starts may keep it open.
apt-get install --yes --quiet -o "DPkg::Lock::Timeout=$seconds" -o Dpkg::Options::=--force-confdef \
    -o Dpkg::Options::=--force-confold "$@" > "$output" 2>&1 < /dev/null
code=$?
[ "$code" -eq 0 ] || exec >&2
tr '\r' '\n' < "$output" | sed '/^Waiting for cache lock/d'
exit "$code"
