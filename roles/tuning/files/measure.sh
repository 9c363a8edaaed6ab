# shellcheck shell=bash
# Usage: bash -s RUN_FOLDER. Starts the run and prints, last, by how many MB it lowered the memory that the host has left: pages that
# ranks share count once, as they do for the host.
set -euo pipefail
left() { awk '$1 == "MemAvailable:" {print $2}' /proc/meminfo; }

before=$(left)
least=$before
"$1/launch.sh" --overwrite < /dev/null &
job=$!
while kill -0 "$job" 2> /dev/null; do
    now=$(left)
    ((now >= least)) || least=$now
    sleep 0.2
done
wait "$job"
echo "$(((before - least) / 1024))"
