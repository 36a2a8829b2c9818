"""Somebody else undoes what the program does, again and again."""

import contextlib

import pytest

import ipipou
from ipipou import await_, reach_each_other

TUN = ["--datapath", "tun"]
ROUTE = "10.77.0.0/16"


@contextlib.contextmanager
def undoing(host, command):
    """Another manager: whenever the command has something to do, it does it."""
    loop = host.spawn(["sh", "-c", f"while :; do {command} 2>/dev/null || sleep 0.02; done"])
    yield loop
    loop.kill()


def repairs(end):
    return [line for line in end.process.output().splitlines() if "repairing: " in line]


def test_a_route_that_is_removed_repeatedly_is_repaired_less_often(lab):
    lan = ipipou.Lan(lab)
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    far = ipipou.client(lan.client, *TUN, "--route", ROUTE, keys=keys)
    near.await_log("tunnel up")
    await_(lambda: ROUTE in lan.client.run("ip route show dev ipipou0"), what="the route")
    with undoing(lan.client, f"ip route del {ROUTE}"):
        far.await_log("it keeps being undone")
        # Events of others come all the time, and change nothing in that.
        added = lambda: far.process.output().count(f"DEBUG: add route to {ROUTE}")  # noqa: E731
        await_(lambda: added() >= 40, timeout=60, what="forty repairs")
        for _ in range(100):
            lan.client.batch("link add other0 type bridge", "link del other0")
            far.show()
    assert added() < 50, "it goes on repairing as fast as it can"
    assert len(repairs(far)) == 5
    assert "it keeps being undone" in repairs(far)[-1]
    reach_each_other(lan.server, lan.client)
    # Left in peace, it is put back.
    await_(
        lambda: ROUTE in lan.client.run("ip route show dev ipipou0"), timeout=60, what="the route"
    )
    assert far.process.stop() == 0


def test_rules_that_are_removed_repeatedly_are_repaired_at_once(lab):
    """They guard, and are put back at once every time; who it is, the kernel tells."""
    lan = ipipou.Lan(lab)
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, "--masquerade", "eth0", keys=keys)
    ipipou.client(lan.client, *TUN, keys=keys)
    near.await_log("tunnel up")
    table = "ip ipipou-0-gateway"
    await_(lambda: table in lan.server.run("nft list tables"), what="the table")
    with undoing(lan.server, f"nft delete table {table}"):
        near.await_log(r"it keeps being undone.*; nftables was last changed by nft, process \d+")
        more = near.show()["repaired"] + 5
        await_(lambda: near.show()["repaired"] >= more, what="more repairs")
    assert len(repairs(near)) == 5
    await_(lambda: table in lan.server.run("nft list tables"), what="the table")
    reach_each_other(lan.server, lan.client)
    assert near.process.stop() == 0


@pytest.mark.parametrize("queues", [1, 3])
@pytest.mark.parametrize(
    "how", ["netns {other}", "down name other0", "down name other0 netns {other}"]
)
def test_an_interface_that_is_taken_away_is_made_again(lab, how, queues):
    """Into another namespace, or by another name: here there is none any more, and a new one is made.
    The old one goes, wherever it is."""
    lan, other = ipipou.Lan(lab), lab.host("other")
    before = lan.server.snapshot(), other.snapshot()
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, "--tun-queues", queues, keys=keys)
    ipipou.client(lan.client, *TUN, keys=keys)
    near.await_log("tunnel up")
    for times in (1, 2):
        reach_each_other(lan.server, lan.client)
        command = f"ip link set dev ipipou0 {how.format(other=other.netns)}"
        near.await_told(lambda: lan.server.run(command))  # noqa: B023
        await_(lambda: "ipipou0 " in lan.server.run("ip -br addr"), what="another one")
        await_(lambda: other.snapshot() == before[1], what="an end of the old one")
        await_(lambda: "other0" not in lan.server.run("ip link"), what="an end of the old one")
        reach_each_other(lan.server, lan.client)
        lines = [line for line in repairs(near) if "create ipipou0 as a TUN interface" in line]
        assert len(lines) == times
    assert "ERROR" not in near.process.output()
    assert near.process.stop() == 0
    assert (lan.server.snapshot(), other.snapshot()) == before
