"""How large packets in the kernel's tunnel may be: what fits into the uplink, or what is asked for."""

import pytest

import ipipou
from gateways import INNER, Border, await_mtu, mtu
from ipipou import CLIENT, SERVER, await_, reach_each_other

pytestmark = pytest.mark.each_kernel

INNER_SERVER = "172.28.0.0"


def connect(hosts, *options):
    keys = ipipou.Keys(hosts[0])
    near = ipipou.server(hosts[0], *options, keys=keys)
    far = ipipou.client(hosts[1], *options, keys=keys)
    near.await_log("tunnel up")
    return near, far


def test_the_mtu_follows_the_uplink(hosts):
    """Down and up again; one that is set by hand is good until then."""
    connect(hosts)
    for uplink in (1400, 1500):
        for host in hosts:
            assert mtu(host) != uplink - 28 or uplink == 1500
            host.run(f"ip link set eth0 mtu {uplink}")
        for host in hosts:
            await_mtu(host, uplink - 28)
        assert hosts[1].ping(INNER_SERVER, size=uplink - 56).received == 3
    hosts[0].run("ip link set ipipou0 mtu 1300")
    hosts[0].run("ip link set ipipou0 down")  # it is repaired, but for the MTU
    await_(lambda: "UP" in hosts[0].run("ip link show ipipou0"), what="an interface that is up")
    assert mtu(hosts[0]) == 1300
    hosts[0].run("ip link set eth0 mtu 1400")
    await_mtu(hosts[0], 1372)


def test_another_uplink_changes_the_mtu(lab):
    """A client with two of them, which differ."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", client, "eth0", f"{CLIENT}/24")
    lab.link(server, "eth1", "198.51.100.1/24", client, "wlan0", "198.51.100.2/24")
    client.run("ip link set wlan0 mtu 1420")
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    ipipou.client(client, keys=keys, device="auto")
    near.await_log("tunnel up")
    assert mtu(client) == 1472
    client.run(f"ip route add {SERVER}/32 via 198.51.100.1 dev wlan0")
    await_mtu(client, 1392)
    client.run(f"ip route del {SERVER}/32")
    await_mtu(client, 1472)


def test_a_configured_mtu_stays(hosts):
    """Whatever becomes of the uplink, whoever changes it, and after a restart and a crash."""
    server, client = hosts
    _, far = connect(hosts, "--mtu", "1300")
    for end in (None, "stop", "kill"):
        if end:
            getattr(far.process, end)()
            far.start()
        await_mtu(client, 1300)
        client.run("ip link set eth0 mtu 1400")
        client.run("ip link set ipipou0 mtu 1200")
        await_mtu(client, 1300)
        client.run("ip link set eth0 mtu 1500")
        reach_each_other(server, client)
        assert client.ping(INNER_SERVER, size=1272).received == 3


@pytest.mark.parametrize("size", [1400, 1472, 5000])
def test_forwarded_packets_pass_a_narrower_uplink(lab, size):
    border = Border(lab, back=[INNER]).connect("--forward")
    assert border.passes_a_narrower_uplink(size)
