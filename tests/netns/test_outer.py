"""The headers outside, in the userspace datapath: what routers may do to the packets, and what the
ends make of it. And what is set up again when it is not as it should be."""

import contextlib
import os
import pathlib
import re
import socket

import pytest

import ipipou
from gateways import await_answer
from ipipou import CLIENT, SERVER, await_, reach_each_other
from lab import no_checksum_offload
from many_ends import dropped
from test_handover import manager  # noqa: F401
from test_integrity import TUN, connect
from test_ipv6 import CLIENT6, INNER6, SERVER6
from traffic import family, no_damage, transfer, transfer_both_ways

INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
PORT = 10000
FULL = 1500 - 28  # bytes of an inner packet that fills a packet of 1500
DONT_FRAGMENT = 0x4000

# Version 2, version 1.
CONTROL_GROUPS = [pathlib.Path("/sys/fs/cgroup"), pathlib.Path("/sys/fs/cgroup/pids")]

IP_RECVTOS, IPV6_RECVTCLASS, IPV6_TCLASS = 13, 66, 67  # linux/in.h, linux/in6.h


def across(lab, mtu):
    """A server and a client, and two routers between them whose cable takes this many bytes."""
    server, client = lab.host("server"), lab.host("client")
    near, far = lab.host("near-router"), lab.host("far-router")
    lab.link(server, "eth0", f"{SERVER}/24", near, "eth0", "203.0.113.254/24")
    lab.link(near, "eth1", "192.0.2.1/24", far, "eth1", "192.0.2.2/24")
    lab.link(client, "eth0", "198.51.100.2/24", far, "eth0", "198.51.100.1/24")
    server.run("ip route add default via 203.0.113.254")
    client.run("ip route add default via 198.51.100.1")
    near.run("ip route add default via 192.0.2.2")
    far.run("ip route add default via 192.0.2.1")
    for router in (near, far):
        router.sysctl("net.ipv4.ip_forward", 1)
        router.run(f"ip link set eth1 mtu {mtu}")
    return (server, client), (near, far)


def ident(packet):
    return int.from_bytes(packet.raw[4:6], "big")


# -- fragments ------------------------------------------------------------------------------


def test_outer_packets_forbid_fragmentation(hosts):
    """All packets forbid it: the numbers in them, which start again with each call, mean nothing."""
    for host in hosts:
        no_checksum_offload(host, "eth0")  # so what is captured is what a network card sends
    connect(hosts)
    on_wire = hosts[0].capture("eth0", f"udp port {PORT} or ip[6:2] & 0x1fff != 0")
    ends = [(hosts[1], hosts[0], INNER_SERVER, CLIENT), (hosts[0], hosts[1], INNER_CLIENT, SERVER)]
    for sender, receiver, address, source in ends:
        # One after the other: there is room for 512 packets that a capture has not yet seen.
        transfer(sender, receiver, address, 4)
        is_full = lambda p: p.src == source and len(p.payload) == FULL  # noqa: B023, E731
        on_wire.await_packets(101, condition=is_full)
        sent = [p for p in on_wire.packets() if p.src == source]
        assert {p.frag for p in sent} == {DONT_FRAGMENT}
        # Numbered by segment: there were many in one call.
        assert 1 < max(map(ident, sent)) < 64
    no_damage(hosts)


# -- congestion (RFC 6040) ------------------------------------------------------------------


class Congestible:
    """A server and a client behind a router that can mark what it forwards to the server."""

    def __init__(self, lab, outer="IPv4"):
        self.server, self.client = lab.host("server"), lab.host("client")
        self.router = lab.host("router")
        for host, dev, own, own6 in (
            (self.server, "to-server", SERVER, SERVER6),
            (self.client, "to-client", CLIENT, CLIENT6),
        ):
            lab.link(host, "eth0", f"{own}/24", self.router, dev, None)
            host.run(f"ip addr add {own6}/64 dev eth0 nodad")
        self.router.batch(
            "link add br0 type bridge",
            "link set to-server master br0",
            "link set to-client master br0",
            "link set br0 up",
        )
        await_answer(self.client, SERVER6)
        near, far = (SERVER, CLIENT) if outer == "IPv4" else (f"[{SERVER6}]", f"[{CLIENT6}]")
        self.near = ipipou.Tunnel(
            self.server, "-s", "-b", f"{near}:{PORT}@eth0", "--ip6", f"{INNER6[0]}/64", *TUN
        )
        self.far = ipipou.Tunnel(
            *[self.client, "-c", "-b", f"{far}@eth0", "-r", f"{near}:{PORT}"],
            *["--tunl-ip", INNER_CLIENT, "--ip6", f"{INNER6[1]}/64", *TUN],
        )
        self.near.await_log("tunnel up")
        reach_each_other(self.server, self.client)
        await_answer(self.client, INNER6[0])

    def mark(self, which=""):
        """From now on. `which` is the beginning of both rules."""
        self.router.nft(
            f"""
            table bridge aqm {{}}
            delete table bridge aqm
            table bridge aqm {{
                chain forward {{
                    type filter hook forward priority 0;
                    udp dport {PORT} oifname "to-server" ip ecn {which} ip ecn set ce
                    udp dport {PORT} oifname "to-server" ip6 ecn {which} ip6 ecn set ce
                }}
            }}
            """
        )


def classes(link, address):
    """{TOS or traffic class that is sent: what arrives} for some, None for what does not.

    After each comes one that can be marked, which arrives in any case."""
    inside = family(address)
    v6 = inside == socket.AF_INET6
    with (
        link.server.socket(inside, socket.SOCK_DGRAM) as receiver,
        link.client.socket(inside, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((address, 7000))
        receiver.settimeout(10)
        level, option = (socket.IPPROTO_IPV6, IPV6_RECVTCLASS) if v6 else (0, IP_RECVTOS)
        receiver.setsockopt(level, option, 1)
        found = {}
        for tos in (0, 1, 2, 3, 0xB8, 0xB9, 0xBA, 0xBB):
            for each, word in ((tos, b"%d" % tos), (2, b"next")):
                sender.setsockopt(level, IPV6_TCLASS if v6 else socket.IP_TOS, each)
                sender.sendto(word, (address, 7000))
            found[tos] = None
            while (message := receiver.recvmsg(100, 100))[0] != b"next":
                data, [(_, _, value)], _, _ = message
                assert data == b"%d" % tos
                found[tos] = value[0]
        return found


@pytest.mark.parametrize("outer", ["IPv4", "IPv6"])
def test_congestion_outside_is_seen_inside(lab, outer):
    """Marked where both ends know of marks, dropped where not; nothing else changes."""
    link = Congestible(lab, outer)
    inside = INNER_SERVER, INNER6[0]
    for address in inside:
        assert all(sent == came for sent, came in classes(link, address).items())
    link.mark("0-3")
    for number, address in enumerate(inside, start=1):
        marked = {tos: tos | 3 if tos & 3 else None for tos in (0, 1, 2, 3)}
        marked |= {tos + 0xB8: came and came + 0xB8 for tos, came in marked.items()}
        assert classes(link, address) == marked
        assert dropped(link.near)["rx_congested"] == 2 * number
    no_damage([link.server])


@pytest.mark.parametrize("outer", ["IPv4", "IPv6"])
def test_the_ecn_field_is_copied_to_the_outer_packet(lab, outer):
    """The ECN field is copied, the DSCP is not. Such a path marks, and TCP hears of it."""
    link = Congestible(lab, outer)
    command = ["tcpdump", "-i", "to-client", "-n", "-l", "-v", "--immediate-mode", "-s200"]
    seen = link.router.spawn([*command, f"udp and dst port {PORT}"])
    seen.await_output("listening on")
    pattern = r"IP \(tos (0x\w+)" if outer == "IPv4" else r"IP6 \((?:class (0x\w+), )?flowlabel"
    for address in (INNER_SERVER, INNER6[0]):
        before = len(re.findall(pattern, seen.output()))
        classes(link, address)
        outside = lambda: re.findall(pattern, seen.output())[before:]  # noqa: E731, B023
        await_(lambda: len(outside()) == 16, what="all packets")  # noqa: B023
        assert [int(tos or "0", 16) for tos in outside()][::2] == [0, 1, 2, 3] * 2
    for host in (link.server, link.client):
        host.sysctl("net.ipv4.tcp_ecn", 1)
    link.mark("1-3 numgen inc mod 10 == 0")  # of the packets that the router handles, up to 64 KiB
    transfer_both_ways((link.server, link.client), 8)
    heard = link.client.run("nstat -asz TcpExtTCPDeliveredCE").splitlines()[1]
    assert int(heard.split()[1]) > 0
    assert "rx_congested" not in dropped(link.near)
    no_damage((link.server, link.client))


# -- again ----------------------------------------------------------------------------------


def test_an_inherited_socket_gets_the_new_configuration(hosts, manager):  # noqa: F811
    """A socket that is taken over has the mark and the checksums of the new configuration."""
    server, client = hosts
    no_checksum_offload(client, "eth0")
    client.nft(
        f"""
        table ip seen {{
            counter marked {{}}
            chain output {{
                type filter hook output priority 0;
                udp sport {PORT} meta mark != 0 counter name marked
            }}
        }}
        """
    )
    near = ipipou.server(server, *TUN)
    # Packets of the fast path, which the socket does not send, have no checksum.
    before = ["--no-encap-csum", "--default-route", "--fast-path", "off"]
    ours = ipipou.client(client, *TUN, *before, prefix=manager.prefix())
    near.await_log("tunnel up")
    await_(lambda: manager.names() == ["tun", "udp"], what="kept files")
    reach_each_other(server, client)
    assert client.counter("seen", "marked")
    ours.process.kill()
    again = ipipou.client(client, *TUN, "--fast-path", "off", prefix=manager.prefix())
    again.await_log("took over the interface and the socket")
    await_answer(client, INNER_SERVER)
    marked = client.counter("seen", "marked")
    on_wire = server.capture("eth0", f"udp and src host {CLIENT}")
    reach_each_other(server, client)
    for packet in on_wire.await_packets(4):
        assert packet.raw[26:28] != b"\0\0"
    assert client.counter("seen", "marked") == marked


def transmitters(pid):
    """The threads that read the interface; one that ends in the meantime does not count."""
    names = []
    for thread in pathlib.Path(f"/proc/{pid}/task").glob("*/comm"):
        with contextlib.suppress(OSError):
            names.append(thread.read_text().strip())
    return sorted(name for name in names if name.startswith("tun-tx"))


@pytest.fixture
def few_processes():
    """Makes a control group that a process and its threads are put into."""
    parent = next((p for p in CONTROL_GROUPS if (p / "cgroup.procs").exists()), None)
    if not parent:
        pytest.skip("no control groups that count processes (Documentation/.../pids.rst)")
    group = parent / f"ipipou-test-{os.getpid()}"
    group.mkdir()
    if not (group / "pids.max").exists():
        group.rmdir()
        pytest.skip(f"{parent} does not count processes")
    yield group
    for pid in (group / "cgroup.procs").read_text().split():
        (parent / "cgroup.procs").write_text(pid)
    group.rmdir()


def test_threads_that_failed_to_start_are_started_later(hosts, few_processes):
    """They are started a moment later, all of them."""
    near = ipipou.server(hosts[0], *TUN, "--tun-queues", "3")
    (few_processes / "cgroup.procs").write_text(str(near.process.pid))
    running = int((few_processes / "pids.current").read_text())
    (few_processes / "pids.max").write_text(str(running + 1))
    ipipou.client(hosts[1], *TUN)
    near.await_log("Resource temporarily unavailable")
    (few_processes / "pids.max").write_text("max")
    near.await_log("tunnel up")
    expected = [f"tun-tx{number}" for number in range(3)]
    await_(lambda: transmitters(near.process.pid) == expected, what="three threads")
    reach_each_other(*hosts)
    transfer_both_ways(hosts, 4, flows=8)
