"""The bench tests itself: tunnels made by hand with iproute2, no ipipou.

What later tests say does not get through must be seen to get through here, where nothing guards.
"""

import platform
import re

import pytest

import packets

SERVER, CLIENT, STRANGER = "203.0.113.1", "203.0.113.2", "203.0.113.66"
INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
PORT = 10000


def end_of_tunnel(host, local, remote, inner_local, inner_remote):
    host.batch(
        f"fou add port {PORT} ipproto 4",
        f"link add ipipou0 type ipip local {local} remote {remote} ttl 64"
        f" encap fou encap-sport {PORT} encap-dport {PORT}",
        f"addr add {inner_local} peer {inner_remote} dev ipipou0",
        "link set ipipou0 up",
    )


@pytest.fixture
def pair(lab):
    """server and client on one network, a FOU tunnel between them."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", client, "eth0", f"{CLIENT}/24")
    end_of_tunnel(server, SERVER, CLIENT, INNER_SERVER, INNER_CLIENT)
    end_of_tunnel(client, CLIENT, SERVER, INNER_CLIENT, INNER_SERVER)
    return server, client


def test_tunnel_carries_ping_in_udp(pair):
    server, client = pair
    with_udp = server.capture("eth0", f"udp port {PORT}")
    result = client.ping(INNER_SERVER, count=3)
    assert (result.sent, result.received) == (3, 3)
    seen = with_udp.await_packets(6)
    assert {(p.src, p.sport, p.dst, p.dport) for p in seen} == {
        (CLIENT, PORT, SERVER, PORT),
        (SERVER, PORT, CLIENT, PORT),
    }
    assert {(p.inner.src, p.inner.dst) for p in seen} == {
        (INNER_CLIENT, INNER_SERVER),
        (INNER_SERVER, INNER_CLIENT),
    }
    assert server.statistics("ipipou0")["rx"]["packets"] == 3
    assert server.tunnel("ipipou0")["encap"]["dport"] == PORT


def test_ping_reports_loss(pair):
    server, client = pair
    server.run("ip link set ipipou0 down")
    result = client.ping(INNER_SERVER, count=2, timeout=0.2)
    assert (result.sent, result.received, result.lost) == (2, 0, 2)


def test_background_ping_counts(pair):
    _, client = pair
    ping = client.ping_background(INNER_SERVER, interval=0.02)
    ping.await_answers(5)
    assert ping.stop_complete().received >= 10


@pytest.mark.parametrize("way", ["ipip", "fou", "fou-without-checksum", "fou-from-another-port"])
def test_unguarded_tunnel_takes_spoofed_packets(pair, way):
    """The ways in that a guard has to close. The client's own address is spoofed by a stranger."""
    server, client = pair
    client.run(f"ip addr add {STRANGER}/24 dev eth0")
    inside = server.capture("ipipou0", "icmp")
    if way == "ipip":
        client.send_ipip(CLIENT, SERVER, INNER_CLIENT, INNER_SERVER, ident=77)
    else:
        sport = 4444 if way == "fou-from-another-port" else PORT
        checksum = way != "fou-without-checksum"
        client.send_fou(
            CLIENT, sport, SERVER, PORT, INNER_CLIENT, INNER_SERVER, checksum=checksum, ident=77
        )
    request = inside.await_packets(1, condition=lambda p: p.src == INNER_CLIENT)[0]
    assert request.dst == INNER_SERVER
    assert request.payload[4:6] == (77).to_bytes(2, "big")


def test_unguarded_tunnel_refuses_a_stranger(pair):
    """ipip looks at the addresses: a third address does not get in. A later packet marks the end."""
    server, client = pair
    inside = server.capture("ipipou0", "icmp")
    for send in (
        client.send_ipip,
        lambda s, d, *i, **k: client.send_fou(s, PORT, d, PORT, *i, **k),
    ):
        send(STRANGER, SERVER, INNER_CLIENT, INNER_SERVER, ident=66)
    client.send_ipip(CLIENT, SERVER, INNER_CLIENT, INNER_SERVER, ident=77)
    inside.await_packets(1, condition=lambda p: p.payload[4:6] == b"\0M")
    assert {p.payload[4:6] for p in inside.stop()} == {b"\0M"}


def test_spoofed_udp_arrives_as_made(pair):
    server, client = pair
    on_wire = server.capture("eth0", "udp port 4000")
    client.send_udp(STRANGER, 1234, SERVER, 4000, b"whole", ttl=7)
    client.send_udp(STRANGER, 1235, SERVER, 4000, b"bare", checksum=False)
    first, second = on_wire.await_packets(2)
    assert (first.src, first.sport, first.ttl, first.payload) == (STRANGER, 1234, 7, b"whole")
    assert first.raw[26:28] != b"\0\0" and second.raw[26:28] == b"\0\0"


def test_checksum_is_what_the_kernel_expects(pair):
    """A socket takes the datagram with the right checksum and not the one with a wrong one."""
    server, client = pair
    listener = server.udp_socket(SERVER, 4000)
    good = packets.udp(CLIENT, 1, SERVER, 4000, b"good")
    bad = good[:-1] + b"e"
    for datagram in (bad, good):
        client.send_raw(packets.ipv4(CLIENT, SERVER, packets.UDP, datagram))
    assert listener.recv(100) == b"good"
    listener.close()


def test_fragments_are_put_together(pair):
    server, client = pair
    listener = server.udp_socket(SERVER, 4000)
    on_wire = server.capture("eth0", "ip[6:2] & 0x3fff != 0")
    payload = bytes(range(200))
    client.send_fragments(CLIENT, 1234, SERVER, 4000, payload, count=3, order=[2, 0, 1])
    assert listener.recv(1000) == payload
    assert [p.frag & 0x1FFF for p in on_wire.await_packets(3)] == [16, 0, 8]
    listener.close()


def test_router_changes_its_mapping(lab):
    """A masquerading router in between; the server tracks nothing, the router does."""
    server, router, client = lab.host("server"), lab.host("router"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", router, "wan0", f"{CLIENT}/24")
    lab.link(router, "lan0", "192.168.7.1/24", client, "eth0", "192.168.7.2/24")
    client.run("ip route add default via 192.168.7.1")
    nat = lab.nat(router, "wan0", 20000, 20999)
    seen = server.capture("eth0", "udp dst port 4000")

    client.send_udp("192.168.7.2", PORT, SERVER, 4000, b"one")
    (one,) = seen.await_packets(1)
    assert one.src == CLIENT and 20000 <= one.sport <= 20999
    assert router.tracked() >= 1 and any("sport=10000" in line for line in router.connections())

    nat.remap(30000, 30999)
    client.send_udp("192.168.7.2", PORT, SERVER, 4000, b"two")
    two = seen.await_packets(2)[1]
    assert two.src == CLIENT and 30000 <= two.sport <= 30999
    assert server.tracked() == 0


def test_snapshot_sees_changes_and_only_those(pair):
    server, client = pair
    server.nft("table ip guard { chain input { type filter hook input priority 0; counter; }; }")
    before = server.snapshot()
    assert client.ping(INNER_SERVER, count=2).received == 2
    assert server.snapshot() == before
    for change, undo in (
        ("ip addr add 192.0.2.9/32 dev lo", "ip addr del 192.0.2.9/32 dev lo"),
        ("ip link set ipipou0 mtu 1400", "ip link set ipipou0 mtu 1472"),
        ("ip fou add port 10009 ipproto 4", "ip fou del port 10009"),
        ("ip rule add fwmark 5 table 99", "ip rule del fwmark 5 table 99"),
        ("ip route add 192.0.2.0/24 dev eth0", "ip route del 192.0.2.0/24 dev eth0"),
        ("nft add table ip another", "nft delete table ip another"),
    ):
        server.run(change)
        assert server.snapshot() != before, change
        server.run(undo)
        assert server.snapshot() == before, undo


def test_kernel_is_stock():
    assert re.fullmatch(r"6\.(1|12)\.\d+.*-amd64|.*-generic", platform.release())
