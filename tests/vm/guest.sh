#!/bin/sh
# In the guest: runs the tests, prints the verdict line that run.sh looks for, and switches off.
# PID 1 itself, or started by vm-tests.service when systemd is PID 1.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LANG=C.UTF-8
export NO_COLOR=1 PYTHONDONTWRITEBYTECODE=1 # colours garble a log; the root is thrown away

if [ $$ = 1 ]; then
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev
    mkdir -p /dev/pts
    ln -s /proc/self/fd /dev/fd # and its three names: `nft -f -` opens /dev/stdin
    ln -s fd/0 /dev/stdin && ln -s fd/1 /dev/stdout && ln -s fd/2 /dev/stderr
    mount -t devpts devpts /dev/pts
    mount -t tmpfs run /run
    mount -t tmpfs tmp /tmp
    mount -t cgroup2 cgroup /sys/fs/cgroup
    ip link set lo up
    hostname lab
fi

cd /tests || exit 1
started=$(cut -d ' ' -f 1 /proc/uptime)
echo "guest: $(uname -r), up $started s after the kernel"
if [ -e program ]; then
    xargs -0 -a arguments ./program
else
    xargs -0 -a arguments python3 -m pytest -p no:cacheprovider
fi
echo "verdict $(cat nonce) $?"

# Returns when the lines above are out, but for the last few bytes in the serial port's queue.
echo "guest: off"
stty -F /dev/console sane
echo b >/proc/sysrq-trigger
