#!/bin/sh
# Prints the packages whose check fails, one a line.
# Usage: sh -s CHECK PACKAGE [CHECK PACKAGE ...] < missing.sh
while [ $# -gt 1 ]; do
    sh -c "$1" </dev/null >/dev/null 2>&1 || echo "$2"
    shift 2
done
