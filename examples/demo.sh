#!/usr/bin/env bash
# Two clients behind one NAT and their server, step by step, in network namespaces that are removed
# at the end. Needs root, ipipou in the PATH and a kernel with FOU; `make demo` sees to all of it.
#
#     alice 192.168.1.11 ──┐
#                          ├── router ═══════════════ server 203.0.113.1
#       bob 192.168.1.12 ──┘  masquerades as 203.0.113.2
set -euo pipefail

bold='' plain=''
if [[ -t 1 && ! ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' plain=$'\e[m'
fi
logs=$(mktemp -d)
processes=()

say() { printf '\n%s\n' "$bold$*$plain" | fold -s -w 100; }

# Shows a command as it would be typed on that host, and runs it there.
on() { # HOST COMMAND...
    local host=$1
    shift
    printf '%s# %s\n' "$host" "$*"
    ip netns exec "demo-$host" "$@"
}

# The same, in the background; what it prints goes to a file.
start() { # HOST LOG COMMAND...
    local host=$1 log=$logs/$2
    shift 2
    printf '%s# %s &\n' "$host" "$*"
    ip netns exec "demo-$host" "$@" >"$log" 2>&1 &
    processes+=($!)
}

# Pings, and shows how many came back.
ping_from() { # HOST ADDRESS
    on "$1" ping -n -q -c 3 -i 0.2 -W 1 "$2" | grep -v -e '^PING' -e '^---' -e '^$'
}

# Waits for a line in a log, and shows it.
await() { # LOG PATTERN
    local tries
    for ((tries = 0; tries < 200; tries++)); do
        if grep -E -m 1 -- "$2" "$logs/$1" | sed 's/^/    /' | grep .; then
            return
        fi
        sleep 0.05
    done
    echo "demo.sh: '$2' did not come; $1 said:" >&2
    cat "$logs/$1" >&2
    return 1
}

clean_up() {
    local host
    for process in "${processes[@]}"; do
        kill "$process" 2>/dev/null || true
    done
    wait
    for host in server router alice bob; do
        ip netns del "demo-$host" 2>/dev/null || true
    done
    rm -rf "$logs" /var/lib/ipipou/{to-alice,to-bob,demo-alice,demo-bob}
}
trap clean_up EXIT

say "== Four hosts: a server, a home router, and two machines behind it =="
for host in server router alice bob; do
    ip netns add "demo-$host"
    ip -n "demo-$host" link set lo up
done
ip -n demo-router link add home type bridge
ip -n demo-router link add wan type veth peer name eth0 netns demo-server
for host in alice bob; do
    ip -n demo-router link add "$host" type veth peer name eth0 netns "demo-$host"
    ip -n demo-router link set "$host" master home up
done
ip -n demo-server addr add 203.0.113.1/24 dev eth0
ip -n demo-router addr add 203.0.113.2/24 dev wan
ip -n demo-router addr add 192.168.1.1/24 dev home
ip -n demo-alice addr add 192.168.1.11/24 dev eth0
ip -n demo-bob addr add 192.168.1.12/24 dev eth0
for place in router:wan router:home server:eth0 alice:eth0 bob:eth0; do
    ip -n "demo-${place%:*}" link set "${place#*:}" up
done
for host in alice bob; do
    ip -n "demo-$host" route add default via 192.168.1.1
done
ip netns exec demo-router sysctl -q net.ipv4.ip_forward=1

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
masquerade 20000-20999

say "== Keys: a pair for each client; the private half never leaves it =="
echo "alice# ipipou --auth-keygen"
{ read -r alice_private && read -r alice_public; } < <(ipipou --auth-keygen)
echo "bob# ipipou --auth-keygen"
{ read -r bob_private && read -r bob_public; } < <(ipipou --auth-keygen)
echo "alice's public key: $alice_public"
echo "bob's public key:   $bob_public"

say "== The server: a process per client. It knows their keys, not their addresses =="
start server to-alice ipipou -s -v --no-log-time -n0 -b @eth0 --tunl-dev to-alice \
    --auth-secret topsecret --auth-remote-pubkey-b64 "$alice_public"
start server to-bob ipipou -s -v --no-log-time -n1 -b @eth0 --tunl-dev to-bob \
    --auth-secret topsecret --auth-remote-pubkey-b64 "$bob_public"
await to-alice 'ready on'
await to-bob 'ready on'
echo "There is no tunnel yet, and what strangers send to these ports is dropped in the kernel."

say "== The clients: each makes its end and sends one signed packet =="
start alice alice ipipou -c -v --no-log-time -b @eth0 -r 203.0.113.1:10000 --tunl-dev demo-alice \
    --tunl-ip 172.28.0.1 --auth-secret topsecret --auth-key-b64 "$alice_private"
alice_process=${processes[-1]}
start bob bob ipipou -c -v --no-log-time -b @eth0 -r 203.0.113.1:10001 --tunl-dev demo-bob \
    --tunl-ip 172.28.0.3 --auth-secret topsecret --auth-key-b64 "$bob_private"
bob_process=${processes[-1]}
await to-alice 'tunnel up'
await to-bob 'tunnel up'

say "== Pings both ways: the kernel carries them, the processes sleep =="
ping_from alice 172.28.0.0
ping_from server 172.28.0.1
ping_from server 172.28.0.3

say "== Both tunnels go to the router's one address. Linux tells tunnels apart by addresses only, so
one of them has a private local address, which the packet filter puts in and takes out =="
for tunnel in to-alice to-bob; do
    on server ip -d link show "$tunnel" | sed -n 's/^ *ipip ipip \(.*dport [0-9]*\).*/    \1/p'
done
echo "No packet of a tunnel is tracked on the server; entries in its connection table:"
on server conntrack -C

say "== The router restarts: from now on it maps the clients to other ports =="
masquerade 30000-30999
on router conntrack -F
echo "The server does not know these ports. Whoever sends from there has to prove who he is:"
ping_from alice 172.28.0.0 && exit 1
echo "Lost, as it should be."

say "== The clients authenticate again: on SIGUSR1 here; --keepalive 27 does it by itself =="
on alice kill -USR1 "$alice_process"
on bob kill -USR1 "$bob_process"
await to-alice 'moved'
await to-bob 'moved'
ping_from alice 172.28.0.0
ping_from bob 172.28.0.2

say "== What the tunnels say of themselves =="
on server ipipou show

say "== SIGTERM: nothing stays behind =="
for process in "${processes[@]}"; do
    kill "$process"
    wait "$process"
done
processes=()
echo "On the server: $(on server nft list tables | grep -c ipipou || true) tables of rules," \
    "$(ip -n demo-server -o link show type ipip | grep -vc tunl0 || true) tunnels," \
    "$(ip -n demo-server fou show | wc -l) listeners."
say "== Done =="
