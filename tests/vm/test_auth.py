"""Who gets a tunnel, who does not, and what the first version of ipipou sends and accepts."""

import base64
import time

import pytest

import ipipou
import packets
from first_version import answer, handmade_tunnel, send, signed, verify
from ipipou import CLIENT, SERVER, STRANGER, await_, reach_each_other

INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"


# -- who gets in ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, token",
    [
        ("--auth-token", b"EXAMPLE"),  # the first four bits are 4, as of an inner IPv4 packet
        ("--auth-token", b"hello"),  # … are 6
        ("--auth-token", b"E"),  # … are 4, and there is no more
        ("--auth-token", b"E" * 45),  # data may be as long
        ("--auth-token-b64", b"\x80\x00 \xff\n"),
    ],
)
def test_token(hosts, option, token):
    """Once known, a client still reaches the daemon, whatever its token looks like."""
    server, client = hosts
    text = base64.b64encode(token) if option.endswith("b64") else token
    near = ipipou.server(server, option, text.decode())
    on_wire = server.capture("eth0", "udp")
    far = ipipou.client(client, option, text.decode())
    near.await_log("tunnel up")
    assert on_wire.await_packets(1)[0].payload == token
    reach_each_other(server, client)
    headers = 28  # of an inner ping
    if len(token) > headers:
        assert client.ping(INNER_SERVER, size=len(token) - headers).lost == 0
    far.reauthenticate()
    near.await_accepted(2)
    assert near.rejected() == {}


def test_remote_address_is_enough(hosts):
    """--auth-by-remote-ip and nothing else: any packet of that address, none of another."""
    server, client = hosts
    near = ipipou.server(server, "--auth-by-remote-ip", "-r", CLIENT)
    before = server.snapshot()
    for payload in (b"", b"hello", b"E" * 73, packets.inner_icmp_echo(INNER_CLIENT, INNER_SERVER)):
        send(client, payload, source=STRANGER)
    near.await_dropped(stranger_other=4)
    assert server.snapshot() == before

    far = ipipou.client(client)
    near.await_log("tunnel up")
    reach_each_other(server, client)
    far.reauthenticate()
    near.await_accepted(2)
    assert near.rejected() == {}


def test_remote_address_and_port(hosts):
    server, client = hosts
    by = ["--auth-by-remote-ip", "--auth-by-remote-port", "-r", f"{CLIENT}:10007"]
    near = ipipou.server(server, *by)
    before = server.snapshot()
    send(client, b"", port=10000)
    near.await_dropped(stranger_other=1)
    assert server.snapshot() == before
    ipipou.client(client, "--fou-local-port", "10007")
    near.await_log("tunnel up")
    reach_each_other(server, client)
    assert near.admitted() == {f"{CLIENT}:10007": None}


def test_remote_address_and_key(hosts):
    """The right key at the wrong address, and at the wrong port."""
    server, client = hosts
    keys = ipipou.Keys(server)
    by = ["--auth-by-remote-ip", "--auth-by-remote-port", "-r", f"{CLIENT}:10000"]
    near = ipipou.server(server, *by, keys=keys)
    before = server.snapshot()
    send(client, signed(keys.private), source=STRANGER)
    send(client, signed(keys.private), port=10001)
    near.await_rejected(wrong_ip=1, wrong_port=1)
    assert server.snapshot() == before
    ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    reach_each_other(server, client)


# -- the first version ----------------------------------------------------------------------


def test_old_client(hosts):
    """A hand-made tunnel, and packets without a checksum that may look like inner packets."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    handmade_tunnel(client, CLIENT, SERVER, INNER_CLIENT, INNER_SERVER)
    send(client, signed(keys.private, first=range(0x40, 0x50)))
    near.await_log("tunnel up")
    reach_each_other(server, client)
    for nibble in (4, 6, 0, 15):
        send(client, signed(keys.private, first=range(nibble << 4, nibble + 1 << 4)))
    near.await_accepted(5)
    assert near.rejected() == {}
    reach_each_other(server, client)


def test_old_server(hosts):
    """It checks our packet with PyNaCl, and makes its tunnel by hand."""
    server, client = hosts
    keys = ipipou.Keys(server)
    seen = server.capture("eth0", "udp dst port 10000")
    far = ipipou.client(client, keys=keys)
    (packet,) = seen.await_packets(1)
    verify(keys.public, packet.payload)
    assert (packet.src, packet.sport, packet.dst) == (CLIENT, 10000, SERVER)
    handmade_tunnel(server, SERVER, CLIENT, INNER_SERVER, INNER_CLIENT)
    reach_each_other(server, client)
    far.reauthenticate()
    again = seen.await_packets(2, condition=lambda p: len(p.payload) == 73)[1]
    verify(keys.public, again.payload)
    assert again.payload != packet.payload


@pytest.mark.parametrize("sender", ["new", "old"])
def test_signed_reply(hosts, sender):
    """--reply-on-auth-ok with both keys."""
    server, client = hosts
    keys, own = ipipou.Keys(server), ipipou.Keys(server)
    options = ["--reply-on-auth-ok", "--auth-key-b64", own.private]
    near = ipipou.server(server, *options, keys=keys)
    replies = client.capture("eth0", "udp src port 10000")
    if sender == "new":
        ipipou.client(client, keys=keys)
    else:
        send(client, signed(keys.private))
    near.await_log("tunnel up")
    reply = answer(client, replies)
    assert len(reply) == 73
    verify(own.public, reply)


def test_a_multicast_source_cannot_be_a_remote(hosts):
    """A packet that proves a key, from an address that no host has: it can be sent again from a good
    one."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    payload = signed(keys.private)
    for source in ("224.0.0.5", "255.255.255.255", "127.0.0.1", "0.0.0.0", SERVER):
        send(client, payload, source=source)
    send(client, payload)
    near.await_log("tunnel up")
    assert near.tunnel()["remote"] == CLIENT and near.show()["accepted"] == 1


@pytest.mark.parametrize("proof", ["token", "key"])
def test_reversed_reply(hosts, proof):
    """--reply-on-auth-ok without a key of the server's own."""
    server, client = hosts
    keys = ipipou.Keys(server)
    if proof == "token":
        payload = b"EXAMPLE"
        near = ipipou.server(server, "--reply-on-auth-ok", "--auth-token", "EXAMPLE")
    else:
        payload = signed(keys.private)
        near = ipipou.server(server, "--reply-on-auth-ok", keys=keys)
    replies = client.capture("eth0", "udp src port 10000")
    send(client, b"no reply to this")
    send(client, payload)
    near.await_log("tunnel up")
    assert answer(client, replies) == payload[::-1]


# -- who does not ---------------------------------------------------------------------------


def test_wrong_keys_are_refused_and_counted(hosts):
    """Nothing is made for them, and each is counted."""
    server, client = hosts
    keys, others = ipipou.Keys(server), ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    before = server.snapshot()
    good = signed(keys.private)
    long = signed(keys.private) + bytes(440)
    for payload in (
        signed(others.private),
        signed(keys.private, secret="another"),
        good[:-1] + bytes([good[-1] ^ 1]),
        good + b"\0",  # not signed
        b"",
        b"\x80",
        good[:72],
        long,
    ):
        send(client, payload)
    near.await_rejected(wrong_signature=4, empty=1, truncated=2, oversized=1)
    assert near.show()["accepted"] == 0
    assert server.snapshot() == before
    assert near.tunnel() is None and near.admitted() == {}
    assert client.ping(SERVER).received  # the network is fine
    send(client, good)
    near.await_accepted(1)


def test_wrong_tokens_are_refused_and_counted(hosts):
    server, client = hosts
    near = ipipou.server(server, "--auth-token", "hello")
    before = server.snapshot()
    for payload in (b"hell", b"hello ", b"\0hello", b"Hello"[::-1], b"x" * 1472, b""):
        send(client, payload)
    near.await_rejected(wrong_token=5, empty=1)
    assert near.show()["accepted"] == 0
    assert server.snapshot() == before
    assert near.tunnel() is None and near.admitted() == {}
    send(client, b"hello")
    near.await_accepted(1)


def test_a_replay_moves_nothing_even_after_a_restart(hosts):
    """What was sent once moves nothing, also after the server was killed and started again."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    on_wire = server.capture("eth0", "udp dst port 10000")
    ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    near.await_accepted(1)
    first = on_wire.await_packets(1)[0].payload

    def unmoved():
        assert near.tunnel()["remote"] == CLIENT
        assert near.admitted() == {f"{CLIENT}:10000": None}
        reach_each_other(server, client)

    send(client, first, source=STRANGER)
    near.await_rejected(replayed=1)
    newest = signed(keys.private, seconds=int(time.time()) + 5)
    send(client, newest)
    near.await_accepted(2)
    send(client, first, source=STRANGER)
    send(client, newest, source=STRANGER)
    send(client, newest, port=10001)
    near.await_rejected(replayed=3, older_than_accepted=1)
    unmoved()

    near.process.kill()
    unmoved()
    near.start()
    send(client, first, source=STRANGER)
    send(client, newest, source=STRANGER)
    near.await_rejected(replayed=1, older_than_accepted=1)
    unmoved()
    assert near.show()["accepted"] == near.show()["moved"] == 0


def test_a_replay_after_a_stop_is_refused(hosts):
    """The server was stopped: its memory is all that is left."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    packet = signed(keys.private)
    send(client, packet)
    near.await_accepted(1)
    assert near.process.stop() == 0
    near.start()
    before = server.snapshot()
    send(client, packet, source=STRANGER)
    near.await_rejected(replayed=1)
    assert server.snapshot() == before and near.tunnel() is None


# -- time -----------------------------------------------------------------------------------


def test_time_discrepancy(hosts):
    """A wrong clock is refused; a client that starts again is not."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, "--auth-max-time-discrepancy", "30", keys=keys)
    now = int(time.time())
    for seconds in (now - 60, now + 60, 0, 2**40 - 1):
        send(client, signed(keys.private, seconds=seconds))
    near.await_rejected(clock_differs=4)
    assert near.tunnel() is None
    send(client, signed(keys.private, seconds=now - 15))
    near.await_accepted(1)
    far = ipipou.client(client, keys=keys)
    near.await_accepted(2)
    far.process.stop()
    far.start()
    near.await_accepted(3)
    reach_each_other(server, client)


def test_any_time_is_accepted_without_a_limit(hosts):
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    send(client, signed(keys.private, seconds=1))
    near.await_accepted(1)


def test_client_clock_goes_back(hosts):
    """It is still let in, also when it starts again; and when the clock is right again. That the
    clock was set is a reason to authenticate."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    far = ipipou.client(client, keys=keys)
    near.await_accepted(1)
    offset = time.time() - time.monotonic()
    try:
        time.clock_settime(time.CLOCK_REALTIME, 36000)  # 1970: a router without a clock
        near.await_accepted(2)
        far.process.stop()
        far.start()
        near.await_accepted(3)
    finally:
        time.clock_settime(time.CLOCK_REALTIME, offset + time.monotonic())
    near.await_accepted(4)
    assert near.rejected() == {}
    reach_each_other(server, client)


def test_lifetime(hosts):
    """An authentication runs out: data is refused until there is a new one."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, "--auth-lifetime", "8", keys=keys)
    far = ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    assert client.ping(INNER_SERVER, count=1).received == 1
    near.await_log("has run out")
    on_wire = client.capture("eth0", f"udp and src {SERVER}")
    assert server.ping(INNER_CLIENT, count=2, timeout=0.2).received == 0
    assert client.ping(INNER_SERVER, count=2, timeout=0.2).received == 0
    near.await_dropped(stranger_data=2)
    assert near.admitted() == {}
    assert not near.show()["tunnels"][0]["admitted"]

    far.reauthenticate()
    near.await_log("authenticated again")
    # The first packet that the server sends to it: nothing came while it was not admitted.
    inner = packets.inner_icmp_echo(INNER_CLIENT, INNER_SERVER, ident=0x333)
    send(client, inner)
    assert on_wire.await_packets(1)[0].inner.payload[4:6] == b"\x03\x33"
    assert client.ping(INNER_SERVER, count=1).received == 1


def test_keepalive_outlives_lifetime(hosts):
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, "--auth-lifetime", "5", keys=keys)
    ipipou.client(client, "--keepalive", "0.5", keys=keys)
    near.await_log("tunnel up")
    again = lambda: near.process.output().count("authenticated again")  # noqa: E731
    await_(lambda: again() >= 12, what="more than a lifetime of authentications")
    assert "run out" not in near.process.output()
    assert client.ping(INNER_SERVER, count=1).received == 1
