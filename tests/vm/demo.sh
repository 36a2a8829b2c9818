#!/usr/bin/env bash
# Runs examples/demo.sh: on this machine when its kernel has FOU, else in a virtual machine.
#
#   demo.sh [KERNEL]      KERNEL: one of those that prepare.sh makes; always a virtual machine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

kernel=${1:-}
binary=${CARGO_TARGET_DIR:-target}/release/ipipou
cache=${IPIPOU_VM_CACHE:-target/vm}
PATH=$PATH:/usr/sbin:/sbin
as_root=()
if ((EUID != 0)); then
    as_root=(sudo)
fi

if [[ ! $kernel ]] && modprobe -n -q -a fou ipip nft_queue 2>/dev/null; then
    echo "Kernel $(uname -r) has FOU: the demo runs here, in network namespaces."
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
    install -m 755 "$binary" "$place/ipipou"
    "${as_root[@]}" env PATH="$place:$PATH" bash examples/demo.sh
    exit
fi
tests/vm/prepare.sh
kernel=${kernel:-$(tail -n 1 "$cache/kernels")}
echo "The demo runs in an emulated machine with the stock kernel $kernel: a little slow."
tests/vm/run.sh "$kernel" --binary "$binary" --run examples/demo.sh
