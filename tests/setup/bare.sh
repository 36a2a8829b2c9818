#!/usr/bin/env bash
# Proves the README on machines that have nothing: runs its first commands in a bare Debian that has
# git and certificates, and a copy of this tree.
#
#   bare.sh                              all four combinations, and the packages: `make bare`
#   bare.sh SUITE root|user DATAPATH     one: bookworm or trixie; as root, or as a user with sudo
#   bare.sh SUITE root packages          instead, builds both packages and tries them (RELEASING.md)
#   bare.sh SUITE root|user -- COMMAND   that command instead of the README's
#
# What it gets from this machine says root.sh; what can be used again is in target/bare. A command
# that takes longer than IPIPOU_BARE_TIMEOUT seconds (2400) is ended. IPIPOU_BARE=no skips it:
# `bare.sh trixie user -- './setup && IPIPOU_BARE=no make test'` is all the others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# shellcheck source-path=SCRIPTDIR
source tests/setup/lib.sh
# shellcheck source-path=SCRIPTDIR
source tests/setup/root.sh
PATH=$PATH:/usr/sbin:/sbin
limit=${IPIPOU_BARE_TIMEOUT:-2400}

if (($# == 0)); then
    failed=0
    for combination in 'bookworm root kernel' 'trixie user tun' 'bookworm user tun' 'trixie root kernel' \
        'bookworm root packages' 'trixie root packages'; do
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
readme() { # DEMO
    commands=(./setup "$1" 'make build && sudo make install' 'ipipou genkey') document=README.md
}
case $datapath in
kernel) readme 'make demo' ;;
tun) readme 'make demo DATAPATH=tun' ;;
packages) commands=(./setup 'make deb' 'make static' packaging/try.sh) document=RELEASING.md ;;
--) commands=("${4:?what is to run?}") document='' ;;
*) echo "bare.sh: the datapath is kernel or tun, or it is packages, not '$datapath'" >&2 && exit 2 ;;
esac
say() { echo "bare.sh: $suite, as $who: $*" >&2; }
# `make test` repeats this line at its end.
fail() {
    echo "FAILED bare.sh: $suite, as $who: $*" >&2
    exit 1
}

if [[ ${IPIPOU_BARE:-} == no ]]; then
    say "skipped: IPIPOU_BARE=no"
    exit 77
elif ! here_is_debian; then
    say "skipped: this is not Debian, its archive has none"
    exit 77
fi
cache=$PWD/target/bare
base=$cache/$suite-$who.tar
debs=$cache/debs-$suite
root=$cache/$suite-$who
mkdir -p "$cache"
exec 9>"$base.lock"
flock 9

clean_up() {
    as_root rm -rf --one-file-system "$root" "$base.part"
}
trap clean_up EXIT
clean_up

trap 'fail "no machine (line $LINENO)"' ERR
find_archives
if [[ ! -s $base ]]; then
    say "making the root file system"
    install_debian "git,ca-certificates$more" --variant=minbase
    as_root tar -C "$root" -cf "$base.part" .
    mv "$base.part" "$base"
else
    as_root mkdir "$root"
    as_root tar -C "$root" -xf "$base"
fi
connect "$home"

# Who is there, and the clone.
if [[ $who == user ]]; then
    as_root chroot "$root" useradd --create-home --shell /bin/bash "$user"
    echo "$user ALL=(ALL) NOPASSWD: ALL" | put etc/sudoers.d/newcomer
fi
clone "$home/ipipou"
as_root chroot "$root" chown -R "$user:" "/$home"
trap - ERR

# Runs a command as it would be typed there, and shows what a newcomer reads. Fails as it does, and
# when one of its lines should not be printed.
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
        fail "'$1' printed what a newcomer should not see (above, with its line's number)"
    fi
    say "'$1' took $((SECONDS - started)) s"
}
noise='not found|o such file|nbound variable|syntax error|ermission denied|cannot |^[EW]: |[Ww]arning|panicked'

for command in "${commands[@]}"; do
    # What is tried here is what the document says.
    if [[ $document ]] && ! grep -qF -- "$command" "$document"; then
        fail "$document does not say '$command'"
    fi
    [[ $who == user ]] || command=${command/sudo /}
    newcomer "$command"
done
say "passed in $SECONDS s"
