# Makes the root file system of a Debian that has nothing yet. For bash; to be sourced after lib.sh,
# by a script that sets these:
#
#   suite    bookworm or trixie
#   root     where it is made
#   debs     where packages are kept that were downloaded
#
# From this machine it gets the network (where the archives are, proxies, certificates), those packages,
# and how cargo is to compile (CARGO_PROFILE_…); no program, no other cache and no other variable.
# shellcheck shell=bash disable=SC2154

here_is_debian() {
    # shellcheck source=/dev/null
    (. /etc/os-release && [[ $ID == debian ]])
}

# Sets mirror and security: the archives that this machine uses.
find_archives() {
    local codename
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    if ! mirror=$(mirror_of debian "$codename") &&
        ! { refresh_lists && mirror=$(mirror_of debian "$codename"); }; then
        echo "${0##*/}: apt's sources here name no mirror for $codename main" >&2
        return 1
    fi
    security=$(mirror_of debian "$codename-security" || echo "${mirror%/}-security")
}

# Installs Debian with these packages added.
install_debian() { # PACKAGE,... [OPTION]
    local log=$debs.log
    mkdir -p "$debs/partial"
    if ! as_root unshare --mount debootstrap --cache-dir="$debs" --include="$1" "${@:2}" \
        "$suite" "$root" "$mirror" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        return 1
    fi
    # A new machine knows where packages are, not which there are.
    as_root find "$root"/var/lib/apt/lists "$root"/var/cache/apt -type f -delete
}

# A file of the root file system, from what is on stdin.
put() { # PATH
    as_root mkdir -p "$root/${1%/*}"
    as_root tee "$root/$1" >/dev/null
}

# The network: names, proxies, archives, certificates.
connect() { # HOME
    put etc/resolv.conf </etc/resolv.conf
    { cat /etc/hosts && echo 127.0.1.1 bare; } | put etc/hosts
    put etc/apt/sources.list <<SOURCES
deb $mirror $suite main
deb $mirror $suite-updates main
deb $security $suite-security main
SOURCES
    apt-config dump |
        { grep -E '^Acquire::(https?::(Proxy|Verify|Timeout|Pipeline)|Retries|Check-)' || true; } |
        put etc/apt/apt.conf.d/90network
    env |
        { grep -iE '^((http|https|ftp|all|no)_proxy|cargo_(http|net|profile|source|registries)_.*)=' || true; } |
        { grep -viE '^[^=]*(token|credential|cainfo)' || true; } | put etc/environment
    if [[ -e ${CARGO_HOME:-~/.cargo}/config.toml ]]; then
        awk '/^\[/ { wanted = /^\[(source|registries|registry|http|net)[].]/ } wanted' \
            "${CARGO_HOME:-$HOME/.cargo}/config.toml" | put "$1/.cargo/config.toml"
    fi
    local certificate
    for certificate in /usr/local/share/ca-certificates/*.crt; do
        [[ ! -e $certificate ]] ||
            as_root install -m 644 -t "$root/${certificate%/*}" "$certificate"
    done
    as_root tests/setup/enter.sh "$root" root update-ca-certificates >"$debs.log" 2>&1 ||
        { tail -n 20 "$debs.log" >&2 && return 1; }
}

# A copy of this tree, as it would be cloned; of a repository or of its files.
clone() { # DIRECTORY
    as_root mkdir "$root/$1"
    { git -c safe.directory='*' ls-files -z --cached --others --exclude-standard 2>/dev/null ||
        find . -path ./target -prune -o -type f -print0; } |
        tar --null --files-from=- --ignore-failed-read -c 2>/dev/null | as_root tar -C "$root/$1" -x
}
