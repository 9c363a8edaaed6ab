# shellcheck shell=sh
# Usage: sh -s HOME. Prints what somebody put into a home: neither what every new home has, nor what programs keep for themselves.
cd "$1" && find . -mindepth 1 -maxdepth 1 -printf '%P\n' | while read -r name; do
    case $name in .cache | .ansible | intel | .bash_history | .python_history) continue ;; esac
    [ -e "/etc/skel/$name" ] || echo "$name"
done
