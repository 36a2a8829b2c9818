#!/usr/bin/env bash
# Builds the targets of fuzz/ and runs each of them for the given number of seconds (60), from the
# kept inputs in fuzz/corpus on; what it finds on the way goes to target/fuzz-found.
#
# Without cargo-fuzz, whose own build takes minutes: a compiler of any version puts the counters in,
# and it does so for this repository's code only, so that all else is shared with `cargo test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# shellcheck source-path=SCRIPTDIR
source tests/setup/lib.sh
seconds=${1:-60}
target=${CARGO_TARGET_DIR:-target}
tests/setup/packages.sh build fuzz

# What `cargo test` has built is there, but slow: worth it for seconds only.
profile=dev directory=debug
if ((seconds > 30)); then
    profile=fuzz directory=fuzz
fi
RUSTC_WORKSPACE_WRAPPER=$PWD/tests/setup/with-counters.sh \
    cargo build --locked --package ipipou-fuzz --profile "$profile"

failed=()
for corpus in fuzz/corpus/*; do
    name=${corpus##*/}
    kept=("$corpus")
    [[ $name != conf ]] || kept+=(etc/ipipou) # the files that are shipped
    found=$target/fuzz-found/$name
    mkdir -p "$found"
    echo "== $name, $seconds s"
    FUZZ_TARGET=$name "$target/$directory/fuzz" -max_total_time="$seconds" -max_len=4096 -timeout=20 \
        -rss_limit_mb=1024 -artifact_prefix="$found-" -verbosity=0 -print_final_stats=1 \
        "$found" "${kept[@]}" || failed+=("$name")
done
if ((${#failed[@]})); then
    echo "fuzz.sh: FAILED: ${failed[*]}; the inputs are $target/fuzz-found/NAME-*" >&2
    exit 1
fi
