"""Packets of nobody by the thousand: who has a key still gets in, on the userspace datapath."""

import socket
import sys

import pytest

import ipipou
import packets
from ipipou import CLIENT, SERVER, await_, reach_each_other
from many_ends import dropped
from test_ipv6 import SERVER6
from test_malformed import UDP, ipv6
from test_userspace import lan  # noqa: F401

TUN = ["--datapath", "tun"]
PORT = 10000
JUNK = b"\x80" * 73  # of just the length of an authentication packet

# Sends so many a second to the server until it is ended: source, port, packets, bytes of each.
FLOOD = """
import socket, sys, time
source, port, rate, length = sys.argv[1], *map(int, sys.argv[2:])
junk = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
junk.bind((source, port))
junk.connect(("203.0.113.1", 10000))
payload, sent, start = b"\\x80" * length, 0, time.monotonic()
print("begins", flush=True)
while True:
    due = (time.monotonic() - start) * rate
    if due - sent > rate:  # it was stopped: what was not sent then is not sent now
        sent = due
    while sent < due:
        try:
            junk.send(payload)
        except OSError:
            pass
        sent += 1
    time.sleep(0.001)
"""


def flood(host, source, port, rate, length=len(JUNK)):
    process = host.spawn([sys.executable, "-c", FLOOD, source, port, rate, length])
    process.await_output("begins")
    return process


def looked_at(end):
    return sum(end.show()["rejected"].values())


def await_limit(end):
    await_(lambda: dropped(end).get("control_limited", 0) > 1000, what="a limit that is felt")


@pytest.mark.parametrize("proof", ["key", "token"])
def test_junk_from_the_clients_own_address(lan, proof):
    """Forged, or by a neighbour behind its NAT: it is in after some tries."""
    keys = ipipou.Keys(lan.server) if proof == "key" else None
    token = [] if keys else ["--auth-token", "x" * len(JUNK)]
    near = ipipou.server(lan.server, *TUN, *token, keys=keys)
    flood(lan.client, CLIENT, 4000, 5000)
    await_limit(near)
    far = ipipou.client(lan.client, *TUN, *token, "--keepalive", "1", keys=keys)
    near.await_log("tunnel up")
    reach_each_other(lan.server, lan.client)
    # From then on it is known, and each of its packets counts.
    sent = far.show()["sent"]
    await_(lambda: far.show()["sent"] >= sent + 3, what="keepalives")
    accepted = near.show()["accepted"]
    await_(lambda: near.show()["accepted"] >= accepted + 2, what="keepalives that are accepted")


def test_junk_from_elsewhere(lan):
    """The very first packet of somebody else is accepted."""
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    flood(lan.stranger, ipipou.STRANGER, 4000, 10000)
    await_limit(near)
    far = ipipou.client(lan.client, *TUN, keys=keys)
    near.await_log("tunnel up")
    for accepted in (2, 3, 4):
        far.reauthenticate()
        near.await_accepted(accepted)
    assert far.show()["sent"] == 4


def test_what_is_none_by_its_length(lan):
    """It takes no tokens of those that may be one, though it comes from the same address."""
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    flood(lan.client, CLIENT, 4000, 5000, length=1)
    await_limit(near)
    far = ipipou.client(lan.client, *TUN, keys=keys)
    near.await_log("tunnel up")
    assert far.show()["sent"] == 1 and near.show()["accepted"] == 1


def test_a_host_with_a_network_of_its_own(lab):
    """All addresses of an IPv6 /64 are one source."""
    server, client = ipipou.neighbours(lab)
    server.run(f"ip addr add {SERVER6}/64 dev eth0 nodad")
    client.run("ip addr add 2001:db8::2/64 dev eth0 nodad")
    await_(lambda: client.ping(SERVER6, count=1, timeout=1).received, what="answer")
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, "-b", f"[{SERVER6}]", keys=keys)
    head = PORT.to_bytes(2, "big") * 2 + (8 + len(JUNK)).to_bytes(2, "big")
    with client.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for number in range(3000):
            source = f"2001:db8:5:5::{number + 1:x}"
            packet = ipv6(source, SERVER6, UDP, head + udp6_sum(source, head) + JUNK)
            raw.sendto(packet, (SERVER6, 0))
    limited = lambda: sum(dropped(near).values())  # noqa: E731
    await_(lambda: looked_at(near) + limited() == 3000, what="all of them")
    # Fifty of a source, and the sample of two in three.
    assert 50 < looked_at(near) < 2500, near.show()


def udp6_sum(source, head):
    pseudo = b"".join(socket.inet_pton(socket.AF_INET6, a) for a in (source, SERVER6))
    data = head + b"\0\0" + JUNK
    pseudo += len(data).to_bytes(4, "big") + bytes([0, 0, 0, UDP])
    return (packets.checksum(pseudo + data) or 0xFFFF).to_bytes(2, "big")


def test_nothing_is_sent_to_who_is_not_admitted(lan):
    """--auth-lifetime has run out: somebody else may have that address by now. The interface, its
    addresses and routes stay."""
    near = ipipou.server(lan.server, *TUN, "--auth-token", "hello", "--auth-lifetime", "1")
    far = ipipou.client(lan.client, *TUN, "--auth-token", "hello")
    near.await_log("tunnel up")
    reach_each_other(lan.server, lan.client)
    near.await_log("has run out")
    before = lan.server.snapshot()
    on_wire = lan.client.capture("eth0", f"udp and src host {SERVER}")
    assert lan.server.ping("172.28.0.1", count=3, timeout=0.3).received == 0
    far.reauthenticate()
    near.await_accepted(2)
    assert lan.server.ping("172.28.0.1", count=1).received == 1
    assert len(on_wire.await_packets(1)) == 1
    assert lan.server.snapshot() == before
