#!/usr/bin/env bash
# Proves the manual's service on two machines that have nothing but Debian: `make machines`. Each is an
# emulated computer with a disk and a network card of its own, where what a newcomer types is typed on
# its console (machines.py): built by the README's commands, a server and a client as services.
#
#   machines.sh [SUITE]      bookworm (the default) or trixie
#
# By hand and before a release; it takes half an hour. What it gets from this machine says root.sh.
# Downloaded packages and what was said are kept in target/machines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# shellcheck source-path=SCRIPTDIR
source tests/setup/lib.sh
# shellcheck source-path=SCRIPTDIR
source tests/setup/root.sh
PATH=$PATH:/usr/sbin:/sbin
need_root "make disks of files that belong to root"
suite=${1:-bookworm}
cache=$PWD/target/machines
debs=$cache/debs-$suite
root=$cache/$suite
say() { echo "machines.sh: $suite: $*" >&2; }
fail() {
    say "FAILED: $*"
    exit 1
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
clean_up() {
    as_root rm -rf --one-file-system "$root"
}
trap clean_up EXIT
clean_up

# As root, on the machine that is being made; what was said is kept.
type_there() { # LOG COMMAND
    as_root tests/setup/enter.sh "$root" root "$2" "$debs" >"$cache/$1.log" 2>&1 || {
        tail -n 20 "$cache/$1.log" >&2
        fail "'$2'; all that it said is in $cache/$1.log"
    }
}

here_is_debian || fail "this is not Debian, its archive has none"
find_archives || fail "no archive"
say "installing Debian"
install_debian git,ca-certificates || fail "no root file system"
connect root || fail "no certificates"
# What an installed Debian has and debootstrap leaves out, and what the first version is made of.
type_there packages "apt-get -qq update &&
    DEBIAN_FRONTEND=noninteractive apt-get -qq install linux-image-amd64 systemd-sysv python3-nacl"

clone root/ipipou
for command in ./setup 'make build && sudo make install'; do
    # What is tried here is what the README says.
    grep -qF -- "$command" README.md || fail "the README does not say '$command'"
    command=${command/sudo /}
    say "$command"
    type_there build "cd ipipou && $command"
done

# A console where root is logged in, and disks of their own for two machines.
put etc/systemd/system/serial-getty@ttyS0.service.d/login.conf <<'LOGIN'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200 - dumb
LOGIN
put etc/fstab <<<'/dev/vda / ext4 defaults 0 1'
as_root rm -rf "$root/root/ipipou/target" "$root/root/.cargo" "$root"/var/lib/apt/lists/*
for file in vmlinuz initrd.img; do
    as_root cat "$root/$file" >"$cache/$file"
done
for machine in server client; do
    put etc/hostname <<<"$machine"
    put etc/network/interfaces <<INTERFACES
auto lo eth0
iface lo inet loopback
iface eth0 inet static
    address 203.0.113.$([[ $machine == server ]] && echo 1 || echo 2)/24
INTERFACES
    rm -f "$cache/$machine.ext4"
    as_root mke2fs -q -t ext4 -d "$root" "$cache/$machine.ext4" 6G
done
clean_up

say "two machines"
/usr/bin/python3 tests/setup/machines.py "$cache" || fail "on the two machines, above"
rm -f "$cache"/*.ext4
say "passed in $SECONDS s"
