# shellcheck shell=sh
# Usage: sh -s PREFIX NAME. Prints three lines: the owner of conda's folder, whether conda is in it, and the path that the environment
# NAME leads to; -, none and nothing where there is no such thing.
if [ -e "$1" ]; then stat --format %U "$1"; else echo -; fi
if [ -x "$1/bin/conda" ]; then echo conda; else echo none; fi
if [ -e ~/.conda/envs/"$2" ]; then
    readlink ~/.conda/envs/"$2" || echo "a folder in ~/.conda/envs"
elif [ -e "$1/envs/$2" ]; then
    echo "$1/envs/$2"
else
    echo nothing
fi
