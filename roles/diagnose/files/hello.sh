# shellcheck shell=bash
# Usage: bash -s SECONDS ENVIRONMENT PROGRAM NAME=HOST,HOST... , the environment in base64, the program with its arguments. Starts a rank of
# it on each of the hosts, for one NAME after the other, and prints `NAME ok WHO` or `NAME wrong WHY`.
set -uo pipefail
seconds=$1
read -ra program <<< "$3"
# shellcheck source=/dev/null
. <(base64 --decode <<< "$2")
unset LD_PRELOAD # whether that is there is another question
export LD_LIBRARY_PATH=$I_MPI_ROOT/lib # where a program that was not built with mpicc finds the fabric
shift 3

for pair; do
    hosts=${pair#*=}
    commas=${hosts//[^,]/}
    if said=$(timeout "$seconds" mpirun -hosts "$hosts" -n "$((${#commas} + 1))" -ppn 1 python "${program[@]}" 2>&1 < /dev/null); then
        echo "${pair%%=*} ok $(grep --max-count=1 ' ranks' <<< "$said")"
    else
        code=$?
        ((code != 124)) || said+=" nothing for $seconds s"
        echo "${pair%%=*} wrong $(grep . <<< "$said" | head --lines=1) ($code)"
    fi
done
