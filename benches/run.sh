#!/usr/bin/env bash
# Measures tunnels against each other on a stock kernel: `make bench`. Prints a report in Markdown,
# which is also in target/bench/result.md.
#
#   run.sh [KERNEL] [ROUNDS] [OPTION...]      KERNEL: one of those that prepare.sh makes (the newest);
#                                             OPTION: of benches/tunnel.py, as `--lanes NAME...`
#
# In an emulated machine whose clock counts instructions (QEMU's -icount): a figure is how many
# instructions the work takes, which repeats to a percent or two on any host, and a ratio of two
# such figures says how much of the path a set of rules is. Caches, branch prediction and NICs are
# not in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-target}
cache=${IPIPOU_VM_CACHE:-target/vm}
binary=$target/release/ipipou
# shellcheck source=tests/setup/lib.sh
source tests/setup/lib.sh
tests/setup/packages.sh build test
cargo build --release --locked --quiet
tests/vm/prepare.sh
kernel=${1:-$(tail -n 1 "$cache/kernels")}
mkdir -p target/bench

IPIPOU_VM_TIMEOUT=${IPIPOU_VM_TIMEOUT:-3600} tests/vm/run.sh "$kernel" --icount \
    --binary "$binary" --run benches/tunnel.py -- --rounds "${2:-5}" "${@:3}" | tee target/bench/console

{
    echo "## ipipou $("$binary" --version | cut -d ' ' -f 2) on Linux" \
        "$(sed -n 's/^guest: \([0-9][^,]*\),.*/\1/p' target/bench/console)"
    echo
    echo "QEMU $(qemu-system-x86_64 --version | sed -n 's/.*version \([^ ]*\).*/\1/p')," \
        "-icount shift=0, one CPU, 1 instruction = 1 ns; emulated on" \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)."
    echo "Both hosts of a lane share the CPU, so a figure is the cost of the whole path."
    echo "TCP: iperf3. UDP: packets of 64 bytes payload. Up: towards the server. Median of" \
        "interleaved pairs, ± half the range."
    echo "WireGuard's ciphers suffer from emulation far more than on a real CPU."
    echo
    sed -n 's/^result: \{0,1\}//p' target/bench/console
    size=$(stat -c %s "$binary")
    echo "Release binary: $(awk "BEGIN { printf \"%.1f\", $size / 1048576 }") MiB (target: at most 8)."
} >target/bench/result.md
echo
cat target/bench/result.md
