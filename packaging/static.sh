#!/usr/bin/env bash
# Builds target/static/ipipou, which needs no library of the machine that it runs on: `make static`. The
# C library in it is musl.
#
# Rust's standard library for musl is rustup's; it is installed where Rust is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rust() { tests/setup/rust.sh "$@"; }
target=${CARGO_TARGET_DIR:-$PWD/target}
tests/setup/packages.sh build static
triple=$(uname -m)-unknown-linux-musl
built=$target/$triple/release/ipipou

has_target() {
    compgen -G "$(rust rustc --print target-libdir --target "$triple")/libstd-*.rlib" >/dev/null
}

if ! has_target && ! { rust rustup target add "$triple" >/dev/null 2>&1 && has_target; }; then
    echo "static.sh: this Rust has no standard library for $triple:" \
        "install Rust as https://rustup.rs says" >&2
    exit 1
fi
rust cargo build --release --locked --target "$triple"
install -D "$built" "$target/static/ipipou"
if readelf --program-headers --wide "$target/static/ipipou" | grep -q INTERP; then
    echo "static.sh: $target/static/ipipou still wants a loader" >&2
    exit 1
fi
echo "static.sh: target/static/ipipou, $(stat -c %s "$target/static/ipipou") bytes" >&2
