"""What goes through the userspace datapath comes out as it was: under load, of every length, on
narrow paths, without offloads, and with another program at the other end."""

import concurrent.futures
import contextlib
import pathlib
import random
import socket

import pytest

import ipipou
import packets
from ipipou import CLIENT, SERVER, reach_each_other
from lab import no_checksum_offload
from traffic import MIB, Echo, datagrams, no_damage, transfer_both_ways

pytestmark = pytest.mark.both_lanes

TUN = ["--datapath", "tun", "--auth-token", "hello"]
# A virtual cable takes packets whose sums are to be finished by a network card, which there is not: from
# the kernel's datapath and from the fast path.
DATAPATH = ["--datapath", "tun", "--fast-path", "off"]
INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
MTU = 1500 - 28
PLAIN_END = pathlib.Path(__file__).with_name("plain_end.py")

UDP_SEGMENT = 103  # linux/udp.h


def connect(hosts, *options):
    """A tunnel between two hosts."""
    near = ipipou.server(hosts[0], *TUN, *options)
    far = ipipou.client(hosts[1], *TUN, *options)
    near.await_log("tunnel up")
    return near, far


# -- TCP ------------------------------------------------------------------------------------


def test_tcp_200_mib_each_way(hosts):
    near, far = connect(hosts)
    transfer_both_ways(hosts, 200)
    no_damage(hosts)
    for end in (near, far):
        (tunnel,) = end.show()["tunnels"]
        assert tunnel["rx_bytes"] > 200 * MIB and tunnel["tx_bytes"] > 200 * MIB


def test_many_tcp_flows(hosts):
    """Eight at a time; with several queues, a thread for each."""
    near, _ = connect(hosts, "--tun-queues", "4")
    assert near.show()["offloads"].endswith("4 queues")
    transfer_both_ways(hosts, 8, flows=8)
    no_damage(hosts)


# -- UDP ------------------------------------------------------------------------------------


def test_udp_of_every_length(hosts):
    """1 to 1472 bytes, alternating, alike, and falling; then up to 20 kB, in fragments."""
    connect(hosts)
    server, client = hosts
    generator = random.Random(7)
    with contextlib.closing(Echo(client, server, INNER_SERVER)) as echo:
        for length in range(1, MTU + 1):
            echo.window(datagrams(generator, [length, length, length, length - 1, length]))
        for length in range(MTU, 20_000, 379):
            echo.window(datagrams(generator, [length, length, 100, length]))
        for _ in range(50):
            lengths = (generator.choice([1, 100, 700, 1444]) for _ in range(40))
            echo.window(datagrams(generator, sorted(lengths, reverse=True)))
    no_damage(hosts)


def test_udp_flows_keep_their_order(hosts):
    """Four at a time, each numbered: nothing is lost, damaged or overtaken."""
    connect(hosts, "--tun-queues", "2")
    server, client = hosts

    def flow(number):
        generator = random.Random(number)
        with contextlib.closing(Echo(client, server, INNER_SERVER, 7000 + number)) as echo:
            for start in range(0, 3000, 60):
                numbers = (n.to_bytes(4, "big") for n in range(start, start + 60))
                echo.window([n + generator.randbytes(1200) for n in numbers])

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(flow, range(4)))
    no_damage(hosts)


def test_udp_segmentation(hosts):
    """One call for many datagrams (UDP_SEGMENT): they are sent as one packet to the tunnel."""
    connect(hosts)
    server, client = hosts
    generator = random.Random(8)
    with contextlib.closing(Echo(client, server, INNER_SERVER)) as echo:
        for size, length in ((1, 50), (7, 333), (1200, 60_000), (1444, 50_001), (1200, 1201)):
            data = generator.randbytes(length)
            echo.client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
            echo.client.send(data)
            echo.client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
            for at in range(0, length, size):
                assert echo.server.recv(65536) == data[at : at + size]
    no_damage(hosts)


# -- paths ----------------------------------------------------------------------------------


def test_inner_mtu(hosts):
    """What fits is not taken apart outside, one byte more is refused inside."""
    near, far = connect(hosts)
    server, client = hosts
    for host in hosts:
        assert f"mtu {MTU} " in host.run("ip link show ipipou0")
    on_wire = server.capture("eth0", "ip")
    ping = ["ping", "-n", "-c", "1", "-W", "1", "-M", "do", INNER_SERVER, "-s"]
    assert " 1 received" in client.run([*ping, MTU - 28])
    refused = client.run([*ping, MTU - 27], check=False)
    assert "essage too long" in refused.stdout + refused.stderr
    echoes = on_wire.await_packets(2)
    assert [(len(p.raw), p.frag & 0x3FFF) for p in echoes] == [(1500, 0)] * 2


@pytest.mark.parametrize("option", ["--no-encap-csum", "--encap-csum"])
def test_outer_checksum(hosts, option):
    """Without one the kernel segments nothing for us; by a card that computes none it is right."""
    for host in hosts:
        no_checksum_offload(host, "eth0")
    near, _ = connect(hosts, option)
    assert (" gso" in near.show()["offloads"]) == (option == "--encap-csum")
    on_wire = hosts[0].capture("eth0", "udp")
    reach_each_other(*hosts)
    for packet in on_wire.await_packets(8):
        with_checksum = option == "--encap-csum"
        rebuilt = packets.udp(packet.src, 10000, packet.dst, 10000, packet.payload, with_checksum)
        assert packet.raw[20:] == rebuilt
    on_wire.stop()
    transfer_both_ways(hosts, 10)
    no_damage(hosts)


# -- another program ------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["client", "server"])
def test_the_other_end_may_be_a_plain_udp_and_tun_program(hosts, role):
    """The other end is a program that knows UDP and TUN, and no more."""
    server, client = hosts
    plain = server if role == "client" else client
    addresses = [INNER_SERVER, INNER_CLIENT, SERVER, CLIENT]
    if role == "server":
        addresses = [INNER_CLIENT, INNER_SERVER, CLIENT, SERVER]
        ours = ipipou.server(server, *DATAPATH, "--auth-by-remote-ip", "-r", CLIENT)
    other = plain.spawn(["/usr/bin/python3", PLAIN_END, "tun7", *addresses])
    other.await_output("ready")
    if role == "client":
        ours = ipipou.client(client, *DATAPATH)
    else:
        plain.ping(INNER_SERVER, count=1, timeout=0.1)  # any packet proves its address
        ours.await_log("tunnel up")
    on_wire = server.capture("eth0", "udp")
    reach_each_other(server, client)
    seen = on_wire.await_packets(8, condition=lambda packet: packet.inner)
    assert {packet.inner.protocol for packet in seen} == {packets.ICMP}
    on_wire.stop()
    transfer_both_ways(hosts, 20)
    generator = random.Random(9)
    for source, destination, address in (
        (client, server, INNER_SERVER),
        (server, client, INNER_CLIENT),
    ):
        with contextlib.closing(Echo(source, destination, address)) as echo:
            for _ in range(50):
                echo.window(datagrams(generator, [1200] * 20 + [5000, 33]))
    no_damage(hosts)
    assert ours.process.stop() == 0
