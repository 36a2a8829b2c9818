#!/usr/bin/env bash
# Two clients behind one NAT and their server, and a server of many clients, step by step, in network
# namespaces that are removed at the end. Needs root, ipipou in the PATH and a kernel with FOU; `make demo` sees to all of it.
#
#     alice 192.168.1.11 ──┐
#                          ├── router ═══════════════ server 203.0.113.1
#       bob 192.168.1.12 ──┘  masquerades as 203.0.113.2
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/hub.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh" # it goes to another directory

say "== Four hosts: a server, a home router, and two machines behind it =="
home_and_server
masquerade 20000-20999

say "== Keys: a pair for each client; the private half never leaves it =="
make_keys

say "== The server: a process per client. It knows their keys, not their addresses =="
start server to-alice ipipou -s -v --no-log-time -n0 -b @eth0 --tunl-dev to-alice \
    --auth-secret-file shared.secret --auth-remote-pubkey-b64 "$alice_public"
start server to-bob ipipou -s -v --no-log-time -n1 -b @eth0 --tunl-dev to-bob \
    --auth-secret-file shared.secret --auth-remote-pubkey-b64 "$bob_public"
await to-alice 'ready on'
await to-bob 'ready on'
echo "There is no tunnel yet, and what strangers send to these ports is dropped in the kernel."

say "== The clients: each makes its end and sends one signed packet =="
start alice alice ipipou -c -v --no-log-time -b @eth0 -r 203.0.113.1:10000 --tunl-dev demo-alice \
    --tunl-ip 172.28.0.1 --auth-secret-file shared.secret --auth-key-file alice.key
alice_process=${processes[-1]}
start bob bob ipipou -c -v --no-log-time -b @eth0 -r 203.0.113.1:10001 --tunl-dev demo-bob \
    --tunl-ip 172.28.0.3 --auth-secret-file shared.secret --auth-key-file bob.key
bob_process=${processes[-1]}
await to-alice 'tunnel up'
await to-bob 'tunnel up'
await alice 'ready on'
await bob 'ready on'

say "== Pings both ways: the kernel carries them, the processes sleep =="
ping_from alice 172.28.0.0
ping_from server 172.28.0.1
ping_from server 172.28.0.3

say "== Both tunnels go to the router's one address. Linux tells tunnels apart by addresses only, so
one of them has an alternate local address, which the packet filter puts in and takes out =="
for tunnel in to-alice to-bob; do
    on server ip -d link show "$tunnel" | sed -n 's/^ *ipip ipip \(.*dport [0-9]*\).*/    \1/p'
done
echo "No packet of a tunnel is tracked on the server; entries in its connection table:"
on server conntrack -C

say "== The router restarts: from now on it maps the clients to other ports =="
masquerade 30000-30999
on router conntrack -F
echo "The server does not know these ports. A client that sends from there has to prove who it is:"
ping_from alice 172.28.0.0 2 && exit 1
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
stop_all

show_a_hub kernel

say "== SIGTERM: nothing stays behind =="
stop_all
echo "On the server: $(on server nft list tables | grep -c ipipou || true) tables of rules," \
    "$(ip -n demo-server -o link show type ipip | grep -vc tunl0 || true) tunnels," \
    "$(ip -n demo-server fou show | wc -l) listeners."
say "== Done =="
