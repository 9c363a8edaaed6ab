# shellcheck shell=bash
# Usage: bash -s SECONDS ENVIRONMENT INTERFACES PROGRAM NAME=HOST,HOST... , with the environment in base64, the network interface of
# each host (HOST=INTERFACE ...), and the program with its arguments. For one NAME after the other, starts a rank of the program on each
# of its hosts, and prints `NAME ok RESULT` or `NAME wrong REASON`.
set -uo pipefail
seconds=$1
read -ra program <<< "$4"
declare -A interfaces=()
for pair in $3; do
    interfaces[${pair%%=*}]=${pair#*=}
done
# shellcheck source=/dev/null
. <(base64 --decode <<< "$2")
unset LD_PRELOAD # another check looks for those libraries
export LD_LIBRARY_PATH=$I_MPI_ROOT/lib # for a program that was not built with mpicc
shift 4
# A rank uses the interface of its own host; those variables of env.sh are of the host that starts it.
# shellcheck disable=SC2016 # the shells of the ranks expand it
rank='names=($SDTUNE_INTERFACES); own=${names[PMI_RANK]}
for name in FI_TCP_IFACE GLOO_SOCKET_IFNAME CCL_KVS_IFACE; do
    [[ -z ${!name:-} || $own == - ]] || export "$name=$own"
done
exec python "$@"'

for pair; do
    hosts=${pair#*=}
    commas=${hosts//[^,]/}
    SDTUNE_INTERFACES=
    for host in ${hosts//,/ }; do
        SDTUNE_INTERFACES+="${interfaces[$host]:--} "
    done
    export SDTUNE_INTERFACES MASTER_ADDR=${hosts%%,*} # the ranks meet on this host, which starts them
    if output=$(timeout "$seconds" python -P -m sdtune.launch meet mpirun -hosts "$hosts" -n "$((${#commas} + 1))" -ppn 1 \
        bash -c "$rank" rank "${program[@]}" 2>&1 < /dev/null); then
        echo "${pair%%=*} ok $(grep --max-count=1 ' ranks' <<< "$output")"
    else
        code=$?
        # The loader of a host calls a library an error that /etc/environment preloads there and that is missing, and goes on.
        output=$(grep --invert-match 'ERROR: ld\.so: .* ignored\.$' <<< "$output") || output=
        ((code != 124)) || output+=" nothing for $seconds s"
        # Libraries print remarks first, torch's warnings among them. What names an error counts most, then what sounds like one.
        said=$(grep --invert-match --extended-regexp '^\[W|^[[:space:]]*$' <<< "$output") || said=$output
        for pattern in '([A-Za-z]*Error|error):' 'error|abort|terminate|cannot|refused|timed out' '.'; do
            ! reason=$(grep --max-count=1 --ignore-case --extended-regexp "$pattern" <<< "$said") || break
        done
        echo "${pair%%=*} wrong ${reason:-it said nothing} ($code)"
    fi
done
