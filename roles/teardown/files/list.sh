# shellcheck shell=sh
# Usage: sh -s FOLDER. Prints what is in the folder, two levels deep and sorted, but for the manifest; nothing if there is no folder.
[ ! -d "$1" ] || find "$1" -mindepth 1 -maxdepth 2 ! -name .provisioned | LC_ALL=C sort
