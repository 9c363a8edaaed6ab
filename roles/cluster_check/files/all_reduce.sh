# shellcheck shell=bash
# Usage: bash -s FOLDER SECONDS RANKS RANKS_PER_NODE ARGUMENT... Runs the all-reduce of the arguments over the hosts of the folder's
# nodefile, for at most so many seconds.
set -euo pipefail
cd "$1"
# shellcheck source=/dev/null
. ./env.sh
export MASTER_ADDR=${MASTER_ADDR-$(head --lines=1 nodefile)} # a run that takes the hosts that are free has none in env.sh
seconds=$2 ranks=$3 per_node=$4
shift 4
# shellcheck disable=SC2016 # the shells of the ranks expand it
exec timeout "$seconds" python -P -m sdtune.launch meet mpirun -f nodefile -n "$ranks" -ppn "$per_node" \
    bash -c '. ./env.sh && exec python "$@"' rank -P -m sdtune.launch.check_all_reduce "$@" < /dev/null
