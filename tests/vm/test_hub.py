"""A server whose peers are named in files, on the kernel's datapath: a link for each peer that is
connected, and rules that queue hellos and answers."""

import json

import pytest

from control_v2 import Client
from failover import first_goes, flooded_by_the_first_and_let_in_by_the_next
from given import given_and_changed
from hub import (
    PORT,
    Hub,
    await_state,
    data_as_long_as_a_hello_passes,
    hellos,
    inner,
    is_to,
    killed_and_started_again,
    peers,
    reload,
    states,
)
from ipipou import SECRET, await_
from lan import await_reached, outer, reaches


def at(i, port=PORT):
    return f"{outer(i)}:{port}"


COUNTERS = [(way, what) for way in ("rx", "tx") for what in ("bytes", "packets")]


def link_of(host, peer):
    """The link that leads to the address of a peer."""
    (route,) = json.loads(host.run(["ip", "-j", "route", "get", peer["addresses"][0]]))
    return route["dev"]


@pytest.fixture
def hub(lab):
    return Hub(lab, clients=3, datapath="kernel")


def links(host):
    """The interfaces of peers."""
    return [link for link in host.run("ip -br link").split() if link.startswith("ipipou0-")]


def mtus(host):
    shown = json.loads(host.run("ip -j link"))
    return {link["mtu"] for link in shown if link["ifname"].startswith("ipipou0-")}


@pytest.mark.each_kernel
def test_peers_reach_the_server_and_each_other(hub):
    before = [host.snapshot() for host in hub.lan.hosts]
    # The links do not count what a fast path carries.
    near, ends = hub.connect("--fast-path", "off")
    for i, host in enumerate(hub.clients, 2):
        for other in {1, 2, 3, 4} - {i}:
            assert reaches(host, inner(other), count=2)
        assert reaches(hub.host, inner(i))
    assert {name: peer["remote"] for name, peer in peers(near).items()} == {
        "peer2": at(2),
        "peer3": at(3),
        "peer4": at(4),
    }
    assert len(links(hub.host)) == 3
    for peer in peers(near).values():
        # Those of its own link.
        (link,) = json.loads(hub.host.run(f"ip -j -s link show {link_of(hub.host, peer)}"))
        counted = {f"{way}_{what}": link["stats64"][way][what] for way, what in COUNTERS}
        assert {name: peer[name] for name in counted} == counted
        assert peer["rx_packets"] >= 6 and peer["tx_bytes"] >= 6 * 84
    assert hellos(near)["admitted"] == 3
    (tunnel,) = ends[0].show()["tunnels"]
    assert (tunnel["connected"], tunnel["connection"]["seen_as"]) == (True, at(2))
    assert ends[0].process.stop() == 0
    await_state(near, "peer2", "away")
    await_(lambda: len(links(hub.host)) == 2, what="two links")
    assert [end.process.stop() for end in (near, *ends[1:])] == [0] * 3
    assert [host.snapshot() for host in hub.lan.hosts] == before


def test_a_client_goes_to_the_next_server(lab):
    # The first answers take long in emulation, and two round trips are waited for.
    first_goes(Hub(lab, clients=2, datapath="kernel"), within=25)


def test_answers_forged_from_one_server_cost_another_none(lab):
    flooded_by_the_first_and_let_in_by_the_next(Hub(lab, clients=2, datapath="kernel"))


def test_a_client_has_the_address_that_the_server_gives_it(lab):
    given_and_changed(Hub(lab, clients=2, datapath="kernel"))


@pytest.mark.each_kernel
def test_spoofed_sources_and_strangers_are_dropped(hub):
    near, _ = hub.connect()
    seen = hub.answers()
    one, stranger = hub.clients[0], hub.lan.host
    one.send_fou(outer(2), PORT, outer(1), PORT, inner(3), inner(1))
    stranger.send_fou(hub.lan.ADDRESS, PORT, outer(1), PORT, inner(2), inner(1))
    stranger.send_udp(hub.lan.ADDRESS, PORT, outer(1), PORT, b"\x90" * 128)
    near.await_dropped(stranger_data=1, stranger_other=1)
    filtered = "nstat -asz TcpExtIPReversePathFilter"
    await_(lambda: " 1 " in hub.host.run(filtered), what="a source that is not routed there")
    one.send_fou(outer(2), PORT, outer(1), PORT, inner(2), inner(1))
    seen.await_packets(1, condition=is_to(inner(2)))
    assert not seen.matching(is_to(inner(3)))


@pytest.mark.each_kernel
def test_data_as_long_as_a_hello_is_data(lab):
    data_as_long_as_a_hello_passes(Hub(lab, clients=2, datapath="kernel"))


def test_the_links_of_peers_follow_the_uplink_with_their_mtu(hub):
    hub.connect()
    for uplink in (1400, 1500):
        hub.host.run(f"ip link set eth0 mtu {uplink}")
        await_(lambda: mtus(hub.host) == {uplink - 28}, what=f"an MTU that fits {uplink}")
    assert hub.host.ping(inner(2), "-M", "do", size=1500 - 56).received == 3


@pytest.mark.each_kernel
def test_a_server_that_was_killed_goes_on_without_a_loss(hub):
    """Its links and rules carry data meanwhile; each peer has one lease to say hello."""
    killed_and_started_again(hub)


def test_a_change_of_the_files_disturbs_nobody_else(hub):
    hub.forget(4)
    near = hub.server()
    for i in (2, 3):
        hub.client(i).await_log("connected to")
    ping = hub.clients[0].ping_background(inner(1))
    ping.await_answers()
    hub.name(4)
    assert "1 added, 0 changed, 0 removed, 2 untouched" in reload(near)
    hub.client(4).await_log("connected to")
    hub.name(3, enabled=False)
    assert "0 added, 1 changed, 0 removed, 2 untouched" in reload(near)
    await_(lambda: len(links(hub.host)) == 2, what="two links")
    ping.stop_complete()
    assert hub.host.run(["ping", "-c1", inner(3)], check=False).returncode != 0


@pytest.mark.each_kernel
def test_links_and_rules_of_the_others_stay_as_one_comes_and_goes(hub):
    near, ends = hub.connect()

    def there():
        """All rules by their numbers, and all links by theirs."""
        rules = hub.host.run("nft -a list ruleset").splitlines()
        shown = hub.host.run("ip -o link").splitlines()
        mine = {link.split("@")[0] for link in shown if "ipipou0-" in link}
        return {rule.split("# handle ")[1] for rule in rules if "# handle " in rule} | mine

    with_all = there()
    assert ends[0].process.stop() == 0
    await_state(near, "peer2", "away")
    await_(lambda: len(links(hub.host)) == 2, what="two links")
    without = there()
    # Its link, and two rules about what ICMP errors quote.
    assert without < with_all and len(with_all - without) == 3
    hub.client(2).await_log("connected to")
    await_reached(hub.host, inner(2))
    assert without < there() and len(there() - without) == 3
    near.show()  # the host is read
    near.show()
    assert there() > without and "repairing" not in near.process.output()


def test_what_this_datapath_cannot_carry_keeps_nobody_else_in(lab):
    """The kernel's isolates nobody. Who is to be isolated stays as it was, or out; everybody else's entry
    counts at once, and the next start takes the other datapath, if its own files cannot be read either.
    """
    hub = Hub(lab, clients=3, datapath="auto")
    hub.host.run("modprobe tun")
    hub.forget(4)
    memory = "--memory-dir", hub.peers.parent / "memory"
    near = hub.server(*memory)
    for i in (2, 3):
        hub.client(i).await_log("connected to")
    hub.name(2, isolate=True, note="another")
    hub.name(3, enabled=False)
    hub.name(4, isolate=True)
    said = reload(near)
    assert "peer peer2: `isolate` needs the userspace datapath" in said and ": restart it;" in said
    assert states(near) == {"peer2": "connected", "peer3": "disabled"}
    assert peers(near)["peer2"]["note"] == "another"
    assert near.process.stop() == 0
    hub.write("broken.toml", "[")
    again = hub.server(*memory)
    again.await_log("the kernel's cannot isolate peers")
    assert states(again) == {"peer2": "new", "peer3": "disabled", "peer4": "new"}


def test_peers_are_isolated_by_userspace_only(hub):
    near = hub.server()
    hub.name(2, isolate=True)
    said = reload(near)
    assert "peer peer2: `isolate` needs the userspace datapath" in said
    assert "leave `datapath` out of its options, and restart it" in said
    assert near.process.stop() == 0
    again = hub.server("--memory-dir", hub.peers.parent / "none", ready=False)
    assert again.process.wait() == 2
    assert "--datapath kernel: peer peer2 has `isolate`" in again.process.output()


@pytest.mark.each_kernel
def test_a_peer_moves_behind_its_nat(hub):
    """Two peers behind one address, one of which gets another port."""
    near = hub.server()
    players = [Client(hub.keys[i].private, hub.keys[1].public, SECRET) for i in (2, 3)]
    host, seen = hub.clients[0], hub.clients[0].capture("eth0", f"udp and src port {PORT}")

    def come(player, port):
        for _ in range(2):
            before = len(seen.packets())
            host.send_udp(outer(2), port, outer(1), PORT, player.hello())
            answer = seen.await_packets(before + 1)[-1]
            heard = player.hear(answer.payload)
        return heard

    assert [come(player, port) for player, port in zip(players, (4001, 4002))] == [0x82, 0x82]
    assert [peers(near)[f"peer{i}"]["remote"] for i in (2, 3)] == [at(2, 4001), at(2, 4002)]
    # The second one's mapping is the first one's now.
    assert come(players[1], 4001) == 0x82
    near.await_log("peer2 is not connected any more.*: peer3 is at this address and port now")
    assert states(near) == {"peer2": "away", "peer3": "connected", "peer4": "new"}


def test_a_full_client_follows_its_server(hub):
    """The client's rules queue answers, and nothing that others send."""
    hub.name(2, lifetime="30s")  # so long it takes until the client is sure
    near, ends = hub.connect()
    host = hub.clients[0]
    for payload in (b"\x82" * 128, b"\x81\2" + bytes(126)):
        hub.lan.host.send_udp(hub.lan.ADDRESS, PORT, outer(2), PORT, payload)
    ends[0].await_dropped(stranger_other=2)
    near.process.kill()
    ends[0].reauthenticate()
    ends[0].await_log("not connected: no answer from", timeout=60)
    near = hub.server()
    ends[0].reauthenticate()
    ends[0].await_log(r"(?s)no answer from.*\bconnected to", timeout=60)
    await_reached(host, inner(1))
