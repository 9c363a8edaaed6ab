# shellcheck shell=bash
# Usage: bash -s SECONDS ENVIRONMENT PROGRAM NAME=HOST,HOST... , with the environment in base64, and the program with its arguments. For
# one NAME after the other, starts a rank of the program on each of its hosts, and prints `NAME ok RESULT` or `NAME wrong REASON`.
set -uo pipefail
seconds=$1
read -ra program <<< "$3"
# shellcheck source=/dev/null
. <(base64 --decode <<< "$2")
unset LD_PRELOAD # another check looks for those libraries
export LD_LIBRARY_PATH=$I_MPI_ROOT/lib # for a program that was not built with mpicc
shift 3

for pair; do
    hosts=${pair#*=}
    commas=${hosts//[^,]/}
    if output=$(timeout "$seconds" mpirun -hosts "$hosts" -n "$((${#commas} + 1))" -ppn 1 python "${program[@]}" 2>&1 < /dev/null); then
        echo "${pair%%=*} ok $(grep --max-count=1 ' ranks' <<< "$output")"
    else
        code=$?
        ((code != 124)) || output+=" nothing for $seconds s"
        # Libraries print remarks first, torch's warnings among them. What names an error counts most, then what sounds like one.
        said=$(grep --invert-match --extended-regexp '^\[W|^[[:space:]]*$' <<< "$output") || said=$output
        for pattern in '([A-Za-z]*Error|error):' 'error|abort|terminate|cannot|refused|timed out' '.'; do
            ! reason=$(grep --max-count=1 --ignore-case --extended-regexp "$pattern" <<< "$said") || break
        done
        echo "${pair%%=*} wrong $reason ($code)"
    fi
done
