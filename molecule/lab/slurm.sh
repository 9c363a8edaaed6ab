#!/bin/sh
# Makes a lab host a part of its batch system, and starts what does not run yet. lab.py runs it on the host, as root.
# Usage: sh -s slurmctld|slurmd, with SLURM_CONF_TEXT, MUNGE_SECRET, PLAIN_USER and LOGIN_KEY in the environment.
set -eu
part=$1

if ! id "$PLAIN_USER" > /dev/null 2>&1; then
    useradd --uid 2000 --no-create-home --home-dir "/shared/$PLAIN_USER" --shell /bin/bash "$PLAIN_USER"
fi
if [ ! -d "/shared/$PLAIN_USER" ]; then
    install --directory --owner="$PLAIN_USER" --group="$PLAIN_USER" --mode=0700 "/shared/$PLAIN_USER" "/shared/$PLAIN_USER/.ssh"
    printf '%s' "$LOGIN_KEY" > "/shared/$PLAIN_USER/.ssh/authorized_keys"
    chown "$PLAIN_USER:" "/shared/$PLAIN_USER/.ssh/authorized_keys"
fi

printf '%s' "$MUNGE_SECRET" > /etc/munge/munge.key
chown munge:munge /etc/munge/munge.key
chmod 0400 /etc/munge/munge.key
install --directory --owner=munge --group=munge --mode=0755 /run/munge
install --directory --owner=slurm --group=slurm /var/spool/slurmctld
install --directory /var/spool/slurmd /etc/slurm
printf '%s' "$SLURM_CONF_TEXT" > /etc/slurm/slurm.conf
echo CgroupPlugin=cgroup/v1 > /etc/slurm/cgroup.conf # not used, and without a choice slurmd looks for control groups and ends

# The daemons outlive this call, and end with the host. None keeps its output open.
unset SLURM_CONF_TEXT MUNGE_SECRET PLAIN_USER LOGIN_KEY
cd /
pgrep -x munged > /dev/null || runuser -u munge -- /usr/sbin/munged
pgrep -x "$part" > /dev/null || "/usr/sbin/$part" > /dev/null 2>&1 < /dev/null || { tail --lines=3 "/var/log/$part.log" >&2; exit 1; }
