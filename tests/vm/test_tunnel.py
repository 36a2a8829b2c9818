"""Tunnels between two hosts on one network."""

import platform
import socket
import subprocess

import pytest

import ipipou
import offloads
import packets
from iperf import iperf
from ipipou import CLIENT, SERVER, reach_each_other
from lab import no_checksum_offload

pytestmark = [pytest.mark.each_kernel, pytest.mark.both_lanes]

TRACK_ALL = """
    table ip firewall {
        chain input { type filter hook input priority filter; ct state new counter; }
        chain output { type filter hook output priority filter; ct state new counter; }
    }
"""


def test_direct_tunnel(hosts):
    """FOU on the wire, both ways, and no connection tracking."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    on_wire = server.capture("eth0", "ip")
    far = ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    reach_each_other(server, client)

    authentication, *data = on_wire.await_packets(9)
    assert len(authentication.payload) == 73 and authentication.payload[0] >= 0x80
    assert (authentication.src, authentication.sport) == (CLIENT, 10000)
    assert (authentication.dst, authentication.dport) == (SERVER, 10000)
    rebuilt = packets.udp(CLIENT, 10000, SERVER, 10000, authentication.payload)
    assert authentication.raw[20:] == rebuilt  # so the checksum is right
    assert {(p.src, p.sport, p.dst, p.dport, p.inner.protocol) for p in data} == {
        (CLIENT, 10000, SERVER, 10000, packets.ICMP),
        (SERVER, 10000, CLIENT, 10000, packets.ICMP),
    }
    assert {p.ttl for p in data} == {64}

    assert server.tracked() == client.tracked() == 0
    assert near.admitted() == {f"{CLIENT}:10000": None}
    assert far.admitted() == {f"{SERVER}:10000": None}
    assert near.tunnel() == {
        **far.tunnel(),
        "local": SERVER,
        "remote": CLIENT,
    }


def test_a_servers_outer_packets_stay_untracked(hosts):
    """A firewall tracks connections on both ends: a server's sees inner ones only, a client's sees that
    it has asked for what comes. (Of what takes the fast path it sees nothing outside.)"""
    server, client = hosts
    for host in hosts:
        host.nft(TRACK_ALL)
    keys = ipipou.Keys(server)
    near = ipipou.server(server, "--fast-path", "off", keys=keys)
    far = ipipou.client(client, "--fast-path", "off", keys=keys)
    near.await_log("tunnel up")
    reach_each_other(server, client)
    far.reauthenticate()
    near.await_accepted(2)
    for host in hosts:
        lines = host.connections()
        assert [line for line in lines if "icmp" in line and "src=172.28.0.0" in line]
        outer = [line for line in lines if "port=10000" in line or "203.0.113." in line]
        assert len(outer) == (host is client)
        assert all("UNREPLIED" not in line and "sport=10000" in line for line in outer)


def test_two_tunnels_between_two_hosts(hosts):
    """The kernel tells ipip links apart by addresses only: the second gets an alternate one."""
    server, client = hosts
    keys = ipipou.Keys(server)
    ends = []
    for number in (0, 1):
        near = ipipou.server(server, keys=keys, number=number)
        far = ipipou.client(client, keys=keys, number=number, peer=number)
        near.await_log("tunnel up")
        ends.append((near, far))
    (near0, far0), (near1, far1) = ends
    near1.await_local("172.29.0.1")
    far1.await_local("172.29.0.1")
    assert (near0.tunnel()["local"], far0.tunnel()["local"]) == (SERVER, CLIENT)

    on_wire = server.capture("eth0", "udp")
    for peer in (0, 1):
        reach_each_other(server, client, peer)
    seen = on_wire.await_packets(16)
    assert {(p.src, p.sport, p.dst, p.dport) for p in seen} == {
        (*a, *b)
        for port in (10000, 10001)
        for a, b in [((CLIENT, port), (SERVER, port)), ((SERVER, port), (CLIENT, port))]
    }
    assert near0.admitted() == {f"{CLIENT}:10000": None}
    assert near1.admitted() == {f"{CLIENT}:10001": "172.29.0.1"}
    assert server.tracked() == client.tracked() == 0

    assert near1.process.stop() == far1.process.stop() == 0
    reach_each_other(server, client, 0)
    for host in hosts:
        assert "172.29.0.1" not in host.run("ip -4 -br addr")


def test_forced_alternate_address(hosts):
    """--force-fou-local-ip-alt, with the default address and with another."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, "--force-fou-local-ip-alt", keys=keys)
    alternative = ["--force-fou-local-ip-alt", "--fou-local-ip-alt", "10.99.0.1"]
    far = ipipou.client(client, *alternative, keys=keys)
    near.await_log("tunnel up")
    near.await_local("172.29.0.0")
    far.await_local("10.99.0.1")
    on_wire = server.capture("eth0", "udp")
    reach_each_other(server, client)
    assert {p.src for p in on_wire.await_packets(8)} == {SERVER, CLIENT}
    assert near.admitted() == {f"{CLIENT}:10000": "172.29.0.0"}
    assert far.admitted() == {f"{SERVER}:10000": "10.99.0.1"}
    assert "inet 10.99.0.1/32" in client.run("ip addr show dev lo")


@pytest.mark.parametrize("options", [[], ["--force-fou-local-ip-alt"]], ids=["direct", "alternate"])
def test_outer_checksum(hosts, options):
    """--encap-csum: right, or left out where the rules rewrite the address; TCP gets through."""
    server, client = hosts
    for host in hosts:
        no_checksum_offload(host, "eth0")
    keys = ipipou.Keys(server)
    near = ipipou.server(server, "--encap-csum", *options, keys=keys)
    ipipou.client(client, "--encap-csum", *options, keys=keys)
    near.await_log("tunnel up")
    on_wire = server.capture("eth0", "udp")
    with server.socket() as listener, client.socket() as sender:
        listener.bind(("172.28.0.0", 5000))
        listener.listen()
        sender.settimeout(20)
        sender.connect(("172.28.0.0", 5000))
        accepted, _ = listener.accept()
        with accepted:
            sender.sendall(b"through the tunnel")
            assert accepted.recv(100) == b"through the tunnel"
    seen = on_wire.await_packets(5)
    assert {packet.src for packet in seen} == {SERVER, CLIENT}
    for packet in seen:
        rebuilt = packets.udp(packet.src, 10000, packet.dst, 10000, packet.payload, not options)
        assert packet.raw[20:] == rebuilt


@pytest.mark.parametrize("place", ["@eth0", SERVER])
def test_what_a_card_puts_together_arrives(hosts, place):
    """Before Linux 6.9 a FOU listener that is bound to an address only loses it: `auto` has none there."""
    server, client = hosts
    subprocess.run(["modprobe", "tun"], check=True)
    for host in hosts:
        offloads.segmented_on_the_way(host, "eth0")
    keys = ipipou.Keys(server)
    near = ipipou.server(server, "-b", place, keys=keys)
    ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    iperf(server, client, "-n", "4M")
    assert "UdpInErrors" not in server.run("nstat -a")
    datapath = "kernel" if place == "@eth0" or not_before(6, 9) else "tun"
    assert f"as server, datapath {datapath}" in near.process.output()


def not_before(*release):
    return tuple(map(int, platform.release().split(".")[:2])) >= release
