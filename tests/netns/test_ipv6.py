"""IPv6 inside the tunnel, and outside."""

import contextlib
import random
import socket

import pytest

import ipipou
import packets
from gateways import await_answer
from ipipou import CLIENT, SERVER, await_, reach_each_other
from lab import no_checksum_offload
from test_malformed import ICMP6, ipv6
from traffic import Echo, datagrams, no_damage, transfer_both_ways

TUN = ["--datapath", "tun"]
SERVER6, CLIENT6, OTHER6 = "2001:db8::1", "2001:db8::2", "2001:db8::3"
INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
INNER6 = "fd00:9::1", "fd00:9::2"
PORT = 10000


@pytest.fixture
def hosts(lab):
    """A server and a client that have addresses of both kinds."""
    server, client = ipipou.neighbours(lab)
    for host, address in ((server, SERVER6), (client, CLIENT6)):
        host.run(f"ip addr add {address}/64 dev eth0 nodad")
    await_answer(client, SERVER6)
    return server, client


def snapshots(hosts):
    return [host.snapshot() + host.run("ip -6 route show table all") for host in hosts]


def connect(hosts, outer, *options):
    """A tunnel over IPv4 or IPv6, with both kinds inside."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near_place, far_place = ["-b", "@eth0"], ["-b", "@eth0", "-r", f"{SERVER}:{PORT}"]
    if outer == "IPv6":
        near_place = ["-b", f"[{SERVER6}]:{PORT}@eth0"]
        far_place = ["-b", f"[{CLIENT6}]:{PORT}@eth0", "-r", f"[{SERVER6}]:{PORT}"]
    proof = ["--auth-secret", ipipou.SECRET]
    near = ipipou.Tunnel(
        server,
        *["-s", *near_place, *TUN, "--ip6", f"{INNER6[0]}/64", *proof],
        *["--auth-remote-pubkey-b64", keys.public, *options],
    )
    far = ipipou.Tunnel(
        client,
        *["-c", *far_place, *TUN, "--ip6", f"{INNER6[1]}/64", *proof],
        *["--tunl-ip", INNER_CLIENT, "--auth-key-b64", keys.private, *options],
    )
    near.await_log("tunnel up")
    return near, far


def reach_by_both(hosts):
    server, client = hosts
    reach_each_other(server, client)
    assert client.ping(INNER6[0], count=2).received == 2
    assert server.ping(INNER6[1], count=2).received == 2


def test_routes_that_the_kernel_made_are_put_back(hosts):
    near, far = connect(hosts, "IPv4")
    server, client = hosts
    reach_by_both(hosts)
    whole = client.snapshot() + client.run("ip -6 route show table all")
    for command in (
        "ip -6 route flush dev ipipou0",
        "ip -6 route flush table local dev ipipou0",
        "ip -6 route flush table all dev ipipou0",
    ):
        client.run(command)
        await_(
            lambda: client.snapshot() + client.run("ip -6 route show table all") == whole,
            what=f"repair after {command}",
        )
        reach_by_both(hosts)
    assert far.show()["repaired"] >= 5 and near.show()["repaired"] == 0


@pytest.mark.parametrize("outer", ["IPv4", "IPv6"])
def test_ipv4_and_ipv6_pass_inside_the_tunnel(hosts, outer):
    """Pings, TCP and UDP of both kinds; nothing is left afterwards."""
    before = snapshots(hosts)
    near, far = connect(hosts, outer)
    server, client = hosts
    reach_by_both(hosts)
    mtu = 1472 if outer == "IPv4" else 1452
    assert f"mtu {mtu} " in server.run("ip link show ipipou0")
    assert client.ping(INNER6[0], size=mtu - 48).received == 3
    assert client.ping(INNER6[0], size=5000).received == 3
    transfer_both_ways(hosts, 20, addresses=INNER6)
    transfer_both_ways(hosts, 20)
    generator = random.Random(6)
    with contextlib.closing(Echo(client, server, INNER6[0])) as echo:
        for _ in range(20):
            echo.window(datagrams(generator, [1200] * 30 + [9000, 1]))
    no_damage(hosts)

    (tunnel,) = near.show()["tunnels"]
    local, remote = (SERVER, CLIENT) if outer == "IPv4" else (f"[{SERVER6}]", f"[{CLIENT6}]")
    assert (tunnel["local"], tunnel["remote"]) == (f"{local}:{PORT}", f"{remote}:{PORT}")
    assert tunnel["inner6"] == f"{INNER6[0]}/64"
    far.reauthenticate()
    near.await_accepted(2)
    assert near.process.stop() == far.process.stop() == 0
    assert snapshots(hosts) == before


def bare_packets(text):
    """What `tcpdump -x` shows of outer packets: their bytes."""
    lines = (line.split(":", 1)[1] for line in text.splitlines() if line.startswith("\t0x"))
    return bytes.fromhex("".join(lines).replace(" ", ""))


def test_outer_ipv6_carries_the_bare_inner_packet(hosts):
    """The inner packet is the payload of the UDP datagram, which has a checksum that is right."""
    server, client = hosts
    connect(hosts, "IPv6")
    on_wire = server.spawn(
        [
            "tcpdump",
            "-lnxvvi",
            "eth0",
            "-c1",
            "udp and ip6 src 2001:db8::2 and ip6[48] & 0xf0 = 0x40",
        ]
    )
    on_wire.await_output("listening")
    no_checksum_offload(client, "eth0")
    inner = packets.inner_icmp_echo(INNER_CLIENT, INNER_SERVER)
    client.ping(INNER_SERVER, count=1, size=len(inner) - 28)
    assert on_wire.wait() == 0
    seen = bare_packets(on_wire.output())
    pseudo = seen[8:40] + (len(seen) - 40).to_bytes(4, "big") + bytes([0, 0, 0, packets.UDP])
    assert packets.checksum(pseudo + seen[40:]) == 0 and seen[46:48] != b"\0\0"
    assert seen[6] == packets.UDP and seen[40:44] == PORT.to_bytes(2, "big") * 2
    assert (packets.parse(seen[48:]).src, packets.parse(seen[48:]).dst) == (
        INNER_CLIENT,
        INNER_SERVER,
    )


@pytest.mark.parametrize("outer", ["IPv4", "IPv6"])
def test_inner_ipv6_sources_from_elsewhere_are_dropped(hosts, outer):
    """The kernel has no reverse path filter for IPv6: what is of elsewhere is dropped by us."""
    near, far = connect(hosts, outer)
    server, client = hosts
    reach_by_both(hosts)
    assert far.process.stop() == 0
    before = near.show()["dropped"]
    remote = (SERVER6, CLIENT6) if outer == "IPv6" else (SERVER, CLIENT)
    kind = socket.AF_INET6 if outer == "IPv6" else socket.AF_INET
    came_out = server.spawn(["tcpdump", "-lni", "ipipou0", "-Q", "in", "icmp6[0] == 128"])
    came_out.await_output("listening")
    wrong = ["fd00:a::2", "2001:db8::2", "::1", "::", INNER6[0].replace("fd00:9", "fd00:8")]
    with client.socket(kind, socket.SOCK_DGRAM) as sender:
        sender.bind((remote[1], PORT))
        for source in [*wrong, INNER6[1]]:
            echo = b"\x80\0\0\0\0\7\0\1"
            sender.sendto(ipv6(source, INNER6[0], ICMP6, echo), (remote[0], PORT))
    came_out.await_output(f"{INNER6[1]} > {INNER6[0]}")
    assert came_out.output().count("echo request") == 1
    after = near.show()["dropped"]
    gained = {why: after[why]["packets"] - before[why]["packets"] for why in after}
    assert {why: more for why, more in gained.items() if more} == {"rx_wrong_source": len(wrong)}


def test_strangers_over_ipv6_are_dropped_and_moves_followed(hosts):
    """Over IPv6: another port gets nothing in; the server follows another address."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.Tunnel(
        server,
        *["-s", "-b", f"[{SERVER6}]@eth0", *TUN, "--auth-secret", ipipou.SECRET],
        *["--auth-remote-pubkey-b64", keys.public],
    )
    far = ipipou.client(client, *TUN, remote=f"[{SERVER6}]:{PORT}", keys=keys)
    near.await_log("tunnel up")
    reach_each_other(server, client)
    stranger = near.show()["dropped"]["rx_stranger"]["packets"]
    with client.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        other.bind((CLIENT6, PORT + 1))
        inner = packets.inner_icmp_echo(INNER_CLIENT, INNER_SERVER)
        other.sendto(inner, (SERVER6, PORT))
    dropped = lambda: near.show()["dropped"]["rx_stranger"]["packets"]  # noqa: E731
    await_(lambda: dropped() == stranger + 1, what="drop")

    client.batch(f"addr del {CLIENT6}/64 dev eth0", f"addr add {OTHER6}/64 dev eth0 nodad")
    near.await_log(rf"moved from \[{CLIENT6}\]:{PORT} to \[{OTHER6}\]:{PORT}")
    reach_each_other(server, client)
    assert near.process.stop() == far.process.stop() == 0


def test_a_host_whose_new_interfaces_have_no_ipv6_gets_a_message_that_says_what_to_do(lab):
    host, _ = ipipou.neighbours(lab)
    before = host.snapshot()
    setting = "net.ipv6.conf.default.disable_ipv6"
    # A client has its interface, and so the failure, at once.
    options = ["-b", "@eth0", "-r", f"{CLIENT}:{PORT}", *TUN, "--tunl-ip", INNER_SERVER]
    options += ["--ip6", f"{INNER6[0]}/64"]
    host.run(f"sysctl -qw {setting}=1")
    far = ipipou.Tunnel(host, *options, ready=False)
    assert far.process.wait() == 51, far.process.output()
    last = far.process.output().splitlines()[-1]
    assert f"cannot add {INNER6[0]}/64 to ipipou0: " in last and f"sysctl -w {setting}=0" in last
    assert host.snapshot() == before
    host.run(f"sysctl -qw {setting}=0")
    far.start()
