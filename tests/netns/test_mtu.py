"""How large packets in a userspace tunnel may be: what fits into the uplink, or what is asked for."""

import pytest

import ipipou
from gateways import INNER, Border, await_mtu, mtu
from ipipou import CLIENT, SERVER, await_
from test_integrity import TUN, connect
from traffic import no_damage, transfer_both_ways

INNER_SERVER = "172.28.0.0"


def test_the_mtu_follows_the_uplink(hosts):
    """Down and up again; one that is set by hand is good until then."""
    connect(hosts)
    for host in hosts:
        assert mtu(host) == 1472
    for uplink in (1400, 1500, 9000, 1500):
        for host in hosts:
            host.run(f"ip link set eth0 mtu {uplink}")
        for host in hosts:
            await_mtu(host, uplink - 28)
        transfer_both_ways(hosts, 1)
    hosts[0].run("ip link set ipipou0 mtu 1300")
    hosts[0].run("ip link set ipipou0 down")  # it is repaired, but for the MTU
    await_(lambda: "UP" in hosts[0].run("ip link show ipipou0"), what="an interface that is up")
    assert mtu(hosts[0]) == 1300
    hosts[0].run("ip link set eth0 mtu 1400")
    await_mtu(hosts[0], 1372)
    no_damage(hosts)


def test_another_uplink_changes_the_mtu(lab):
    """A client with two of them, which differ."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", client, "eth0", f"{CLIENT}/24")
    lab.link(server, "eth1", "198.51.100.1/24", client, "wlan0", "198.51.100.2/24")
    client.run("ip link set wlan0 mtu 1420")
    near = ipipou.server(server, *TUN)
    ipipou.client(client, *TUN, device="auto")
    near.await_log("tunnel up")
    assert mtu(client) == 1472
    client.run(f"ip route add {SERVER}/32 via 198.51.100.1 dev wlan0")
    await_mtu(client, 1392)


def test_a_configured_mtu_stays(hosts):
    """Whatever becomes of the uplink, whatever changes it, and after a restart."""
    server, client = hosts
    near, far = connect(hosts, "--mtu", "1300")
    for again in (False, True):
        if again:
            assert far.process.stop() == 0
            far.start()
            far.await_log("ready on")
        await_mtu(client, 1300)
        client.run("ip link set eth0 mtu 1400")
        client.run("ip link set ipipou0 mtu 1200")
        await_mtu(client, 1300)
        client.run("ip link set eth0 mtu 1500")
        assert client.ping(INNER_SERVER, size=1272).received == 3
        await_mtu(client, 1300)
    transfer_both_ways(hosts, 1)
    no_damage(hosts)


def test_an_uplink_that_is_narrower_than_the_tunnel_is_told(hosts):
    """The sender hears what fits, and no outer packet is fragmented any more."""
    _, client = hosts
    connect(hosts, "--mtu", "1472", "--fast-path", "off")
    client.run("ip link set eth0 mtu 1400")

    def fragmented():
        return int(client.run("nstat -asz IpFragCreates").split()[-2])

    def is_told():
        argv = ["ping", "-c1", "-W1", "-Mdo", "-s1444", INNER_SERVER]
        done = client.run(argv, check=False)
        return "mtu=1372" in done.stdout + done.stderr or "mtu = 1372" in done.stdout + done.stderr

    await_(is_told, what="the size that fits")
    before = fragmented()
    transfer_both_ways(hosts, 1)
    # The kernel's word counts for ten seconds, and is asked for by one packet that does not fit.
    assert fragmented() - before < 10
    no_damage(hosts)


@pytest.mark.parametrize("size", [1372, 1400, 1472, 5000])
def test_forwarded_packets_pass_a_narrower_uplink(lab, size):
    border = Border(lab, back=[INNER]).connect("--forward")
    assert border.passes_a_narrower_uplink(size)
