#!/bin/sh
# Start a program of Python, which is the standard input, in the background. Usage: sh -c "$(cat background.sh)" sh NAME ARGUMENT ...
name=$1
shift
cat > "/root/$name"
setsid python3 "/root/$name" "$@" < /dev/null > /dev/null 2>&1 &
