#!/usr/bin/env bash
# Runs a demonstration: examples/demo.sh on this machine when its kernel has FOU, else in a virtual
# machine; examples/demo-tun.sh on this machine.
#
#   demo.sh kernel [KERNEL]      KERNEL: one of those that prepare.sh makes; always a virtual machine
#   demo.sh tun
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

datapath=${1:-kernel} kernel=${2:-}
binary=${CARGO_TARGET_DIR:-target}/release/ipipou
cache=${IPIPOU_VM_CACHE:-target/vm}
PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

here() { # SCRIPT
    local program as_root=()
    for program in ip nft conntrack ping sysctl; do
        command -v "$program" >/dev/null || {
            echo "demo.sh: no $program: apt-get install iproute2 nftables conntrack" \
                "iputils-ping procps" >&2
            exit 1
        }
    done
    if ((EUID != 0)); then
        as_root=(sudo)
    fi
    install -m 755 "$binary" "$work/ipipou"
    "${as_root[@]}" env PATH="$work:$PATH" bash "$1"
}

case $datapath in
tun)
    echo "The demo runs here, on kernel $(uname -r), in network namespaces."
    here examples/demo-tun.sh
    exit
    ;;
kernel) ;;
*) echo "demo.sh: DATAPATH is kernel or tun, not '$datapath'" >&2 && exit 2 ;;
esac
if [[ ! $kernel ]] && modprobe -n -q -a fou ipip nft_queue 2>/dev/null; then
    echo "Kernel $(uname -r) has FOU: the demo runs here, in network namespaces."
    here examples/demo.sh
    exit
fi
tests/vm/prepare.sh
kernel=${kernel:-$(tail -n 1 "$cache/kernels")}
echo "The demo runs in an emulated machine with the stock kernel $kernel: a little slow."
# One file goes there: the library takes the place of the line that sources it.
sed -e '/^source .*demo-lib\.sh/{r examples/demo-lib.sh' -e 'd}' examples/demo.sh >"$work/demo.sh"
tests/vm/run.sh "$kernel" --binary "$binary" --run "$work/demo.sh"
