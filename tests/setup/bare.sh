#!/usr/bin/env bash
# Proves the README on machines that have nothing: runs its first commands in a bare Debian that has
# git and certificates, and a copy of this tree.
#
#   bare.sh                              all four combinations: `make bare`
#   bare.sh SUITE root|user DATAPATH     one: bookworm or trixie; as root, or as a user with sudo
#   bare.sh SUITE root|user -- COMMAND   that command instead of the README's
#
# From this machine it gets the network (where the archives are, proxies, certificates) and packages
# that an earlier run downloaded; no program, no cache and no variable. What can be used again is in
# target/bare. A command that takes longer than IPIPOU_BARE_TIMEOUT seconds (2400) is ended.
# IPIPOU_BARE=no skips it: `bare.sh trixie user -- 'IPIPOU_BARE=no make test'` is all the others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# shellcheck source-path=SCRIPTDIR
source tests/setup/lib.sh
PATH=$PATH:/usr/sbin:/sbin
limit=${IPIPOU_BARE_TIMEOUT:-2400}

if (($# == 0)); then
    failed=0
    for combination in 'bookworm root kernel' 'trixie user tun' 'bookworm user tun' 'trixie root kernel'; do
        # shellcheck disable=SC2086 # three words
        "${BASH_SOURCE[0]}" $combination || failed=1
    done
    exit "$failed"
fi
suite=$1 who=$2 datapath=$3
case $who in
root) user=root home=root more='' ;;
user) user=newcomer home=home/newcomer more=,sudo ;;
*) echo "bare.sh: as whom? root or user, not '$who'" >&2 && exit 2 ;;
esac
case $datapath in
kernel) demo='make demo' ;;
tun) demo='make demo DATAPATH=tun' ;;
--) demo=${4:?what is to run?} ;;
*) echo "bare.sh: the datapath is kernel or tun, not '$datapath'" >&2 && exit 2 ;;
esac
say() { echo "bare.sh: $suite, as $who: $*" >&2; }
# `make test` repeats this line at its end.
fail() {
    echo "FAILED bare.sh: $suite, as $who: $*" >&2
    exit 1
}

cache=$PWD/target/bare
base=$cache/$suite-$who.tar
debs=$cache/debs-$suite
root=$cache/$suite-$who
mkdir -p "$debs/partial"
exec 9>"$base.lock"
flock 9

clean_up() {
    as_root rm -rf --one-file-system "$root" "$base.part"
}
trap clean_up EXIT
clean_up

# shellcheck source=/dev/null
. /etc/os-release
if [[ ${IPIPOU_BARE:-} == no ]]; then
    say "skipped: IPIPOU_BARE=no"
    exit 77
elif [[ $ID != debian ]]; then
    say "skipped: this is $ID, whose archive has no Debian"
    exit 77
fi
if ! mirror=$(mirror_of debian "$VERSION_CODENAME"); then
    refresh_lists
    mirror=$(mirror_of debian "$VERSION_CODENAME") ||
        fail "apt's sources here name no mirror for $VERSION_CODENAME main"
fi
security=$(mirror_of debian "$VERSION_CODENAME-security" || echo "${mirror%/}-security")

if [[ ! -s $base ]]; then
    say "making the root file system"
    if ! as_root unshare --mount debootstrap --variant=minbase --cache-dir="$debs" \
        --include="git,ca-certificates$more" "$suite" "$root" "$mirror" \
        >"$cache/debootstrap-$suite.log" 2>&1; then
        tail -n 20 "$cache/debootstrap-$suite.log" >&2
        fail "no root file system"
    fi
    # A new machine knows where packages are, not which there are.
    as_root find "$root"/var/lib/apt/lists "$root"/var/cache/apt -type f -delete
    as_root tar -C "$root" -cf "$base.part" .
    mv "$base.part" "$base"
else
    as_root mkdir "$root"
    as_root tar -C "$root" -xf "$base"
fi

# A file of the root file system, from what is on stdin.
put() { # PATH
    as_root mkdir -p "$root/${1%/*}"
    as_root tee "$root/$1" >/dev/null
}

# The network: names, proxies, archives, certificates.
put etc/resolv.conf </etc/resolv.conf
{ cat /etc/hosts && echo 127.0.1.1 bare; } | put etc/hosts
put etc/apt/sources.list <<SOURCES
deb $mirror $suite main
deb $mirror $suite-updates main
deb $security $suite-security main
SOURCES
apt-config dump | { grep -E '^Acquire::(https?::(Proxy|Verify|Timeout|Pipeline)|Retries|Check-)' || true; } |
    put etc/apt/apt.conf.d/90network
env | { grep -iE '^((http|https|ftp|all|no)_proxy|cargo_(http|net|source|registries)_.*)=' || true; } |
    { grep -viE '^[^=]*(token|credential|cainfo)' || true; } | put etc/environment
if [[ -e ${CARGO_HOME:-~/.cargo}/config.toml ]]; then
    awk '/^\[/ { wanted = /^\[(source|registries|registry|http|net)[].]/ } wanted' \
        "${CARGO_HOME:-$HOME/.cargo}/config.toml" | put "$home/.cargo/config.toml"
fi
for certificate in /usr/local/share/ca-certificates/*.crt; do
    [[ ! -e $certificate ]] || as_root install -m 644 -t "$root/${certificate%/*}" "$certificate"
done
as_root tests/setup/enter.sh "$root" root update-ca-certificates >"$cache/certificates.log" 2>&1

# Who is there, and the clone.
if [[ $who == user ]]; then
    as_root chroot "$root" useradd --create-home --shell /bin/bash "$user"
    echo "$user ALL=(ALL) NOPASSWD: ALL" | put etc/sudoers.d/newcomer
fi
as_root mkdir "$root/$home/ipipou"
{ git -c safe.directory='*' ls-files -z --cached --others --exclude-standard 2>/dev/null ||
    find . -path ./target -prune -o -type f -print0; } |
    tar --null --files-from=- --ignore-failed-read -c 2>/dev/null |
    as_root tar -C "$root/$home/ipipou" -x
as_root chroot "$root" chown -R "$user:" "/$home"

# Runs a command as it would be typed there, and shows what a newcomer reads. Fails as it does, and
# when one of its lines is for nobody's eyes.
newcomer() { # COMMAND
    local status=0 started=$SECONDS
    echo "$user@bare:~/ipipou$ $1"
    as_root timeout --foreground "$limit" \
        tests/setup/enter.sh "$root" "$user" "cd ipipou && $1" "$debs" 2>&1 | tee -i "$base.said" || status=$?
    if ((status == 124)); then
        fail "'$1' did not end in $limit s"
    elif ((status)); then
        fail "'$1' failed ($status)"
    elif grep -nE "$noise" "$base.said"; then
        fail "'$1' printed what is no newcomer's business (above, with its line's number)"
    fi
    say "'$1' took $((SECONDS - started)) s"
}
noise='not found|o such file|nbound variable|syntax error|ermission denied|cannot |^[EW]: |[Ww]arning|panicked'

if [[ $datapath == -- ]]; then
    newcomer "$demo"
    exit
fi
for command in ./setup "$demo" "make build && sudo make install" "ipipou --auth-keygen"; do
    # What is tried here is what the README says.
    if ! grep -qF -- "$command" README.md; then
        fail "the README does not say '$command'"
    fi
    [[ $who == user ]] || command=${command/sudo /}
    newcomer "$command"
done
say "passed in $SECONDS s"
