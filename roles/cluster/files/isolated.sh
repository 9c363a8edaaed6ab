#!/bin/sh
# Usage: sh -c TEXT sh PROGRAM ARGUMENT... Runs a program whose files nobody else may change, whatever the umask was.
umask 022
exec "$@"
