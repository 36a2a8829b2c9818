"""Peers whose packets wait in a queue of the sender's own host, or for a neighbour that does not answer: they
all wait in one socket, and whoever else is sent to does not notice."""

import json
import sys

import pytest

import hub
from ipipou import await_
from lan import Lan, outer
from many_ends import Table, await_reached, dropped, inner, node
from test_kernel_refuses import preloaded  # noqa: F401

# On a fast path the packets belong to no socket.
OFF = ["--fast-path", "off"]
DEAD = 80

# Sends large packets to each address in turn until it is ended, no more than so many MB in a second.
FLOOD = """
import socket, sys, time
rate, addresses = int(sys.argv[1]), sys.argv[2:]
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.IPPROTO_UDP, 103, 1400)  # UDP_SEGMENT
payload, sent, start = bytes(40 * 1400), 0, time.monotonic()
print("begins", flush=True)
while True:
    for address in addresses:
        try:
            sender.sendto(payload, (address, 9))
        except OSError:
            pass
        sent += len(payload)
        while sent > (time.monotonic() - start) * rate * 1e6:
            time.sleep(0.001)
"""


def flood(host, rate, *addresses):
    host.spawn([sys.executable, "-c", FLOOD, rate, *addresses]).await_output("begins")


def slow_to(host, address, packets=1000):
    """What goes to that address waits in a queue of its own, which is very slow."""
    for command in (
        "qdisc add dev eth0 root handle 1: htb default 1",
        "class add dev eth0 parent 1: classid 1:1 htb rate 10gbit quantum 60000",
        "class add dev eth0 parent 1: classid 1:2 htb rate 8mbit",
        f"qdisc add dev eth0 parent 1:2 handle 2: pfifo limit {packets}",
        f"filter add dev eth0 parent 1: protocol ip u32 match ip dst {address}/32 flowid 1:2",
    ):
        host.run(f"tc {command}")


def backlog(host):
    """How many packets wait in that queue."""
    return waiting_in_queue(host)["qlen"]


def waiting_in_queue(host):
    (queue,) = json.loads(host.run("tc -j -s qdisc show dev eth0 handle 2:"))
    return queue


def no_packet_is_lost(host, address, count=40):
    """Nor is any late."""
    said = host.run(["ping", "-n", "-i", "0.05", "-c", count, "-W", "2", address], check=False)
    assert f" {count} received" in said.stdout, said.stdout[-400:]


def test_a_peer_behind_a_slow_queue_costs_others_nothing(lab, tmp_path):
    lan = Lan(lab, 3)
    table = tmp_path / "hosts.json"
    Table(table, {inner(i): {"host": outer(i)} for i in (1, 2, 3)})
    near, *_ = [node(host, i, "--hosts-file", table, *OFF) for i, host in enumerate(lan.hosts, 1)]
    for i in (2, 3):
        await_reached(lan.hosts[0], inner(i))
    slow_to(lan.hosts[0], outer(3))
    flood(lan.hosts[0], 60, inner(3))
    await_(lambda: backlog(lan.hosts[0]) > 100, what="a queue")
    no_packet_is_lost(lan.hosts[0], inner(2))
    # Once the queue is full, the packets that it refuses are counted.
    await_(lambda: dropped(near).get("tx_failed", 0) > 100, what="a full queue")
    no_packet_is_lost(lan.hosts[0], inner(2))
    # It counts what leaves with one call as one packet; these are not as many large ones.
    queue = waiting_in_queue(lan.hosts[0])
    assert queue["qlen"] > 900 and queue["backlog"] < 8 << 20, queue


def test_neighbours_that_do_not_answer_cost_others_nothing(lab, tmp_path):
    lan = Lan(lab, 2)
    table = tmp_path / "hosts.json"
    dead = range(101, 101 + DEAD)
    Table(table, {inner(i): {"host": outer(i)} for i in (1, 2, *dead)})
    for i, host in enumerate(lan.hosts, 1):
        node(host, i, "--hosts-file", table, *OFF)
    await_reached(lan.hosts[0], inner(2))
    flood(lan.hosts[0], 60, *map(inner, dead))

    def waiting():
        """The state of a neighbour that was asked for and did not answer."""
        return lan.hosts[0].run("ip neigh show nud incomplete").count("INCOMPLETE")

    await_(lambda: waiting() > DEAD - 10, what="neighbours that do not answer")
    no_packet_is_lost(lan.hosts[0], inner(2))


@pytest.mark.parametrize("refused", ["", "force"])
def test_authentications_do_not_wait_for_the_data_of_others(lab, preloaded, refused):  # noqa: F811
    """Also where the buffer may be no larger than anybody's."""
    end = hub.Hub(lab, clients=2)
    prefix = ["env", f"LD_PRELOAD={preloaded}", f"REFUSE={refused}"]
    near = end.server(*OFF, prefix=prefix)
    slow, other = (end.client(i, *OFF) for i in (2, 3))
    for client in (slow, other):
        client.await_log("connected to")
    slow_to(end.host, outer(2), packets=5000)
    flood(end.host, 60, hub.inner(2))
    await_(lambda: backlog(end.host) > 50, what="a queue")
    if refused:
        await_(lambda: dropped(near).get("tx_failed", 0) > 100, what="a full buffer")

    def accepted():
        return sum(hub.hellos(near).get(what, 0) for what in ("admitted", "refreshed"))

    for _ in range(10):
        before = accepted()
        other.reauthenticate()
        await_(lambda: accepted() > before, what="an authentication")
    assert "cannot send" not in near.process.output()
