"""Thousands of packets that prove nothing: a client with a key still gets in, on the userspace datapath."""

import socket
import sys

import pytest

import ipipou
import packets
from ipipou import CLIENT, SERVER, await_, reach_each_other
from lab import resident
from many_ends import dropped
from test_ipv6 import SERVER6
from test_malformed import UDP, ipv6
from test_userspace import lan  # noqa: F401

TUN = ["--datapath", "tun"]
PORT = 10000
JUNK = b"\x80" * 73  # of just the length of an authentication packet

# Sends to the server at a rate until it is ended: source, port, packets, bytes of each.
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
    return sum(end.rejected().values())


def await_limit(end):
    await_(lambda: dropped(end).get("control_limited", 0) > 1000, what="a limit that is felt")


@pytest.mark.parametrize("proof", ["key", "token"])
def test_junk_from_a_clients_own_address_does_not_shut_it_out(lan, proof):
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


def test_junk_from_elsewhere_does_not_delay_a_client(lan):
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


def test_packets_of_impossible_length_cost_no_token(lan):
    """It takes no tokens of those that may be one, though it comes from the same address."""
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    flood(lan.client, CLIENT, 4000, 5000, length=1)
    await_limit(near)
    far = ipipou.client(lan.client, *TUN, keys=keys)
    near.await_log("tunnel up")
    assert far.show()["sent"] == 1 and near.show()["accepted"] == 1


def test_a_flood_from_an_ipv6_network_counts_as_one_source(lab):
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


def test_nothing_is_sent_to_a_remote_whose_session_has_expired(lan):
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


# Packets of junk from ever new sources, at a rate until it is ended: packets, bytes of each.
SPOOFED = """
import socket, struct, sys, time
rate, length = map(int, sys.argv[1:])
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
to, payload = socket.inet_aton("203.0.113.1"), b"\\x80" * length
sent, start = 0, time.monotonic()
print("begins", flush=True)
while True:
    due = (time.monotonic() - start) * rate
    if due - sent > rate:
        sent = due
    while sent < due:
        number = int(sent)
        source = bytes([11, number >> 16 & 255, number >> 8 & 255, number & 255])
        udp = struct.pack("!HHHH", 1024 + number % 60000, 10000, 8 + length, 0)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + length, 0, 0, 64, 17, 0, source, to)
        try:
            raw.sendto(ip + udp + payload, ("203.0.113.1", 0))
        except OSError:
            pass
        sent += 1
    time.sleep(0.001)
"""


def spoof(host, rate, length=len(JUNK)):
    process = host.spawn([sys.executable, "-c", SPOOFED, rate, length])
    process.await_output("begins")
    return process


# How many more lines a flood may add; each kind has fifty in ten seconds, and says what it left out.
FEW_LINES = 300


@pytest.mark.parametrize("proof", ["key", "nothing"])
def test_spoofed_sources_do_not_fill_log_memory_and_status(lan, proof):
    """What is logged and what is kept in memory does not grow with them, nor does a status: also
    where any packet moves the tunnel."""
    keys = ipipou.Keys(lan.server) if proof == "key" else None
    near = ipipou.server(lan.server, *TUN, keys=keys)
    assert near.process.stop() == 0
    near.argv[near.argv.index("-vvv")] = "-v"  # not each packet
    near.start()
    # Where everybody is let in, nobody is refused.
    count = lambda: looked_at(near) if keys else sum(dropped(near).values())  # noqa: E731

    spoof(lan.client, 3000)
    await_(lambda: count() > 500, timeout=60, what="packets of many")
    size, lines, status = (
        resident(near.process.pid),
        near.process.output().count("\n"),
        len(str(near.show())),
    )
    await_(lambda: count() > 5000, timeout=120, what="packets of more")
    assert resident(near.process.pid) - size < 1024  # KiB; 4500 of anything would be seen
    assert near.process.output().count("\n") - lines < FEW_LINES
    assert len(str(near.show())) < status + 200
    assert near.process.stop() == 0


def test_deadlines_and_status_requests_come_before_packets(lan):
    """While more junk comes than the program can look at, an authentication runs out and `show` has
    an answer."""
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, "--auth-lifetime", "3", keys=keys)
    far = ipipou.client(lan.client, *TUN, keys=keys)
    near.await_log("tunnel up")
    for port in (4000, 4001):
        flood(lan.stranger, ipipou.STRANGER, port, 10000)
    await_limit(near)
    for accepted in (2, 3):
        far.reauthenticate()
        near.await_accepted(accepted)
        is_over = lambda: not near.show()["tunnels"][0]["admitted"]  # noqa: E731
        await_(is_over, what="an authentication that runs out")
        near.await_log("has run out")
        looked = looked_at(near)
        await_(lambda: looked_at(near) > looked, what="packets that are looked at")


def test_two_servers_do_not_answer_each_other_endlessly(lan):
    """One forged packet, and each takes the other's answers for a client's."""
    common = "-s", "-b", "@eth0", "--auth-by-remote-ip", "--reply-on-auth-ok"
    near = ipipou.Tunnel(lan.server, *common, *TUN, "-r", CLIENT)
    far = ipipou.Tunnel(lan.client, *common, *TUN, "-r", SERVER)
    between = lan.stranger.capture("br0", f"udp and host {SERVER} and host {CLIENT}")
    lan.stranger.send_udp(CLIENT, PORT, SERVER, PORT, b"")
    near.await_log("tunnel up")
    far.await_log("tunnel up")
    # What goes round takes a fraction of a millisecond a turn: it would be much more by now.
    await_(lambda: near.show()["accepted"] >= 3, what="three packets")
    for _ in range(5):
        assert near.show()["accepted"] <= 4 and far.show()["accepted"] <= 4
    lan.stranger.send_udp(SERVER, 9, CLIENT, 9, b"marker")
    between.await_packets(1, condition=lambda p: p.payload == b"marker")
    assert len([packet for packet in between.stop() if packet.dport == PORT]) <= 7
