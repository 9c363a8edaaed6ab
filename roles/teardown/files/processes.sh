# shellcheck shell=sh
# Usage: sh -s FOLDER. Prints PID and command of each process that works in the folder: by its executable, its current folder, or its
# command line.
for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    [ "$pid" != $$ ] && [ "$pid" != "$PPID" ] || continue
    {
        readlink "$process/exe"
        readlink "$process/cwd"
        tr '\0' '\n' < "$process/cmdline" | head -n 2
    } | awk -v at="$1/" 'index($0 "/", at) == 1 {found = 1} END {exit !found}' || continue
    echo "$pid ($(tr '\0' ' ' < "$process/cmdline" | cut -c 1-80))"
done 2> /dev/null
