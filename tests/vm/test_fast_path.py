"""The fast path on top of the kernel's datapath."""

import signal

import ipipou
from ipipou import CLIENT, SERVER, reach_each_other
from lab import await_

FAST = "fast path: by eth0"
BOTH = ["ingress", "egress"]


def filters(host, uplink="eth0"):
    """The names of the programs at the uplink's ingress and the tunnel's egress."""
    commands = [f"tc filter show dev {uplink} ingress", "tc filter show dev ipipou0 egress"]
    words = " ".join(host.run(command, check=False).stdout for command in commands).split()
    return [word for word in words if word in BOTH]


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
