"""Gateways: routes into a tunnel, forwarding and masquerading behind it, two subnets joined."""

import shutil
import signal

import pytest

import ipipou
from gateways import (
    INNER,
    INNER_CLIENT,
    TOKEN,
    Border,
    Sites,
    SynWatch,
    await_answer,
    connect,
    gateway_rules,
    gets_to,
    routes,
    state,
    strict,
)
from ipipou import SERVER
from lab import await_

FORWARDING = "net.ipv4.conf.{}.forwarding"
DEV = "ipipou0"


def forwarding(host):
    return {name: host.sysctl(FORWARDING.format(name)) for name in ("all", "eth0", "eth1")}


def test_routes_of_both_families_come_and_go(lab):
    border = Border(lab, back=[INNER])
    server, client, third = border.server, border.client, border.third
    net6, third6 = "2001:db8:1::/64", "2001:db8:1::80"
    for host, dev in ((server, "eth1"), (third, "eth0")):
        host.sysctl(f"net.ipv6.conf.{dev}.disable_ipv6", 0)
    server.run("ip addr add 2001:db8:1::1/64 dev eth1")
    third.batch(f"addr add {third6}/64 dev eth0", "route add default via 2001:db8:1::1")
    server.sysctl("net.ipv6.conf.all.forwarding", 1)  # --forward is about IPv4
    await_answer(server, third6)
    before = {host: state(host) for host in (server, client)}

    near = ipipou.server(server, *TOKEN, "--forward", "--ip6", "fd00::1/64")
    far = ipipou.client(
        client, *TOKEN, "--ip6", "fd00::2/64", "--route", Border.NETWORK, "--route", net6
    )
    for crash in (False, True):
        if crash:
            assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
            far.start()
        for address in (Border.THIRD, third6):
            await_answer(client, address)
            connect(client, third, address)
        assert routes(client) == {Border.NETWORK: "main"}
        assert routes(client, "-6") == {net6: "main"}
        assert far.process.stop() == 0
        assert state(client) == before[client]
        if not crash:
            far.start()
    assert near.process.stop() == 0
    assert state(server) == before[server]


@pytest.mark.parametrize("options", [["eth1"], []], ids=["by-one", "by-any"])
def test_masquerade_is_for_the_tunnel_only(lab, options):
    """The third host knows no way back: it answers to the server's own address, or not at all."""
    border = Border(lab)
    server, client, third = border.server, border.client, border.third
    before = state(server)
    border.connect("--masquerade", *options)
    assert connect(client, third, Border.THIRD) == Border.OWN
    mark = client, Border.THIRD
    assert not gets_to(third, "eth0", border.stranger, Border.THIRD, mark)

    # The other way only answers come: the server does not route for others, nor into the tunnel.
    third.run(f"ip route add default via {Border.OWN}")
    assert not gets_to(client, DEV, third, INNER_CLIENT, mark)
    mark = border.stranger, SERVER
    assert not gets_to(border.stranger, "eth0", third, Border.STRANGER, mark)
    border.stop()
    assert state(server) == before


def test_forwarding_that_was_on_before_stays_and_is_not_masqueraded(lab):
    border = Border(lab, back=[INNER, "203.0.113.0/24"])
    server, third = border.server, border.third
    for dev in ("eth0", "eth1"):
        server.sysctl(FORWARDING.format(dev), 1)
    before = state(server)
    border.connect("--masquerade")
    assert connect(border.stranger, third, Border.THIRD) == Border.STRANGER
    assert connect(border.client, third, Border.THIRD) == Border.OWN
    mark = border.client, Border.THIRD
    assert not gets_to(border.client, DEV, third, INNER_CLIENT, mark)  # that takes --forward
    border.stop()
    assert state(server) == before
    assert connect(border.stranger, third, Border.THIRD) == Border.STRANGER


def test_a_host_that_becomes_a_router_stays_one(lab):
    """As when a container engine starts later: what it forwards is not stopped, nor put back."""
    border = Border(lab, back=[INNER, "203.0.113.0/24"])
    server, third = border.server, border.third
    border.connect("--masquerade")
    mark = border.client, Border.THIRD
    assert not gets_to(third, "eth0", border.stranger, Border.THIRD, mark)
    server.sysctl("net.ipv4.ip_forward", 1)
    await_answer(border.stranger, Border.THIRD)
    assert connect(border.client, third, Border.THIRD) == Border.OWN
    assert not gets_to(border.client, DEV, third, INNER_CLIENT, mark)
    border.stop()
    assert forwarding(server) == {"all": "1", "eth0": "1", "eth1": "1"}
    assert connect(border.stranger, third, Border.THIRD) == Border.STRANGER


def test_forward_leads_both_ways_and_nowhere_else(lab):
    border = Border(lab, back=[INNER, "203.0.113.0/24"])
    server, client, third = border.server, border.client, border.third
    server.sysctl(FORWARDING.format("eth1"), 1)  # and eth0 is off
    before = state(server)
    border.connect("--forward")
    assert connect(client, third, Border.THIRD) == INNER_CLIENT
    assert connect(third, client, INNER_CLIENT) == Border.THIRD
    mark = client, Border.THIRD
    assert not gets_to(third, "eth0", border.stranger, Border.THIRD, mark)
    border.stranger.run(f"ip route add {INNER} via {SERVER}")
    seen = client.capture(DEV, "icmp")
    # It may ask: the server forwards from its networks into the tunnel.
    border.stranger.ping(INNER_CLIENT, count=1, timeout=0.1)
    assert seen.await_packets()[0].src == Border.STRANGER
    border.stop()
    assert state(server) == before


def test_segments_fit_the_path_in_both_directions(lab):
    border = Border(lab, back=[INNER])
    border.server.run("ip link set eth1 mtu 1300")  # only the server knows
    border.connect("--forward")
    for near, far, dev, address in (
        (border.client, border.third, "eth0", Border.THIRD),
        (border.third, border.client, DEV, INNER_CLIENT),
    ):
        watch = SynWatch(far, dev)
        connect(near, far, address)
        assert watch.segment_size() == 1300 - 40


def test_two_subnets_joined(lab):
    sites = Sites(lab)
    before = [state(gateway) for gateway in sites.gateways]
    sites.join()
    one, other = sites.hosts
    await_answer(one, "10.2.0.2")
    assert other.ping("10.1.0.2").received == 3
    # Nobody's address is changed on the way, and big packets find their size.
    assert connect(one, other, "10.2.0.2") == "10.1.0.2"
    watch = SynWatch(one, "eth0")
    assert connect(other, one, "10.1.0.2") == "10.2.0.2"
    assert watch.segment_size() == 1500 - 28 - 40
    assert one.ping("10.2.0.2", size=4000).received == 3
    for end in (sites.client, sites.server):
        assert end.process.stop() == 0
    assert [state(gateway) for gateway in sites.gateways] == before


DAMAGE = {
    "route": "ip route flush proto 105",
    "rules": "nft flush ruleset",
    "table": "nft delete table ip ipipou-0-gateway",
    "dormant": "nft add table ip ipipou-0-gateway { flags dormant; }",
    "policy": "nft chain ip ipipou-0-gateway forward { policy drop; }",
    "forwarding": f"sysctl -w {FORWARDING.format('eth1')}=0",
    "tunnel": f"sysctl -w {FORWARDING.format(DEV)}=0",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_repaired(lab, damage):
    border = Border(lab)
    server, client = border.server, border.client
    border.connect("--masquerade")
    await_answer(client, Border.THIRD)
    end = border.far if damage == "route" else border.near
    end.await_told(lambda: end.host.run(DAMAGE[damage]))
    await_answer(client, Border.THIRD)
    assert (Border.NETWORK in routes(client)) and "masquerade" in gateway_rules(server)
    assert forwarding(server) == {"all": "0", "eth0": "1", "eth1": "1"}


def test_a_later_interface_does_not_forward_for_others(lab):
    border = Border(lab)
    server = border.server
    border.connect("--masquerade")
    late = lab.host("late")
    lab.link(server, "eth2", "192.0.2.1/24", late, "eth0", "192.0.2.2/24")
    await_(lambda: server.sysctl(FORWARDING.format("eth2")) == "1", what="forwarding")
    border.client.run(f"ip route add 192.0.2.0/24 dev {DEV}")
    assert connect(border.client, late, "192.0.2.2") == "192.0.2.1"
    late.run("ip route add default via 192.0.2.1")
    border.third.run(f"ip route add default via {Border.OWN}")
    mark = border.client, Border.THIRD
    assert not gets_to(border.third, "eth0", late, Border.THIRD, mark)
    border.stop()
    assert server.sysctl(FORWARDING.format("eth2")) == "0"


def test_the_next_start_restores_what_a_crashed_gateway_changed(lab):
    border = Border(lab)
    before = state(border.server)
    border.connect("--masquerade", "eth1")
    await_answer(border.client, Border.THIRD)
    assert border.near.process.stop(signal.SIGKILL) == -signal.SIGKILL
    assert forwarding(border.server)["eth1"] == "1"
    border.near.start()
    ipipou.later_second()
    border.far.reauthenticate()
    await_answer(border.client, Border.THIRD)
    border.stop()
    assert state(border.server) == before


def test_settings_of_an_interface_of_the_same_name_elsewhere_are_not_restored(lab):
    """As after a start of the machine, or of a container, by which nothing is as it was."""
    border = Border(lab)
    other = border.stranger
    other.run("ip link add eth1 type bridge")
    other.sysctl(FORWARDING.format("eth1"), 1)
    border.connect("--masquerade", "eth1")
    assert border.near.process.stop(signal.SIGKILL) == -signal.SIGKILL
    assert '"eth1"' in (border.near.state / "memory.json").read_text()
    shutil.copytree(border.near.state, lab.directory / f"state-{other.name}" / DEV)
    ipipou.server(other, *TOKEN).show()
    assert forwarding(other)["eth1"] == "1"


def test_a_foreign_route_is_not_replaced(lab):
    border = Border(lab)
    client = border.client
    client.run(f"ip route add {Border.NETWORK} via {Border.STRANGER}")
    before = state(client)
    far = ipipou.client(client, *TOKEN, "--route", Border.NETWORK, ready=False)
    assert far.process.wait() == 54
    message = far.process.output().splitlines()[-1]
    assert message.startswith("ipipou: ") and Border.NETWORK in message, message
    assert "ip route" in message
    assert state(client) == before


def test_masquerade_works_by_an_interface_that_appears_later(lab):
    border = Border(lab)
    server = border.server
    before = state(server)
    border.connect("--masquerade", "eth9")
    border.near.await_log("--masquerade: there is no interface eth9")
    seen = border.third.capture("eth0", "icmp")
    border.client.ping(Border.THIRD, count=1, timeout=0.1)
    assert seen.await_packets()[0].src == INNER_CLIENT  # no other takes the place of eth9
    late = lab.host("late")
    lab.link(server, "eth9", "192.0.2.1/24", late, "eth0", "192.0.2.2/24")
    border.client.run(f"ip route add 192.0.2.0/24 dev {DEV}")
    await_answer(border.client, "192.0.2.2")
    assert connect(border.client, late, "192.0.2.2") == "192.0.2.1"
    server.run("ip link del eth9")
    border.stop()
    assert state(server) == before
    assert "eth9" not in (border.near.state / "memory.json").read_text()


def test_strict_checks_of_the_host_do_not_stop_a_gateway(lab):
    border = Border(lab)
    strict(border.server, "eth0", "eth1")
    strict(border.client, "eth0")
    border.connect("--masquerade", "eth1")
    assert connect(border.client, border.third, Border.THIRD) == Border.OWN


class TwoTunnels:
    """Client and stranger with a tunnel each, to the same server, with the same options there."""

    INNER = ("172.28.0.1", "172.28.0.3")

    def __init__(self, border, *options):
        self.hosts = (border.client, border.stranger)
        border.stranger.run(f"ip route del {Border.NETWORK}")
        self.servers, self.clients = [], []
        for number, host in enumerate(self.hosts):
            self.servers.append(ipipou.server(border.server, *TOKEN, *options, number=number))
            route = ("--route", Border.NETWORK)
            self.clients.append(ipipou.client(host, *TOKEN, *route, number=number, peer=number))
            await_answer(host, f"172.28.0.{2 * number}")


def test_two_tunnels_masquerade_side_by_side(lab):
    """The one may have turned on what the other needs; neither opens a door of the other."""
    border = Border(lab)
    server, third = border.server, border.third
    before = state(server)
    two = TwoTunnels(border, "--masquerade", "eth1")
    for host in two.hosts:
        await_answer(host, Border.THIRD)
        assert connect(host, third, Border.THIRD) == Border.OWN
    third.run(f"ip route add default via {Border.OWN}")
    for host, address, end in zip(two.hosts, two.INNER, two.clients):
        assert not gets_to(host, end.dev, third, address, (host, Border.THIRD))
    mark = border.stranger, SERVER
    assert not gets_to(border.stranger, "eth0", third, Border.STRANGER, mark)
    assert two.servers[0].process.stop() == 0
    await_answer(two.hosts[1], Border.THIRD)
    mark = border.stranger, Border.THIRD
    assert not gets_to(border.stranger, "ipipou1", third, two.INNER[1], mark)
    assert two.servers[1].process.stop() == 0
    assert state(server) == before


def test_a_hub_of_two_tunnels(lab):
    border = Border(lab, back=["172.28.0.0/16"])
    server, third = border.server, border.third
    before = state(server)
    two = TwoTunnels(border, "--forward")
    for host, inner in zip(two.hosts, two.INNER):
        await_answer(third, inner)
        assert connect(third, host, inner) == Border.THIRD
        assert connect(host, third, Border.THIRD) == inner
    for end in two.clients:
        end.host.run(f"ip route add 172.28.0.0/24 dev {end.dev}")
    await_answer(two.hosts[0], two.INNER[1])
    assert connect(*two.hosts, two.INNER[1]) == two.INNER[0]
    for end in two.servers:
        assert end.process.stop() == 0
    assert state(server) == before
