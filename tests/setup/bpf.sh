#!/usr/bin/env bash
# Compiles the fast path, and compares with the instructions that the repository has: bpf.sh compare.
# After a change of src/bpf/fast_path.c: bpf.sh write. Exit code 77: no clang of this version here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Every version makes other instructions. This is Debian 12's.
clang='clang-14'
shipped=src/bpf/compiled.rs

if ! command -v $clang >/dev/null; then
    tests/setup/packages.sh bpf || true
fi
if ! command -v $clang >/dev/null; then
    echo "bpf.sh: skipped: there is no $clang for this distribution" >&2
    exit 77
fi
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
# The headers of Linux are Debian's for all machines but for asm/, of which only types are used.
$clang -target bpf -mcpu=v3 -O2 -fno-strict-aliasing -Wall -Wextra -Werror -isystem "/usr/include/$(uname -m)-linux-gnu" \
    -c src/bpf/fast_path.c -o "$made/object"
python3 tests/setup/bpf.py "$made/object" >"$made/compiled.rs"

case ${1:-compare} in
compare)
    diff -u --label "$shipped" --label "compiled from src/bpf/fast_path.c" "$shipped" \
        "$made/compiled.rs" || {
        echo "bpf.sh: the two differ; after a change, run: tests/setup/bpf.sh write" >&2
        exit 1
    }
    ;;
write) cp "$made/compiled.rs" "$shipped" ;;
*)
    echo "bpf.sh: compare or write" >&2
    exit 2
    ;;
esac
