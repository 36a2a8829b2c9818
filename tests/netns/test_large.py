"""Packets that nobody took apart on the way: what a kernel's tunnel on the same host hands over, a
datagram of some thousand bytes with one packet of TCP in it. A gateway makes packets of it that fit."""

import struct

import pytest

import ipipou
import packets
from gateways import INNER, INNER_CLIENT, Border, await_mtu
from ipipou import CLIENT, SERVER, await_
from lab import no_checksum_offload
from many_ends import dropped
from test_kernel_refuses import preloaded  # noqa: F401

PORT = 10000
TCP, ACK, PSH, FIN = 6, 0x10, 0x08, 0x01
LENGTH = 8000


def tcp(source, destination, flags, payload, is_whole=True):
    """An IPv4 packet with a TCP segment; one that is not whole has the sum over the pseudo-header in
    place of its checksum, as the kernel leaves it to a network card."""
    header = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 2, 5 << 4, flags, 500, 0, 0)
    probe = packets.ipv4(source, destination, TCP, b"")
    pseudo = probe[12:20] + struct.pack("!BBH", 0, TCP, len(header) + len(payload))
    total = packets.checksum(pseudo + header + payload)
    if not is_whole:
        total = ~packets.checksum(pseudo) & 0xFFFF
    header = header[:16] + total.to_bytes(2, "big") + header[18:]
    return packets.ipv4(source, destination, TCP, header + payload, frag=0x4000)


def offset(packet):
    """Where in the large packet's data it begins."""
    return int.from_bytes(packet.payload[4:8], "big") - 1


def is_right(packet):
    """Whether both checksums hold."""
    segment = packet.payload
    pseudo = packet.raw[12:20] + struct.pack("!BBH", 0, TCP, len(segment))
    return packets.checksum(packet.raw[:20]) == packets.checksum(pseudo + segment) == 0


@pytest.mark.parametrize("refused", [None, "header", "offload", "write"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "partial"])
def test_large_packet_is_taken_apart(lab, preloaded, refused, is_whole):  # noqa: F811
    border = Border(lab, back=[INNER])
    server, client, third = border.server, border.client, border.third
    no_checksum_offload(server, "eth1")  # what leaves is segmented before
    prefix = ["env", f"LD_PRELOAD={preloaded}", f"REFUSE={refused}"] if refused else []
    proof = ["--auth-by-remote-ip", "-r", CLIENT]
    near = ipipou.server(server, "--datapath", "tun", "--forward", *proof, prefix=prefix)
    payload = bytes(i * 7 % 251 for i in range(LENGTH))
    with client.udp_socket(CLIENT, PORT) as sender:
        sender.sendto(b"", (SERVER, PORT))
        near.await_log("tunnel up")
        for mtu, most in ((None, 1280), (1200, 1200)):
            if mtu:
                server.run(f"ip link set ipipou0 mtu {mtu}")
                await_mtu(server, mtu)
            seen = third.capture("eth0", f"tcp and src host {INNER_CLIENT}")
            sent = tcp(INNER_CLIENT, border.THIRD, ACK | PSH | FIN, payload, is_whole)

            def came():
                # What the MTU is, is asked for once a second.
                sender.sendto(sent, (SERVER, PORT))
                found = {offset(p): p for p in seen.packets() if len(p.raw) <= most}
                found = [found[at] for at in sorted(found) if at % (most - 40) == 0]
                return found if sum(len(p.payload) - 20 for p in found) >= LENGTH else None

            found = await_(came, what="the whole packet")
            seen.stop()
            assert all(map(is_right, found))
            assert b"".join(p.payload[20:] for p in found) == payload
            *others, last = found
            assert last.payload[13] & (PSH | FIN) == PSH | FIN
            assert not any(p.payload[13] & (PSH | FIN) for p in others)
    assert dropped(near) == {}


def test_a_damaged_large_packet_stays_damaged(lab):
    border = Border(lab, back=[INNER])
    no_checksum_offload(border.server, "eth1")
    proof = ["--auth-by-remote-ip", "-r", CLIENT]
    near = ipipou.server(border.server, "--datapath", "tun", "--forward", *proof)
    seen = border.third.capture("eth0", f"tcp and src host {INNER_CLIENT}")
    whole = tcp(INNER_CLIENT, border.THIRD, ACK, bytes(LENGTH))
    damaged = whole[:-1] + b"\1"
    with border.client.udp_socket(CLIENT, PORT) as sender:
        sender.sendto(b"", (SERVER, PORT))
        near.await_log("tunnel up")
        sender.sendto(damaged, (SERVER, PORT))
        sender.sendto(whole, (SERVER, PORT))
        seen.await_packets(1, condition=lambda p: offset(p) == LENGTH - LENGTH % 1240)
    assert all(map(is_right, seen.packets()))
    assert sum(len(p.payload) - 20 for p in seen.packets()) == LENGTH
