"""The host belongs to others too: what is not for the tunnel is not touched, and what others do does not
change it."""

import json
import re

import pytest

import ipipou
import packets
from first_version import signed
from ipipou import CLIENT, SERVER, STRANGER, reach_each_other
from lab import await_, inner_icmp_echo

pytestmark = pytest.mark.each_kernel

INNER_SERVER, INNER_CLIENT, PORT = "172.28.0.0", "172.28.0.1", 10000
MOVED = "203.0.113.9"


def echo(asker, source, answerer, destination, port=7777):
    """A datagram from port 10000 and its answer; the address that it came from."""
    with answerer.udp_socket(destination, port, 20) as far:
        with asker.udp_socket(source, PORT, 20) as near:
            near.sendto(b"question", (destination, port))
            question, seen = far.recvfrom(100)
            far.sendto(b"answer", seen)
            assert (question, near.recv(100)) == (b"question", b"answer")
    return seen


def test_forwarded_packets_are_not_touched(lab):
    """Both ends are routers. A host behind one sends from the tunnel's own port, and a DNAT leads a
    stranger to that port. The network behind the server has the addresses that alternate ones are of,
    and the server's address in there is the very one of its tunnel, which is not in use."""
    lan = ipipou.Lan(lab)
    behind = {}
    for host, network in ((lan.server, "172.29.0"), (lan.client, "192.168.7")):
        behind[host] = lab.host(f"behind-{host.name}")
        lab.link(host, "lan0", f"{network}.0/31", behind[host], "eth0", f"{network}.1/31")
        behind[host].run(f"ip route add default via {network}.0")
        lab.nat(host, "eth0", PORT, PORT)
    lan.connect()
    reach_each_other(lan.server, lan.client)
    for host, network, outside in (
        (lan.server, "172.29.0", SERVER),
        (lan.client, "192.168.7", CLIENT),
    ):
        assert echo(behind[host], f"{network}.1", lan.stranger, STRANGER) == (outside, PORT)
        # To its router, whatever the protocol and by whatever port.
        assert behind[host].ping(f"{network}.0", count=1).received == 1
        echo(behind[host], f"{network}.1", host, f"{network}.0")
    reach_each_other(lan.server, lan.client)
    end = lan.near.show()["dropped"]
    assert {name: count["packets"] for name, count in end.items() if count["packets"]} == {}

    # The host's own DNAT to the port is judged as everything else: it is for this host then.
    lan.server.nft(
        f"""
        table ip own {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                udp dport 9999 dnat to {SERVER}:{PORT}
            }}
        }}
    """
    )
    inside = lan.server.capture("ipipou0", "icmp")
    lan.stranger.send_fou(CLIENT, 4444, SERVER, 9999, INNER_CLIENT, INNER_SERVER, ident=0x111)
    lan.near.await_dropped(stranger_data=1)
    lan.client.send_fou(CLIENT, PORT, SERVER, PORT, INNER_CLIENT, INNER_SERVER, ident=0x222)
    (seen,) = inside.await_packets(1, condition=lambda p: p.payload[0] == 8)
    assert int.from_bytes(seen.payload[4:6]) == 0x222


@pytest.mark.parametrize(
    "options", [(), ("--force-fou-local-ip-alt",)], ids=["direct", "alternate"]
)
def test_a_client_works_behind_a_firewall_that_accepts_only_answers(hosts, options):
    """And at a server that tracks connections, no data packet is one."""
    server, client = hosts
    client.nft(
        """
        table ip firewall {
            chain input {
                type filter hook input priority filter; policy drop;
                iifname { "lo", "ipipou0" } accept
                ip daddr %s ct state { established, related } accept
            }
        }
    """
        % CLIENT
    )
    server.nft(
        "table ip firewall { chain input { type filter hook input priority filter;"
        " ct state invalid counter drop; }; }"
    )
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    ipipou.client(client, *options, "--fast-path", "off", keys=keys)
    near.await_log("tunnel up")
    assert client.ping(INNER_SERVER, count=2).received == 2
    ours = [line for line in server.connections() if f"port={PORT}" in line]
    assert ours == []


def test_plain_ipip_of_others_between_the_same_hosts_still_passes(lab):
    """Calico's way: `tunl0`, from any address to any; before the tunnel and after it."""
    lan = ipipou.Lan(lab)

    def calico(host, here, there, remote):
        host.batch(
            f"addr add {here}/32 dev tunl0",
            "link set tunl0 up",
            f"route add {there}/32 via {remote} dev tunl0 onlink",
        )

    calico(lan.server, "10.9.0.1", "10.9.0.2", CLIENT)
    calico(lan.client, "10.9.0.2", "10.9.0.1", SERVER)
    lan.connect()
    reach_each_other(lan.server, lan.client)
    assert lan.client.ping("10.9.0.1", count=2).received == 2
    lan.near.await_local("172.29.0.0")
    # Where it is not used, nobody pays for it; where it comes later, it gets its packets back.
    lan.server.run("ip link set tunl0 down")
    lan.near.reauthenticate()
    assert lan.near.process.stop() == 0
    lan.near.start()
    lan.far.reauthenticate()
    lan.near.await_local(SERVER)
    reach_each_other(lan.server, lan.client)
    calico(lan.server, "10.9.0.3", "10.9.0.2", CLIENT)
    lan.near.await_local("172.29.0.0")
    assert lan.server.ping("10.9.0.2", count=2, source="10.9.0.1").received == 2
    reach_each_other(lan.server, lan.client)
    assert lan.near.show()["dropped"]["plain_ipip"]["packets"] == 0


def test_packets_from_inside_a_tunnel_enter_no_tunnel(lab):
    """A client with a valid key sends its packets through the tunnel, for this one and for another."""
    lan = ipipou.Lan(lab)
    keys = [ipipou.Keys(lan.server) for _ in range(2)]
    loose = ["--rp-filter", "loose", "--fou-local-ip", SERVER]
    near = [
        ipipou.Tunnel(
            lan.server, "-s", *loose, "--auth-remote-pubkey-b64", keys[n].public,
            "--auth-secret", ipipou.SECRET, number=n,
        )
        for n in range(2)
    ]  # fmt: skip
    ipipou.client(lan.client, keys=keys[0])
    near[0].await_log("tunnel up")
    # The other tunnel's client is the stranger.
    ipipou.client(lan.stranger, keys=keys[1], device="br0", peer=1)
    near[1].await_log("tunnel up")
    lan.client.run(f"ip route add {SERVER}/32 dev ipipou0 table 7")
    lan.client.run("ip rule add fwmark 7 lookup 7")

    def through_the_tunnel(source, sport, dport, payload):
        datagram = packets.udp(source, sport, SERVER, dport, payload)
        inner = packets.ipv4(source, SERVER, packets.UDP, datagram)
        lan.client.send_udp(CLIENT, PORT, SERVER, PORT, inner)

    through_the_tunnel(INNER_CLIENT, 5555, PORT, signed(keys[0].private))
    near[0].await_dropped(inside_tunnel=1)
    through_the_tunnel(CLIENT, 5555, PORT, signed(keys[0].private))
    near[0].await_dropped(inside_tunnel=2)
    inside = lan.server.capture("ipipou1", "icmp")
    through_the_tunnel(STRANGER, 10001, 10001, inner_icmp_echo("172.28.0.3", "172.28.0.2"))
    near[1].await_dropped(inside_tunnel=1)
    assert near[0].tunnel()["remote"] == CLIENT and near[0].show()["accepted"] == 1
    lan.stranger.ping("172.28.0.2", count=1)
    echoes = inside.await_packets(1, condition=lambda p: p.payload[0] == 8)
    assert b"ipipou-lab" not in b"".join(p.raw for p in echoes)


def test_a_tunnel_inside_a_tunnel_works(lab):
    lan = ipipou.Lan(lab).connect()
    keys = ipipou.Keys(lan.server)
    nested = ipipou.server(lan.server, device="ipipou0", keys=keys, number=2)
    ipipou.client(
        lan.client, device="ipipou0", remote=f"{INNER_SERVER}:10002", keys=keys, number=2, peer=2
    )
    nested.await_log("tunnel up")
    reach_each_other(lan.server, lan.client, 2)


# -- forged ICMP ---------------------------------------------------------------------------------


def forged(source, destination, quoted, mtu=0, kind=3, code=4):
    """An ICMP error about a packet; `quoted` is its IPv4 header and the first bytes after it."""
    body = kind.to_bytes(1) + code.to_bytes(1) + bytes(4) + mtu.to_bytes(2) + quoted
    body = body[:2] + packets.checksum(body).to_bytes(2) + body[4:]
    return packets.ipv4(source, destination, packets.ICMP, body)


def quote(src, dst, protocol=packets.UDP, sport=PORT, dport=PORT, options=b""):
    whole = packets.ipv4(src, dst, protocol, packets.udp(src, sport, dst, dport, bytes(600)))
    head = bytes([0x45 + len(options) // 4]) + whole[1:20] + options
    head = head[:10] + bytes(2) + head[12:]
    head = head[:10] + packets.checksum(head).to_bytes(2) + head[12:]
    return head + whole[20:28]


@pytest.mark.parametrize(
    "options", [(), ("--force-fou-local-ip-alt",)], ids=["direct", "alternate"]
)
def test_forged_icmp_does_not_change_the_path(lab, options):
    """From anybody, to whatever address of the host; at a server and at a client."""
    lan = ipipou.Lan(lab).connect(*options)
    reach_each_other(lan.server, lan.client)
    echo_reply = bytes([0, 0]) + bytes(6)
    for host, end, near, far, inner in (
        (lan.server, lan.near, SERVER, CLIENT, INNER_SERVER),
        (lan.client, lan.far, CLIENT, SERVER, INNER_CLIENT),
    ):
        port = 10000
        lan.stranger.run(f"ip route replace {inner}/32 via {near}")
        head = quote(near, far, packets.ICMP)[:20]
        path = [  # that lead nowhere a packet of ours goes, or are narrower than any
            forged(STRANGER, near, quote(near, far), 552),
            forged(STRANGER, near, quote(near, far), 1279),
            forged(STRANGER, near, quote(near, far), 0),
            forged(STRANGER, inner, quote(near, far), 576),
            forged(STRANGER, near, quote(near, far, dport=port + 1), 1300),
            forged(STRANGER, near, quote(near, far, options=bytes(4)), 1300),
            forged(STRANGER, near, quote(near, far, options=bytes(8)), 576),
            forged(STRANGER, near, quote(near, far, sport=53), 600),
            forged(STRANGER, near, head + echo_reply, 600),
            forged(STRANGER, near, head + echo_reply, 1300),
            forged(STRANGER, near, quote(near, far, packets.IPIP), 600),
            forged(far, near, quote(near, far), 600),
        ]
        # As the link's own packets are before the rules put UDP around them.
        plain = quote("172.29.0.0" if options else near, far, packets.IPIP)
        path.append(forged(STRANGER, near, plain, 1300))
        path.append(forged(STRANGER, near, plain, kind=3, code=1))
        path.append(forged(STRANGER, near, plain, kind=11, code=0))
        for number, packet in enumerate(path, 1):
            lan.stranger.send_raw(packet)
            end.await_dropped(icmp_error=number)
            assert "mtu" not in host.run(f"ip route get {far}"), number
        assert host.ping(INNER_CLIENT if host is lan.server else INNER_SERVER, size=1300).lost == 0
        end.await_log("somebody says that packets of this tunnel do not get through")

        # About others it is believed, and what quotes a packet of ours and has room enough.
        lan.stranger.send_raw(forged(STRANGER, near, quote(near, far), 1300))
        await_(lambda: "mtu 1300" in host.run(f"ip route get {far}"), what="the router's word")
        assert end.show()["dropped"]["icmp_error"]["packets"] == len(path)
        # No black hole: what is too large comes in pieces, once the sender has been told.
        peer = INNER_CLIENT if host is lan.server else INNER_SERVER
        await_(lambda: host.ping(peer, size=1272, count=1, timeout=1).received, what="answer")
        assert host.ping(peer, size=1272, count=2).received == 2
        assert host.ping(peer, size=3000, count=2).received == 2


# -- what others do to the rules -----------------------------------------------------------------


def test_loading_an_old_dump_of_the_rules_lets_nothing_in(lab):
    """`systemctl reload nftables`: at the server with a flush, and after the address has changed; at the
    client without one."""
    lan = ipipou.Lan(lab).connect()

    def table(host):
        return host.run("nft -s list table ip ipipou-0")

    def count(host):
        listing = json.loads(host.run("nft -j list table ip ipipou-0"))["nftables"]
        return sum("rule" in entry for entry in listing)

    def load(end, text, is_ours):
        end.await_told(lambda: end.host.nft(text), "repairing: install rules")
        await_(is_ours, what="our own rules")

    old = lan.server.run("nft list ruleset")
    lan.server.batch(f"addr del {SERVER}/24 dev eth0", f"addr add {MOVED}/24 dev eth0")
    moved = lambda: MOVED in table(lan.server) and SERVER not in table(lan.server)  # noqa: E731
    await_(moved, what="rules for the new address")
    load(lan.near, "flush ruleset\n" + old, moved)
    assert re.search(rf"ip daddr {MOVED} goto outer", table(lan.server))
    # Nobody gets in at the new address who is not the client.
    inside = lan.server.capture("ipipou0", "icmp")
    lan.stranger.send_fou(CLIENT, 4444, MOVED, PORT, INNER_CLIENT, INNER_SERVER, ident=0x111)
    lan.near.await_dropped(stranger_data=1)
    lan.client.send_fou(CLIENT, PORT, MOVED, PORT, INNER_CLIENT, INNER_SERVER, ident=0x222)
    inside.await_packets(1, condition=lambda p: p.payload[4:6] == b"\x02\x22")
    assert not inside.matching(lambda p: p.payload[4:6] == b"\x01\x11")

    rules = count(lan.client)
    dump = lan.client.run("nft list table ip ipipou-0")
    load(lan.far, dump, lambda: count(lan.client) == rules)
