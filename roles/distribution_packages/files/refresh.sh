#!/bin/sh
# Refreshes the lists of apt, and prints the sources that do not answer, one a line. What cannot be had without them is seen when it
# is installed; a dead source of others is no obstacle. Waits while another process refreshes them.
# Usage: sh -s SECONDS < refresh.sh
end=$(($(date +%s) + $1))
while output=$(LC_ALL=C apt-get update 2>&1 </dev/null); echo "$output" | grep -q 'Could not get lock'; do
    [ "$(date +%s)" -lt "$end" ] || break
    sleep 5
done
echo "$output" | sed -n -e "s/^[EW]: Failed to fetch \([^ ]*\).*/\1/p" -e "s/^[EW]: The repository '\([^ ']*\).*/\1/p" -e 's/^E: Could not get lock/&/p' | sort -u
