"""Everything goes through the tunnel, but for the tunnel's own packets."""

import signal

import pytest

import ipipou
from gateways import (
    INNER_CLIENT,
    INNER_SERVER,
    TOKEN,
    Door,
    Internet,
    await_answer,
    connect,
    routes,
    rules,
    state,
    strict,
)
from ipipou import SERVER
from lab import await_

DEV = "ipipou0"
RULES = {"-4": 3, "-6": 2}  # the uplink has no address of IPv6


@pytest.fixture
def internet(lab):
    return Internet(lab)


def test_only_outer_packets_take_the_uplink(internet):
    """With the reverse path filter at its strictest, which asks for the way back."""
    client, third = internet.client, internet.third
    strict(client, "eth0")
    internet.serve()
    uplink = client.capture(
        "eth0", f"ip and not igmp and not (udp and host {SERVER} and port 10000)"
    )
    outer = client.capture("eth0", f"udp and host {SERVER} and port 10000")
    far = internet.connect()
    await_answer(client, Internet.THIRD)
    assert connect(client, third, Internet.THIRD) == SERVER
    # The server's own address is behind the tunnel too, and answers there.
    assert connect(client, internet.server, SERVER, port=2222) == INNER_CLIENT
    outer.await_packets(8)
    # Neighbours stay neighbours; and what comes after all that is the first to be seen.
    assert client.ping(Internet.ROUTERS[0], count=1).received == 1
    assert {packet.dst for packet in uplink.await_packets(2)[:2]} == {
        Internet.ROUTERS[0],
        Internet.LAN,
    }
    assert far.process.stop() == 0


def test_logins_by_the_uplink_stay_connected(internet):
    """Who logs in from outside by the uplink's address stays, and others may still come."""
    client, third = internet.client, internet.third
    internet.forward(22)
    before = state(client)
    with Door(client, 22) as door:

        def log_in():
            return door.enter(third, Internet.OUTSIDE[0], 22)

        first = log_in()
        assert door.answers(*first)
        internet.serve()
        far = internet.connect()
        await_answer(client, Internet.THIRD)
        assert door.answers(*first) and door.answers(*log_in())
        assert connect(client, third, Internet.THIRD) == SERVER  # by the tunnel
        assert far.process.stop() == 0
        assert door.answers(*first)
    assert state(client) == before


def test_big_transfers_fit(internet):
    """The path's size, not that of the client's uplink, bounds the segments."""
    client, third = internet.client, internet.third
    internet.serve()
    internet.connect()
    await_answer(client, Internet.THIRD)
    assert client.ping(Internet.THIRD, size=4000).received == 3
    listener = third.spawn(["iperf3", "-s", "-1", "--forceflush"])
    listener.await_output("listening")
    client.run(["iperf3", "-c", Internet.THIRD, "-n", "20M", "-R"])


@pytest.mark.parametrize("device", ["eth0", "auto"])
def test_a_full_tunnel_follows_a_new_router(internet, device):
    """The address stays, the way changes; then everything is as it was."""
    client = internet.client
    before = state(client)
    internet.serve()
    far = internet.connect(device=device)
    await_answer(client, Internet.THIRD)
    outer = internet.server.capture("eth0", f"udp port 10000 and host {Internet.OUTSIDE[1]}")
    client.run(f"ip route replace default via {Internet.ROUTERS[1]}")
    # The second router gives the packets another source: the server follows.
    outer.await_packets()
    internet.routers[0].run("ip link set wan0 down")
    await_answer(client, Internet.THIRD)
    assert connect(client, internet.third, Internet.THIRD) == SERVER
    assert far.process.running() and far.show()["repaired"] == 0
    client.run(f"ip route replace default via {Internet.ROUTERS[0]}")
    assert far.process.stop() == 0
    assert state(client) == before


def test_a_full_tunnel_follows_another_uplink(internet):
    """A second uplink takes over, with an address of its own; the first one is gone for good."""
    client, lab = internet.client, internet.lab
    strict(client, "eth0")
    client.sysctl("net.ipv4.conf.default.rp_filter", 1)
    near = internet.serve()
    far = internet.connect(device="auto")
    await_answer(client, Internet.THIRD)
    lab.link(client, "eth1", "192.168.2.100/24", internet.routers[1], "lan1", "192.168.2.1/24")
    client.run("ip route replace default via 192.168.2.1")
    client.run("ip link set eth0 down")
    far.await_log("192.168.2.100")
    near.await_log(f"to {Internet.OUTSIDE[1]}")
    await_answer(client, Internet.THIRD)
    # The check that was loosened is strict again, and the new uplink's is loose.
    filters = [client.sysctl(f"net.ipv4.conf.{dev}.rp_filter") for dev in ("eth0", "eth1")]
    assert filters == ["1", "2"]
    assert far.process.stop() == 0
    assert client.sysctl("net.ipv4.conf.eth1.rp_filter") == "1"
    assert rules(client) == [] and routes(client) == {}


@pytest.mark.parametrize("checks", [None, strict], ids=["unchecked", "strict"])
def test_nothing_is_left(internet, checks):
    client = internet.client
    if checks:
        checks(client, "eth0")
    before = state(client)
    internet.server.run("ip addr add 2001:db8::1/128 dev lo")
    near = internet.serve("--ip6", "fd00::1/64")
    far = internet.connect("--ip6", "fd00::2/64")
    await_answer(client, Internet.THIRD)
    await_answer(client, "2001:db8::1")
    for family in ("-4", "-6"):
        assert len(rules(client, family)) == RULES[family]
        assert "default" in routes(client, family)
    assert client.sysctl("net.ipv4.conf.eth0.rp_filter") == ("2" if checks else "0")
    assert far.process.stop() == 0
    assert state(client) == before

    far.start()
    await_answer(client, Internet.THIRD)
    assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
    assert state(client) != before
    # No tunnel, no way: but the rules that are left do not stop the host's own traffic.
    assert connect(client, internet.third, Internet.THIRD) == Internet.OUTSIDE[0]
    far.start()
    await_answer(client, Internet.THIRD)
    assert connect(client, internet.third, Internet.THIRD) == SERVER
    assert far.process.stop() == 0
    assert state(client) == before
    assert near.process.stop() == 0


DAMAGE = {
    "rules": "ip rule flush",
    "own-rule": f"ip rule del from {Internet.LAN} priority 32765",
    "main-rule": "ip rule del priority 32765 suppress_prefixlength 0",
    "tunnel-rule": "ip rule del priority 32765 fwmark 0x69700000/0xffff0000",
    "rules-6": "ip -6 rule del priority 32765",
    "route": "ip route flush table all proto 105",
    "filter": "sysctl -w net.ipv4.conf.eth0.rp_filter=1",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_repaired(internet, damage):
    client = internet.client
    strict(client, "eth0")
    internet.serve()
    far = internet.connect("--ip6", "fd00::2/64")
    await_answer(client, Internet.THIRD)
    shape = lambda: sorted(state(client).splitlines())  # noqa: E731
    whole = shape()

    def do():
        client.run(DAMAGE[damage])
        if damage == "rules":  # those of the kernel go as well
            client.batch(
                "rule add lookup main priority 32766", "rule add lookup default priority 32767"
            )

    far.await_told(do)
    await_(lambda: shape() == whole, what="its end")
    # The exceptions come before it, in whatever order.
    assert all("fwmark" in rules(client, family)[-1] for family in RULES)
    assert connect(client, internet.third, Internet.THIRD) == SERVER


def test_a_second_full_tunnel_takes_over_from_the_first(internet):
    """Neither one's outer packets enter the other; the rule for the main table goes last."""
    client = internet.client
    before = state(client)
    numbers = (0, 1)
    servers = [internet.serve(number=number) for number in numbers]
    ends = [internet.connect(number=number, peer=number) for number in numbers]
    for end in ends:
        await_(lambda: client.run(f"ip route show table all dev {end.dev} default"), what="route")
    await_answer(client, Internet.THIRD)
    for near in servers:
        near.await_log("tunnel up")
    assert len(rules(client)) == RULES["-4"] + 1
    assert connect(client, internet.third, Internet.THIRD) == SERVER
    assert client.ping("172.28.0.2", count=2).received == 2  # the second one is up as well
    assert [end.show()["repaired"] for end in ends] == [0, 0]
    assert ends[0].process.stop() == 0
    assert len(rules(client)) == RULES["-4"]
    await_answer(client, Internet.THIRD)
    assert ends[1].process.stop() == 0
    assert state(client) == before


def test_outer_ipv6_packets_do_not_enter_the_tunnel(lab):
    """A full tunnel for both families over IPv6, whose packets must not enter it either."""
    near, far = lab.host("server"), lab.host("client")
    lab.link(near, "eth0", "2001:db8:f::1/64", far, "eth0", "2001:db8:f::2/64")
    near.batch("addr add 2001:db8::1/128 dev lo", "addr add 198.51.100.1/32 dev lo")
    far.run("ip route add default via 2001:db8:f::1")
    await_answer(far, "2001:db8:f::1")
    before = state(far)
    ipipou.server(near, *TOKEN, "--ip6", "fd00::1/64", "-b", "[2001:db8:f::1]")
    end = ipipou.client(
        *(far, *TOKEN, "--default-route", "--ip6", "fd00::2/64"), remote="[2001:db8:f::1]:10000"
    )
    for address in ("2001:db8::1", "198.51.100.1"):
        await_answer(far, address)
    assert connect(far, near, "2001:db8::1") == "fd00::2"
    assert connect(far, near, "198.51.100.1") == INNER_CLIENT
    assert end.process.stop() == 0
    assert state(far) == before


def test_a_full_tunnel_without_a_server_leaks_nothing(internet):
    """Nothing leaks: what cannot go through the tunnel does not go."""
    client = internet.client
    uplink = client.capture("eth0", "ip and not udp and not igmp")
    far = internet.connect()
    await_(lambda: rules(client), what="rules")
    assert client.ping(Internet.THIRD, count=1, timeout=0.3).received == 0
    assert client.ping(Internet.ROUTERS[0], count=1).received == 1
    uplink.await_packets(condition=lambda p: p.src == Internet.ROUTERS[0])
    assert {p.dst for p in uplink.packets()} == {Internet.ROUTERS[0], Internet.LAN}
    assert far.process.stop() == 0


def test_the_inner_address_is_the_source(internet):
    client = internet.client
    internet.serve()
    internet.connect()
    await_answer(client, INNER_SERVER)
    way = client.run(f"ip route get {Internet.THIRD}")
    assert f"dev {DEV}" in way and f"src {INNER_CLIENT}" in way
    marked = client.run(f"ip route get {SERVER} mark {int(routes(client)['default'])}")
    assert "dev eth0" in marked
