"""The fast path on top of the kernel's datapath."""

import signal

import ipipou
from ipipou import CLIENT, SERVER, reach_each_other
from lab import await_

FAST = "fast path: by eth0"
BOTH = ["ingress", "egress"]


def filters(host):
    """The names of the programs at the uplink's ingress and the tunnel's egress."""
    commands = ["tc filter show dev eth0 ingress", "tc filter show dev ipipou0 egress"]
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


def test_packets_pass_the_datapath(hosts):
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    far = ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    await_fast(near, far)
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
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    far = ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    await_fast(near, far)
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
