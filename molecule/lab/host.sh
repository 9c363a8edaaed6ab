#!/bin/sh
# Boots one lab host. Started by lab.py as the first process of new mount, pid, uts, ipc and network namespaces.
# Its standard input is a pipe from lab.py: when lab.py dies before the host is up, the pipe closes and this script ends;
# with it end the namespaces, their mounts and the network interface.
# Usage: host.sh NAME ADDRESS/PREFIX IMAGE DISK [SHARED]
set -eu
name=$1 address=$2 image=$3 disk=$4 shared=${5-}
root=$disk/root

hostname "$name"
# The source is named like a disk: Ansible's facts list only mounts whose source is a path.
mount -t overlay -o "lowerdir=$image,upperdir=$disk/upper,workdir=$disk/work" /dev/lab "$root"

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys" # the Linux kernel is shared with the machine
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs "$root/run"
mkdir "$root/run/sshd" "$root/run/lock"
if [ -n "$shared" ]; then
    mkdir --parents "$root/shared"
    mount --bind "$shared" "$root/shared"
fi

mount -t tmpfs -o mode=0755,nosuid tmpfs "$root/dev"
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 0666 "$root/dev/${device%:*}" c 1 "${device#*:}"
done
mknod -m 0666 "$root/dev/tty" c 5 0
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
mount -t devpts -o newinstance,mode=0620,gid=5,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev,size=4g shm "$root/dev/shm" # MPI ranks communicate through it
mount -t mqueue mqueue "$root/dev/mqueue"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"

echo namespaces # lab.py now moves eth0 into the namespace
read -r _
ip link set lo up
ip address add "$address" dev eth0
ip link set eth0 up

cd "$root"
pivot_root . mnt
# PID 1 reaps orphaned processes. A host cannot load modules, reboot the machine or set its clock.
# shellcheck disable=SC2016 # $0 belongs to the inner shell
exec chroot . /bin/sh -c '
    umount -l /mnt
    exec setpriv --bounding-set -sys_module,-sys_boot,-sys_time tini -- /usr/sbin/sshd -D -e' </dev/null >&2
