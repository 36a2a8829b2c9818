# What the scripts have in common that install something or need root. For bash; to be sourced.
# shellcheck shell=bash

# Runs a command as root. Of the environment, sudo keeps nothing; downloads need the proxies.
as_root() { # COMMAND...
    if ((EUID == 0)); then
        "$@"
    else
        local name proxies=()
        for name in http_proxy https_proxy ftp_proxy no_proxy; do
            [[ ! ${!name:-} ]] || proxies+=("$name=${!name}")
        done
        sudo ${proxies:+env "${proxies[@]}"} "$@"
    fi
}

can_be_root() {
    ((EUID == 0)) || command -v sudo >/dev/null
}

# Ends the script, before anything else is done, where as_root cannot work.
need_root() { # WHAT
    if ! can_be_root; then
        echo "${0##*/}: to $1 needs root, and there is no sudo here: run this as root" >&2
        exit 1
    fi
}

apt() { # ARGUMENT...
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}

# Another source of packages may be broken; what can be installed then decides. One at a time: apt
# does not wait for another one that does this.
refresh_lists() {
    as_root flock /var/lib/apt/lists apt-get -qq update >/dev/null 2>&1 || true
}

# The package that the Rust in use is from; fails where it is from none, as rustup's.
package_of_rustc() {
    local rustc
    # shellcheck disable=SC2016 # where the PATH is another one
    rustc=$(tests/setup/rust.sh bash -c 'readlink -f "$(command -v rustc)"')
    dpkg-query -S "$rustc" 2>/dev/null | cut -d : -f 1 | grep .
}

# Installs packages of the distribution, silently. Fails with what apt called an error, and what to do.
install_packages() { # PACKAGE...
    if ! command -v apt-get >/dev/null; then
        echo "${0##*/}: no apt-get: this is not Debian or Ubuntu. Needed are what they call $*" >&2
        return 1
    fi
    need_root "install $*"
    echo "${0##*/}: installing $*" >&2
    local said keep=--no-remove
    # What is there stays, but for a machine that exists for the tests: its image may have parts of QEMU
    # from a newer release, beside which this release's emulator cannot be.
    if [[ ${CI:-} ]]; then
        keep=--remove
    fi
    refresh_lists # a new machine has none
    if ! said=$(apt install -y --no-install-recommends "$keep" "$@" 2>&1); then
        echo "${0##*/}: could not install $*; is there a network? What apt said:" >&2
        tail -n 5 <<<"$said" >&2
        if [[ $said == *'remove is disabled'* ]]; then
            echo "${0##*/}: 'apt-get install -s $*' says what is in the way; CI=1 removes it" >&2
        fi
        return 1
    fi
}

# The distribution's archive that this machine installs from, as apt itself reads its sources.
# Cloud images name a file that lists mirrors.
# shellcheck disable=SC2016 # apt fills in the $(…), not the shell
mirror_of() { # DISTRIBUTION SUITE
    local url suite component origin
    while read -r url suite component origin; do
        if [[ $suite == "$2" && $component == main && ${origin,,} == "$1" ]]; then
            if [[ $url == mirror+file:* ]]; then
                url=$(grep -m 1 -oE '^https?:[^[:space:]]+' "${url#mirror+file:}") || continue
            fi
            [[ $url =~ ^(https?|file): ]] || continue # a CD is none
            echo "$url"
            return
        fi
    done < <(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)' \
        'Created-By: Packages')
    return 1
}

# Runs it with a cargo that is new enough.
cargo() { # ARGUMENT...
    "$(dirname "${BASH_SOURCE[0]}")/rust.sh" cargo "$@"
}
