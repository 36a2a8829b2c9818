"""A full tunnel on a host that others behind it are reached by: the answers to who came in by the
uplink go out there."""

import signal

import pytest

import ipipou
from gateways import (
    TOKEN,
    Container,
    Door,
    Internet,
    await_answer,
    connect,
    state,
    strict,
)
from ipipou import SERVER
from lab import await_

FROM_OUTSIDE = Internet.OUTSIDE[0], 8000


@pytest.fixture
def internet(lab):
    internet = Internet(lab)
    internet.forward(8000)
    return internet


def rules_of(client, family="ip"):
    listed = client.run(f"nft list table {family} ipipou-0-gateway", check=False)
    return listed.stdout


@pytest.mark.parametrize("checks", [None, strict], ids=["unchecked", "strict"])
def test_a_published_port_answers(lab, internet, checks):
    """Connections from before the tunnel and new ones; what the container begins takes the tunnel."""
    client, third = internet.client, internet.third
    container = Container(lab, client)
    container.publish(8000)
    if checks:
        checks(client, "eth0", "docker0")
    before = state(client)
    with Door(container.host, 80) as door:
        first = door.enter(third, *FROM_OUTSIDE)
        assert door.answers(*first)
        internet.serve()
        far = internet.connect()
        await_answer(client, Internet.THIRD)
        assert door.answers(*first) and door.answers(*door.enter(third, *FROM_OUTSIDE))
        # Without ipipou's mark on the connection.
        assert not [line for line in client.connections() if "mark=1768" in line]
        assert connect(container.host, third, Internet.THIRD) == SERVER
        # Killed, and started again.
        assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
        far.start()
        await_answer(client, Internet.THIRD)
        assert door.answers(*first) and door.answers(*door.enter(third, *FROM_OUTSIDE))
        assert connect(container.host, third, Internet.THIRD) == SERVER
        assert far.process.stop() == 0
        assert door.answers(*first) and door.answers(*door.enter(third, *FROM_OUTSIDE))
    assert state(client) == before


def test_a_port_published_over_ipv6_answers(lab):
    near, far = lab.host("server"), lab.host("client")
    lab.link(near, "eth0", "2001:db8:f::1/64", far, "eth0", "2001:db8:f::2/64")
    near.run("ip addr add 2001:db8::1/128 dev lo")
    container = Container(lab, far)
    far.run("ip -6 route add default via 2001:db8:f::1")
    container.publish(8000)
    await_answer(far, "2001:db8:f::1")
    before = state(far)
    ipipou.server(near, *TOKEN, "--ip6", "fd00::1/64", "-b", "[2001:db8:f::1]")
    end = ipipou.client(
        *(far, *TOKEN, "--default-route", "--ip6", "fd00::2/64"), remote="[2001:db8:f::1]:10000"
    )
    await_answer(far, "2001:db8::1")
    near.run("ip -6 route add 2001:db8:f::2/128 dev eth0 src 2001:db8::1")
    with Door(container.host, 80, "::") as door:
        assert door.answers(*door.enter(near, "2001:db8:f::2", 8000))
    assert "2001:db8:f::2" in rules_of(far, "ip6")
    assert connect(far, near, "2001:db8::1") == "fd00::2"
    assert end.process.stop() == 0
    assert state(far) == before


@pytest.mark.parametrize("address", [Container.BRIDGE, "127.0.0.1"])
def test_a_host_process_at_a_container_network_address_answers(lab, internet, address):
    """It has an address of a network of containers; its answers are the host's own packets."""
    client, third = internet.client, internet.third
    Container(lab, client).publish(8000, to=address)
    client.sysctl("net.ipv4.conf.all.route_localnet", 1)
    internet.serve()
    internet.connect()
    await_answer(client, Internet.THIRD)
    with Door(client, 80, address) as door:
        assert door.answers(*door.enter(third, *FROM_OUTSIDE))


def test_a_host_behind_answers_without_translation(lab, internet):
    """No address is translated here: the connection is known by a mark of its own."""
    client, third = internet.client, internet.third
    container = Container(lab, client)
    container.publish(8000)
    router = internet.routers[0]
    router.run(f"ip route add {Container.ADDRESS}/32 via {Internet.LAN}")
    third.run(f"ip route add {Container.ADDRESS}/32 via {Internet.OUTSIDE[0]}")
    internet.serve()
    far = internet.connect()
    await_answer(client, Internet.THIRD)
    with Door(container.host, 8080) as door:
        assert door.answers(*door.enter(third, Container.ADDRESS, 8080))
    assert connect(container.host, third, Internet.THIRD) == SERVER
    assert far.process.stop() == 0


def test_foreign_marks_stay(lab, internet):
    """Those of packets and of connections, on whatever our rules are about."""
    client, third = internet.client, internet.third
    container = Container(lab, client)
    container.publish(8000)
    client.nft(
        """
        table ip others {
            counter kept { }
            counter lost { }
            chain before {
                type filter hook prerouting priority -160;
                iifname docker0 meta mark set 0x4000
                iifname eth0 ct state new ct mark set 0x77
            }
            chain after {
                type filter hook prerouting priority -140;
                iifname docker0 meta mark 0x4000 counter name kept
                iifname docker0 meta mark != 0x4000 counter name lost
                ct mark != 0x77 ct direction reply iifname docker0 counter name lost
            }
        }"""
    )
    internet.serve()
    internet.connect()
    await_answer(client, Internet.THIRD)
    assert rules_of(client)
    with Door(container.host, 80), third.socket() as there:
        there.setblocking(False)
        there.connect_ex(FROM_OUTSIDE)  # nobody but who marked them knows where answers go
        await_(lambda: client.counter("others", "kept"), what="answers")
    assert client.counter("others", "lost") == 0


def test_the_tunnel_does_not_turn_connection_tracking_on(lab, internet):
    """The rules come when somebody else has connections tracked, and not before."""
    client, third = internet.client, internet.third
    container = Container(lab, client)
    before = state(client)
    internet.serve()
    far = internet.connect()
    await_answer(client, Internet.THIRD)
    assert connect(client, third, Internet.THIRD) == SERVER
    assert client.run("nft list ruleset") == "" and client.tracked() == 0
    container.publish(8000)
    with Door(container.host, 80) as door:
        assert door.answers(*door.enter(third, *FROM_OUTSIDE))
        await_(lambda: rules_of(client), what="rules")
    for family in ("ip", "ip6"):
        client.run(f"nft delete table {family} docker")
    assert connect(client, third, Internet.THIRD) == SERVER
    assert far.process.stop() == 0
    assert state(client) == before


def test_the_rules_are_repaired_and_follow_the_address(lab, internet):
    client, third = internet.client, internet.third
    container = Container(lab, client)
    container.publish(8000)
    internet.serve()
    far = internet.connect()
    await_answer(client, Internet.THIRD)
    await_(lambda: Internet.LAN in rules_of(client), what="rules")
    whole = rules_of(client)
    client.run("nft delete table ip ipipou-0-gateway")
    await_(lambda: rules_of(client) == whole, what="repair")
    client.run("ip addr add 192.168.1.200/24 dev eth0")
    await_(lambda: "192.168.1.200" in rules_of(client), what="the new address")
    with Door(container.host, 80) as door:
        assert door.answers(*door.enter(third, *FROM_OUTSIDE))
    assert far.process.stop() == 0
    assert rules_of(client) == ""


def test_without_nft_the_tunnel_still_comes_up(lab, internet):
    """It says once what does not work."""
    client, third = internet.client, internet.third
    Container(lab, client).publish(8000)
    before = state(client)
    internet.serve()
    no_nft = 'mount --bind /dev/null "$(command -v nft)" && exec "$0" "$@"'
    far = internet.connect(prefix=["unshare", "--mount", "sh", "-c", no_nft])
    await_answer(client, Internet.THIRD)
    far.await_log("connections from outside to containers .* install the package nftables")
    client.run("ip addr add 192.168.1.200/24 dev eth0")
    await_(lambda: "from 192.168.1.200" in client.run("ip rule"), what="the new address")
    assert connect(client, third, Internet.THIRD) == SERVER
    client.run("ip addr del 192.168.1.200/24 dev eth0")
    await_(lambda: "from 192.168.1.200" not in client.run("ip rule"), what="that it goes")
    assert far.process.stop() == 0
    assert far.process.output().count("connections from outside to containers") == 1
    assert state(client) == before
