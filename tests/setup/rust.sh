#!/usr/bin/env bash
# rust.sh [--lint] [COMMAND...]: runs the command with a Rust on its PATH that is new enough for
# Cargo.toml; with --lint it has clippy and rustfmt. The first of these that is:
#   1. what is on the PATH already, or in ~/.cargo/bin
#   2. a toolchain of rustup, where the user has rustup. One more is installed when none will do;
#      the user's default, and what other projects are built with, stays what it is
#   3. a package of the distribution: on Debian 12 and 13 the one that browsers are built with, on
#      Ubuntu one with a number. Nothing that is installed is removed for it
# Fails with one line that says what to do.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR
source "$here/lib.sh"
unset -f cargo

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../../Cargo.toml")
lint=
if [[ ${1:-} == --lint ]]; then
    lint=1
    shift
fi
user_home=~ # known even where $HOME is not set
user_bin=${CARGO_HOME:-$user_home/.cargo}/bin
obstacles=

obstacle() { # TEXT
    obstacles+="${obstacles:+, and }$1"
}

# What a program of Rust's says its version is. rustup must not install one because it is asked.
version() { # PROGRAM
    RUSTUP_AUTO_INSTALL=0 "$1" --version 2>/dev/null | cut -d ' ' -f 2
}

new_enough() { # VERSION
    [[ $1 && $(printf '%s\n' "$wanted" "$1" | sort -V | head -n 1) == "$wanted" ]]
}

usable() {
    new_enough "$(version cargo)" && new_enough "$(version rustc)"
}

# Puts a directory in front of the PATH, if what is in it is usable.
use_directory() { # DIRECTORY
    local before=$PATH
    PATH=$1:$PATH
    usable && return
    PATH=$before
    return 1
}

use_toolchain() { # NAME
    local cargo
    export RUSTUP_TOOLCHAIN=$1
    usable && return
    # Another cargo comes before rustup's in the PATH.
    cargo=$(rustup which --toolchain "$1" cargo 2>/dev/null) && use_directory "${cargo%/*}" && return
    unset RUSTUP_TOOLCHAIN
    return 1
}

use_rustup() {
    local name names said
    PATH=$PATH:$user_bin
    command -v rustup >/dev/null || return 1
    names=$(rustup toolchain list 2>/dev/null |
        sed -nE 's/^((stable|beta|nightly|[0-9])[^ ]*).*/\1/p' || true)
    for name in $(grep ^stable <<<"$names") $(grep -v ^stable <<<"$names"); do
        use_toolchain "$name" && return
    done
    # An old stable is not updated: it may be there for other projects.
    name=stable
    [[ $names != *stable* ]] || name=$wanted
    echo "${0##*/}: installing Rust ($name) with rustup" >&2
    # `rustup toolchain install` makes it the default where there is none; this never does.
    if said=$(rustup run --install "$name" cargo --version 2>&1) && use_toolchain "$name"; then
        return
    fi
    obstacle "rustup could not install it ($(grep -m 1 error <<<"$said" || tail -n 1 <<<"$said"))"
    return 1
}

# The package that holds a cargo that is new enough.
package_of_cargo() {
    local package candidate
    for package in cargo cargo-web \
        $(apt-cache search --names-only '^cargo-1[.][0-9]+$' | cut -d ' ' -f 1 | sort -rV); do
        candidate=$(LC_ALL=C apt-cache policy "$package" | sed -n 's/^  Candidate: \([0-9].*\)/\1/p')
        if new_enough "$candidate"; then
            echo "$package"
            return
        fi
    done
    return 1
}

# Another cargo may come before the distribution's in the PATH; Ubuntu's with a number are in none.
use_installed() {
    local directory
    for directory in $(dpkg-query -S '*/bin/cargo' 2>/dev/null |
        sed -nE 's#.*: (/usr/(lib/rust-[^/]*/)?bin)/cargo$#\1#p' | sort -rV); do
        use_directory "$directory" && return
    done
    return 1
}

use_distribution() {
    local package conflicts
    use_installed && return
    command -v apt-cache >/dev/null || return 1
    if ! can_be_root; then
        obstacle "to install it with apt needs root, and there is no sudo"
        return 1
    fi
    # A new machine has no lists, and old ones lack the security suite's.
    if ! package=$(package_of_cargo) && ! { refresh_lists && package=$(package_of_cargo); }; then
        obstacle "apt knows no package that new"
        return 1
    fi
    conflicts=$(LC_ALL=C apt-get install -s --no-install-recommends "$package" 2>/dev/null |
        sed -n 's/^Remv \([^ ]*\).*/\1/p' | xargs)
    if [[ $conflicts ]]; then
        obstacle "apt would remove $conflicts for its $package"
        return 1
    fi
    install_packages "$package" && { usable || use_installed; }
}

has_lint() {
    cargo clippy --version && cargo fmt --version
} >/dev/null 2>&1

add_lint() {
    local owner
    if owner=$(dpkg-query -S "$(readlink -f "$(command -v cargo)")" 2>/dev/null); then
        owner=${owner%%:*}
    fi
    case $owner in
    cargo) install_packages rust-clippy rustfmt ;;
    cargo-*) install_packages "rust-${owner#cargo-}-clippy" "rustfmt-${owner#cargo-}" ;;
    *) command -v rustup >/dev/null && rustup component add clippy rustfmt ;;
    esac
}

if ! usable && ! use_directory "$user_bin" && ! use_rustup && ! use_distribution; then
    found=$(version cargo || true)
    echo "${0##*/}: Rust $wanted or newer is needed, here is ${found:-none}${obstacles:+; $obstacles}:" \
        "install it as https://rustup.rs says, then run this again" >&2
    exit 1
fi
if [[ $lint ]] && ! has_lint && ! { add_lint && has_lint; }; then
    echo "${0##*/}: $(command -v cargo) has no clippy and no rustfmt: install them" >&2
    exit 1
fi
export PATH
exec "${@:-true}"
