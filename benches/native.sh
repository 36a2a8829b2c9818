#!/usr/bin/env bash
# Measures ipipou's userspace datapath against other userspace tunnels, on this machine's own
# kernel and CPU. Prints a table in Markdown, which is also in target/bench/native.md, and ends with
# 1 when a target is missed. `native.sh --quick` is a minute; `native.sh --help` lists the options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-target}
tools=$PWD/target/tools
export IPIPOU_BINARY=${IPIPOU_BINARY:-$target/release/ipipou}
PATH=$tools/bin:$PATH:/usr/sbin:/sbin
# shellcheck source=tests/setup/lib.sh
source tests/setup/lib.sh
tests/setup/packages.sh build bench
if [[ $IPIPOU_BINARY == "$target/release/ipipou" ]]; then
    cargo build --release --locked --quiet
fi
if ! command -v boringtun-cli >/dev/null; then
    echo "native.sh: building boringtun-cli, once" >&2
    cargo install --locked --quiet --root "$tools" boringtun-cli
fi

# Debian 12's wireguard-go is older than its segmentation offloads, which make it several times
# faster: the next release's is the fair one. It is linked statically and runs here.
newer_wireguard_go() {
    local root=$tools/apt mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    # shellcheck disable=SC2016 # apt fills in the $(…), not the shell
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
        'Release: bookworm' 'Component: main' | head -n 1)
    [[ $mirror ]] || return 1
    rm -rf "$root"
    mkdir -p "$root/lists/partial" "$root/archives/partial" "$tools/bin"
    : >"$root/status"
    echo "deb [signed-by=$keyring] $mirror trixie main" >"$root/sources.list"
    local private=(-qq -o "Dir::State=$root" -o "Dir::Cache=$root"
        -o "Dir::State::status=$root/status" -o "Dir::Etc::sourcelist=$root/sources.list"
        -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null
        -o APT::Sandbox::User=root -o Acquire::Languages=none)
    # A function that is called in a condition goes on after an error, whatever set -e says.
    apt-get "${private[@]}" update || return
    (cd "$root" && apt-get "${private[@]}" download wireguard-go) || return
    dpkg-deb -x "$root"/wireguard-go_*.deb "$root/unpacked" || return
    dpkg-deb -f "$root"/wireguard-go_*.deb Version >"$tools/bin/wireguard-go.version" || return
    mv "$root/unpacked/usr/bin/wireguard-go" "$tools/bin/" || return
    rm -rf "$root"
}
installed=$(dpkg-query -W -f '${Version}' wireguard-go)
if [[ ! -x $tools/bin/wireguard-go ]] && dpkg --compare-versions "$installed" lt 0.0.20231211; then
    echo "native.sh: fetching Debian 13's wireguard-go, once" >&2
    newer_wireguard_go || echo "native.sh: not to be had: measuring wireguard-go $installed" >&2
fi

as_root env PATH="$PATH" IPIPOU_BINARY="$IPIPOU_BINARY" PYTHONDONTWRITEBYTECODE=1 \
    /usr/bin/python3 benches/native.py "$@"
