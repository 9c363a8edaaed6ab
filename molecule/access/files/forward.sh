#!/bin/sh
# Start forward.py, which is the standard input, in the background. Usage: sh -c "$(cat forward.sh)" sh PORT ADDRESS < forward.py
cat > /root/forward.py
setsid python3 /root/forward.py "$1" "$2" < /dev/null > /dev/null 2>&1 &
