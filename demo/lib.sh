# What the demonstrations have in common: hosts made of network namespaces, commands that are shown
# as they would be typed there, and an end that removes everything. For bash; to be sourced.
# shellcheck shell=bash

bold='' plain=''
if [[ -t 1 && ! ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' plain=$'\e[m'
fi
place=$(mktemp -d)
cd "$place" || exit
processes=()
hosts=()

say() { printf '\n%s\n' "$bold$*$plain" | fold -s -w 100; }

# Makes hosts. Each has files of its own where ipipou has its state and its control sockets.
new_hosts() { # HOST...
    local host
    for host; do
        hosts+=("$host")
        ip netns add "demo-$host"
        # Nothing here is about IPv6, and its routers would be asked for through the tunnels.
        ip netns exec "demo-$host" sysctl -q -e net.ipv6.conf.default.disable_ipv6=1
        ip -n "demo-$host" link set lo up
        mkdir -p "$place/$host/run" "$place/$host/lib" /run/ipipou /var/lib/ipipou /etc/ipipou
        echo 'nameserver 192.168.1.1' >"$place/$host/resolv.conf"
    done
}

# A cable from a host's interface to a port of another.
cable() { # HOST DEV ADDRESS OTHER PORT
    ip -n "demo-$4" link add "$5" type veth peer name "$2" netns "demo-$1"
    ip -n "demo-$1" addr add "$3" dev "$2"
    ip -n "demo-$1" link set "$2" up
    ip -n "demo-$4" link set "$5" up
}

# Runs a command in a host, with the host's own files in place. They are mounted for that command
# only: `ip netns exec` gives it a view of its own.
# shellcheck disable=SC2016 # the variables are the inner shell's
mount_own='for pair in run:/run/ipipou lib:/var/lib/ipipou etc:/etc/ipipou resolv.conf:/etc/resolv.conf; do
    [ ! -e "$0/${pair%%:*}" ] || [ ! -e "${pair#*:}" ] || mount --bind "$0/${pair%%:*}" "${pair#*:}" || exit
done
exec "$@"'

# Shows a command as it would be typed on that host, and runs it there.
on() { # HOST COMMAND...
    local host=$1
    shift
    printf '%s# %s\n' "$host" "$*"
    ip netns exec "demo-$host" sh -c "$mount_own" "$place/$host" "$@"
}

# The same, in the background; what it prints goes to a file. It replaces the shells that start it:
# the number of the process is its own.
start() { # HOST LOG COMMAND...
    local host=$1 log=$place/$2.log
    shift 2
    printf '%s# %s &\n' "$host" "$*"
    : >"$log" # what an earlier process said is not awaited again
    ip netns exec "demo-$host" sh -c "$mount_own" "$place/$host" "$@" >"$log" 2>&1 &
    processes+=($!)
}

# Pings, and shows how many came back. Waits this many seconds for those that are missing: an emulated
# machine on a busy host may stand still for some.
ping_from() { # HOST ADDRESS [SECONDS]
    on "$1" ping -n -q -c 3 -i 0.2 -W "${3:-20}" "$2" | grep -v -e '^PING' -e '^---' -e '^$'
}

# Waits for a line in a log, or for the second or third that is like it, and shows it.
await() { # LOG PATTERN [WHICH]
    local end=$((SECONDS + 120)) which=${3:-1}
    while ((SECONDS < end)); do
        if grep -E -m "$which" -- "$2" "$place/$1.log" | sed -n "${which}s/^/    /p" | grep .; then
            return
        fi
        sleep 0.05
    done
    echo "${0##*/}: '$2' did not come; $1 said:" >&2
    cat "$place/$1.log" >&2
    return 1
}

# SIGTERM to all that was started; each must end well.
stop_all() {
    local process
    for process in "${processes[@]}"; do
        kill "$process"
        wait "$process"
    done
    processes=()
}

clean_up() {
    local host process
    for process in "${processes[@]}"; do
        kill "$process" 2>/dev/null || true
    done
    wait
    for host in "${hosts[@]}"; do
        ip netns del "demo-$host" 2>/dev/null || true
    done
    rmdir /run/ipipou /var/lib/ipipou /etc/ipipou 2>/dev/null || true
    cd /
    rm -rf "$place"
}
trap clean_up EXIT

#     alice 192.168.1.11 ──┐
#                          ├── router ═══════════════ server 203.0.113.1
#       bob 192.168.1.12 ──┘  masquerades as 203.0.113.2
home_and_server() {
    local host
    new_hosts server router alice bob
    ip -n demo-router link add home type bridge
    ip -n demo-router addr add 192.168.1.1/24 dev home
    ip -n demo-router link set home up
    cable server eth0 203.0.113.1/24 router wan
    ip -n demo-router addr add 203.0.113.2/24 dev wan
    cable alice eth0 192.168.1.11/24 router alice
    cable bob eth0 192.168.1.12/24 router bob
    for host in alice bob; do
        ip -n demo-router link set "$host" master home
        ip -n "demo-$host" route add default via 192.168.1.1
    done
    ip netns exec demo-router sysctl -q net.ipv4.ip_forward=1
}

# The router's NAT; called again, with other ports, when the mapping is to change.
masquerade() { # FIRST-LAST
    on router nft "table ip nat { }
        delete table ip nat
        table ip nat {
            chain postrouting {
                type nat hook postrouting priority srcnat
                oifname wan ip protocol udp masquerade to :$1
            }
        }"
}

# Files with the keys of alice and bob and with their secret, and the public keys: alice_public,
# bob_public.
# shellcheck disable=SC2034 # they are used by the scripts that source this
make_keys() {
    local host
    for host in alice bob; do
        echo "$host# umask 077; ipipou genkey >$host.key"
        (umask 077 && ipipou genkey >"$host.key")
    done
    (umask 077 && echo topsecret >shared.secret)
    alice_public=$(ipipou pubkey <alice.key)
    bob_public=$(ipipou pubkey <bob.key)
    echo "alice's public key: $alice_public"
    echo "bob's public key:   $bob_public"
}
