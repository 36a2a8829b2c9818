#!/usr/bin/env bash
# Builds target/static/ipipou, which needs no library of the machine that it runs on: `make static`. The
# C library in it is musl.
#
# Rust's standard library for musl is rustup's, where Rust is. A distribution has none: there it is
# compiled from the package of Rust's sources by -Zbuild-std, which is not stable (RUSTC_BOOTSTRAP lets
# a stable compiler take it), and linked with the distribution's musl.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source-path=SCRIPTDIR/..
source tests/setup/lib.sh
rust() { tests/setup/rust.sh "$@"; }
target=${CARGO_TARGET_DIR:-$PWD/target}
static=$target/static
tests/setup/packages.sh build static
triple=$(uname -m)-unknown-linux-musl
options=()

has_target() {
    compgen -G "$(rust rustc --print target-libdir --target "$triple")/libstd-*.rlib" >/dev/null
}

# What the linker lacks in a Rust without a target for musl, and has in rustup's. Where they are the
# linker finds the objects that a program starts with, too.
link_with_musl() {
    local made=$target/$triple/unwind musl crtbegin
    # Nothing unwinds (panic = "abort" in Cargo.toml). What is left of it is RUST_BACKTRACE, which in a
    # program without symbols says nothing: it has no frames here.
    mkdir -p "$made"
    musl-gcc -O2 -c -o "$made/unwind.o" -x c - <<'UNWIND'
int _Unwind_Backtrace(void *trace, void *argument) { return 5; /* _URC_END_OF_STACK */ }
unsigned long _Unwind_GetIP(void *context) { return 0; }
UNWIND
    ar rcs "$made/libunwind.a" "$made/unwind.o"
    crtbegin=$(gcc -print-file-name=crtbeginS.o)
    musl=/usr/lib/$(uname -m)-linux-musl
    export RUSTFLAGS="-Lnative=$made -Lnative=$musl -Lnative=${crtbegin%/*}"
}

if ! has_target && ! { rust rustup target add "$triple" >/dev/null 2>&1 && has_target; }; then
    rustc=$(package_of_rustc) || true # what is not a package is refused below
    case $rustc in
    rustc) sources=rust-src ;;
    rustc-*) sources=rust-${rustc#rustc-}-src ;;
    *)
        echo "static.sh: this Rust has no standard library for $triple, and is neither rustup's nor" \
            "the distribution's: install Rust as https://rustup.rs says" >&2
        exit 1
        ;;
    esac
    # Of the compiler's version, or both of a newer one.
    dpkg-query -W "$sources" >/dev/null 2>&1 || install_packages "$rustc" "$sources"
    link_with_musl
    export RUSTC_BOOTSTRAP=1
    options=("-Zbuild-std=std,panic_abort" -Zbuild-std-features=)
fi
rust cargo build --release --locked --target "$triple" "${options[@]}"
rm -rf "$static"
install -D "$target/$triple/release/ipipou" "$static/ipipou"
headers=$(readelf --program-headers --wide "$static/ipipou")
if [[ $headers == *INTERP* ]]; then
    echo "static.sh: $static/ipipou still wants a loader" >&2
    exit 1
fi
packaging/notices.sh "$triple" /usr/share/doc/musl-dev/copyright >"$static/third-party-notices"
echo "static.sh: target/static/ipipou, $(stat -c %s "$static/ipipou") bytes" >&2
