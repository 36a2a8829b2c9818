"""Packets made and read by hand: IPv4, UDP, ICMP echo, pcap. Standard library only."""

import dataclasses
import ipaddress
import socket
import struct

ICMP, IPIP, UDP = 1, 4, 17


def _address(text):
    return ipaddress.IPv4Address(text).packed


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(src, dst, protocol, payload, ttl=64, ident=0, frag=0):
    """An IPv4 packet; `frag` is the whole 16-bit field: flags, and offset in units of 8 bytes."""
    length = 20 + len(payload)
    head = [0x45, 0, length, ident, frag, ttl, protocol, 0, _address(src), _address(dst)]
    head[7] = checksum(struct.pack("!BBHHHBBH4s4s", *head))
    return struct.pack("!BBHHHBBH4s4s", *head) + payload


def udp(src, sport, dst, dport, payload, with_checksum=True):
    """A UDP datagram without its IPv4 header; a checksum of 0 means that there is none."""
    length = 8 + len(payload)
    total = 0
    if with_checksum:
        pseudo = _address(src) + _address(dst) + struct.pack("!BBH", 0, UDP, length)
        total = checksum(pseudo + struct.pack("!HHHH", sport, dport, length, 0) + payload)
        total = total or 0xFFFF
    return struct.pack("!HHHH", sport, dport, length, total) + payload


def inner_icmp_echo(src, dst, ident=0x1F0, sequence=1, payload=b"ipipou-lab"):
    """An IPv4 packet with an ICMP echo request, to be sent inside a tunnel."""
    head = struct.pack("!BBHHH", 8, 0, 0, ident, sequence)
    total = checksum(head + payload)
    return ipv4(src, dst, ICMP, struct.pack("!BBHHH", 8, 0, total, ident, sequence) + payload)


def fragments(src, dst, protocol, payload, count, ident, ttl=64):
    """`payload` as `count` IPv4 fragments; all but the last are multiples of 8 bytes."""
    step = (len(payload) // count) // 8 * 8
    if count < 2 or step == 0:
        raise ValueError(f"{len(payload)} bytes do not make {count} fragments")
    for index in range(count):
        last = index == count - 1
        part = payload[index * step :] if last else payload[index * step : (index + 1) * step]
        frag = (index * step // 8) | (0 if last else 0x2000)
        yield ipv4(src, dst, protocol, part, ttl, ident, frag)


@dataclasses.dataclass(frozen=True)
class Packet:
    """An IPv4 packet that was seen. `sport` and `dport` are None where there is no UDP header."""

    src: str
    dst: str
    protocol: int
    ttl: int
    frag: int
    payload: bytes  # of IP; for UDP, of UDP
    sport: int | None = None
    dport: int | None = None
    raw: bytes = dataclasses.field(default=b"", repr=False)

    @property
    def inner(self):
        """The IPv4 packet that this one carries."""
        return parse(self.payload)


def parse(raw):
    """The Packet in `raw`, or None when that is not IPv4."""
    if len(raw) < 20 or raw[0] >> 4 != 4:
        return None
    _, _, length, _, frag, ttl, protocol, _, src, dst = struct.unpack("!BBHHHBBH4s4s", raw[:20])
    payload, sport, dport = raw[(raw[0] & 15) * 4 : length], None, None
    if protocol == UDP and frag & 0x1FFF == 0 and len(payload) >= 8:
        sport, dport = struct.unpack("!HH", payload[:4])
        payload = payload[8:]
    return Packet(
        socket.inet_ntoa(src),
        socket.inet_ntoa(dst),
        protocol,
        ttl,
        frag,
        payload,
        sport,
        dport,
        raw[:length],
    )


# How many bytes the link layer puts in front of IP, by pcap link type.
_LINK_HEADER = {1: 14, 12: 0, 101: 0, 113: 16, 228: 0, 276: 20}


def read_pcap(data):
    """The IPv4 packets in what is there so far of a pcap file."""
    if len(data) < 24:
        return []
    header = _LINK_HEADER[struct.unpack("<I", data[20:24])[0] & 0xFFFF]
    found, at = [], 24
    while at + 16 <= len(data):
        length = struct.unpack("<I", data[at + 8 : at + 12])[0]
        if at + 16 + length > len(data):
            break
        packet = parse(data[at + 16 + header : at + 16 + length])
        if packet:
            found.append(packet)
        at += 16 + length
    return found
