"""Gateways whose packets the kernel carries: the main ones of tests/netns."""

import re
import signal

import pytest

from gateways import (
    INNER,
    INNER_CLIENT,
    INNER_SERVER,
    Border,
    Internet,
    Sites,
    SynWatch,
    await_answer,
    connect,
    gateway_rules,
    gets_to,
    routes,
    rules,
    state,
    strict,
)
from ipipou import SERVER, later_second
from lab import await_

DEV = "ipipou0"


def by_kernel(*ends):
    for end in ends:
        assert end.show()["datapath"] == "kernel"


def test_everything_but_outer_packets_goes_through_the_tunnel(lab):
    """The gateway changes; packets of the tunnel find the new one, all others the tunnel."""
    internet = Internet(lab)
    client, third = internet.client, internet.third
    strict(client, "eth0")
    before = state(client)
    near = internet.serve()
    far = internet.connect("--keepalive", "1")
    by_kernel(near, far)
    await_answer(client, internet.THIRD)
    mark = re.search(r"fwmark (0x[0-9a-f]+)", client.run(f"ip -d link show dev {DEV}"))[1]
    assert any(f"not from all fwmark {mark}/0xffff0000 " in rule for rule in rules(client)), rules(
        client
    )
    assert f"dev {DEV}" in client.run(f"ip route get {SERVER}")
    assert "dev eth0" in client.run(f"ip route get {SERVER} mark {mark}")

    past = client.capture("eth0", f"not arp and not (udp and host {SERVER} and port 10000)")
    assert connect(client, third, internet.THIRD) == SERVER
    assert list(near.admitted())[0].startswith(internet.OUTSIDE[0])
    client.run(f"ip route replace default via {internet.ROUTERS[1]}")
    new = lambda: list(near.admitted())[0].startswith(internet.OUTSIDE[1])  # noqa: E731
    await_(new, what="new way")
    assert connect(client, third, internet.THIRD) == SERVER
    # What is on the link stays there: this marks the end.
    assert client.ping(internet.ROUTERS[0], count=1).received == 1
    past.await_packets(2)
    router = past.stop()
    assert {internet.ROUTERS[0], internet.LAN} == {p.src for p in router} | {p.dst for p in router}

    assert far.process.stop() == 0
    client.run(f"ip route replace default via {internet.ROUTERS[0]}")
    assert state(client) == before


@pytest.mark.parametrize("options", [["--masquerade", "eth1"], ["--forward"]])
def test_forwarding_is_for_the_tunnel_only(lab, options):
    """The third host sees the server's address or the client's; a stranger is not forwarded."""
    forward = options == ["--forward"]
    border = Border(lab, back=[INNER] if forward else [])
    server, client, third = border.server, border.client, border.third
    before = state(server)
    border.connect(*options)
    by_kernel(border.near, border.far)
    watch = SynWatch(third, "eth0")
    seen = INNER_CLIENT if forward else Border.OWN
    assert connect(client, third, Border.THIRD) == seen
    assert watch.segment_size() == 1500 - 28 - 40
    assert (connect(third, client, INNER_CLIENT) == Border.THIRD) if forward else True
    third.run(f"ip route replace default via {Border.OWN}")
    mark = client, Border.THIRD
    assert not gets_to(third, "eth0", border.stranger, Border.THIRD, mark)
    assert gateway_rules(server) and routes(client) == {Border.NETWORK: "main"}
    border.stop()
    assert state(server) == before


def test_options_left_out_after_a_kill_are_undone(lab):
    """The tunnel stays, and nothing of what led into it or forwarded out of it does."""
    border = Border(lab, back=[INNER])
    server, client = border.server, border.client
    border.connect("--forward")
    near, far = border.near, border.far
    by_kernel(near, far)
    assert "fwmark" in client.run(f"ip -d link show dev {DEV}")
    for end, options in ((near, ["--forward"]), (far, ["--route", Border.NETWORK])):
        assert end.process.stop(signal.SIGKILL) == -signal.SIGKILL
        at = end.argv.index(options[0])
        del end.argv[at : at + len(options)]
        end.start()
        end.await_log("took over the running tunnel")
    for name in (DEV, "eth0", "eth1"):
        await_(lambda: server.sysctl(f"net.ipv4.conf.{name}.forwarding") == "0", what=name)
    await_(lambda: not gateway_rules(server) and not routes(client), what="nothing left")
    await_(lambda: "fwmark" not in client.run(f"ip -d link show dev {DEV}"), what="no mark")
    await_answer(client, INNER_SERVER)
    # It is at rest: a mark that could not be removed would be tried again and again.
    changes = far.process.output().count(f"change {DEV}")
    later_second()
    far.reauthenticate()
    near.await_accepted(2)  # its start was one
    assert far.process.output().count(f"change {DEV}") == changes == 1
    border.stop()


def test_a_blackhole_route_does_not_lead_to_the_server(lab):
    """A `blackhole` default, so that nothing goes past a VPN, is no route to the server."""
    internet = Internet(lab)
    client = internet.client
    client.run("ip route add blackhole default metric 9999")
    before = state(client)
    internet.serve()
    far = internet.connect(device="auto")
    await_answer(client, internet.THIRD)
    client.run(f"ip route del default via {internet.ROUTERS[0]}")
    far.await_log("there is no route to the server: waiting for one")
    assert far.process.stop() == 0
    client.run(f"ip route add default via {internet.ROUTERS[0]}")
    assert state(client) == before


def test_two_subnets_joined(lab):
    sites = Sites(lab)
    before = [state(gateway) for gateway in sites.gateways]
    sites.join()
    by_kernel(sites.client, sites.server)
    one, other = sites.hosts
    await_answer(one, "10.2.0.2")
    assert connect(one, other, "10.2.0.2") == "10.1.0.2"
    assert connect(other, one, "10.1.0.2") == "10.2.0.2"
    assert one.ping("10.2.0.2", size=4000).received == 3
    assert [gateway.tracked() for gateway in sites.gateways] == [0, 0]
    for end in (sites.client, sites.server):
        assert end.process.stop() == 0
    assert [state(gateway) for gateway in sites.gateways] == before
