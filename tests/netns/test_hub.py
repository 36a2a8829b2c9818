"""A server whose peers are named in files (--peers): who is let in, by which inner addresses, and what a
change of the files disturbs."""

import base64
import contextlib
import ipaddress
import os
import signal
import time

import nacl.signing
import pytest

import ipipou
from control_v2 import Client
from given import addresses, given_and_changed
from hub import (
    LIFETIME,
    PORT,
    Hub,
    await_state,
    data_as_long_as_a_hello_passes,
    hellos,
    inner,
    inner6,
    peers,
    states,
)
from ipipou import SECRET
from lab import await_
from lan import await_dropped, await_reached, dropped, assert_unanswered, outer, reaches


HEADINGS = ["PEER", "STATE", "REMOTE", "ADDRESS", "SEEN", "RTT", "RX", "TX"]


def at(i, port=PORT):
    return f"{outer(i)}:{port}"


def test_peers_reach_the_server_and_each_other(lab):
    hub = Hub(lab, ip6=True)
    hub.host.sysctl("net.ipv6.conf.all.forwarding", 1)  # the program sees to IPv4 only
    before = [host.snapshot() for host in hub.lan.hosts]
    near, ends = hub.connect()
    for i, host in enumerate(hub.clients, 2):
        for other in {1, 2, 3, 4} - {i}:
            assert reaches(host, inner(other), count=2)
            assert reaches(host, inner6(other), count=2)
        assert reaches(hub.host, inner(i)) and reaches(hub.host, inner6(i))
    assert {name: peer["remote"] for name, peer in peers(near).items()} == {
        "peer2": at(2),
        "peer3": at(3),
        "peer4": at(4),
    }
    assert set(states(near).values()) == {"connected"}
    shown = near.show()["peers"]
    assert shown["by_state"] == {"connected": 3, "away": 0, "new": 0, "expired": 0, "disabled": 0}
    assert shown["public_key"] == hub.keys[1].public
    # Each said hello twice: without a cookie, and with it.
    assert hellos(near) == {"challenged": 3, "admitted": 3}
    (tunnel,) = ends[0].show()["tunnels"]
    assert (tunnel["connected"], tunnel["connection"]["seen_as"]) == (True, at(2))
    assert tunnel["connection"]["inner"] == [f"{inner(2)}/24", f"{inner6(2)}/64"]
    text = hub.host.run(["ipipou", "show", "--runtime-root", near.root, "ipipou0"])
    assert "peers: 3 connected" in text and f"peer2  connected  {at(2)}" in text
    assert [end.process.stop() for end in ends] == [0] * 3
    await_(lambda: set(states(near).values()) == {"away"}, what="three who said goodbye")
    assert near.process.stop() == 0
    assert [host.snapshot() for host in hub.lan.hosts] == before


@pytest.mark.parametrize("of_all", [0, 1])
def test_peers_that_reach_each_other_get_no_redirects(lab, of_all):
    """The kernel would, for packets that leave by the interface that they came in by."""
    hub = Hub(lab, clients=2)
    hub.host.sysctl("net.ipv4.conf.all.send_redirects", of_all)
    near, ends = hub.connect()
    said = hub.host.capture("ipipou0", "icmp[icmptype] = icmp-redirect")
    await_reached(hub.clients[0], inner(3))
    for _ in range(3):
        assert hub.clients[0].ping(inner(3), count=1).received == 1
    heard = [end.show()["dropped"]["rx_redirect"]["packets"] for end in ends]
    assert heard == [0, 0]
    kept = near.show()["dropped"]["tx_redirect"]["packets"]
    assert kept == len(said.packets()) and bool(kept) == bool(of_all)


def test_a_client_moves_and_says_goodbye(lab):
    hub = Hub(lab, clients=2)
    near, (one, _) = hub.connect()
    one.process.kill()
    (client, _) = hub.clients
    moved = hub.client(2, "--fou-local-port", 10007)
    moved.await_log("connected to")
    near.await_log(f"peer2 moved from {at(2)} to {at(2, 10007)}")
    await_reached(client, inner(1))
    assert peers(near)["peer2"]["remote"] == at(2, 10007)
    assert moved.process.stop() == 0
    near.await_log("peer2 is not connected any more.*: it said goodbye")
    assert states(near) == {"peer2": "away", "peer3": "connected"}
    assert_unanswered(hub.host, inner(2))


def test_traffic_is_counted_for_each_peer(lab):
    """Inner packets and their bytes, while it is connected, wherever it goes."""
    hub = Hub(lab, clients=2)
    near, (one, _) = hub.connect()

    def counted(name="peer2"):
        peer = peers(near)[name]
        return [peer[f"{way}_{what}"] for way in ("rx", "tx") for what in ("packets", "bytes")]

    assert counted() == counted("peer3") == [0, 0, 0, 0]
    assert reaches(hub.clients[0], inner(1), count=3)
    each = 20 + 8 + 56  # of ping(8)
    assert counted() == [3, 3 * each, 3, 3 * each]
    assert counted("peer3") == [0, 0, 0, 0]
    # What goes from one to the other is counted for both; the host's redirects are not sent.
    assert reaches(hub.clients[0], inner(3), count=2)
    for name, packets in (("peer2", 5), ("peer3", 2)):
        assert counted(name) == [packets, packets * each] * 2
    # What is not let in is not counted.
    hub.clients[0].send_fou(outer(2), PORT, outer(1), PORT, inner(3), inner(1))
    await_dropped(near, rx_wrong_source=1)
    one.process.kill()
    moved = hub.client(2, "--fou-local-port", 10007)
    near.await_log("peer2 moved from")
    await_reached(hub.clients[0], inner(1))
    packets, size, *_ = counted()
    assert packets > 5 and size == packets * each
    moved.process.stop()
    await_state(near, "peer2", "away")
    assert counted() == [None] * 4


@pytest.mark.parametrize("fast_path", ["auto", "off"])
def test_data_as_long_as_a_hello_is_data(lab, fast_path):
    hub = Hub(lab, clients=2)
    hub.datapath += ["--fast-path", fast_path]
    data_as_long_as_a_hello_passes(hub)


def test_a_goodbye_is_said_until_it_is_heard(lab):
    hub = Hub(lab, clients=2)
    near, (one, other) = hub.connect()
    hub.host.nft(
        "table ip loss { chain lost { type filter hook prerouting priority -400;"
        f" ip saddr {outer(2)} udp dport {PORT} counter drop\n}}\n}}"
    )
    one.process.send_signal(signal.SIGTERM)
    await_(lambda: "packets 1 " in hub.host.run("nft list table ip loss"), what="a lost goodbye")
    hub.host.run("nft delete table ip loss")
    assert one.process.wait() == 0
    near.await_log("peer2 is not connected any more.*: it said goodbye")
    # Without a server it takes less than a second.
    near.process.kill()
    begin = time.monotonic()
    assert other.process.stop() == 0
    assert time.monotonic() - begin < 2


def test_a_client_has_the_address_that_the_server_gives_it(lab):
    given_and_changed(Hub(lab, clients=2, ip6=True))


def test_a_client_without_a_server_has_no_address_until_it_answers(lab):
    hub = Hub(lab, clients=1)
    far = hub.guest(2)
    far.await_log("no address inside the tunnel yet: waiting for the server to give one")
    assert addresses(hub.clients[0]) == [] and "10.8" not in hub.clients[0].run("ip route")
    (tunnel,) = far.show()["tunnels"]
    assert (tunnel["inner"], tunnel["inner_peer"]) == ("-", "-")
    near = hub.server()
    far.await_log("connected to", timeout=40)
    await_reached(hub.clients[0], inner(1))
    assert near.process.stop() == 0 and far.process.stop() == 0
    # The next start has it before anybody answers.
    far = hub.guest(2)
    assert addresses(hub.clients[0]) == [f"{inner(2)}/24"]


def test_a_peer_sends_from_its_own_addresses_only(lab):
    hub = Hub(lab, clients=2)
    hub.name(2, route=["192.168.7.0/24"])
    near, _ = hub.connect()
    seen = hub.host.capture("ipipou0", "icmp")
    one = hub.clients[0]

    def send(source, host=one, i=2):
        host.send_fou(outer(i), PORT, outer(1), PORT, source, inner(1))

    for source in (inner(2), "192.168.7.9"):
        send(source)
        seen.await_packets(1, condition=lambda p: p.src == source)
    for source in (inner(3), inner(1), "192.168.8.1"):
        send(source)
    await_dropped(near, rx_wrong_source=3)
    # Nor may a stranger, whatever its source.
    hub.lan.host.send_fou(hub.lan.ADDRESS, PORT, outer(1), PORT, inner(2), inner(1))
    await_dropped(near, rx_wrong_source=3, rx_stranger=1)


def test_networks_behind_a_peer_are_routed_while_it_is_connected(lab):
    hub = Hub(lab, clients=1)
    hub.name(2, route=["192.168.7.0/24"])
    behind = hub.clients[0]
    behind.run("ip addr add 192.168.7.1/32 dev lo")
    near, (far,) = hub.connect()
    await_(lambda: "192.168.7.0/24" in hub.host.run("ip route show proto 105"), what="route")
    await_reached(hub.host, "192.168.7.1")
    assert far.process.stop() == 0
    await_(lambda: "192.168.7.0/24" not in hub.host.run("ip route"), what="route that is gone")


def test_a_client_says_that_nobody_answers(lab):
    hub = Hub(lab, clients=1)
    far = hub.client(2)
    far.await_log("not connected: no answer from")
    (tunnel,) = far.show()["tunnels"]
    assert tunnel["connected"] is False and "no answer" in tunnel["connection"]["why"]
    hub.server()
    far.await_log("connected to", timeout=40)
    await_reached(hub.clients[0], inner(1))


def test_a_server_that_was_killed_has_its_clients_back(lab):
    """A client whose packets are not answered says hello by itself."""
    hub = Hub(lab, clients=2)
    near, _ = hub.connect()
    near.process.kill()
    near = hub.server()
    for host in hub.clients:
        await_reached(host, inner(1))
    assert set(states(near).values()) == {"connected"}


def test_a_recorded_hello_moves_nobody(lab):
    """Neither from the client's address, nor from another one, nor after a restart of the server."""
    hub = Hub(lab, clients=1)
    recorded = hub.host.capture("eth0", f"udp and dst port {PORT} and src host {outer(2)}")
    near, (far,) = hub.connect()
    packets = recorded.await_packets(2)
    hello = [packet.payload for packet in packets]
    assert [len(payload) for payload in hello] == [128, 128]

    def replay():
        for payload in hello:
            hub.lan.host.send_udp(hub.lan.ADDRESS, PORT, outer(1), PORT, payload)
            hub.lan.host.send_udp(outer(2), PORT, outer(1), PORT, payload)

    challenged = hellos(near)["challenged"]
    replay()
    await_(lambda: hellos(near)["challenged"] == challenged + 4, what="four challenges")
    assert peers(near)["peer2"]["remote"] == at(2)
    assert hellos(near)["admitted"] == 1
    far.process.send_signal(signal.SIGKILL)
    near.process.kill()
    near = hub.server()
    replay()
    await_(lambda: hellos(near) == {"challenged": 4}, what="four challenges")
    assert states(near) == {"peer2": "new"}


@pytest.mark.parametrize("isolated", [2, 3])
def test_an_isolated_peer_reaches_the_server_alone(lab, isolated):
    hub = Hub(lab, clients=3)
    hub.name(isolated, isolate=True)
    near, _ = hub.connect()
    two, three, four = hub.clients
    assert reaches(two, inner(1)) and reaches(three, inner(1))
    for one, other in ((two, inner(3)), (three, inner(2))):
        assert_unanswered(one, other)
    other = two if isolated == 3 else three
    assert reaches(other, inner(4)) and reaches(four, inner(1))
    assert near.show()["dropped"]["tx_isolated"]["packets"] > 0


def test_an_older_server_takes_hellos_as_authentication_packets(lab):
    """It never answers them; the client says so, and its data tells whether it is connected."""
    server, client = ipipou.neighbours(lab)
    keys = ipipou.Keys(server)
    near = ipipou.server(server, "--datapath", "tun", keys=keys)
    knows = ["--auth-remote-pubkey-b64", ipipou.Keys(server).public]
    far = ipipou.client(client, "--datapath", "tun", *knows, keys=keys)
    near.await_log("tunnel up")
    ipipou.reach_each_other(server, client)
    far.await_log("never answers: give --protocol 1")
    await_(lambda: far.show()["tunnels"][0]["connected"], what="a client that hears data")
    assert far.process.stop() == 0
    sent = server.capture("eth0", "udp and dst port 10000")
    far = ipipou.client(client, "--datapath", "tun", *knows, "--protocol", "1", keys=keys)
    (packet, *_) = sent.await_packets(1)
    assert len(packet.payload) == 73


class Crowd:
    """Peers that a test plays, at one address: behind one NAT, each has a port of its own."""

    def __init__(self, hub, host, address, count):
        self.address = address
        self.players, lines = {}, []
        for number in range(count):
            key = base64.b64encode(os.urandom(32)).decode()
            player = Client(key, hub.keys[1].public, SECRET)
            inside = f"10.8.1.{number}" if number else "10.8.1.250"
            lines += [f"[peer.played{number}]", f'public-key = "{player.public_text}"']
            lines += [f'address = "{inside}"', f'lifetime = "{LIFETIME}"', ""]
            socket = host.udp_socket(address, 20000 + number, timeout=0)
            self.players[number] = (player, socket, inside)
        hub.write("crowd.toml", "\n".join(lines))

    def come_back(self, within):
        """All of them say hello, each again after a second without an answer; how long that takes."""
        begin = time.monotonic()
        said = dict.fromkeys(self.players, float("-inf"))
        left = dict(self.players)
        while left:
            now = time.monotonic()
            assert now - begin < within, f"{len(left)} are not back after {within} s"
            for number, (player, socket, _) in list(left.items()):
                if now - said[number] >= 1:
                    player.cookie = None  # the server was started again
                    socket.sendto(player.hello(), (outer(1), PORT))
                    said[number] = now
                with contextlib.suppress(BlockingIOError):
                    match player.hear(socket.recv(2048)):
                        case 0x81:
                            socket.sendto(player.hello(), (outer(1), PORT))
                            said[number] = now
                        case 0x82:
                            del left[number]
        return time.monotonic() - begin


def test_two_hundred_peers_behind_one_address_are_back_soon_after_a_restart(lab):
    hub = Hub(lab, clients=3, prefix=16)
    crowd = Crowd(hub, hub.clients[0], outer(2), 197)
    near, _ = hub.connect()
    crowd.come_back(within=8)
    assert set(states(near).values()) == {"connected"}
    near.process.kill()
    near = hub.server()
    crowd.come_back(within=8)
    # The three that are real say hello when their data is not answered.
    for host in hub.clients:
        await_reached(host, inner(1))
    assert len(states(near)) == 200 and set(states(near).values()) == {"connected"}
    # Each is where it is.
    for _, socket, inside in crowd.players.values():
        hub.host.run(["ping", "-c1", "-W0.01", inside], check=False)
        socket.settimeout(5)
        packet = socket.recv(2048)
        assert (packet[0] >> 4, packet[16:20]) == (4, ipaddress.ip_address(inside).packed)


def test_hellos_are_answered_while_many_peers_are_checked(lab):
    hub = Hub(lab, clients=1, prefix=16)
    crowd = Crowd(hub, hub.clients[0], outer(2), 1)
    near = hub.server()
    crowd.come_back(within=8)
    ((player, socket, _),) = crowd.players.values()
    socket.settimeout(5)
    lines = []
    for number in range(3000):
        key = base64.b64encode(bytes(nacl.signing.SigningKey(os.urandom(32)).verify_key)).decode()
        lines += [f"[peer.many{number}]", f'public-key = "{key}"']
        lines += [f'address = "10.8.{2 + number // 250}.{1 + number % 250}"', ""]
    hub.write("many.toml", "\n".join(lines))
    near.process.send_signal(signal.SIGHUP)
    answered = 0
    while "3000 added, 0 changed, 0 removed, 2 untouched" not in near.process.output():
        socket.sendto(player.hello(signed=False), (outer(1), PORT))
        assert player.hear(socket.recv(2048)) == 0x82
        answered += 1
    assert answered >= 2, "not only once they were checked"
