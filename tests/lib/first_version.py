"""What the first version of ipipou, in Python, sends and makes: with PyNaCl, and by hand."""

import base64
import os
import time

import nacl.signing

import packets
from ipipou import CLIENT, SECRET, SERVER


def signed(private, first=range(0x80, 0x100), seconds=None, secret=SECRET, salt=None):
    """An authentication packet.

    `first` are the values that its first byte may have."""
    key = nacl.signing.SigningKey(base64.b64decode(private))
    seconds = int(time.time()) if seconds is None else seconds
    while True:
        message = seconds.to_bytes(5, "big") + (salt or os.urandom(4))
        packet = key.sign(message + secret.encode()).signature + message
        if packet[0] in first:
            return packet


def verify(public, packet):
    """Checks an authentication packet; raises when the signature is wrong."""
    signature, message = packet[:64], packet[64:]
    key = nacl.signing.VerifyKey(base64.b64decode(public))
    key.verify(message + SECRET.encode(), signature)
    assert abs(int.from_bytes(message[:5], "big") - time.time()) < 5


def handmade_tunnel(host, local, remote, inner_local, inner_remote, port=10000):
    """An end of a tunnel to this port, by the program `ip`."""
    host.batch(
        "fou add port 10000 ipproto 4",
        f"link add ipipou0 type ipip local {local} remote {remote}"
        f" encap fou encap-sport 10000 encap-dport {port}",
        f"addr add {inner_local} peer {inner_remote} dev ipipou0",
        "link set ipipou0 up",
    )


def send(host, payload, source=CLIENT, port=10000, checksum=False):
    host.send_udp(source, port, SERVER, 10000, payload, checksum=checksum)


def answer(host, capture):
    """The first packet from the server's port; its checksum is right."""
    (packet,) = capture.await_packets(1, condition=lambda p: p.src == SERVER and p.sport == 10000)
    rebuilt = packets.udp(SERVER, 10000, CLIENT, 10000, packet.payload)
    assert (packet.dst, packet.raw[20:]) == (CLIENT, rebuilt)
    return packet.payload
