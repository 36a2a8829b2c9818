#!/usr/bin/env bash
# Runs every target of fuzz/ for the given number of seconds (60).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:-60}
tools=$PWD/target/tools
PATH=$PATH:$tools/bin
if [[ ! -d fuzz/fuzz_targets ]]; then
    echo "fuzz.sh: there is no fuzz/fuzz_targets" >&2
    exit 1
fi
# shellcheck source-path=SCRIPTDIR
source tests/setup/lib.sh
tests/setup/packages.sh build
if ! command -v cargo-fuzz >/dev/null; then
    echo "fuzz.sh: building cargo-fuzz, once" >&2
    cargo install --locked --quiet --root "$tools" cargo-fuzz
fi
# cargo-fuzz wants a nightly compiler; this lets a stable one take the flags it passes.
export RUSTC_BOOTSTRAP=1
cargo fuzz list | while read -r name; do
    echo "== $name, $seconds s"
    cargo fuzz run "$name" -- -max_total_time="$seconds" -print_final_stats=1 </dev/null
done
