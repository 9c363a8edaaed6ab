#!/bin/sh
# Prints the processes that hold a lock of apt or dpkg, one a line.
for file in /var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /var/lib/apt/lists/lock; do
    inode=$(stat -c %i "$file" 2>/dev/null) || continue
    awk -v inode=":$inode" 'substr($6, length($6) - length(inode) + 1) == inode {print $5}' /proc/locks
done | sort -u | while read -r process; do
    echo "$(cat "/proc/$process/comm" 2>/dev/null || echo unknown) ($process)"
done
