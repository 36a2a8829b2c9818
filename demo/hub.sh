# The end of both demonstrations: one server and three clients, who have names. For bash; to be sourced,
# beside lib.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # lib.sh assigns `processes`, and printf those that end in _process

# Needs the hosts of `home_and_server` and the router's NAT.
show_a_hub() { # kernel|tun
    local client
    say "== Many clients: one server, whose clients have names, and a key and an address each =="
    new_hosts carol
    cable carol eth0 192.168.1.13/24 router carol
    ip -n demo-router link set carol master home
    ip -n demo-carol route add default via 192.168.1.1
    mkdir server/etc
    (umask 077 && printf '%s\n' server peers 'fou-dev eth0' 'tunl-ip 10.8.0.1/24' \
        'pool 10.8.0.64/26' 'auth-secret topsecret' "datapath $1" >server/etc/hub0.conf)
    on server cat /etc/ipipou/hub0.conf
    on server mkdir /etc/ipipou/hub0.peers.d
    start server hub ipipou --config hub0 -v --no-log-time
    await hub 'public key of this server'
    await hub 'ready on'
    echo "It made that key for itself: this was its first start."

    say "== A command for each client: it makes the keys, finds a free address, tells the server, and writes
the file that the client is started with =="
    for client in alice bob carol; do
        on server ipipou peer add "$client" --client-conf "$client.conf" --server-host 203.0.113.1
    done
    on server cat /etc/ipipou/hub0.peers.d/alice.toml
    for client in alice bob carol; do
        start "$client" "$client" ipipou --config "./$client.conf" -v --no-log-time --datapath "$1"
        printf -v "${client}_process" %s "${processes[-1]}"
    done
    for client in alice bob carol; do
        await "$client" 'connected to'
    done

    say "== Clients reach the server, and each other through it. Both ends know who is connected =="
    ping_from alice 10.8.0.1
    ping_from bob 10.8.0.65
    on server ipipou peer list

    say "== The router forgets alice, and maps her to another port: she shows her key there and has moved;
the others do not notice =="
    masquerade 40000-40999
    on router conntrack -D -s 192.168.1.11
    on alice kill -USR1 "$alice_process"
    await hub 'alice moved'
    ping_from alice 10.8.0.1
    ping_from bob 10.8.0.67

    say "== Bob is kept out: his session ends at once, and he hears why when he comes again =="
    on server ipipou peer disable bob
    on bob kill -USR1 "$bob_process"
    await bob 'disabled'
    ping_from bob 10.8.0.1 2 && exit 1
    echo "Lost, as it should be."

    say "== Files may be edited by hand as well. A mistake is said with its line, and changes nothing =="
    on server sh -c "echo 'nte = \"upstairs\"' >>/etc/ipipou/hub0.peers.d/carol.toml"
    on server ipipou reload && exit 1
    on server sed -i 's/^nte/note/' /etc/ipipou/hub0.peers.d/carol.toml
    on server ipipou reload
    ping_from carol 10.8.0.65
    on server ipipou peer list
    on server ipipou peer show carol
    stop_all
}
