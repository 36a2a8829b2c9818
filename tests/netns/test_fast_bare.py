"""The fast path by uplinks whose packets have no link header: a TUN interface, and another tunnel."""

import contextlib
import random

import pytest

import ipipou
import packets
from bare import bare_cable
from ipipou import CLIENT, SERVER, reach_each_other
from lab import await_
from test_fast_path import BARE, BOTH, TUN, carried, filters
from traffic import Echo, datagrams, no_damage, transfer_both_ways

pytestmark = pytest.mark.fast_path

ON = [*TUN, "--fast-path", "on"]
INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
NESTED_SERVER, NESTED_CLIENT = "172.28.0.2", "172.28.0.3"
# Of the uplink, and of the tunnel by it.
MTU, FITS = 1500, 1472
HEADERS = 28
STRANGER = "203.0.113.77"


@pytest.fixture
def pair(lab):
    """A server and a client whose uplink wire0 is a TUN interface, and the cable."""
    server, client = lab.host("server"), lab.host("client")
    for host in (server, client):
        host.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    with bare_cable((server, SERVER), (client, CLIENT)) as cable:
        keys = ipipou.Keys(server)
        near = ipipou.server(server, *ON, device="wire0", keys=keys)
        far = ipipou.client(client, *ON, device="wire0", keys=keys)
        near.await_log("tunnel up")
        for end in (near, far):
            end.await_log("fast path: by wire0")
            await_(lambda: filters(end.host, "wire0") == BARE, what="filters")  # noqa: B023
        yield server, client, near, cable


def counted(near):
    (tunnel,) = near.show()["tunnels"]
    return tunnel["rx_packets"], tunnel["tx_packets"]


def test_packets_pass_the_datapath_and_look_the_same(pair):
    server, client, near, cable = pair
    before = carried(server), carried(client)
    at_first = counted(near)
    cable.seen.clear()
    reach_each_other(server, client)
    seen = [packet for packet in cable.seen if packet[9] == packets.UDP and packet[28] == 0x45]
    assert len(seen) == 8
    for packet in seen:
        assert packet[0] == 0x45 and len(packet) == 84 + HEADERS and packet[8] == 64
        assert packets.checksum(packet[:20]) == 0 and packet[6:8] == b"\x40\x00"

    transfer_both_ways((server, client), 4)
    with contextlib.closing(Echo(client, server, INNER_SERVER)) as echo:
        echo.window(datagrams(random.Random(1), [1, 18, 100, 1000, FITS - HEADERS]))
    assert (carried(server), carried(client)) == before
    gained = [now - then for now, then in zip(counted(near), at_first)]
    # Four MiB are 2900 packets and more.
    assert all(more > 2900 for more in gained), gained
    assert max(map(len, cable.seen)) == MTU
    assert near.show()["fast_path"] == {"uplinks": ["wire0"], "remotes": 1, "why_not": None}
    no_damage((server, client))


def test_the_datapath_has_what_does_not_fit_and_what_is_odd(pair):
    server, client, near, cable = pair
    before = carried(client)
    whole = ["-M", "do"]
    assert client.ping(INNER_SERVER, *whole, size=FITS - HEADERS).received == 3
    assert carried(client) == before
    too_large = ["ping", "-c1", *whole, "-s", FITS - HEADERS + 1, INNER_SERVER]
    done = client.run(too_large, check=False)
    assert f"mtu={FITS}" in (done.stdout + done.stderr).replace("mtu = ", "mtu=")
    assert client.ping(INNER_SERVER, size=4000).received == 3  # in fragments
    assert carried(client) == before
    assert client.ping(INNER_SERVER, "-R").received == 3  # with an option
    assert carried(client) > before

    # What a stranger, or a forged inner source, sends by such an uplink gets nowhere.
    inside = server.capture("ipipou0", "icmp")
    for sender, port, source, what in [
        (STRANGER, 10000, INNER_CLIENT, b"a stranger"),
        (CLIENT, 10001, INNER_CLIENT, b"another port"),
        (CLIENT, 10000, INNER_CLIENT, b"the client"),
    ]:
        echo = packets.inner_icmp_echo(source, INNER_SERVER, payload=what)
        datagram = packets.udp(sender, port, SERVER, 10000, echo, with_checksum=False)
        cable.put(0, packets.ipv4(sender, SERVER, packets.UDP, datagram))
    assert inside.await_packets(1)[0].payload.endswith(b"the client")
    near.process.stop()
    assert filters(server, "wire0") == []


def test_a_tunnel_inside_a_tunnel(lab):
    """What came out of the outer one's programs enters those of the inner one. On the way out the kernel
    takes no second header from a program, so the outer datapath has those packets."""
    server, client = ipipou.neighbours(lab)
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, keys=keys)
    far = ipipou.client(client, *TUN, keys=keys)
    near.await_log("tunnel up")
    for end in (near, far):
        end.await_log("fast path: by eth0")
    within = ipipou.server(server, *ON, device="ipipou0", number=1, keys=keys)
    there = ipipou.client(
        client,
        *ON,
        remote=f"{INNER_SERVER}:10001",
        device="ipipou0",
        number=1,
        peer=1,
        keys=keys,
    )
    within.await_log("tunnel up")
    for end in (within, there):
        end.await_log("fast path: by ipipou0")
        await_(
            lambda: "ingress_bare"
            in end.host.run("tc filter show dev ipipou0 ingress"),  # noqa: B023
            what="a filter",
        )
    assert filters(server) == BOTH
    outer, nested = carried(server), server.statistics("ipipou1")
    ping = client.ping_background(NESTED_SERVER)
    reach_each_other(server, client, peer=1)
    ping.await_answers()
    ping.stop_complete()
    assert server.statistics("ipipou1") == nested, "the inner datapath had none of them"
    assert carried(server) > outer
    transfer_both_ways((server, client), 4, addresses=(NESTED_SERVER, NESTED_CLIENT))
    with contextlib.closing(Echo(client, server, NESTED_SERVER)) as echo:
        echo.window(datagrams(random.Random(1), [1, 100, FITS - 2 * HEADERS, 4000]))
    reach_each_other(server, client)
    no_damage((server, client))


def test_a_tunnel_that_routes_lead_into_itself_has_none(lab):
    server, client = ipipou.neighbours(lab)
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, keys=keys)
    far = ipipou.Tunnel(
        client,
        *["-c", "-b", CLIENT, "-r", f"{SERVER}:10000", "--tunl-ip", INNER_CLIENT, *ON],
        *["--auth-key-b64", keys.private, "--auth-secret", ipipou.SECRET],
    )
    near.await_log("tunnel up")
    far.await_log("fast path: by eth0")
    reach_each_other(server, client)
    client.run(f"ip route add {SERVER} dev ipipou0")
    far.await_log("no fast path: ipipou0 leads into this tunnel")
    await_(lambda: filters(client, "ipipou0") == [], what="no filters")
    before = carried(client)
    client.ping(INNER_SERVER, count=3, timeout=0.3)
    assert carried(client) - before < 100, "nothing goes round"
    client.run(f"ip route del {SERVER} dev ipipou0")
    await_(lambda: filters(client) == BOTH, what="filters")
    reach_each_other(server, client)
