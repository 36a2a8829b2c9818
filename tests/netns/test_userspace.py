"""The userspace datapath between two ends: which peers get a tunnel, what is let in, what is shown."""

import re
import socket
import time

import pytest

import ipipou
import packets
from ipipou import CLIENT, SERVER, STRANGER, reach_each_other
from first_version import signed, verify
from many_ends import await_dropped, dropped

pytestmark = pytest.mark.both_lanes

# What comes in and what goes out are both seen at the interface.
TUN = ["--datapath", "tun", "--fast-path", "off"]
INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
PORT = 10000


@pytest.fixture
def lan(lab):
    """A server, a client and a stranger. No IPv6: every packet in the tunnel is the test's."""
    made = ipipou.Lan(lab)
    for host in lab.hosts:
        host.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    return made


def send_data(host, number, source=CLIENT, port=PORT, to=SERVER):
    """An inner echo request of the client's, in UDP from anywhere; `number` tells them apart."""
    inner = (INNER_CLIENT, INNER_SERVER) if to == SERVER else (INNER_SERVER, INNER_CLIENT)
    host.send_fou(source, port, to, PORT, *inner, ident=number)


def echo_number(packet):
    return packet.payload[4] << 8 | packet.payload[5]


# -- the tunnel -----------------------------------------------------------------------------


@pytest.mark.parametrize("proof", ["token", "key", "address"])
def test_direct_tunnel(lan, proof):
    """On the wire is the inner packet and nothing else; `show` says what is in use."""
    keys = ipipou.Keys(lan.server) if proof == "key" else None
    near_options, far_options = {
        "token": (["--auth-token", "EXAMPLE"], ["--auth-token", "EXAMPLE"]),
        "key": ([], []),
        "address": (["--auth-by-remote-ip", "-r", CLIENT], []),
    }[proof]
    near = ipipou.server(lan.server, *TUN, *near_options, keys=keys)
    on_wire = lan.server.capture("eth0", "udp")
    far = ipipou.client(lan.client, *TUN, *far_options, keys=keys)
    near.await_log("tunnel up")
    if keys:
        far.await_log(f"our public key is {re.escape(keys.public)}: the other end needs it")
    inside = lan.server.capture("ipipou0", "ip")
    reach_each_other(lan.server, lan.client)

    authentication, *data = on_wire.await_packets(9)
    assert (authentication.src, authentication.sport) == (CLIENT, PORT)
    assert (authentication.dst, authentication.dport) == (SERVER, PORT)
    expected = {"token": b"EXAMPLE", "address": b""}
    if proof == "key":
        verify(keys.public, authentication.payload)
    else:
        assert authentication.payload == expected[proof]
    assert {(p.src, p.sport, p.dst, p.dport) for p in data} == {
        (CLIENT, PORT, SERVER, PORT),
        (SERVER, PORT, CLIENT, PORT),
    }
    assert [p.payload for p in data] == [p.raw for p in inside.await_packets(8)]

    far.reauthenticate()
    near.await_accepted(2)
    status = near.show()
    assert (status["datapath"], status["role"]) == ("tun", "server")
    assert status["offloads"] == "tun tso uso, udp gso gro"  # this kernel has them all
    assert (near.rejected(), dropped(near), dropped(far)) == ({}, {}, {})
    (tunnel,) = status["tunnels"]
    assert (tunnel["local"], tunnel["remote"]) == (f"{SERVER}:{PORT}", f"{CLIENT}:{PORT}")
    assert tunnel["up"] and tunnel["admitted"]
    assert (tunnel["rx_packets"], tunnel["tx_packets"]) == (4, 4)
    text = lan.client.run(["ipipou", "show", "--runtime-root", far.root, "ipipou0"])
    assert " tun " in text and "datapath tun, offloads tun tso uso, udp gso gro" in text
    assert lan.server.tracked() == lan.client.tracked() == 0
    assert near.process.stop() == far.process.stop() == 0


def test_client_of_the_first_version(lan):
    """Its packets may look like inner packets, and have no UDP checksum."""
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    for accepted, nibble in enumerate((4, 6, 0, 15, 4, 6), 1):
        payload = signed(keys.private, first=range(nibble << 4, nibble + 1 << 4))
        lan.client.send_udp(CLIENT, PORT, SERVER, PORT, payload, checksum=False)
        near.await_accepted(accepted)
    assert (near.rejected(), dropped(near)) == ({}, {})
    assert near.show()["tunnels"][0]["remote"] == f"{CLIENT}:{PORT}"


@pytest.mark.parametrize("kind", ["signed", "reversed"])
def test_reply(lan, kind):
    """--reply-on-auth-ok: who proved a key is answered, nobody else."""
    keys, own = ipipou.Keys(lan.server), ipipou.Keys(lan.server)
    options = ["--auth-key-b64", own.private] if kind == "signed" else []
    near = ipipou.server(lan.server, *TUN, "--reply-on-auth-ok", *options, keys=keys)
    with lan.client.udp_socket(CLIENT, PORT) as client:
        request = signed(keys.private)
        for payload in (signed(own.private), b"", b"hello", request):
            client.sendto(payload, (SERVER, PORT))
        reply = client.recv(2000)
        near.await_rejected(wrong_signature=1, empty=1, truncated=1)
        if kind == "signed":
            verify(own.public, reply)
        else:
            assert reply == request[::-1]
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(2000)
    assert near.show()["sent"] == 1


# -- strangers ------------------------------------------------------------------------------


def test_nothing_comes_in_before_authentication(lan):
    keys = ipipou.Keys(lan.server)
    before = lan.server.snapshot()
    near = ipipou.server(lan.server, *TUN, keys=keys)
    assert lan.server.snapshot() == before
    send_data(lan.client, 1)
    send_data(lan.client, 2, port=PORT + 1)
    await_dropped(near, rx_stranger=2)
    assert lan.server.snapshot() == before
    ipipou.client(lan.client, *TUN, keys=keys)
    near.await_log("tunnel up")
    reach_each_other(lan.server, lan.client)


@pytest.mark.parametrize("proof", ["key", "token", "address"])
def test_strangers_get_nothing_in(lan, proof):
    """Another port of the client's address, another address; towards the client as well."""
    keys = ipipou.Keys(lan.server) if proof == "key" else None
    token = ["--auth-token", "hello"] if proof == "token" else []
    by_address = ["--auth-by-remote-ip", "--auth-by-remote-port", "-r", f"{CLIENT}:{PORT}"]
    near_options = by_address if proof == "address" else token
    near = ipipou.server(lan.server, *TUN, *near_options, keys=keys)
    far = ipipou.client(lan.client, *TUN, *token, keys=keys)
    near.await_log("tunnel up")
    came_out = [host.capture("ipipou0", "ip") for host in (lan.server, lan.client)]
    for port, source in ((PORT + 1, CLIENT), (PORT, STRANGER), (PORT + 1, STRANGER)):
        host = lan.client if source == CLIENT else lan.stranger
        send_data(host, 1, source, port)
    for port, source in ((PORT + 1, SERVER), (PORT, STRANGER)):
        host = lan.server if source == SERVER else lan.stranger
        send_data(host, 1, source, port, to=CLIENT)
    await_dropped(near, rx_stranger=3)
    await_dropped(far, rx_stranger=2)
    # What does come is seen, and so would the others have been.
    send_data(lan.client, 2)
    send_data(lan.server, 2, SERVER, to=CLIENT)
    for capture in came_out:
        capture.await_packets(3)
        assert {echo_number(packet) for packet in capture.packets()} == {2}
    assert near.show()["tunnels"][0]["remote"] == f"{CLIENT}:{PORT}"
    reach_each_other(lan.server, lan.client)


def test_authentication_runs_out(lan):
    """--auth-lifetime: the remote is kept, and its packets are dropped until it proves itself."""
    near_options = [*TUN, "--auth-token", "hello", "--auth-lifetime", "1"]
    near = ipipou.server(lan.server, *near_options)
    far = ipipou.client(lan.client, *TUN, "--auth-token", "hello")
    near.await_log("tunnel up")
    reach_each_other(lan.server, lan.client)
    near.await_log("has run out")
    came_out = lan.server.capture("ipipou0", "ip")
    for number in (1, 2):
        send_data(lan.client, number)
    await_dropped(near, rx_stranger=2)
    assert not near.show()["tunnels"][0]["admitted"]
    far.reauthenticate()
    near.await_accepted(2)
    send_data(lan.client, 3)
    came_out.await_packets(1)
    assert {echo_number(packet) for packet in came_out.packets()} == {3}


def test_wrong_credentials_are_refused_and_counted(lan):
    """Wrong keys, secrets, tokens, lengths: counted by reason, and nothing is made for them."""
    keys, others = ipipou.Keys(lan.server), ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    before = lan.server.snapshot()
    good = signed(keys.private)
    payloads = [
        signed(others.private),
        signed(keys.private, secret="another"),
        good[:-1] + bytes([good[-1] ^ 1]),
        good + b"\0",
        b"",
        b"\x80",
        good[:72],
        good + bytes(440),
    ]
    for payload in payloads:
        lan.client.send_udp(CLIENT, PORT, SERVER, PORT, payload)
    near.await_rejected(wrong_signature=4, empty=1, truncated=2, oversized=1)
    assert near.show()["accepted"] == 0 and lan.server.snapshot() == before
    lan.client.send_udp(CLIENT, PORT, SERVER, PORT, good)
    near.await_accepted(1)
    assert near.process.stop() == 0

    near = ipipou.server(lan.server, *TUN, "--auth-token", "hello")
    for payload in (b"hell", b"hello ", b"Hello", b"x" * 1472, b""):
        lan.client.send_udp(CLIENT, PORT, SERVER, PORT, payload)
    near.await_rejected(wrong_token=4, empty=1)
    assert near.show()["accepted"] == 0


def test_a_replay_moves_nothing_even_after_a_restart(lan):
    """What was sent once moves nothing, also after the server was killed or stopped."""
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    on_wire = lan.server.capture("eth0", "udp dst port 10000")
    ipipou.client(lan.client, *TUN, keys=keys)
    near.await_accepted(1)
    first = on_wire.await_packets(1)[0].payload
    newest = signed(keys.private, seconds=int(time.time()) + 5)
    lan.client.send_udp(CLIENT, PORT, SERVER, PORT, newest)
    near.await_accepted(2)

    def replay():
        for payload in (first, newest):
            lan.stranger.send_udp(STRANGER, PORT, SERVER, PORT, payload)
        near.await_rejected(replayed=1, older_than_accepted=1)
        assert near.show()["moved"] == 0

    replay()
    near.process.kill()
    near.start()
    replay()
    assert near.process.stop() == 0
    near.start()
    replay()


def test_flood_of_nonsense(lan):
    """What is looked at of packets of others is limited; the client still gets through."""
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    with lan.stranger.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for _ in range(2000):
            stranger.sendto(b"\x80" * 73, (SERVER, PORT))
    ipipou.client(lan.client, *TUN, keys=keys)
    near.await_log("tunnel up")
    reach_each_other(lan.server, lan.client)
    status = near.show()
    refused = status["rejected"]["wrong_signature"]
    assert refused + sum(dropped(near).values()) == 2000 and refused < 1900
    assert dropped(near)["control_limited"] > 100 and status["accepted"] == 1


@pytest.mark.parametrize("proof, length", [("key", 73), ("token", 50)])
def test_data_as_long_as_an_authentication_packet_is_data(lan, proof, length):
    """It is told apart by its first bits: not one goes to the daemon."""
    if proof == "key":
        keys, token = ipipou.Keys(lan.server), []
    else:
        keys, token = None, ["--auth-token", "t" * length]
    near = ipipou.server(lan.server, *TUN, *token, keys=keys)
    far = ipipou.client(lan.client, *TUN, *token, keys=keys)
    near.await_accepted(1)
    reach_each_other(lan.server, lan.client)
    seen = lan.server.capture("ipipou0", f"icmp and ip[2:2] = {length}")
    # IPv4 and ICMP headers have 28 bytes.
    assert lan.client.ping("172.28.0.0", size=length - 28, count=5).received == 5
    assert len(seen.await_packets(10)) == 10
    assert near.rejected() == {}
    assert dropped(near) == dropped(far) == {}
