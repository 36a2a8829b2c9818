#!/usr/bin/env bash
# Makes what run.sh boots, once, under target/vm (or $IPIPOU_VM_CACHE):
#   kernels               the names of the kernels, one per line
#   kernel-NAME           a stock kernel image
#   modules-NAME.cpio     its network modules and what they depend on
#   base.cpio             a small root file system of this machine's own release, so that a binary
#                         built here finds the C library it was linked against
# Archives stay uncompressed: under an emulated CPU unpacking costs more than loading the bytes.
# What is there is not made again; after a change here, everything is.
#
#   prepare.sh [KERNEL]      that one only, or `newest`; prints its name
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${IPIPOU_VM_CACHE:-$here/../../target/vm}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
only=${1:-}
PATH=$PATH:/usr/sbin:/sbin

# shellcheck source-path=SCRIPTDIR
source "$here/../setup/lib.sh"
"$here/../setup/packages.sh" machines
# One at a time: `make demo` may be tried while `make test` runs.
exec 9>"$cache/lock"
flock 9

recipe=$(sha256sum "${BASH_SOURCE[0]}" | cut -d ' ' -f 1)
if [[ ! -e $cache/recipe || $(<"$cache/recipe") != "$recipe" ]]; then
    rm -f "$cache"/{kernel-,modules-,base}*
fi
echo "$recipe" >"$cache/recipe"

# shellcheck source=/dev/null
. /etc/os-release
host_suite=$VERSION_CODENAME

# Globs below /lib/modules/VERSION/kernel. Everything a test may make the kernel ask for; what is
# missing here is missing in the guest, as on a machine that lacks the module.
modules=(
    'net/ipv4/*' 'net/ipv6/*' 'net/netfilter/*' 'net/bridge/*' 'net/8021q/*'
    'net/sched/sch_*' 'net/sched/cls_*' 'net/sched/act_*' 'net/packet/*' 'net/unix/*' 'net/xfrm/xfrm_user'
    'drivers/net/veth*' 'drivers/net/dummy*' 'drivers/net/ifb*' 'drivers/net/tun'
    'drivers/net/vrf*' 'drivers/net/wireguard/*' 'drivers/net/ppp/ppp_async'
    # asked for by name at run time, so in nobody's dependency list
    'crypto/crc32c*' 'crypto/chacha20poly1305*' 'arch/x86/crypto/crc32c*' 'fs/autofs/*'
)
# Big and of no use here; -prune'd before dependencies are looked at.
unwanted='/(xt_|ip_set|ipt_|ip6t_|ip_vs|ipcomp|tcp_|iptable|ip6table|arptable|ebt|nf_conntrack_(h323|amanda|snmp|sane|pptp|irc))'

say() { echo "prepare.sh: $*" >&2; }

# Sets $mirror. apt knows its sources only after an update, which a new machine may not have had.
find_mirror() {
    mirror=${mirror:-$(mirror_of "$ID" "$host_suite" || { refresh_lists && mirror_of "$ID" "$host_suite"; })} &&
        return
    say "apt's sources name no mirror for $host_suite main, or none that answers"
    exit 1
}

# apt-get/apt-cache with lists of its own, so that a suite this machine does not use can be read
# without touching its configuration.
private_apt() { # SUITE COMMAND...
    local root=$cache/apt/$1 command=$2
    shift 2
    "$command" -o Dir::State="$root" -o Dir::Cache="$root" -o Dir::State::status="$root/status" \
        -o Dir::Etc::sourcelist="$root/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o APT::Architecture=amd64 \
        -o APT::Architectures=amd64 -o APT::Sandbox::User=root -o Acquire::Languages=none "$@"
}

# Into $cache/unpacked-NAME: the image and the modules of the kernel a meta package stands for.
# Fails when the suite cannot be read or has another version than the one asked for.
unpack_kernel() { # NAME SUITE META_PACKAGE VERSION_REGEX
    local name=$1 suite=$2 meta=$3 prefix=$4 root=$cache/apt/$2 tree=$cache/unpacked-$1 package
    mkdir -p "$root/lists/partial" "$root/archives/partial"
    : >"$root/status"
    if [[ ! -s $root/sources.list ]]; then
        echo "deb ${keyring:+[signed-by=$keyring] }$mirror $suite main" >"$root/sources.list"
        if ! private_apt "$suite" apt-get update -qq -o APT::Update::Error-Mode=any; then
            rm -f "$root/sources.list"
            return 1
        fi
    fi
    local packages=()
    while read -r package; do
        packages+=("$package")
    done < <(private_apt "$suite" apt-cache depends --important "$meta" |
        sed -n "s/^ *Depends: \(linux-\(image\|modules\)[a-z-]*-${prefix}[^ ]*\)$/\1/p")
    ((${#packages[@]})) || return 1
    # Ubuntu keeps the modules apart; on Debian the image brings them.
    if [[ $ID == ubuntu ]]; then
        packages+=("${packages[0]/linux-image/linux-modules}")
    fi
    say "$name: ${packages[*]} from $suite"
    rm -rf "$tree"
    mkdir -p "$tree/debs"
    # "|| return": whoever calls a function in a condition switches set -e off in it.
    (cd "$tree/debs" && private_apt "$suite" apt-get download -qq "${packages[@]}" >&2) || return 1
    for package in "$tree"/debs/*.deb; do
        dpkg-deb -x "$package" "$tree" || return 1
    done
    # Newer packages have them below /usr.
    if [[ -d $tree/usr/lib/modules ]]; then
        mkdir -p "$tree/lib"
        mv "$tree/usr/lib/modules" "$tree/lib/"
    fi
}

# cpio archive of a directory, owned by root.
pack() { # DIRECTORY ARCHIVE
    (cd "$1" && find . -mindepth 1 -print0 | LC_ALL=C sort -z |
        cpio --quiet --null --create --format=newc --owner=+0:+0) >"$2.part"
    mv "$2.part" "$2"
}

# From $cache/unpacked-NAME: kernel-NAME and modules-NAME.cpio.
pack_kernel() { # NAME
    local name=$1 tree=$cache/unpacked-$1 small=$cache/modules-$1 version glob file
    version=$(basename "$(echo "$tree"/lib/modules/*)")
    rm -rf "$small"
    mkdir -p "$small/usr/lib/modules/$version"
    depmod -b "$tree" "$version"

    local patterns=()
    for glob in "${modules[@]}"; do
        patterns+=(-o -path "*/kernel/$glob.ko*")
    done
    find "$tree/lib/modules/$version" -type f \( "${patterns[@]:1}" \) |
        grep -vE "$unwanted" | sed 's|.*/||; s|\.ko.*||' |
        while read -r file; do
            modprobe -d "$tree" -S "$version" --show-depends "$file" || true
        done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | sed "s|^$tree/lib/modules/||" |
        (cd "$tree/lib/modules" && xargs cp --parents -t "$small/usr/lib/modules")

    # Unpack modules here rather than on the emulated CPU.
    find "$small" -name '*.ko.xz' -exec xz -d {} +
    find "$small" -name '*.ko.zst' -exec zstd -q -d --rm {} +
    cp "$tree/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} \
        "$small/usr/lib/modules/$version/"
    # depmod looks in /lib, the guest's /lib is a link to /usr/lib: give depmod the same view.
    ln -s usr/lib "$small/lib"
    depmod -b "$small" "$version"
    rm "$small/lib"
    pack "$small" "$cache/modules-$name.cpio"
    cp "$tree/boot/vmlinuz-$version" "$cache/kernel-$name"
    rm -rf "$small" "$tree"
    say "$name: $version, modules $(du -h "$cache/modules-$name.cpio" | cut -f1)"
}

make_kernel() { # NAME META_PACKAGE SUITE...
    local name=$1 meta=$2 suite prefix="${1//./[.]}[.]"
    shift 2
    [[ $name != distro ]] || prefix='[0-9]'
    if [[ ! -s $cache/kernel-$name || ! -s $cache/modules-$name.cpio ]]; then
        find_mirror
        for suite in "$@"; do
            if unpack_kernel "$name" "$suite" "$meta" "$prefix"; then
                pack_kernel "$name"
                break
            fi
        done
    fi
    if [[ ! -s $cache/kernel-$name ]]; then
        say "no kernel $name in $*"
        return 1
    fi
}

make_base() {
    local root=$cache/root include
    [[ ! -s $cache/base.cpio ]] || return 0
    find_mirror
    include=systemd,dbus,iproute2,nftables,kmod,iputils-ping,conntrack,tcpdump,iperf3,procps
    # debootstrap does not follow virtual packages: python3-nacl needs cffi-backend to be named
    include+=,python3,python3-pytest,python3-pytest-rerunfailures,python3-nacl,python3-cffi-backend
    include+=,wireguard-tools,util-linux,strace
    say "root file system: $host_suite"
    as_root rm -rf "$root"
    # What it mounts is gone with it, however it ends; where / is no mount (a chroot), it sees to it.
    local alone=()
    ! as_root unshare --mount true 2>/dev/null || alone=(unshare --mount)
    if ! as_root "${alone[@]}" debootstrap --variant=minbase --include="$include" \
        ${components:+--components="$components"} "$host_suite" "$root" "$mirror" \
        >"$cache/debootstrap.log"; then
        tail -n 20 "$cache/debootstrap.log" >&2
        return 1
    fi
    # Nothing here is installed or read by a person: drop what only that needs.
    (
        cd "$root"
        as_root rm -rf usr/share/{doc,man,info,locale,i18n,zoneinfo,perl*,bash-completion} \
            usr/share/{common-licenses,lintian,gcc,gdb,keyrings,debconf,dict,bug,pixmaps} \
            usr/lib/x86_64-linux-gnu/{gconv,perl-base,perl,libapt-*} usr/bin/{perl*,apt*,dpkg*} \
            usr/lib/{apt,dpkg,locale} usr/lib/udev/hwdb* usr/lib/systemd/catalog \
            usr/lib/python3*/{ensurepip,lib2to3,idlelib,pydoc_data,turtledemo,test} \
            usr/lib/python3/dist-packages/setuptools \
            usr/lib/systemd/system/{apt-*,dpkg-*} etc/systemd/system/*/{apt-*,dpkg-*,e2scrub*} \
            var/lib/{apt,dpkg} var/cache/* var/log/* boot/* etc/apt etc/machine-id
        # A serial getty would wait 90 s for a device that nobody announces; binfmt_misc is a
        # module that is not here.
        for unit in serial-getty@ttyS0.service getty@tty1.service systemd-binfmt.service \
            proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount; do
            as_root ln -sf /dev/null "etc/systemd/system/$unit"
        done
        echo lab | as_root tee etc/hostname >/dev/null
        # systemd makes this up when it is empty; without it, the first boot asks questions.
        as_root touch etc/machine-id
    )
    (cd "$root" && as_root find . -mindepth 1 -print0 | LC_ALL=C sort -z |
        as_root cpio --quiet --null --create --format=newc) >"$cache/base.cpio.part"
    mv "$cache/base.cpio.part" "$cache/base.cpio"
    as_root rm -rf "$root"
    say "root file system: $(du -h "$cache/base.cpio" | cut -f1)"
}

keyring=/usr/share/keyrings/$ID-archive-keyring.gpg
[[ -e $keyring ]] || keyring=
if [[ $ID == ubuntu ]]; then
    # Its mirror has no Debian kernels, and looking for another one is not a test's business.
    [[ $only ]] || say "this is Ubuntu: testing on its own generic kernel (named 'distro') only"
    components=main,universe
    kernels=(distro)
else
    components=
    kernels=(6.1 6.12)
fi
if [[ $only == newest ]]; then
    kernels=("${kernels[-1]}")
elif [[ $only ]]; then
    if [[ " ${kernels[*]} " != *" $only "* ]]; then
        say "no kernel '$only': there are ${kernels[*]}"
        exit 2
    fi
    kernels=("$only")
fi
mirror=
for name in "${kernels[@]}"; do
    case $name in
    distro) make_kernel distro linux-image-generic "$host_suite-updates" "$host_suite" ;;
    6.1) make_kernel 6.1 linux-image-amd64 bookworm ;;
    6.12) make_kernel 6.12 linux-image-amd64 bookworm-backports trixie ;;
    esac
done
make_base
if [[ $only ]]; then
    echo "${kernels[0]}"
else
    printf '%s\n' "${kernels[@]}" >"$cache/kernels"
fi
