#!/usr/bin/env bash
# Builds ipipou and runs a demonstration, on a machine that has nothing yet: demo/kernel.sh here
# when this kernel has FOU, else in a virtual machine; demo/userspace.sh here.
#
#   demo.sh kernel [KERNEL]      KERNEL: one of those that prepare.sh makes; always a virtual machine
#   demo.sh tun
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

datapath=${1:-kernel} kernel=${2:-}
binary=${CARGO_TARGET_DIR:-target}/release/ipipou
PATH=$PATH:/usr/sbin:/sbin
case $datapath in
kernel | tun) ;;
*) echo "demo.sh: DATAPATH is kernel or tun, not '$datapath'" >&2 && exit 2 ;;
esac

# shellcheck source=tests/setup/lib.sh
source tests/setup/lib.sh

tests/setup/packages.sh build modules
place=here
if [[ $datapath == kernel ]]; then
    if [[ $kernel ]] || ! modprobe -n -q -a fou ipip nft_queue 2>/dev/null; then
        place=machine
    fi
fi
if [[ $place == here ]]; then
    need_root "make network namespaces"
    tests/setup/packages.sh hosts
    # A container may have a root that may not.
    if ! as_root unshare --net --mount true 2>/dev/null; then
        echo "demo.sh: this root may not make network namespaces: run it outside of the container," \
            "or in one that may (--privileged)" >&2
        exit 1
    fi
    if [[ $datapath == tun && ! -c /dev/net/tun ]] && ! as_root modprobe -q tun; then
        echo "demo.sh: no /dev/net/tun: give it to the container, or load the module tun" >&2
        exit 1
    fi
else
    kernel=$(tests/vm/prepare.sh "${kernel:-newest}")
fi

if [[ ! -x $binary ]]; then
    echo "demo.sh: building ipipou, which takes some minutes the first time" >&2
fi
cargo build --release --locked --quiet

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [[ $place == here ]]; then
    echo "The demo runs here, on kernel $(uname -r), in network namespaces."
    install -m 755 "$binary" "$work/ipipou"
    script=demo/kernel.sh
    [[ $datapath == kernel ]] || script=demo/userspace.sh
    as_root env PATH="$work:$PATH" bash "$script"
    exit
fi
echo "The demo runs in an emulated machine with the stock kernel $kernel: a little slow."
# One file goes there: what is sourced takes the place of the lines that do it.
sed -e '/^source .*lib\.sh/{r demo/lib.sh' -e 'd}' -e '/^source .*hub\.sh/{r demo/hub.sh' -e 'd}' \
    demo/kernel.sh >"$work/demo.sh"
tests/vm/run.sh "$kernel" --binary "$binary" --run "$work/demo.sh"
