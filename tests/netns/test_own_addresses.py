"""A full tunnel leaves alone who reaches the host at an address of its uplink, and the host's own policy
rules."""

import pytest

import ipipou
import uplinks
from gateways import (
    INNER_CLIENT,
    TOKEN,
    Door,
    Internet,
    await_answer,
    connect,
    rules,
    state,
    strict,
)
from lab import await_

ADMIN, HOST, FLOATING = "203.0.113.80", "198.51.100.2", "192.0.2.77"
INSIDE = "198.18.0.1"  # reached through the tunnel
BEHIND = "192.168.8.1"  # an address of the host in a network of its own, which the server reaches


@pytest.fixture
def internet(lab):
    return Internet(lab)


def logs_in(door, host, address):
    return door.answers(*door.enter(host, address, 22))


class Private:
    """eth0 of `host` is the public uplink, with the default route; the tunnel's server is in a private
    network behind eth1. A floating address is on the loopback interface."""

    def __init__(self, lab):
        names = ("admin", "core", "host", "server")
        self.admin, self.core, self.host, self.server = map(lab.host, names)
        lab.link(self.admin, "eth0", f"{ADMIN}/24", self.core, "eth0", "203.0.113.254/24")
        lab.link(self.host, "eth0", f"{HOST}/24", self.core, "eth1", "198.51.100.1/24")
        lab.link(self.host, "eth1", "10.0.0.10/24", self.server, "eth0", "10.0.0.5/24")
        self.admin.run("ip route add default via 203.0.113.254")
        self.core.sysctl("net.ipv4.ip_forward", 1)
        self.core.run(f"ip route add {FLOATING}/32 via {HOST}")
        self.host.batch("route add default via 198.51.100.1", f"addr add {FLOATING}/32 dev lo")
        self.server.run(f"ip addr add {INSIDE}/32 dev lo")

    def connect(self):
        ipipou.server(self.server, *TOKEN)
        options = [*TOKEN, "--default-route"]
        end = ipipou.client(self.host, *options, device="eth1", remote="10.0.0.5:10000")
        await_answer(self.host, INSIDE)
        return end


@pytest.mark.parametrize("checks", [None, strict], ids=["unchecked", "strict"])
def test_logins_at_another_uplink_stay_connected_by_rules_of_the_host(lab, checks):
    net = Private(lab)
    host, admin = net.host, net.admin
    if checks:
        checks(host, "eth0", "eth1")
    for address in (HOST, FLOATING):
        host.run(f"ip rule add from {address} lookup main")
    before = state(host)
    with Door(host, 22) as door:
        first = [door.enter(admin, address, 22) for address in (HOST, FLOATING)]
        end = net.connect()
        assert connect(host, net.server, INSIDE) == INNER_CLIENT
        assert all(door.answers(*one) for one in first)
        assert logs_in(door, admin, HOST) and logs_in(door, admin, FLOATING)
        assert "repairing" not in end.process.output()
        assert end.process.stop() == 0
        assert all(door.answers(*one) for one in first)
    assert state(host) == before


def test_who_comes_through_the_tunnel_is_answered_there(lab):
    """A headquarters logs in at the address that a branch's router has in its own network."""
    net = Private(lab)
    net.host.run(f"ip addr add {BEHIND}/32 dev lo")
    end = net.connect()
    net.server.run(f"ip route add {BEHIND}/32 dev ipipou0 src {INSIDE}")
    with Door(net.host, 22) as door:
        assert logs_in(door, net.server, BEHIND)
    assert end.process.stop() == 0


def test_logins_outlive_the_outer_address(internet):
    """An operator adds an address, logs in there, and removes the one of the tunnel: there is no way to
    the server then, and everything else still goes into the tunnel."""
    client, third = internet.client, internet.third
    new = "192.168.1.101"
    client.sysctl("net.ipv4.conf.all.promote_secondaries", 1)
    internet.routers[0].nft(
        f"""
        table ip door {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                iifname wan0 tcp dport 22 dnat to {new}
            }}
        }}"""
    )
    internet.serve()
    far = internet.connect("-b", Internet.LAN)
    await_answer(client, Internet.THIRD)
    with Door(client, 22) as door:
        client.run(f"ip addr add {new}/24 dev eth0")
        await_(lambda: any(new in rule for rule in rules(client)), what="its rule")
        first = door.enter(third, Internet.OUTSIDE[0], 22)
        assert door.answers(*first)
        client.run(f"ip addr del {Internet.LAN}/24 dev eth0")
        far.await_log("waiting for")
        await_(lambda: not any(Internet.LAN in r for r in rules(client)), what="that it goes")
        assert any(new in rule for rule in rules(client))
        assert door.answers(*first) and logs_in(door, third, Internet.OUTSIDE[0])
        assert any("fwmark" in rule for rule in rules(client))
        client.run(f"ip addr add {Internet.LAN}/24 dev eth0")
        await_answer(client, Internet.THIRD)
        assert door.answers(*first)


@pytest.mark.parametrize("options", [["--default-route"], ["--route", "203.0.113.0/24"]])
@pytest.mark.parametrize("since", ["before", "later"])
def test_policy_rules_of_the_host_keep_their_place(lab, options, since):
    """A rule that was added without a priority comes before everything but the main table; with ours,
    its address is still answered by the uplink that the rule leads to."""
    net = uplinks.Uplinks(lab)
    admin, host, core = lab.host("admin"), net.host, net.core
    lab.link(admin, "eth0", "198.18.0.2/24", core, "eth3", "198.18.0.1/24")
    admin.run("ip route add default via 198.18.0.1")
    rule = f"from {uplinks.SECOND} lookup 200"
    if since == "later":
        host.run(f"ip rule del {rule}")
    before = state(host)
    near = net.server()
    with Door(host, 22) as door:
        end = net.client("-b", uplinks.SECOND, *options)
        if since == "later":
            await_(lambda: len(rules(host)) == 3, what="rules")
            host.run(f"ip rule add {rule}")
            end.reauthenticate()
        near.await_log(f"{uplinks.SECOND}:10000 authenticated: tunnel up")
        assert logs_in(door, admin, uplinks.SECOND)
        # To a neighbour at the other uplink, too.
        assert "dev eth1" in host.run(f"ip route get 198.51.100.1 from {uplinks.SECOND}")
        ipipou.reach_each_other(net.far, host)
        assert end.process.stop() == 0
    if since == "later":
        host.run(f"ip rule del {rule}")
    assert state(host) == before
