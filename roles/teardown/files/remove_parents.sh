# shellcheck shell=sh
# Usage: sh -s FOLDER ALLOWED... From the folder upwards, removes each folder that is empty and allowed, and prints it.
path=$1
shift
while [ "$path" != / ]; do
    for allowed; do
        [ "$allowed" != "$path" ] || [ ! -d "$path" ] || find "$path" -maxdepth 0 -empty -delete -print
    done
    path=$(dirname "$path")
done
