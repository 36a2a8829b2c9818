#!/usr/bin/env bash
# enter.sh ROOT USER COMMAND [PACKAGES]: logs in to a root file system as this user, as on a machine of its own,
# and runs a shell command there. Needs root. Processes, mounts and devices are its own and are gone
# when this ends, however it ends; the network is this machine's. PACKAGES is where apt keeps those
# that it downloads.
# Fails also when the command left a process or a network namespace behind.
set -euo pipefail

root=$1 user=$2 command=$3 packages=${4:-}
if [[ ! ${IPIPOU_ENTERED:-} ]]; then
    IPIPOU_ENTERED=1 unshare --mount --pid --ipc --uts --fork --kill-child \
        "${BASH_SOURCE[0]}" "$@" &
    machine=$!
    # unshare itself ignores these.
    trap 'kill -KILL "$machine"' INT TERM HUP
    wait "$machine"
    exit
fi

hostname bare
mount --bind "$root" "$root" # as / of a machine is a mount, which can be made private
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir -m 755 "$root"/dev/{pts,net}
mkdir -m 1777 "$root/dev/shm" "$root/run/lock"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/full" c 1 7
mknod -m 666 "$root/dev/random" c 1 8
mknod -m 666 "$root/dev/urandom" c 1 9
mknod -m 666 "$root/dev/tty" c 5 0
mknod -m 666 "$root/dev/net/tun" c 10 200
mount -t devpts -o newinstance,ptmxmode=666,gid=5,mode=620 pts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for i in 0:stdin 1:stdout 2:stderr; do
    ln -s "fd/${i%:*}" "$root/dev/${i#*:}"
done
if [[ $packages ]]; then
    mount --bind "$packages" "$root/var/cache/apt/archives"
fi

# In a chroot no user namespace can be made, and nsenter(1) would lead out of it.
cd "$root"
pivot_root . .
umount -l .
cd /

status=0
env -i PATH="$PATH" TERM=dumb su -l "$user" -c "$command" </dev/null || status=$?
for process in /proc/[0-9]*; do
    if [[ ${process##*/} != 1 && -e $process/exe ]]; then
        echo "enter.sh: left running: $(tr '\0' ' ' <"$process/cmdline")" >&2
        status=${status/#0/1}
    fi
done
for namespace in /run/netns/*; do
    if [[ -e $namespace ]]; then
        echo "enter.sh: left behind: network namespace ${namespace##*/}" >&2
        status=${status/#0/1}
    fi
done
exit "$status"
