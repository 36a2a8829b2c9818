#!/usr/bin/env bash
# Runs tests/vm/test_*.py, or another program, on a stock kernel in an emulated machine without a
# network.
#
#   run.sh KERNEL [--binary PATH] [--systemd] [--icount] [--run FILE] [-- ARGUMENT...]
#
#   KERNEL      a name that prepare.sh made: 6.1, 6.12 (or distro, on Ubuntu)
#   --binary    the ipipou to test (default: target/release, else target/debug, else none)
#   --systemd   systemd is PID 1, and test_systemd*.py run; otherwise all the others
#   --icount    one CPU whose clock counts instructions: benchmarks that repeat
#   --run       run this file, next to tests/lib/*.py and tests/vm/*.py, instead of pytest
#   ARGUMENT    for pytest, or for the file
#
# IPIPOU_KVM=1 uses KVM instead of emulation. IPIPOU_VM_CPUS is how many processors a guest has (1):
# two guests on two processors need a third less time with one each than with two each. A guest that
# says nothing for IPIPOU_VM_TIMEOUT seconds (300) is ended; pytest writes a dot for each test. Exits
# 0 only when the guest says that the program did.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
cache=${IPIPOU_VM_CACHE:-$top/target/vm}

usage() {
    sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

kernel=${1:-}
[[ $kernel && $kernel != -* ]] || usage
shift
binary=
systemd=
program=
cpus=${IPIPOU_VM_CPUS:-1}
# Without AVX: the emulator is slow at it, and programs that find it use it. (With --icount, what is executed is
# counted, and compared with the figures of before.)
accel=(-accel "tcg,thread=multi" -smp "$cpus" -cpu "qemu64,+cx16,+popcnt,+ssse3,+sse4.1,+sse4.2,+rdrand")
while (($#)); do
    case $1 in
    --binary) binary=${2:?--binary needs a path} && shift ;;
    --systemd) systemd=1 ;;
    --run) program=${2:?--run needs a file} && shift ;;
    --icount) accel=(-accel "tcg,thread=single" -icount "shift=0,sleep=off" -smp 1 -cpu max) ;;
    --) shift && break ;;
    *) usage ;;
    esac
    shift
done
if [[ ${IPIPOU_KVM:-} == 1 ]]; then
    accel=(-accel kvm -smp "$cpus" -cpu host)
fi
for candidate in "$top/target/release/ipipou" "$top/target/debug/ipipou"; do
    [[ $binary || ! -x $candidate ]] || binary=$candidate
done
if [[ ! -s $cache/kernel-$kernel || ! -s $cache/base.cpio ]]; then
    echo "run.sh: no kernel '$kernel' in $cache: run tests/vm/prepare.sh" >&2
    exit 1
fi

# What changes from run to run goes into a small archive behind the big ones; Linux unpacks
# concatenated archives in order.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
overlay=$work/overlay
mkdir -p "$overlay/tests" "$overlay/etc/systemd/system/multi-user.target.wants"
cp "$here"/../lib/*.py "$here"/*.py "$overlay/tests/"
cp -r "$top/packaging/deb" "$overlay/tests/"
[[ ! -d $top/etc/ipipou ]] || cp -r "$top/etc/ipipou" "$overlay/etc/"
install -m 755 "$here/guest.sh" "$overlay/init"
cp "$here/vm-tests.service" "$overlay/etc/systemd/system/"
ln -s ../vm-tests.service "$overlay/etc/systemd/system/multi-user.target.wants/"
for unit in "$top"/ipipou@.service "$top"/ipipou.target; do
    [[ ! -e $unit ]] || cp "$unit" "$overlay/etc/systemd/system/"
done
if [[ $binary ]]; then
    # Where the unit starts it from, so that the unit is tested as it is shipped.
    place=/usr/local/sbin/ipipou
    if [[ -e $top/ipipou@.service ]]; then
        place=$(sed -n 's/^ExecStart=[-+!@:]*\([^ ]*\).*/\1/p' "$top/ipipou@.service" | head -n 1)
    fi
    # The guest's /bin and /sbin are links into /usr; a directory here would replace them.
    [[ $place == /usr/* ]] || place=/usr$place
    install -D -m 755 "$binary" "$overlay$place"
fi
if [[ $program ]]; then
    install -m 755 "$program" "$overlay/tests/program"
fi
nonce=$RANDOM$RANDOM$RANDOM
echo "$nonce" >"$overlay/tests/nonce"
if (($#)); then
    printf '%s\0' "$@" >"$overlay/tests/arguments"
else
    : >"$overlay/tests/arguments"
fi
(cd "$overlay" && find . -mindepth 1 -print0 |
    cpio --quiet --null --create --format=newc --owner=+0:+0) >"$work/overlay.cpio"
cat "$cache/base.cpio" "$cache/modules-$kernel.cpio" "$work/overlay.cpio" >"$work/initrd"

# A kernel that panics or reboots ends the emulator, and with it this script. The emulator translates
# a program anew for each address that it is loaded to: at the same one, it starts three times faster.
cmdline="console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off norandmaps"
if [[ $systemd ]]; then
    cmdline+=" rdinit=/lib/systemd/systemd systemd.show_status=false"
else
    cmdline+=" rdinit=/init"
fi
silent() {
    local since
    since=$(stat -c %Y "$work/serial" 2>/dev/null) || return 0 # nobody reads it any more
    ((EPOCHSECONDS - since > ${IPIPOU_VM_TIMEOUT:-300}))
}
emulate() {
    qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -m 2G \
        "${accel[@]}" -serial stdio -kernel "$cache/kernel-$kernel" -initrd "$work/initrd" \
        -append "$cmdline" </dev/null &
    local emulator=$!
    while kill -0 "$emulator" 2>/dev/null; do
        sleep 0.5
        if silent; then
            echo "run.sh: kernel $kernel: the guest has been silent for too long" >&2
            kill -KILL "$emulator"
            break
        fi
    done
    wait "$emulator"
}
boot() {
    : >"$work/serial"
    emulate | tee "$work/serial" | sed -u 's/\r//g; /sysrq: Resetting$/d' | tee "$work/console"
}
# Now and then a kernel panics in emulation, where it patches its own code (int3 in a static key),
# as early as at boot. That is no test that failed: none has begun.
for attempt in 1 2 3; do
    boot || true
    if grep -q '^guest: ' "$work/console" || ! grep -q 'Kernel panic' "$work/console"; then
        break
    fi
    echo "run.sh: kernel $kernel: panicked at boot, before the tests (attempt $attempt of 3)" >&2
done
verdict=$(sed -n "s/^verdict $nonce //p" "$work/console" | tail -n 1)
if [[ $verdict != 0 ]]; then
    echo "run.sh: kernel $kernel: failed (verdict: ${verdict:-none, the guest did not end})" >&2
    exit 1
fi
