# shellcheck shell=bash
# Usage: bash -s RUN_FOLDER. Starts the run and prints, as the last line, by how many MB it lowered the host's available memory: pages that
# ranks share count once.
set -euo pipefail
available() { awk '$1 == "MemAvailable:" {print $2}' /proc/meminfo; }

before=$(available)
least=$before
"$1/launch.sh" --overwrite < /dev/null &
job=$!
while kill -0 "$job" 2> /dev/null; do
    now=$(available)
    ((now >= least)) || least=$now
    sleep 0.2
done
wait "$job"
echo "$(((before - least) / 1024))"
