"""The fast path on top of the kernel's datapath."""

import contextlib
import signal
import subprocess

import pytest

import ipipou
from iperf import datagrams_arrive, iperf
from ipipou import CLIENT, SERVER, reach_each_other
from lab import await_
from ppp import serial_line

pytestmark = pytest.mark.fast_path

FAST = "fast path: by eth0"
BOTH = ["ingress", "egress"]
# Where the uplink has no link header.
BARE = ["ingress_bare", "egress"]


def filters(host, uplink="eth0"):
    """The names of the programs at the uplink's ingress and the tunnel's egress."""
    commands = [f"tc filter show dev {uplink} ingress", "tc filter show dev ipipou0 egress"]
    words = " ".join(host.run(command, check=False).stdout for command in commands).split()
    return [word for word in words if word in {*BOTH, *BARE}]


def await_fast(*ends):
    for end in ends:
        end.await_log(FAST)
        await_(lambda: filters(end.host) == BOTH, what=f"filters of {end.host.name}")


def carried(host):
    """Packets that passed the tunnel's link itself: those that the datapath carried."""
    counted = host.statistics("ipipou0")
    return counted["rx"]["packets"] + counted["tx"]["packets"]


def connected(hosts):
    """A server and a client, and their keys; both have a fast path."""
    keys = ipipou.Keys(hosts[0])
    near = ipipou.server(hosts[0], keys=keys)
    far = ipipou.client(hosts[1], keys=keys)
    near.await_log("tunnel up")
    await_fast(near, far)
    return near, keys


def test_packets_pass_the_datapath(hosts):
    server, client = hosts
    near, _ = connected(hosts)
    on_wire = server.capture("eth0", "udp")
    before = carried(server), carried(client)
    reach_each_other(server, client)
    assert (carried(server), carried(client)) == before
    for packet in on_wire.await_packets(8):
        assert {packet.src, packet.dst} == {SERVER, CLIENT}
        assert packet.ttl == 64 and packet.payload[0] == 0x45
    (tunnel,) = near.show()["tunnels"]
    assert tunnel["rx_packets"] >= 4 and tunnel["tx_packets"] >= 4, tunnel

    # Somebody takes a part of it away.
    server.run("tc filter del dev ipipou0 egress")
    near.await_log("repairing: install the fast path")
    await_fast(near)
    reach_each_other(server, client)
    near.process.stop()
    assert filters(server) == []


def test_a_killed_server_goes_on_and_the_next_one_takes_over(hosts):
    server, client = hosts
    near, keys = connected(hosts)
    ping = client.ping_background("172.28.0.0")
    ping.await_answers()
    near.process.send_signal(signal.SIGKILL)
    near.process.wait()
    ping.await_answers()
    near = ipipou.server(server, keys=keys)
    near.await_log("took over the running tunnel")
    await_fast(near)
    ping.await_answers()
    ping.stop_complete()


def test_an_end_without_it_is_reached_all_the_same(hosts):
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, "--fast-path", "off", keys=keys)
    far = ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    await_fast(far)
    assert filters(server) == []
    reach_each_other(server, client)


def test_an_uplink_that_is_a_vlan(hosts):
    """The card below it sees the same packets, and another tunnel there leaves them alone."""
    for host, own in zip(hosts, (1, 2)):
        host.batch(
            "link add link eth0 name eth0.5 type vlan id 5",
            f"addr add 192.0.2.{own}/24 dev eth0.5",
            "link set eth0.5 up",
        )
    server, client = hosts
    await_(lambda: client.ping("192.0.2.1", count=1, timeout=1).received, what="an answer")
    keys = ipipou.Keys(server)
    below = ipipou.server(server, number=1, keys=keys)
    far = ipipou.client(client, number=1, peer=1, keys=keys)
    below.await_log("tunnel up")
    near = ipipou.server(server, device="eth0.5", keys=keys)
    ipipou.client(client, device="eth0.5", remote="192.0.2.1:10000", keys=keys)
    near.await_log("tunnel up")
    near.await_log("fast path: by eth0.5")
    await_(lambda: filters(server, "eth0.5") == BOTH, what="filters")
    before = carried(server)
    reach_each_other(server, client)
    reach_each_other(server, client, peer=1)
    assert carried(server) == before
    far.process.stop()


# Uplinks without a link header: each makes an interface wire0 at both hosts, which is down.


@contextlib.contextmanager
def wireguard(hosts):
    private = [host.run("wg genkey") for host in hosts]
    public = [host.run("wg pubkey", input=key).strip() for host, key in zip(hosts, private)]
    places = (SERVER, CLIENT)
    for own, host in enumerate(hosts):
        other = 1 - own
        host.run("ip link add wire0 type wireguard")
        host.run(
            "wg set wire0 listen-port 51820 private-key /dev/stdin"
            f" peer {public[other]} allowed-ips 0.0.0.0/0 endpoint {places[other]}:51820",
            input=private[own],
        )
    yield


@contextlib.contextmanager
def ipip(hosts):
    places = (SERVER, CLIENT)
    for own, host in enumerate(hosts):
        host.run(f"ip link add wire0 type ipip local {places[own]} remote {places[1 - own]} ttl 64")
    yield


@contextlib.contextmanager
def ppp(hosts):
    if subprocess.run(["modprobe", "ppp_async"], check=False).returncode:
        pytest.skip("this machine's image has no ppp")
    with serial_line(hosts):
        for host in hosts:
            host.run("ip link set ppp0 name wire0")
        yield


@pytest.mark.each_kernel
@pytest.mark.parametrize("kind", [wireguard, ipip, ppp])
def test_an_uplink_without_a_link_header(hosts, kind):
    with kind(hosts):
        carries_it(hosts)


def transfers_pass_the_datapath(server, client):
    """Whether the datapath has next to nothing of some 1500 packets each way."""
    before = carried(server), carried(client)
    for options in ([], ["-R"]):
        assert iperf(server, client, "-n", "2M", *options)["sum_received"]["bytes"] > 1 << 20
    return all(now - then < 100 for now, then in zip((carried(server), carried(client)), before))


def carries_it(hosts):
    server, client = hosts
    for host, own in zip(hosts, (1, 2)):
        host.batch(f"addr add 192.0.2.{own} peer 192.0.2.{3 - own} dev wire0", "link set wire0 up")
    await_(lambda: client.ping("192.0.2.1", count=1, timeout=1).received, what="an answer")
    mtu = int(server.run("cat /sys/class/net/wire0/mtu"))
    keys = ipipou.Keys(server)
    near = ipipou.server(server, device="wire0", keys=keys)
    far = ipipou.client(client, device="wire0", remote="192.0.2.1:10000", keys=keys)
    near.await_log("tunnel up")
    for end in (near, far):
        end.await_log("fast path: by wire0")
        await_(lambda: filters(end.host, "wire0") == BARE, what="filters")  # noqa: B023
    reach_each_other(server, client)
    whole = ["-M", "do"]
    assert client.ping("172.28.0.0", *whole, size=mtu - 28 - 28).received == 3
    # On a busy machine the process may not get to put off the programs' end for a while.
    await_(lambda: transfers_pass_the_datapath(server, client), 120, what="transfers that pass it")
    datagrams_arrive(server, client)
    before = carried(server), carried(client)
    (tunnel,) = near.show()["tunnels"]
    assert tunnel["rx_bytes"] > 1 << 20 and tunnel["tx_bytes"] > 1 << 20, tunnel

    # What it does not take.
    assert client.ping("172.28.0.0", *whole, size=mtu - 28 - 28 + 1).received == 0
    assert carried(client) == before[1]
    assert client.ping("172.28.0.0", "-R").received == 3  # with an option
    assert carried(client) > before[1]


@pytest.mark.each_kernel
def test_a_tunnel_inside_a_tunnel(hosts):
    """What came out of the outer one's programs enters those of the inner one. On the way out the kernel
    takes no second header from a program, so the outer datapath has those packets."""
    server, client = hosts
    _, keys = connected(hosts)
    within = ipipou.server(server, device="ipipou0", number=1, keys=keys)
    there = ipipou.client(
        client, remote="172.28.0.0:10001", device="ipipou0", number=1, peer=1, keys=keys
    )
    within.await_log("tunnel up")
    for end in (within, there):
        end.await_log("fast path: by ipipou0")
        await_(
            lambda: "ingress_bare"
            in end.host.run("tc filter show dev ipipou0 ingress"),  # noqa: B023
            what="a filter",
        )
    outer, nested = carried(server), server.statistics("ipipou1")
    ping = client.ping_background("172.28.0.2")
    reach_each_other(server, client, peer=1)
    ping.await_answers()
    ping.stop_complete()
    assert server.statistics("ipipou1") == nested and carried(server) > outer
    for options in ([], ["-R"]):
        end = iperf(server, client, "-n", "2M", *options, to="172.28.0.2")
        assert end["sum_received"]["bytes"] > 1 << 20
    datagrams_arrive(server, client, to="172.28.0.2")
    assert client.ping("172.28.0.2", size=4000).received == 3
    reach_each_other(server, client)
