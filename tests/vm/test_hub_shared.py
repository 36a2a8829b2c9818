"""A server with so many peers that they share one link of the kernel's datapath, and rules tell them apart."""

import json
import socket
import struct

import pytest

import ipipou
import packets
from control_v2 import Client
from hub import (
    PORT,
    Hub,
    await_state,
    data_as_long_as_a_hello_passes,
    inner,
    is_to,
    killed_and_started_again,
    more_than_have_links,
    reload,
    states,
)
from ipipou import SECRET, await_
from lan import assert_unanswered, await_reached, dropped, outer, reaches


NETWORK = "10.0.0.0/24"  # of the outer addresses
ALTERNATE = "172.29.0.0"

# The fast path lets in whom the rules let in, and these are all that there is without it.
BELOW = pytest.param("off", marks=pytest.mark.each_kernel)


@pytest.fixture
def hub(lab):
    return SharedHub(lab, clients=3, datapath="kernel", prefix=16)


class SharedHub(Hub):
    """One whose files name more peers than get links of their own; all but three never come."""

    def __init__(self, *more, **options):
        super().__init__(*more, **options)
        self.write("others.toml", more_than_have_links())


def another_server(hub):
    """It has a port and peers of its own, of which the one at host 3 is connected."""
    peers = hub.peers.parent / "others.d"
    peers.mkdir()
    one = f'[peer.one]\npublic-key = "{hub.keys[3].public}"\naddress = "10.9.0.3"\n\n'
    (peers / "all.toml").write_text(one + more_than_have_links().replace("10.8", "10.9"))
    secret = ["--auth-secret", SECRET]
    own = ["-s", "-b", "@eth0", "--tunl-ip", "10.9.0.1/16", "--peers", peers, *secret]
    own += ["--auth-key-b64", hub.keys[2].private, "--datapath", "kernel", "--fast-path", "off"]
    near = ipipou.Tunnel(hub.host, *own, number=1)
    own = ["-c", "-b", "@eth0", "-r", f"{outer(1)}:{PORT + 1}", *secret]
    own += ["--tunl-ip", "10.9.0.3", "--tunl-peer-ip", "10.9.0.1", "--datapath", "kernel"]
    own += ["--auth-key-b64", hub.keys[3].private, "--auth-remote-pubkey-b64", hub.keys[2].public]
    ipipou.Tunnel(hub.lan.hosts[2], *own, number=1).await_log("connected to")
    return near


def interfaces(hub):
    """The names of the tunnel's interfaces at the server."""
    names = [link["ifname"] for link in json.loads(hub.host.run("ip -j link"))]
    return [name for name in names if name.startswith("ipipou0")]


def routes(hub):
    """Where the server's routes lead that it has by the tunnel."""
    shown = json.loads(hub.host.run("ip -j route show dev ipipou0"))
    return {route["dst"]: route.get("gateway") for route in shown}


@pytest.mark.each_kernel
@pytest.mark.parametrize("fast_path", ["on", "off"])
def test_peers_reach_the_server_and_each_other(hub, fast_path):
    before = [host.snapshot() for host in hub.lan.hosts]
    near, ends = hub.connect("--fast-path", fast_path)
    for i, host in enumerate(hub.clients, 2):
        for other in {1, 2, 3, 4} - {i}:
            assert reaches(host, inner(other), count=2)
        assert reaches(hub.host, inner(i))
    near.await_log("the files of peers name 515 peers, and those that are connected share one")
    assert interfaces(hub) == ["ipipou0"]
    assert routes(hub) == {inner(i): outer(i) for i in (2, 3, 4)}
    assert ends[0].process.stop() == 0
    await_state(near, "peer2", "away")
    await_(lambda: inner(2) not in routes(hub), what="no route to peer2")
    assert [end.process.stop() for end in (near, *ends[1:])] == [0] * 3
    assert [host.snapshot() for host in hub.lan.hosts] == before


@pytest.mark.parametrize("fast_path", ["on", BELOW])
def test_spoofed_sources_and_strangers_are_dropped(hub, fast_path):
    near, _ = hub.connect("--fast-path", fast_path)
    seen = hub.answers()
    one, stranger = hub.clients[0], hub.lan.host
    one.send_fou(outer(2), PORT, outer(1), PORT, inner(3), inner(1))
    stranger.send_fou(hub.lan.ADDRESS, PORT, outer(1), PORT, inner(2), inner(1))
    # Plain IPIP is not for the link, which has another address; and that one nobody gives to a packet but the rules.
    stranger.send_ipip(hub.lan.ADDRESS, outer(1), inner(2), inner(1))
    one.send_ipip(outer(2), outer(1), inner(2), inner(1))
    one.run(f"ip route add {ALTERNATE} via {outer(1)}")
    one.send_fou(outer(2), PORT, ALTERNATE, PORT, inner(2), inner(1))
    one.send_ipip(outer(2), ALTERNATE, inner(2), inner(1))
    near.await_dropped(stranger_data=2, private_address=2)
    # What has no peer does not leave, though a route leads it there.
    hub.host.run(f"ip route add 192.0.2.0/24 via {outer(2)} dev ipipou0 onlink")
    hub.host.run(["ping", "-c1", "-W0.1", "192.0.2.1"], check=False)
    near.await_dropped(no_peer=1)
    one.send_fou(outer(2), PORT, outer(1), PORT, inner(2), inner(1))
    seen.await_packets(1, condition=is_to(inner(2)))
    assert not seen.matching(is_to(inner(3)))
    assert not seen.matching(is_to("192.0.2.1"))


@pytest.mark.each_kernel
def test_data_as_long_as_a_hello_is_data(hub):
    data_as_long_as_a_hello_passes(hub)


@pytest.mark.each_kernel
def test_a_server_that_was_killed_goes_on_without_a_loss(hub):
    """Its link, routes and rules carry data meanwhile; each peer has one lease to say hello."""
    killed_and_started_again(hub)


def test_a_change_of_the_files_disturbs_nobody_else(hub):
    hub.forget(4)
    near = hub.server()
    for i in (2, 3):
        hub.client(i).await_log("connected to")
    ping = hub.clients[0].ping_background(inner(1))
    ping.await_answers()
    hub.name(4)
    assert "1 added, 0 changed, 0 removed, 514 untouched" in reload(near)
    hub.client(4).await_log("connected to")
    hub.name(3, enabled=False)
    assert "0 added, 1 changed, 0 removed, 514 untouched" in reload(near)
    await_(lambda: inner(3) not in routes(hub), what="no route to peer3")
    # Another network behind one that is connected.
    hub.name(4, route=["10.77.0.0/24"])
    reload(near)
    await_(lambda: routes(hub).get("10.77.0.0/24") == outer(4), what="a route to the network")
    for name in ("gateways", "quoted_addresses"):
        _, elements = hub.host.run(f"nft list set ip ipipou-0 {name}").split("elements = ")
        assert elements.count(",") == 1, elements  # two are connected
    ping.stop_complete()
    assert hub.host.run(["ping", "-c1", inner(3)], check=False).returncode != 0
    hub.clients[2].run("ip addr add 10.77.0.1/32 dev lo")
    await_reached(hub.host, "10.77.0.1")


def test_rules_of_the_others_stay_as_one_comes_and_goes(hub):
    near, ends = hub.connect()
    rules = lambda: hub.host.run("nft -a list ruleset").count("# handle ")
    elements = lambda name: hub.host.run(f"nft list map ip ipipou-0 {name}")
    with_all, ports = rules(), elements("ports32")
    assert ends[0].process.stop() == 0
    await_state(near, "peer2", "away")
    assert (rules(), outer(2) in elements("ports32")) == (with_all, False)
    hub.client(2).await_log("connected to")
    await_reached(hub.host, inner(2))
    assert (rules(), elements("ports32").count("10000")) == (with_all, ports.count("10000"))
    near.show()  # the host is read
    near.show()
    assert "repairing" not in near.process.output()


@pytest.mark.parametrize("fast_path", ["on", BELOW])
def test_peers_behind_one_nat_get_what_is_theirs(hub, fast_path):
    """The link has one port for all, and the route one address for both."""
    near = hub.server("--fast-path", fast_path)
    players = [Client(hub.keys[i].private, hub.keys[1].public, SECRET) for i in (2, 3)]
    host, seen = hub.clients[0], hub.clients[0].capture("eth0", f"udp and src port {PORT}")

    def come(player, port):
        for _ in range(2):
            before = len(seen.packets())
            host.send_udp(outer(2), port, outer(1), PORT, player.hello())
            answer = seen.await_packets(before + 1)[-1]
            heard = player.hear(answer.payload)
        return heard

    def gets(address):
        """The port at which a ping to this address arrives."""
        before = len(seen.matching(is_to(address)))
        hub.host.run(["ping", "-c1", "-W0.1", address], check=False)
        await_(lambda: len(seen.matching(is_to(address))) > before, what=f"a ping to {address}")
        return seen.matching(is_to(address))[-1].dport

    assert [come(player, port) for player, port in zip(players, (4001, 4002))] == [0x82, 0x82]
    assert [gets(inner(2)), gets(inner(3))] == [4001, 4002]
    # One moves.
    assert come(players[0], 4003) == 0x82
    assert [gets(inner(2)), gets(inner(3))] == [4003, 4002]
    # The second one's mapping is the first one's now.
    assert come(players[1], 4003) == 0x82
    near.await_log("peer2 is not connected any more.*: peer3 is at this address and port now")
    assert gets(inner(3)) == 4003
    assert inner(2) not in routes(hub)


@pytest.mark.each_kernel
def test_other_tunnels_at_the_same_address_keep_what_is_theirs(hub):
    """The module's own tunl0, a link to just one of the peers, and another server with as many peers."""
    hub.host.batch(
        "link set tunl0 up", f"link add plain type ipip local {outer(1)} remote {outer(2)}"
    )
    near, _ = hub.connect("--fast-path", "off")
    other = another_server(hub)
    other.await_log("those that are connected share one interface")
    assert reaches(hub.host, "10.9.0.3", count=2)
    for i in (2, 3):
        assert reaches(hub.host, inner(i), count=2)
    hub.host.run("ip link set plain up")
    seen = [hub.host.capture(dev, "icmp") for dev in ("tunl0", "plain")]
    assert reaches(hub.host, inner(2), count=2)
    for i, of in zip((3, 2), seen):
        hub.lan.hosts[i - 1].send_ipip(outer(i), outer(1), inner(i), inner(1))
        assert {packet.src for packet in of.await_packets(1)} == {inner(i)}
    assert not dropped(near) and not dropped(other)


@pytest.mark.each_kernel
def test_a_firewall_of_the_host_sees_the_address_of_the_server(hub):
    hub.host.nft(
        f"""
        table ip firewall {{
            chain input {{
                type filter hook input priority filter; policy drop;
                iifname {{ "lo", "ipipou0" }} accept
                ip daddr {outer(1)} udp dport {PORT} accept
            }}
        }}
    """
    )
    near, _ = hub.connect("--fast-path", "off")
    assert reaches(hub.host, inner(2), count=2)
    assert not dropped(near)


@pytest.mark.each_kernel
def test_nothing_leaves_from_an_address_that_went(hub):
    """As one that another host takes over, while the process does not run."""
    own = outer(9)
    hub.host.batch(
        f"addr add {own}/32 dev eth0", f"route add {NETWORK} dev eth0 src {own} metric 9"
    )
    near, _ = hub.connect("--fast-path", "off")
    assert reaches(hub.host, inner(2))
    near.process.kill()
    hub.host.run(f"ip addr del {outer(1)}/24 dev eth0")
    seen = hub.host.capture("eth0", "udp")
    assert_unanswered(hub.host, inner(2))
    hub.host.send_udp(own, PORT, outer(2), 9, b"the last one")
    seen.await_packets(1, condition=lambda packet: packet.src == own)
    assert {packet.src for packet in seen.packets()} == {own}


def test_a_forged_redirect_moves_no_peer(hub):
    near, _ = hub.connect("--fast-path", "off")
    # As the peer's own router would say it, of a packet to the peer.
    quoted = packets.ipv4(inner(1), inner(2), packets.ICMP, bytes(8))[:28]  # an echo reply
    message = struct.pack("!BBH4s", 5, 1, 0, socket.inet_aton(outer(3))) + quoted
    message = message[:2] + packets.checksum(message).to_bytes(2, "big") + message[4:]
    hub.lan.host.send_raw(packets.ipv4(outer(2), outer(1), packets.ICMP, message))
    near.await_dropped(icmp_error=1)
    assert f"via {outer(2)} " in hub.host.run(f"ip route get {inner(2)}")
    assert reaches(hub.host, inner(2), count=2)


def test_packets_that_do_not_fit_are_answered(hub):
    """The sender is told by the link's MTU, and what may be fragmented arrives."""
    near, _ = hub.connect()
    hub.host.run("ip link set ipipou0 mtu 1400")
    ping = ["ping", "-c1", "-W2", "-s1400"]
    refused = hub.host.run([*ping, "-Mdo", inner(2)], check=False)
    assert "message too long, mtu=1400" in refused.stdout + refused.stderr
    assert hub.clients[1].run([*ping, "-Mdont", inner(2)], check=False).returncode == 0


def test_another_start_has_links_again(hub):
    before = hub.host.snapshot()
    near, _ = hub.connect()
    near.process.kill()
    (hub.peers / "others.toml").unlink()
    near = hub.server()
    near.await_log("took over|ready on")
    for i in (2, 3, 4):
        await_reached(hub.clients[i - 2], inner(1))
    assert sorted(interfaces(hub))[0].startswith("ipipou0-") and len(interfaces(hub)) == 3
    assert near.process.stop() == 0
    assert hub.host.snapshot() == before


BY_SOURCE = f"ip rule add from {outer(1)} lookup main"


@pytest.mark.parametrize(
    "command, why",
    [
        (
            f"ip xfrm policy add dir out src {outer(1)} dst {outer(9)} action block",
            "IPsec policies",
        ),
        (BY_SOURCE, "policy rules"),
    ],
    ids=["ipsec", "by source"],
)
def test_what_would_not_see_packets_of_the_link_keeps_so_many_peers_in_userspace(lab, command, why):
    """It asks for the real address, which they do not have yet."""
    hub = SharedHub(lab, clients=1, datapath="auto", prefix=16)
    hub.host.run("modprobe tun")
    hub.host.run(command)
    near, _ = hub.connect()
    near.await_log(f"userspace datapath.*{why}")
    assert reaches(hub.host, inner(2))


def test_policy_rules_that_come_later_are_told_of(hub):
    near, _ = hub.connect("--fast-path", "off")
    hub.host.run("ip rule add from 192.0.2.1 lookup main")
    hub.host.run(BY_SOURCE)
    near.await_log("policy rules of this host .* alternate address 172.29.0.0")
    assert reaches(hub.host, inner(2))
