"""Inner packets that are none, from a known remote and from the host itself: what can be delivered
is, all else is counted, and nothing ends.

What is deliverable is judged here once more, by the RFCs: a whole IP packet whose header has room,
and for IPv6 a source that belongs into the tunnel."""

import ipaddress
import random
import socket
import struct

import pytest

import ipipou
import packets
from ipipou import CLIENT, SERVER, await_, reach_each_other

INNER = {SERVER: "172.28.0.0", CLIENT: "172.28.0.1"}
INNER6 = {SERVER: "fd00:9::1", CLIENT: "fd00:9::2"}
PORT = 10000
# The interface counts all that goes out.
SLOW = ["--datapath", "tun", "--fast-path", "off"]
KEY_PACKET = 73  # bytes of an authentication packet

UDP, TCP, HOP_BY_HOP, ROUTING, FRAGMENT, ICMP6, DESTINATION = 17, 6, 0, 43, 44, 58, 60


def ipv4(source, destination, protocol, payload, options=b"", **fields):
    """An IPv4 packet; `fields` are put in as they are, right or wrong."""
    length = 20 + len(options) + len(payload)
    values = dict(version=4, ihl=5 + len(options) // 4, length=length, frag=0, ttl=64) | fields
    head = struct.pack(
        "!BBHHHBBH4s4s",
        values["version"] << 4 | values["ihl"],
        *(0, values["length"] & 0xFFFF, 7, values["frag"], values["ttl"], protocol, 0),
        *map(socket.inet_aton, (source, destination)),
    )
    total = packets.checksum(head + options)
    return head[:10] + total.to_bytes(2, "big") + head[12:] + options + payload


def ipv6(source, destination, next_header, payload, length=None):
    length = len(payload) if length is None else length
    head = struct.pack("!IHBB", 6 << 28, length, next_header, 64)
    return head + b"".join(ipaddress.IPv6Address(a).packed for a in (source, destination)) + payload


def random_payloads(generator):
    """Random bytes of every length, and of some lengths with every version."""
    for length in range(201):
        yield generator.randbytes(length)
    for length in (1, 19, 20, 21, 39, 40, 41, 60, 72, 73, 74, 120, 1472):
        for version in range(16):
            data = generator.randbytes(length)
            yield bytes([version << 4 | data[0] & 15]) + data[1:]
            # A header length that is one, so that more of it is looked at.
            yield bytes([version << 4 | 5]) + data[1:]


def bent_ipv4(generator, source, destination):
    udp = packets.udp(source, 1111, destination, 2222, generator.randbytes(64))
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 0x50, 0x10, 500, 0, 0) + generator.randbytes(40)
    both = ((UDP, udp), (TCP, tcp))
    for count in range(1, 11):
        for kind in (1, 7, 68, 131, 137, 255):  # nothing, routes, timestamps, nonsense
            options = bytes([kind, 4 * count, 4]).ljust(4 * count, b"\1")
            yield ipv4(source, destination, UDP, udp, options)
    for protocol, payload in both:
        for ihl in range(16):
            yield ipv4(source, destination, protocol, payload, ihl=ihl)
        for length in (
            0,
            1,
            19,
            20,
            21,
            28,
            40,
            20 + len(payload) - 1,
            20 + len(payload) + 1,
            65535,
        ):
            yield ipv4(source, destination, protocol, payload, length=length)
        for cut in range(1, 21 + len(payload)):
            whole = ipv4(source, destination, protocol, payload)
            yield whole[:cut]  # truncated on the way
            yield ipv4(source, destination, protocol, payload[: max(cut - 20, 0)])  # and inside
        for frag in (0x2000, 0x2008, 0x0008, 0x3FFF, 0x1FFF, 0x8000, 0xC000):
            yield ipv4(source, destination, protocol, payload, frag=frag)
        yield ipv4(source, destination, protocol, payload, ttl=0)
        yield ipv4(source, destination, protocol, payload) + b"padding"
        yield ipv4(source, "224.0.0.1", protocol, payload)
        yield ipv4("255.255.255.255", destination, protocol, payload)
    for length in (0, 7, 8, 9, 71, 73, 65535):
        header = struct.pack("!HHHH", 1111, 2222, length, 0)
        yield ipv4(source, destination, UDP, header + bytes(64))
    for offset in range(16):
        header = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, offset << 4, 0x3F, 500, 0, 0)
        yield ipv4(source, destination, TCP, header + bytes(20))
    for kind in (0, 3, 4, 5, 8, 11, 12, 255):
        for quoted in (b"", b"\x45", ipv4(destination, source, UDP, udp)[:27]):
            error = struct.pack("!BBHI", kind, 4, 0, 0) + quoted
            total = packets.checksum(error).to_bytes(2, "big")
            yield ipv4(source, destination, packets.ICMP, error[:2] + total + error[4:])


def bent_ipv6(generator, source, destination):
    body = generator.randbytes(48)
    for header in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, ICMP6, UDP, TCP, 59, 255):
        for length in (0, 1, 7, 8, 15, 48):
            yield ipv6(source, destination, header, body[:length])
            yield ipv6(source, destination, header, bytes([header, 255]) + body[:length])
        for length in (0, 1, 47, 49, 65535):
            yield ipv6(source, destination, header, body, length)
        yield ipv6(source, destination, header, body)[: 40 + 7]
        yield ipv6("fd00:aaaa::1", destination, header, body)
        yield ipv6(source, "ff02::1", header, body)
    for cut in range(41):
        yield ipv6(source, destination, UDP, b"")[:cut]


def payloads(source, destination):
    generator = random.Random(2026)
    yield from random_payloads(generator)
    yield from bent_ipv4(generator, INNER[source], INNER[destination])
    yield from bent_ipv6(generator, INNER6[source], INNER6[destination])


def whole(payload):
    """The IP packet at the beginning of a payload, or None."""
    version = payload[0] >> 4 if payload else 0
    if version == 4 and len(payload) >= 20:
        header, length = (payload[0] & 15) * 4, int.from_bytes(payload[2:4], "big")
    elif version == 6 and len(payload) >= 40:
        header, length = 40, 40 + int.from_bytes(payload[4:6], "big")
    else:
        return None
    return payload[:length] if 20 <= header <= length <= len(payload) else None


def is_redirect(packet):
    """A redirect of ICMPv4, in its first fragment: neither end lets one through."""
    first = int.from_bytes(packet[6:8], "big") & 0x1FFF == 0
    icmp = packet[(packet[0] & 15) * 4 :]
    return packet[0] >> 4 == 4 and packet[9] == packets.ICMP and first and icmp[:1] == b"\5"


def may_come_in(packet, to):
    """IPv4 of any host but our own is the reverse path filter's business, IPv6 is ours."""
    own = {INNER[to], INNER6[to], to, "203.0.113.255"}
    if packet[0] >> 4 == 6:
        source = ipaddress.IPv6Address(packet[8:24])
        return source in ipaddress.IPv6Network("fd00:9::/64") and str(source) not in own
    source = ipaddress.IPv4Address(packet[12:16])
    nobody = (
        source.is_multicast or source.is_loopback or packet[12] == 0 or packet[12:16] == b"\xff" * 4
    )
    return not nobody and not is_redirect(packet) and str(source) not in own


def deliverable(payload, to):
    packet = whole(payload)
    if packet is None or not may_come_in(packet, to):
        return None
    # To a server it could be an authentication packet.
    if to == SERVER and len(payload) == KEY_PACKET != len(packet):
        return None
    return packet


# -- both ends ------------------------------------------------------------------------------


class Ends:
    def __init__(self, lab):
        self.server, self.client = ipipou.neighbours(lab)
        keys = ipipou.Keys(self.server)
        near, far = ([*SLOW, "--ip6", f"{INNER6[a]}/64"] for a in (SERVER, CLIENT))
        self.near = ipipou.server(self.server, *near, keys=keys)
        self.far = ipipou.client(self.client, *far, keys=keys)
        self.near.await_log("tunnel up")
        reach_each_other(self.server, self.client)

    def of(self, address):
        return (self.server, self.near) if address == SERVER else (self.client, self.far)

    def are_well(self):
        reach_each_other(self.server, self.client)
        for end in (self.near, self.far):
            assert end.process.running() and "panicked" not in end.process.output()
            assert end.show()["repaired"] == 0
        assert self.near.process.stop() == self.far.process.stop() == 0


@pytest.fixture
def ends(lab):
    return Ends(lab)


def counts(end):
    """(packets that came out of the tunnel, packets that were dropped or refused)."""
    status = end.show()
    dropped = sum(d["packets"] for d in status["dropped"].values())
    return end.host.statistics("ipipou0")["rx"]["packets"], dropped + sum(
        status["rejected"].values()
    )


@pytest.mark.parametrize("to", [SERVER, CLIENT], ids=["server", "client"])
def test_malformed_packets_from_a_known_remote_are_counted(ends, to):
    """Every one is delivered or counted, and what is delivered is what was sent."""
    source = CLIENT if to == SERVER else SERVER
    (sender, _), (receiver, end) = ends.of(source), ends.of(to)
    sent = list(payloads(source, to))
    expected = [packet for payload in sent if (packet := deliverable(payload, to))]
    assert 400 < len(expected) < len(sent) - 400
    came_out = receiver.capture("ipipou0", "-Q in")
    delivered, lost = counts(end)
    with sender.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for payload in sent:
            datagram = packets.udp(source, PORT, to, PORT, payload)
            raw.sendto(packets.ipv4(source, to, UDP, datagram), (to, 0))
    goal = delivered + len(expected), lost + len(sent) - len(expected)
    await_(lambda: sum(counts(end)) >= sum(goal), what="all of them")
    assert counts(end) == goal
    of_ipv4 = [packet for packet in expected if packet[0] >> 4 == 4]
    came_out.await_packets(len(of_ipv4))
    assert [packet.raw for packet in came_out.stop()] == of_ipv4
    ends.are_well()


@pytest.mark.parametrize("by", [SERVER, CLIENT], ids=["server", "client"])
def test_malformed_packets_from_the_host_itself_are_counted(ends, by):
    """Through a packet socket on the interface: all goes out that is an IP packet and no redirect."""
    to = CLIENT if by == SERVER else SERVER
    host, end = ends.of(by)
    sent = [payload for payload in payloads(by, to) if payload]
    whole_ones = [packet for payload in sent if (packet := whole(payload))]
    expected = [packet for packet in whole_ones if not is_redirect(packet)]
    on_wire = host.capture("eth0", f"udp and src host {by}")
    _, lost = counts(end)
    arrived, refused = counts(ends.of(to)[1])
    with host.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        for number, payload in enumerate(sent, 1):
            protocol = 0x86DD if payload[0] >> 4 == 6 else 0x0800
            raw.sendto(payload, ("ipipou0", protocol))
            if number % 100 == 0:  # the interface's queue is short
                taken = lambda: host.statistics("ipipou0")["tx"]["packets"] >= number  # noqa
                await_(taken, what="packets that were read")
    await_(lambda: counts(end)[1] >= lost + len(sent) - len(expected), what="all of them")
    # What is sent in one call is seen as one packet.
    seen = lambda: b"".join(packet.payload for packet in on_wire.packets())  # noqa: E731
    await_(lambda: len(seen()) >= sum(map(len, expected)), what="all of them outside")
    assert seen() == b"".join(expected)
    assert counts(end)[1] == lost + len(sent) - len(expected)
    came = [packet for packet in expected if deliverable(packet, to)]
    goal = arrived + len(came), refused + len(expected) - len(came)
    await_(lambda: sum(counts(ends.of(to)[1])) >= sum(goal), what="all of them")
    assert counts(ends.of(to)[1]) == goal
    ends.are_well()


def test_fragments_of_outer_packets_are_reassembled(ends):
    """Outer fragments in any order are put together first; half a datagram is none."""
    came_out = ends.server.capture("ipipou0", "-Q in")
    before = counts(ends.near)
    inner = packets.inner_icmp_echo(INNER[CLIENT], INNER[SERVER], payload=bytes(3000))
    way = CLIENT, PORT, SERVER, PORT
    for order in ([0, 1, 2], [2, 0, 1], [0, 1, 1, 2], [0, 2], [1]):
        ends.client.send_fragments(*way, inner, order=order)
    ends.client.send_fragments(*way, random.Random(1).randbytes(3000))
    await_(lambda: counts(ends.near)[1] > before[1], what="the last one")
    seen = came_out.await_packets(3)
    assert [packet.raw for packet in seen] == [inner] * 3
    assert counts(ends.near) == (before[0] + 3, before[1] + 1)
    ends.are_well()
