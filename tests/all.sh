#!/usr/bin/env bash
# Everything that is tested, from a machine with nothing installed: `make test`. Goes on after a
# failure, and ends with a table. Each step's output is also in target/test/STEP.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CARGO_TERM_COLOR=never
target=${CARGO_TARGET_DIR:-target}
binary=$target/release/ipipou
vm_cache=${IPIPOU_VM_CACHE:-target/vm}
logs=target/test
mkdir -p "$logs"
rm -f "$logs"/*.log
as_root=()
if ((EUID != 0)); then
    as_root=(sudo)
fi

summary=$logs/summary
: >"$summary"

# Adds up what cargo's and pytest's last lines say: "12 passed, 3 skipped".
counts() { # LOG
    grep -hE '^test result: |^(=+ )?[0-9]+ (passed|failed|skipped|error).* in [0-9.]+s' "$1" |
        grep -oE '[0-9]+ (passed|failed|skipped|ignored|errors?|xfailed|rerun)' |
        awk '$1 { sum[$2] += $1 }
            END { for (word in sum) printf "%s%s %s", n++ ? ", " : "", sum[word], word }' || true
}

step() { # NAME COMMAND...
    local name=$1 log=$logs/${1// /-}.log verdict=ok started=$SECONDS
    shift
    echo "== $name"
    "$@" 2>&1 | tee "$log" || verdict=FAILED
    printf '%-20s %-6s %5d s  %s\n' "$name" "$verdict" "$((SECONDS - started))" \
        "$(counts "$log")" >>"$summary"
    [[ $verdict == ok ]]
}

# A step beside others, its lines told apart; whether it failed is in the summary.
beside() { # NAME COMMAND...
    { step "$@" || true; } </dev/null | sed -u "s/^/$1 | /"
}

# What did not pass at once, a line each, by what cargo and pytest say of it.
failures() {
    local log
    for log in "$logs"/*.log; do
        grep -aE '^(FAILED|ERROR|RERUN) |^test .* FAILED$' "$log" |
            sed "s/^/$(basename "$log" .log): /" || true
    done
}

finish() {
    printf '\n== make test on Linux %s, %s CPUs, %d s\n' "$(uname -r)" "$(nproc)" "$SECONDS"
    cat "$summary"
    failures # last: of a long log often only the end is kept
    if grep -q FAILED "$summary"; then
        echo "FAILED; the logs are in $logs"
        exit 1
    fi
    echo "passed"
    exit
}

# The programs under test, and the unit and property tests; most of the time is the compiler's.
step packages tests/setup/packages.sh build test || finish
# Kernels and root file system: minutes, beside the compiler.
step machines tests/vm/prepare.sh >/dev/null &
machines=$!
step rust tests/setup/rust.sh || finish
step build cargo build --release --locked || finish

# The second try of a test that failed is told in the table; see tests/vm/shared.py.
pytest=(-q -rsfER --reruns 1)

# Beside each other, as the one mostly compiles and the other mostly waits. pytest comes from the
# distribution, as its other modules do.
netns=(env IPIPOU_BINARY="$PWD/$binary" PYTHONDONTWRITEBYTECODE=1)
[[ $binary != /* ]] || netns[1]=IPIPOU_BINARY=$binary
beside namespaces "${as_root[@]}" "${netns[@]}" \
    /usr/bin/python3 -m pytest "${pytest[@]}" -p no:cacheprovider tests/netns &
namespaces=$!
beside cargo-test cargo test --locked --no-fail-fast
wait "$namespaces"

# The scenarios, on stock kernels: all kernels at once, because a scenario waits a lot.
wait "$machines" || { cat "$logs/machines.log" && finish; }
expected=(namespaces cargo-test)
while read -r kernel; do
    expected+=("$kernel" "$kernel systemd")
    {
        beside "$kernel" tests/vm/run.sh "$kernel" --binary "$binary" -- "${pytest[@]}"
        beside "$kernel systemd" tests/vm/run.sh "$kernel" --binary "$binary" --systemd -- \
            "${pytest[@]}"
    } &
done <"$vm_cache/kernels"
wait
for name in "${expected[@]}"; do
    grep -qF "$(printf '%-20s ' "$name")" "$summary" || echo "$name FAILED: did not end" >>"$summary"
done
finish
