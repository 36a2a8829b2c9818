#!/usr/bin/env bash
# Fails, saying what to do, unless there is a cargo that is new enough for Cargo.toml. Where the
# distribution has rustup (Debian 13, Ubuntu 24.04), installs Rust with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

new_enough() {
    local found
    found=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || return 1
    [[ $found && $(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1) == "$wanted" ]]
}

new_enough && exit 0
if ! command -v rustup >/dev/null && apt-cache show rustup >/dev/null 2>&1; then
    as_root=()
    if ((EUID != 0)); then
        as_root=(sudo)
    fi
    echo "rust.sh: installing rustup" >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends rustup ca-certificates >/dev/null
fi
if command -v rustup >/dev/null; then
    echo "rust.sh: installing the stable Rust" >&2
    rustup toolchain install --no-self-update --profile minimal \
        --component rustfmt --component clippy stable
    rustup default stable
fi
if ! new_enough; then
    echo "Rust $wanted or newer is needed, this machine has $(cargo --version 2>/dev/null ||
        echo none): install it as https://rustup.rs says, then run this again" >&2
    exit 1
fi
