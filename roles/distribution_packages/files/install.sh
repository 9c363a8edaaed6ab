#!/bin/sh
# Installs packages of Debian's, once no other process holds the lock of dpkg. Ansible's own module waits for it only where python3-apt is
# installed already. Usage: sh -s SECONDS PACKAGE ... < install.sh
seconds=$1
shift
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
exec apt-get install --yes --quiet -o "DPkg::Lock::Timeout=$seconds" -o Dpkg::Options::=--force-confdef \
    -o Dpkg::Options::=--force-confold "$@" < /dev/null
