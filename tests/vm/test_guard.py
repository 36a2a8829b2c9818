"""What gets into a tunnel: packets of the known remote, whatever a host on the same link sends."""

import json
import os
import re
import signal
import time

import pytest

import ipipou
import packets
from flood import Flood
from ipipou import CLIENT, SERVER, STRANGER
from lab import await_, inner_icmp_echo

pytestmark = [pytest.mark.each_kernel, pytest.mark.both_lanes]

INNER_SERVER, INNER_CLIENT, ALTERNATE, PORT = "172.28.0.0", "172.28.0.1", "172.29.0.0", 10000
OTHER = "203.0.113.5"  # another address of the host that is attacked
MODES = pytest.mark.parametrize(
    "options", [(), ("--force-fou-local-ip-alt",)], ids=["direct", "alternate"]
)
MARK, NEIGHBOUR = 0x7777, "203.0.113.77"


def ident(packet):
    """The identifier of an ICMP echo request; None for another packet."""
    return int.from_bytes(packet.payload[4:6]) if packet.payload[0] == 8 else None


class Attack:
    """Sends as the remote would, in every way but the right one. A way is known by its identifier."""

    def __init__(self, lan, side):
        self.sender = lan.stranger
        self.outer = {"server": (CLIENT, SERVER), "client": (SERVER, CLIENT)}[side]
        inner = {"server": (INNER_CLIENT, INNER_SERVER), "client": (INNER_SERVER, INNER_CLIENT)}
        self.inner = inner[side]
        self.host = getattr(lan, side)
        self.host.run(f"ip addr add {OTHER}/24 dev eth0")
        # Both ends may have the alternate address, and would answer for it.
        card = json.loads(self.host.run("ip -j link show eth0"))[0]["address"]
        self.sender.batch(
            f"route add {ALTERNATE}/32 dev br0", f"neigh add {ALTERNATE} lladdr {card} dev br0"
        )

    def fou(self, number, sport=PORT, src=None, dst=None):
        remote, local = self.outer
        self.sender.send_fou(src or remote, sport, dst or local, PORT, *self.inner, ident=number)

    def ipip(self, number, src=None, dst=None):
        remote, local = self.outer
        self.sender.send_ipip(src or remote, dst or local, *self.inner, ident=number)

    def pieces(self, number, sport=PORT, src=None, dst=None, sizes=(16, 16), skip=0):
        """Fragments: of these sizes and the rest; the first `skip` ones are not sent."""
        remote, local = src or self.outer[0], dst or self.outer[1]
        whole = packets.udp(remote, sport, local, PORT, inner_icmp_echo(*self.inner, ident=number))
        ends = [sum(sizes[:n]) for n in range(len(sizes) + 1)] + [len(whole)]
        for start, end in list(zip(ends, ends[1:]))[skip:]:
            frag = start // 8 | (0x2000 if end < len(whole) else 0)
            part = whole[start:end]
            self.sender.send_raw(
                packets.ipv4(remote, local, packets.UDP, part, ident=number, frag=frag)
            )

    def ways(self):
        """name: (what it does with an identifier, whether it needs a guard in which mode)."""
        return {
            "plain IPIP": (self.ipip, "direct"),
            "another port": (lambda n: self.fou(n, sport=4444), "direct"),
            "fragments, another port": (lambda n: self.pieces(n, sport=4444), "direct"),
            "tiny fragments, another port": (
                lambda n: self.pieces(n, sport=4444, sizes=(8, 8)),
                "direct",
            ),
            "alternate address": (lambda n: self.fou(n, dst=ALTERNATE), "alternate"),
            "alternate address, another port": (
                lambda n: self.fou(n, sport=4444, dst=ALTERNATE),
                "alternate",
            ),
            "alternate address, fragments": (lambda n: self.pieces(n, dst=ALTERNATE), "alternate"),
            "alternate address, plain IPIP": (lambda n: self.ipip(n, dst=ALTERNATE), "alternate"),
            "later fragments": (lambda n: self.pieces(n, skip=1), None),
            "another local address": (lambda n: self.fou(n, dst=OTHER), None),
            "another local address, plain IPIP": (lambda n: self.ipip(n, dst=OTHER), None),
            "stranger": (lambda n: self.fou(n, src=STRANGER), None),
            "stranger, plain IPIP": (lambda n: self.ipip(n, src=STRANGER), None),
        }

    def arrived(self, mark):
        """Goes every way; the names of those that led into the tunnel. `mark` sends a packet that
        gets in, last."""
        inside = self.host.capture("ipipou0", "icmp")
        names = {}
        for number, (name, (send, _)) in enumerate(self.ways().items(), 0x1001):
            names[number] = name
            send(number)
        mark(MARK)
        inside.await_packets(1, condition=lambda p: ident(p) == MARK)
        seen = {ident(packet) for packet in inside.stop()} - {None}
        return {names[number] for number in seen - {MARK}}


@MODES
def test_packets_come_in_by_the_interface_of_the_tunnel_only(lab, options):
    """A neighbour at another interface of the server sends as the client would, and so does a host next to it."""
    lan, neighbour = ipipou.Lan(lab), lab.host("neighbour")
    lab.link(lan.server, "eth1", "192.0.2.1/24", neighbour, "eth0", "192.0.2.2/24")
    neighbour.run(f"ip route add {SERVER} via 192.0.2.1")
    for device in ("all", "eth1"):
        lan.server.sysctl(f"net.ipv4.conf.{device}.rp_filter", 0)
    lan.connect(*options)
    inside = lan.server.capture("ipipou0", "icmp")

    def send(host, number):
        inner = INNER_CLIENT, INNER_SERVER
        host.send_fou(CLIENT, PORT, SERVER, PORT, *inner, ident=number)

    for number in (MARK + 1, MARK + 2):
        send(neighbour, number)
        send(lan.stranger, MARK)
        inside.await_packets(number - MARK, condition=lambda packet: ident(packet) == MARK)
    assert {ident(packet) for packet in inside.stop()} - {None} == {MARK}


@pytest.mark.parametrize("side", ["server", "client"])
@MODES
def test_no_way_around_the_rules(lab, options, side):
    """With the rules nothing but the real thing gets in, without them it does: so they do it."""
    lan = ipipou.Lan(lab).connect(*options)
    attack = Attack(lan, side)
    end = lan.near if side == "server" else lan.far
    assert attack.arrived(mark=attack.fou) == set()
    dropped = {name: count["packets"] for name, count in end.show()["dropped"].items()}
    # Plain IPIP to the outer address finds no link when that has an alternate one.
    assert dropped["plain_ipip"] == (0 if options else 1)
    # And nobody has the alternate address that is not in use.
    assert dropped["private_address"] == (4 if options else 0)
    assert dropped["stranger_data"] == 4

    end.process.send_signal(signal.SIGSTOP)
    attack.host.run("nft flush ruleset")
    mode = "alternate" if options else "direct"
    unguarded = {name for name, (_, needed) in attack.ways().items() if needed == mode}
    local = ALTERNATE if options else None
    assert attack.arrived(mark=lambda n: attack.fou(n, dst=local)) == unguarded
    assert lan.server.tracked() == lan.client.tracked() == 0


def test_plain_ipip_of_others_still_passes(lab):
    """Beside our tunnel, between the same two hosts and with a third."""
    lan = ipipou.Lan(lab)
    lan.server.run(f"ip addr add {OTHER}/24 dev eth0")
    for number, (far, local, remote) in enumerate(
        [(lan.client, OTHER, CLIENT), (lan.stranger, SERVER, STRANGER)], 1
    ):
        for host, here, there, inner, peer in (
            (lan.server, local, remote, f"10.9.{number}.1", f"10.9.{number}.2"),
            (far, remote, local, f"10.9.{number}.2", f"10.9.{number}.1"),
        ):
            host.batch(
                f"link add plain{number} type ipip local {here} remote {there}",
                f"addr add {inner} peer {peer} dev plain{number}",
                f"link set plain{number} up",
            )
    lan.connect()
    ipipou.reach_each_other(lan.server, lan.client)
    for number, host in ((1, lan.client), (2, lan.stranger)):
        assert host.ping(f"10.9.{number}.1", count=2).received == 2
    assert lan.near.show()["dropped"]["plain_ipip"]["packets"] == 0


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["in-order", "last-first"])
@MODES
def test_fragments_of_the_remote_arrive(lab, options, order):
    lan = ipipou.Lan(lab).connect(*options)
    inside = lan.server.capture("ipipou0", "icmp")
    echo = inner_icmp_echo(INNER_CLIENT, INNER_SERVER, ident=MARK, payload=bytes(200))
    lan.client.send_fragments(CLIENT, PORT, SERVER, PORT, echo, count=3, order=order)
    (request,) = inside.await_packets(1, condition=lambda p: ident(p) == MARK)
    assert request.raw == echo
    # A packet as long as an authentication packet (45 bytes of an echo) is data all the same.
    assert lan.client.ping(INNER_SERVER, size=45, count=2).received == 2
    assert lan.server.ping(INNER_CLIENT, size=45, count=2).received == 2
    # The kernel counts the pieces it has put together, for the whole namespace.
    assert lan.server.run("nstat -asz IpReasmReqds").split()[-2] == "3"
    assert lan.server.tracked() == 0


@pytest.mark.parametrize("check", ["strict", "off"])
def test_inner_packets_need_an_inner_source(lab, check):
    """A client that sends from an address that is not routed to it; with the check off the answer
    goes to whoever has that address."""
    lan = ipipou.Lan(lab)
    lan.stranger.run(f"ip addr add {NEIGHBOUR}/24 dev br0")
    lan.connect(*(["--rp-filter", "off"] if check == "off" else []))
    inside = lan.server.capture("ipipou0", "icmp")
    answers = lan.stranger.capture("br0", f"icmp and src {INNER_SERVER}")
    lan.client.send_fou(CLIENT, PORT, SERVER, PORT, NEIGHBOUR, INNER_SERVER, ident=MARK)
    inside.await_packets(1, condition=lambda p: ident(p) == MARK)
    if check == "off":
        assert answers.await_packets(1)[0].dst == NEIGHBOUR
    else:
        assert lan.client.ping(INNER_SERVER, count=1).received == 1
        lan.server.send_raw(inner_icmp_echo(INNER_SERVER, NEIGHBOUR, ident=MARK))
        (seen,) = answers.await_packets(1)
        assert ident(seen) == MARK  # an answer would have come before
    refused = lan.server.run("nstat -asz TcpExtIPReversePathFilter").split()
    assert int(refused[refused.index("TcpExtIPReversePathFilter") + 1]) == (check == "strict")


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_dead_server_admits_nobody(lab, number):
    """The stranger has the client's key. The server takes its packet for the client's, but alive."""
    lan = ipipou.Lan(lab).connect()
    inside = lan.server.capture("ipipou0", "icmp")
    ping = lan.client.ping_background(INNER_SERVER, interval=0.02)
    await_(lambda: ping.answers() > 5, what="answers")
    lan.near.process.send_signal(number)
    if number == signal.SIGKILL:
        lan.near.process.wait()

    authenticate = ["ipipou", "--reauth-only", "-b", "@br0", "-r", f"{SERVER}:{PORT}"]
    authenticate += ["--tunl-ip", INNER_CLIENT, "--auth-key-b64", lan.keys.private]
    authenticate += ["--auth-secret", ipipou.SECRET, "--memory-dir", lab.directory / "stolen"]
    on_wire = lan.server.capture("eth0", f"udp and src {STRANGER}")
    lan.stranger.run(authenticate)
    lan.stranger.send_fou(STRANGER, PORT, SERVER, PORT, INNER_CLIENT, INNER_SERVER, ident=0x66)
    assert [len(p.payload) for p in on_wire.await_packets(2)][0] == 73

    before = ping.answers()
    await_(lambda: ping.answers() > before + 10, what="answers")
    assert lan.near.tunnel()["remote"] == CLIENT
    assert 0x66 not in {ident(p) for p in inside.packets()}
    ping.stop_complete()

    if number == signal.SIGSTOP:
        lan.near.process.send_signal(signal.SIGCONT)
    else:
        lan.near.start()
        # Who is not the known remote proves himself by what is dated after the start.
        ipipou.later_second()
        lan.stranger.run(authenticate)
    lan.near.await_log(f"moved from {CLIENT}:{PORT} to {STRANGER}:{PORT}")
    lan.stranger.send_fou(STRANGER, PORT, SERVER, PORT, INNER_CLIENT, INNER_SERVER, ident=0x67)
    inside.await_packets(1, condition=lambda p: ident(p) == 0x67)


def flood_of(sender, source, length):
    """Junk that is sent to the server's port a thousand times a second."""
    junk = lambda: b"\x80" + os.urandom(length - 1)
    return Flood(sender, (source, 9), (SERVER, PORT), junk, 1000)


def test_junk_from_a_clients_own_address_does_not_shut_it_out(lab):
    """What is looked at of a flood is a fair sample of it, which the client is in; and what cannot be
    authentication by its length is none of it."""
    lan = ipipou.Lan(lab)
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, keys=keys)
    flood, short = (flood_of(lan.stranger, CLIENT, length) for length in (73, 1))
    started = time.monotonic()
    flood.send(1000)
    dropped = near.show()["dropped"]["flood"]["packets"]
    short.send(1000)
    took = time.monotonic() - started
    # One of three, but for 50 and 20 a second that may come from anywhere.
    assert (1000 - 50 - 20 * took) / 3 - 60 < dropped < 1000 / 3 + 60
    # All, but for 10 and 5 a second for the log's sake.
    counts = near.show()["dropped"]
    assert 1000 - 10 - 5 * took - 1 <= counts["stranger_other"]["packets"] < 1000
    assert counts["flood"]["packets"] == dropped
    with flood, short:
        ipipou.client(lan.client, "--keepalive", "1", keys=keys)
        near.await_log("tunnel up", timeout=60)
    assert not re.search(r"(?m)ERROR", near.process.output())


def test_a_flood_from_one_address_stops_no_other_client(lab):
    lan = ipipou.Lan(lab).connect()
    with flood_of(lan.stranger, STRANGER, 73) as flood:
        await_(lambda: flood.sent > 500, what="flood")

        def again():
            lan.far.reauthenticate()
            return "authenticated again" in lan.near.process.output()

        await_(again, 60, "the client's authentication", interval=0.5)
    status = lan.near.show()
    assert 0 < status["dropped"]["flood"]["packets"] < flood.sent
    assert sum(status["rejected"].values()) > 0
    assert not re.search(r"(?m)ERROR", lan.near.process.output())


def test_packets_that_wait_in_the_queue_may_be_flushed(lab):
    """The kernel drops what waits when the rules go, and refuses the verdicts that come later."""
    server, client = ipipou.neighbours(lab)
    near = ipipou.server(server, "--auth-token", "a token")
    with client.udp_socket(CLIENT, 5000) as junk:
        near.process.send_signal(signal.SIGSTOP)
        for _ in range(20):
            junk.sendto(b"junk", (SERVER, PORT))
        time.sleep(0.5)
        server.run("nft flush ruleset")
        near.process.send_signal(signal.SIGCONT)
    near.await_log("repairing: install rules")
    ipipou.client(client, "--auth-token", "a token")
    ipipou.reach_each_other(server, client)
    assert near.process.stop() == 0


def test_what_another_program_queues_to_our_number_passes(lab):
    """As a program that looks at all packets asks for it, and that does not run; our own never pass."""
    server, client = ipipou.neighbours(lab)
    near = ipipou.server(server, "--auth-token", "a token")
    server.nft(
        """table ip other { chain input { type filter hook input priority -200;
        meta l4proto { tcp, udp, icmp } queue num 0 bypass
    }
    }"""
    )
    assert client.ping(SERVER, count=3).received == 3
    near.await_log("another rule of this host queues to number 0")
    assert near.show()["queued_by_others"] == 3
    with server.udp_socket(SERVER, 6000) as other, client.udp_socket(CLIENT, 5000) as sender:
        other.settimeout(5)
        sender.sendto(b"theirs", (SERVER, 6000))
        assert other.recv(100) == b"theirs"
        sender.sendto(b"ours", (SERVER, PORT))
        near.await_log("refused a packet of 4 bytes")
    server.run("nft delete table ip other")
    ipipou.client(client, "--auth-token", "a token")
    ipipou.reach_each_other(server, client)
    assert near.process.output().count("another rule of this host") == 1
