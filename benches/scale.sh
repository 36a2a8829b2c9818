#!/usr/bin/env bash
# Measures what a tunnel at rest costs on a large host, see scale.py, and what thousands of peers cost that
# are named in files, see peers.py. Ends with 1 when a target is missed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=tests/setup/lib.sh
source tests/setup/lib.sh
binary=${IPIPOU_BINARY:-${CARGO_TARGET_DIR:-target}/release/ipipou}
tests/setup/packages.sh build bench
[[ ${IPIPOU_BINARY:-} ]] || cargo build --release --locked --quiet
status=0
measure() {
    as_root env PATH="$(realpath "$(dirname "$binary")"):$PATH:/usr/sbin:/sbin" \
        PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 "$@" || status=1
}
measure benches/peers.py
measure benches/scale.py "$@"
exit $status
