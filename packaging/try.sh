#!/usr/bin/env bash
# Tries what `make deb` and `make static` made, by root, on a machine that can be spoilt. Installs the
# package with apt, looks at what is there, purges it, and looks for what it left. Runs the static program
# where nothing else is, and the demonstration with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source-path=SCRIPTDIR/..
source tests/setup/lib.sh
fail() {
    echo "try.sh: FAILED: $*" >&2
    exit 1
}
expect() { # WHAT COMMAND...
    "${@:2}" >"$said" 2>&1 || { cat "$said" >&2 && fail "$1"; }
}
said=$(mktemp)
trap 'rm -f "$said"' EXIT
# Files and directories of the name, but for this tree and what apt and dpkg keep.
traces() {
    find / -xdev \( -path "$PWD" -o -path /proc -o -path /sys -o -path '/var/cache/apt' \
        -o -path /root/.cargo \) -prune -o -name '*ipipou*' -print | sort
}
# Each of these stands above its licence.
check_notices() { # FILE NAME...
    local name
    for name in "${@:2}"; do
        grep -q "^===== \(.*, \)\?$name" "$1" || fail "no licence of $name in the notices"
    done
}

version=$(sed -n '0,/^version = /s/^version = "\(.*\)"/\1/p' Cargo.toml)
package=$(echo target/debian/ipipou_"$version"-*_"$(dpkg --print-architecture)".deb)
[[ -e $package ]] || fail "no $package: run 'make deb'"
before=$(traces)
[[ ! $before ]] || fail "there is an ipipou already: $before"

refresh_lists
expect "systemd, to look at the unit" apt install -y --no-install-recommends systemd
expect "install $package" apt install -y "./$package"
for wanted in nftables kmod procps; do
    expect "$wanted is recommended" dpkg-query -W "$wanted"
done
[[ $(command -v ipipou) == /usr/bin/ipipou ]] || fail "no /usr/bin/ipipou"
[[ $(ipipou --version) == "ipipou $version" ]] || fail "'$(ipipou --version)' is not ipipou $version"
# An instance of it, with an example as the administrator would take it over.
cp /usr/share/doc/ipipou/examples/server0.conf /etc/ipipou/
# From elsewhere: here lie units of these names, and would be read instead.
expect "unit" env -C / systemd-analyze verify --man=no ipipou@server0.service ipipou.target
while read -r program; do
    [[ -x $program ]] || fail "the unit starts $program, which is not there"
done < <(sed -n 's/^Exec[A-Za-z]*=+*\(\/[^ ]*\).*/\1/p' /usr/lib/systemd/system/ipipou@.service)
zcat /usr/share/man/man8/ipipou.8.gz | grep -q '^\.TH IPIPOU 8' || fail "no man page"
for shell in bash-completion/completions/ipipou zsh/vendor-completions/_ipipou \
    fish/vendor_completions.d/ipipou.fish; do
    [[ -s /usr/share/$shell ]] || fail "no /usr/share/$shell"
done
zcat /usr/share/doc/ipipou/third-party-notices.gz >"$said"
check_notices "$said" tokio rustls "Rust's standard library"

# Once more is an upgrade; the administrator's file outlives it, and the package.
expect "install it again" apt install -y --reinstall "./$package"
mkdir -p /var/lib/ipipou/server0
expect "remove" apt remove -y ipipou
[[ -e /var/lib/ipipou/server0 ]] || fail "what is remembered is gone though nothing was purged"
expect "purge" apt purge -y ipipou
[[ $(traces) == /etc/ipipou && $(ls /etc/ipipou) == server0.conf ]] ||
    fail "left, beside /etc/ipipou/server0.conf: $(traces)"
rm /etc/ipipou/server0.conf
expect "install it to purge it" apt install -y "./$package"
expect "purge" apt purge -y ipipou
left=$(traces)
[[ ! $left ]] || fail "left: $left"

static=target/static/ipipou
[[ $("$static" --version) == "ipipou $version" ]] || fail "$static does not run"
# In a directory where nothing else is, not even a C library.
empty=$(mktemp -d)
cp "$static" "$empty/"
[[ $(chroot "$empty" /ipipou --version) == "ipipou $version" ]] || fail "$static needs more than itself"
rm -r "$empty"
check_notices "${static%/*}/third-party-notices" tokio rustls "Rust's standard library" ".*musl"
tests/setup/packages.sh hosts
expect "demonstration with $static" env PATH="$PWD/${static%/*}:$PATH" bash demo/userspace.sh
echo "try.sh: passed"
