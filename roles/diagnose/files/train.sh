# shellcheck shell=bash
# Usage: bash -s FOLDER CODE CACHE SECONDS JOB ENVIRONMENT ACCELERATE, the last three in base64. Trains in FOLDER, which is removed
# afterwards. Prints the libraries that the training mapped, and the metrics of its steps; on standard error, the end of its log.
set -euo pipefail
folder=$1 code=$2 cache=$3 seconds=$4

trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$folder"
cd "$folder"
base64 --decode <<< "$5" > job.yaml
base64 --decode <<< "$6" > env.sh
base64 --decode <<< "$7" > accelerate.yaml
# Weights that are converted already are used; what is converted now is removed with the folder.
mkdir weights
find "$cache" -maxdepth 1 '(' -name '*.safetensors' -o -name '*.safetensors.json' ')' -exec ln -s -t weights {} + 2> /dev/null || true

# shellcheck source=/dev/null
. ./env.sh
python "$code/textual_inversion.py" --job job.yaml < /dev/null > log 2>&1 &
job=$!
libraries=
while kill -0 "$job" 2> /dev/null; do
    if ((SECONDS > seconds)); then
        echo "error: it took more than $seconds s" >> log
        kill -9 "$job"
        break
    fi
    libraries+=$(grep -oE '/[^ ]*/lib(tcmalloc|iomp5|gomp|omp)[^ /]*$' "/proc/$job/maps" 2> /dev/null || true)$'\n'
    sleep 0.2
done
code=0
wait "$job" || code=$?
LC_ALL=C sort --unique <<< "$libraries" | grep . || true
grep '"kind": "step"' metrics.jsonl 2> /dev/null || true
tail --lines=10 log >&2
exit "$code"
