"""--learn: one server for many clients, who share its token or key and reach each other by it."""

import time

import pytest

import ipipou
from first_version import signed
from lab import await_
from many_ends import (
    TUN,
    Lan,
    await_dropped,
    await_reached,
    dropped,
    outer,
    assert_unanswered,
    reaches,
    refusal,
    warnings,
)

NETWORK, NETWORK6 = "10.9.0.0/24", "fd09::/64"
PORT = 10000
TOKEN = ("--auth-token", "the token")
SERVER = outer(1)


def inner(i):
    return f"10.9.0.{i}"


def inner6(i):
    return f"fd09::{i}"


class Star:
    """The server is host 1; its clients are the others."""

    def __init__(self, lab, clients=3, keys=None, proof=(), ip6=False):
        self.lan = Lan(lab, 1 + clients, ip6=ip6)
        self.host, *self.clients = self.lan.hosts
        self.keys, self.proof = keys and ipipou.Keys(self.host), proof
        self.ip6 = ip6

    def server(self, *options):
        own = ["--learn", "--tunl-ip", f"{inner(1)}/24", *self.proof]
        own += ["--ip6", f"{inner6(1)}/64"] if self.ip6 else []
        return ipipou.server(self.host, *own, *TUN, *options, keys=self.keys)

    def client(self, i, *options):
        """The client on host `i`; its inner address ends in `i`."""
        own = ["--tunl-ip", inner(i), "--tunl-peer-ip", inner(1), "--route", NETWORK]
        own += ["--ip6", f"{inner6(i)}/64"] if self.ip6 else []
        host, remote = self.lan.hosts[i - 1], f"{SERVER}:{PORT}"
        return ipipou.client(host, *own, *self.proof, *TUN, *options, remote=remote, keys=self.keys)

    def all_clients(self, server):
        """All of them; each is known to the server, and has sent it something."""
        started = [self.client(i) for i in range(2, 2 + len(self.clients))]
        server.await_accepted(len(started))
        for host in self.clients:
            await_reached(host, inner(1))
        return started

    def data(self, i, source, to=None, port=PORT, **echo):
        """An inner echo request as host `i` would send it, from any inner address."""
        self.lan.hosts[i - 1].send_fou(outer(i), port, SERVER, PORT, source, to or inner(1), **echo)


def learned(server):
    return {entry["inner"]: entry["remote"] for entry in server.show()["learned"]}


def remotes(server):
    (tunnel,) = server.show()["tunnels"]
    return {remote["remote"] for remote in tunnel["remotes"]}


def at(i, port=PORT):
    return f"{outer(i)}:{port}"


# -- reaching each other --------------------------------------------------------------------


@pytest.mark.parametrize("keys", [False, True], ids=["token", "key"])
def test_clients_reach_the_server_and_each_other(lab, keys):
    star = Star(lab, keys=keys, proof=() if keys else TOKEN, ip6=True)
    star.host.sysctl("net.ipv6.conf.all.forwarding", 1)  # the program sees to IPv4 only
    before = [host.snapshot() for host in star.lan.hosts]
    near = star.server()
    ends = star.all_clients(near)
    for host in star.clients:
        await_reached(host, inner6(1))
    for i, host in enumerate(star.clients, 2):
        for other in {1, 2, 3, 4} - {i}:
            assert reaches(host, inner(other), count=2)
            assert reaches(host, inner6(other), count=2)
        assert reaches(star.host, inner(i)) and reaches(star.host, inner6(i))
    both = {inner(i): at(i) for i in (2, 3, 4)} | {inner6(i): at(i) for i in (2, 3, 4)}
    assert learned(near) == both
    assert remotes(near) == {at(2), at(3), at(4)}
    text = star.host.run(["ipipou", "show", "--runtime-root", near.root, "ipipou0"])
    assert "3 remotes" in text and f"learned {inner(2)} at {at(2)}, " in text
    assert near.rejected() == {}
    assert [end.process.stop() for end in (near, *ends)] == [0] * 4
    assert [host.snapshot() for host in star.lan.hosts] == before


def test_an_unknown_inner_address_is_unreachable(lab):
    """A client that asks for an address nobody has hears of it from the server."""
    star = Star(lab, clients=1, proof=TOKEN)
    # A router with one interface sends redirects as well, which ping may show first.
    for interfaces in ("all", "default"):
        star.host.sysctl(f"net.ipv4.conf.{interfaces}.send_redirects", 0)
    near = star.server()
    star.all_clients(near)
    (client,) = star.clients
    seen = client.capture("ipipou0", "icmp")
    assert "Destination Host Unreachable" in refusal(client, inner(99))
    answer = seen.await_packets(1, condition=lambda p: p.payload[0] == 3)[0]
    assert (answer.payload[1], answer.dst) == (1, inner(2))
    assert "Destination Host Unreachable" in refusal(star.host, inner(98))
    await_dropped(near, tx_unreachable=2)


# -- who is learned -------------------------------------------------------------------------


def test_clients_of_one_key_may_have_different_clocks(lab):
    """Clients with one key need not be right about the time: two minutes are forgiven."""
    star = Star(lab, clients=3, keys=True)
    near = star.server()
    star.client(2)
    near.await_accepted(1)
    now = int(time.time())
    for accepted, (i, behind) in enumerate(((3, 30), (4, 100), (3, 29)), 2):
        packet = signed(star.keys.private, seconds=now - behind)
        star.lan.hosts[i - 1].send_udp(outer(i), PORT, SERVER, PORT, packet)
        near.await_accepted(accepted)
    # Neither older ones, nor the same again from elsewhere.
    old = signed(star.keys.private, seconds=now - 200)
    for payload in (old, packet):
        star.lan.host.send_udp(star.lan.ADDRESS, PORT, SERVER, PORT, payload)
    near.await_rejected(clock_differs=1, replayed=1)
    for i in (3, 4):
        star.data(i, inner(i))
    assert reaches(star.clients[0], inner(1))
    await_(lambda: learned(near) == {inner(i): at(i) for i in (2, 3, 4)}, what="three learned")
    assert remotes(near) == {at(2), at(3), at(4)}


def test_addresses_are_learned_only_from_authenticated_clients(lab):
    star = Star(lab, clients=3, proof=TOKEN)
    near = star.server()
    star.client(2)
    near.await_accepted(1)
    inside = star.host.capture("ipipou0", "icmp")
    star.data(3, inner(3))
    star.data(2, inner(2), port=PORT + 1)
    await_dropped(near, rx_stranger=2)
    star.lan.hosts[3].send_udp(outer(4), PORT, SERVER, PORT, b"another token")
    near.await_rejected(wrong_token=1)
    star.data(4, inner(4))
    # Of those who did: only addresses of the network, and not our own.
    for source in (inner(1), "10.10.0.2", "192.0.2.1"):
        star.data(2, source)
    await_dropped(near, rx_stranger=3, rx_wrong_source=3)
    assert learned(near) == {}
    star.data(2, inner(2))
    inside.await_packets(2)
    assert {p.src for p in inside.packets()} == {inner(2), inner(1)}
    assert learned(near) == {inner(2): at(2)} and remotes(near) == {at(2)}


def test_a_server_that_demands_no_proof_learns_from_anybody(lab):
    star = Star(lab, clients=3)
    near = star.server()
    near.await_log("--learn with no key, no token, no --auth-by-remote-ip: anybody is let in")
    for i in (2, 3):
        star.client(i)
    for i in (2, 3):
        await_reached(star.clients[i - 2], inner(1))
    assert reaches(star.clients[0], inner(3)) and reaches(star.clients[1], inner(2))
    star.data(4, inner(44))
    await_(lambda: inner(44) in learned(near), what="a stranger learned")
    assert learned(near) == {inner(2): at(2), inner(3): at(3), inner(44): at(4)}
    assert dropped(near) == {}


def test_an_address_is_not_taken_over_while_its_owner_is_alive(lab):
    star = Star(lab, clients=2, proof=TOKEN)
    near = star.server("--learn-lifetime", "3")
    owner, taker = star.all_clients(near)
    steady = star.clients[0].ping_background(inner(1), interval=0.1)
    await_(lambda: steady.answers() >= 2, what="answers")
    inside = star.host.capture("ipipou0", "icmp")
    tries = 0
    deadline = time.monotonic() + 4.5  # longer than the lifetime
    while time.monotonic() < deadline:
        star.data(3, inner(2), payload=b"taken")
        tries += 1
        await_dropped(near, rx_wrong_source=tries)
    inside.await_packets(10)
    assert not inside.matching(lambda p: b"taken" in p.payload)
    assert learned(near)[inner(2)] == at(2)
    steady.stop_complete()

    # He is silent: it is free, and whose it is then.
    def taken():
        star.data(3, inner(2), payload=b"taken")
        return learned(near).get(inner(2)) == at(3)

    await_(taken, what="the address to be free", interval=0.2)
    inside.await_packets(1, condition=lambda p: b"taken" in p.payload and p.src == inner(2))
    before = dropped(near)["rx_wrong_source"]
    for i in (3, 2):
        star.data(i, inner(2))
    await_dropped(near, rx_wrong_source=before + 1)
    assert (owner.process.stop(), taker.process.stop()) == (0, 0)


def test_learn_limit_bounds_addresses_and_clients(lab):
    """--learn-limit: this many inner addresses, and this many clients. A silent one makes room, and
    nobody else does."""
    star = Star(lab, clients=3, proof=TOKEN)
    near = star.server("--learn-limit", "2", "--learn-lifetime", "4")
    star.client(2)
    near.await_accepted(1)
    for last in (2, 20, 21):
        star.data(2, inner(last))
    await_dropped(near, rx_wrong_source=1)
    assert set(learned(near)) == {inner(2), inner(20)}
    # They fall silent, and there is room.
    await_(lambda: learned(near) == {}, what="room in the table")
    star.data(2, inner(21))
    await_(lambda: set(learned(near)) == {inner(21)}, what="another address")


def test_a_live_client_is_not_pushed_out(lab):
    """A third client finds no room while the others send something, if only data."""
    star = Star(lab, clients=3, proof=TOKEN)
    near = star.server("--learn-limit", "2", "--learn-lifetime", "4")
    first, second = star.client(2, "--keepalive", "1"), star.client(3)
    await_(lambda: remotes(near) == {at(2), at(3)}, what="two clients")
    steady = star.clients[1].ping_background(inner(1), interval=0.1)
    await_(lambda: steady.answers() >= 2, what="answers")
    third = star.client(4)

    def refused():
        third.reauthenticate()
        return near.rejected().get("no_room", 0)

    deadline = time.monotonic() + 9  # longer than two lifetimes
    while time.monotonic() < deadline:
        refused()
        time.sleep(0.2)
    assert refused() and set(near.rejected()) == {"no_room"}
    assert remotes(near) == {at(2), at(3)}
    assert learned(near)[inner(3)] == at(3)
    near.await_log("--learn-limit clients are known, and none was silent")
    steady.stop_complete()
    # The one that sends nothing any more makes room, the other one does not.
    await_(lambda: refused() and at(4) in remotes(near), what="room", interval=0.2)
    assert remotes(near) == {at(2), at(4)}
    near.await_log(f"{at(3)} was silent for --learn-lifetime")
    assert [end.process.stop() for end in (near, first, second, third)] == [0] * 4


# -- what changes ---------------------------------------------------------------------------


def test_a_client_that_roams(lab):
    """It authenticates from its new address; the old one has its inner address a while longer."""
    star = Star(lab, clients=2, keys=True)
    near = star.server("--learn-lifetime", "3")
    roaming, _ = star.all_clients(near)
    host, other = star.clients
    host.batch(f"addr del {outer(2)}/24 dev eth0", f"addr add {outer(22)}/24 dev eth0")
    roaming.await_log(f"our outer address is now {outer(22)}")
    near.await_accepted(3)
    await_reached(host, inner(1))
    assert learned(near)[inner(2)] == at(22)
    await_reached(other, inner(2))
    assert reaches(host, inner(3), count=2)


def test_clients_with_a_key_continue_after_a_kill_of_the_server(lab):
    """Clients with a key go on at once: who they are is on the disk."""
    star = Star(lab, clients=2, keys=True)
    near = star.server()
    star.all_clients(near)
    near.process.kill()
    near.start()
    assert remotes(near) == {at(2), at(3)}
    for i, host in enumerate(star.clients, 2):
        assert reaches(host, inner(1), count=2)
        assert learned(near)[inner(i)] == at(i)
    assert reaches(star.clients[0], inner(3), count=2)
    assert near.show()["accepted"] == 0 and dropped(near) == {}


@pytest.mark.parametrize("proof", ["key", "token"])
def test_a_killed_server_still_knows_whose_an_inner_address_is(lab, proof):
    """Nobody takes the address of a client that says nothing for a moment, and what is sent to it
    arrives before it has said something."""
    with_keys = proof == "key"
    star = Star(lab, clients=2, keys=with_keys, proof=() if with_keys else TOKEN)
    near = star.server()
    owner, taker = star.all_clients(near)
    on_disk = near.state / "memory.json"
    await_(lambda: all(inner(i) in on_disk.read_text() for i in (2, 3)), what="both on the disk")
    near.process.kill()
    near.start()
    if not with_keys:
        taker.reauthenticate()  # it is the first to return
        await_(lambda: remotes(near) == {at(3)}, what="the other client")
    star.data(3, inner(2))
    await_dropped(near, rx_wrong_source=1)
    assert learned(near)[inner(2)] == at(2)
    if not with_keys:
        assert_unanswered(star.host, inner(2))  # nothing is sent before it proved itself again
        owner.reauthenticate()
        await_(lambda: remotes(near) == {at(2), at(3)}, what="both clients")
    assert reaches(star.host, inner(2), count=2)


def test_clients_with_a_token_return_after_a_kill_of_the_server(lab):
    """A token is not on the disk: clients are known again after their next keepalive."""
    star = Star(lab, clients=2, proof=TOKEN)
    near = star.server()
    for i in (2, 3):
        star.client(i, "--keepalive", "1")
    for host in star.clients:
        await_reached(host, inner(1))
    near.process.kill()
    near.start()
    for host in star.clients:
        await_reached(host, inner(1))
    assert reaches(star.clients[0], inner(3), count=2)
    assert near.show()["accepted"] >= 2
    assert not [line for line in warnings(near) if "refused" in line]


def test_each_clients_authentication_expires_separately(lab):
    """--auth-lifetime: each client's own, and its inner address is learned again."""
    star = Star(lab, clients=2, proof=TOKEN)
    near = star.server("--auth-lifetime", "4")
    star.client(2, "--keepalive", "0.5")
    star.client(3)
    for host in star.clients:
        await_reached(host, inner(1))
    near.await_log(f"the authentication of {at(3)} has run out")
    assert remotes(near) == {at(2)} and learned(near) == {inner(2): at(2)}
    assert reaches(star.clients[0], inner(1), count=2)
    before = dropped(near).get("rx_stranger", 0)
    assert_unanswered(star.clients[1], inner(1))
    await_dropped(near, rx_stranger=before + 1)
