# shellcheck shell=sh
# Usage: sh -s PATH... Removes the files and folders that are empty, in this order, and prints them.
for path; do
    [ ! -e "$path" ] || find "$path" -maxdepth 0 -empty -delete -print
done
