#!/usr/bin/env bash
# Measures what a tunnel at rest costs on a large host, see scale.py. Ends with 1 when a target is missed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=tests/setup/lib.sh
source tests/setup/lib.sh
binary=${IPIPOU_BINARY:-${CARGO_TARGET_DIR:-target}/release/ipipou}
tests/setup/packages.sh build bench
[[ ${IPIPOU_BINARY:-} ]] || cargo build --release --locked --quiet
as_root env PATH="$(realpath "$(dirname "$binary")"):$PATH:/usr/sbin:/sbin" PYTHONDONTWRITEBYTECODE=1 \
    /usr/bin/python3 benches/scale.py "$@"
