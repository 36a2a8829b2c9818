#!/usr/bin/env bash
# Installs what is needed on a Debian 12/13 or Ubuntu machine, by groups: packages.sh GROUP...
# (without a word: build and test). Changes nothing, and needs neither root nor the network, when
# everything is already there.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

declare -A groups=(
    # the linker and C library that rustc links with; cargo's downloads are over https
    [build]='make gcc libc6-dev ca-certificates'
    # is there a module for this kernel?
    [modules]='kmod'
    # network namespaces of this host: hosts, rules, flows, pings, settings
    [hosts]='iproute2 nftables conntrack iputils-ping procps'
    # virtual machines: emulator, root file system, archives, depmod
    [machines]='qemu-system-x86 debootstrap cpio zstd xz-utils kmod'
    # whose completions are tried
    [shells]='bash bash-completion zsh fish'
    # captures, system calls, load, certificates, and the test programs
    [test]='tcpdump strace iperf3 util-linux openssl
        python3 python3-pytest python3-pytest-rerunfailures python3-nacl python3-jsonschema'
    # libFuzzer is C++
    [fuzz]='g++'
    [lint]='shellcheck black'
    # the fast path's instructions; other versions make others
    [bpf]='clang-14 linux-libc-dev'
    # which libraries the program needs, and what Debian thinks of the package
    [deb]='dpkg-dev lintian'
    # a C library that can be linked in
    [static]='musl-tools'
    # other userspace tunnels to compare with; load, certificates
    [bench]='wireguard-go wireguard-tools fastd openvpn iperf3 openssl
        python3 python3-nacl'
)

groups[test]+=" ${groups[hosts]} ${groups[machines]} ${groups[shells]}"
groups[bench]+=" ${groups[hosts]}"

if (($# == 0)); then
    set -- build test
fi
missing=()
for group in "$@"; do
    if [[ ! ${groups[$group]:-} ]]; then
        echo "packages.sh: no group '$group'" >&2
        exit 2
    fi
    for package in ${groups[$group]}; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [[ $status == installed || " ${missing[*]} " == *" $package "* ]] || missing+=("$package")
    done
done
if ((${#missing[@]})); then
    install_packages "${missing[@]}"
fi
