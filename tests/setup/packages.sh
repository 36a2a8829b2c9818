#!/usr/bin/env bash
# Installs what is needed on a Debian 12/13 or Ubuntu machine:
# packages.sh [build] [test] [lint] [bench] (without a word: build and test). Changes nothing, and
# needs neither root nor the network, when everything is already there.
set -euo pipefail

# the linker and C library that rustc links with
build=(make gcc libc6-dev)
test=(
    # virtual machines: emulator, root file system, archives, depmod
    qemu-system-x86 debootstrap cpio zstd xz-utils kmod
    # network namespaces of this host: rules, captures, flows, load
    iproute2 nftables conntrack tcpdump iperf3 iputils-ping procps util-linux openssl
    # the test programs
    python3 python3-pytest python3-pytest-rerunfailures python3-nacl
)
lint=(shellcheck black)
# other userspace tunnels to compare with; load, round trips, certificates
bench=(wireguard-go wireguard-tools fastd openvpn iperf3 iputils-ping iproute2 openssl python3)

if (($# == 0)); then
    set -- build test
fi
packages=()
for word in "$@"; do
    case $word in
    build) packages+=("${build[@]}") ;;
    test) packages+=("${test[@]}") ;;
    lint) packages+=("${lint[@]}") ;;
    bench) packages+=("${bench[@]}") ;;
    *) echo "packages.sh: no group '$word'" >&2 && exit 2 ;;
    esac
done

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
    exit 0
fi

as_root=()
if ((EUID != 0)); then
    as_root=(sudo)
fi
echo "packages.sh: installing ${missing[*]}" >&2
# A source that is none of ours may be broken; what we need decides whether this fails.
"${as_root[@]}" apt-get update -qq || echo "packages.sh: apt-get update had errors" >&2
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
