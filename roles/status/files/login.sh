# shellcheck shell=sh
# Usage: sh -s COMMAND... Prints, on one line, who is logged in and the first of the commands that exists: the host's Python.
for command; do
    python=$(command -v "$command") && break
done
echo "$(id -un) $python"
