#!/usr/bin/env bash
# Changes the code of the pure rooms, one small change at a time, and runs the tests: `make mutants`.
# Hours for everything; ARGS are for cargo-mutants:
#
#   make mutants ARGS="--file src/engine/host/plan.rs"     one file instead of all
#   make mutants ARGS="--shard 1/8"                   an eighth
#   make mutants ARGS="--in-diff ../change.diff"      what a change touched
#
# The results are in target/mutants.out; missed.txt names what no test noticed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# The rooms that do no I/O, and what of the userspace datapath is arithmetic on packets; adapters are
# tested on real kernels (tests/vm).
files=(src/wire/*.rs src/auth/*.rs src/engine/{,*/}*.rs src/cli/{,*/}*.rs
    src/tun/{checksum,classify,coalesce,ecn,offloads,partial,segment,split,vnet}.rs)
chosen=()
if [[ " $* " != *" --file"* && " $* " != *" -f "* ]]; then
    for file in "${files[@]}"; do
        chosen+=(--file "$file")
    done
fi

# shellcheck source-path=SCRIPTDIR
source tests/setup/lib.sh
tools=$PWD/target/tools
PATH=$PATH:$tools/bin
tests/setup/packages.sh build
if ! command -v cargo-mutants >/dev/null; then
    echo "mutants.sh: building cargo-mutants, once" >&2
    cargo install --locked --quiet --root "$tools" cargo-mutants
fi
cargo mutants --package ipipou --output target "${chosen[@]}" "$@"
