#!/usr/bin/env bash
# Reads everything that is written by hand: Rust, its dependencies, shell scripts, Python.
# Goes on after a failure, so that one run shows them all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tools=$PWD/target/tools
PATH=$PATH:$tools/bin
tests/setup/packages.sh build lint
cargo() { tests/setup/rust.sh --lint cargo "$@"; }
if ! command -v cargo-deny >/dev/null; then
    echo "lint.sh: building cargo-deny, once" >&2
    cargo install --locked --quiet --root "$tools" cargo-deny
fi

scripts=()
while read -r file; do
    if [[ $file == *.sh || $(head -c 2 "$file" | tr -d '\0') == '#!' ]] &&
        head -n 1 "$file" | grep -qE '(ba|/)sh$'; then
        scripts+=("$file")
    fi
done < <(git ls-files --cached --others --exclude-standard | sort)

failed=()
check() { # NAME COMMAND...
    local name=$1
    shift
    echo "== $name" >&2
    "$@" || failed+=("$name")
}
fast_path() { tests/setup/bpf.sh compare || (($? == 77)); }
check rustfmt cargo fmt --check
check clippy cargo clippy --locked --all-targets --quiet -- -D warnings
check "no features" cargo clippy --locked --all-targets --no-default-features --quiet -- -D warnings
# The list of known vulnerabilities has to be fetched: `cargo deny check advisories` does.
check cargo-deny cargo deny --all-features --log-level error check licenses bans sources
check "fast path" fast_path
check shellcheck shellcheck --external-sources "${scripts[@]}"
check black black --quiet --check --diff --line-length 100 tests benches examples

if ((${#failed[@]})); then
    echo "lint.sh: FAILED: ${failed[*]}" >&2
    exit 1
fi
echo "lint.sh: clean"
