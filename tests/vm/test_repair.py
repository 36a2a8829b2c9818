"""A tunnel survives its processes, and what is broken around it is put right."""

import signal
import time

import pytest

import ipipou
from gateways import await_answer
from ipipou import CLIENT, SERVER
from lab import await_

INNER_SERVER, INNER_CLIENT, PRIVATE = "172.28.0.0", "172.28.0.1", "172.29.0.0"
PRIVATE_MODE = "--force-fou-local-ip-alt"

# Seconds, and five times what it takes to look. An emulated CPU stands still now and then: the best
# of three counts.
AT_ONCE = 1.0
# Of FOU listeners the kernel tells nothing: the program looks every three seconds.
LOOKED_FOR = 3 + AT_ONCE


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("options", [(), (PRIVATE_MODE,)], ids=["direct", "private"])
def test_no_ping_is_lost_by_a_crash_and_a_restart(lab, options, side):
    lan = ipipou.Lan(lab).connect(*options)
    end = lan.near if side == "server" else lan.far
    ping = lan.client.ping_background(INNER_SERVER, interval=0.01)

    def table():
        return end.host.run("nft -a list table ip ipipou-0").splitlines()[0]

    ping.await_answers(20)
    before = table()
    assert end.process.stop(signal.SIGKILL) == -signal.SIGKILL
    ping.await_answers(50)
    end.start()
    end.await_log("took over the running tunnel")
    ping.await_answers(50)
    ping.stop_complete()
    assert table() == before  # its contents were exchanged: a new one has another handle

    # And it is not just the kernel that goes on.
    accepted = lan.near.show()["accepted"]
    ipipou.later_second()
    lan.far.reauthenticate()
    lan.near.await_accepted(accepted + 1)
    assert lan.near.tunnel()["remote"] == CLIENT
    assert lan.near.process.stop() == lan.far.process.stop() == 0
    assert lan.near.tunnel() is lan.far.tunnel() is None


def rules(end):
    done = end.host.run("nft list table ip ipipou-0", check=False)
    return "goto port" in done.stdout and ". 10000" in done.stdout


def listens(end):
    return "10000" in end.host.run("ip fou show")


def right_remote(end):
    return (end.tunnel() or {}).get("remote") == (CLIENT if end.host.name == "server" else SERVER)


def shown(kind, text):
    return lambda end: text in end.host.run(f"ip {kind} show dev ipipou0", check=False).stdout


def has_private(end):
    return PRIVATE in end.host.run("ip -4 addr show dev lo")


# (what is done to the host, what shows that it was put right)
DAMAGE = [
    ("nft flush ruleset", rules),
    ("nft flush chain ip ipipou-0 input", rules),
    ("nft flush {set}", rules),
    ("nft flush set ip ipipou-0 {addresses}", rules),
    ("ip link del ipipou0", shown("addr", "172.28.0.")),
    ("ip link set ipipou0 down", shown("link", ",UP")),
    ("ip link set ipipou0 type ipip local any remote 203.0.113.99", right_remote),
    ("ip link set ipipou0 alias other", shown("link", "made by ipipou")),
    ("ip addr flush dev ipipou0", shown("addr", "172.28.0.")),
    ("ip fou del port 10000 local {local} dev eth0", listens),
]


def repaired(lan, end, command, is_right):
    """Does the damage; the seconds until all is right and a ping gets through, but for those that
    five looks at it take."""

    def is_whole():
        return is_right(end) and lan.client.ping(INNER_SERVER, count=1, timeout=0.2).received

    assert is_right(end), command
    end.show()  # it has done what it is about
    repairs = end.process.output().count("repairing: ")
    before = time.monotonic()
    is_whole()
    started = time.monotonic()
    end.host.run(command)
    await_(is_whole, what=f"repair after {command}", interval=0)
    took = time.monotonic() - started
    assert end.process.output().count("repairing: ") > repairs, command
    return took - 5 * (started - before)


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("options", [(), (PRIVATE_MODE,)], ids=["direct", "private"])
def test_damage_is_repaired_at_once(lab, options, side):
    lan = ipipou.Lan(lab).connect(*options)
    end = lan.near if side == "server" else lan.far
    names = {"local": SERVER if side == "server" else CLIENT, "set": "set ip ipipou-0 remotes"}
    names["addresses"] = "addresses"
    damage = list(DAMAGE)
    if options:
        names = {"local": PRIVATE, "set": "map ip ipipou-0 privates"}
        names["addresses"] = "known_addresses"
        damage.append((f"ip addr del {PRIVATE}/32 dev lo", has_private))
    slow = {}
    for command, is_right in damage:
        limit = LOOKED_FOR if " fou " in command else AT_ONCE
        took = [repaired(lan, end, command.format(**names), is_right)]
        while min(took) > limit and len(took) < 3:
            took.append(repaired(lan, end, command.format(**names), is_right))
        if min(took) > limit:
            slow[command] = took
    assert slow == {}
    ipipou.reach_each_other(lan.server, lan.client)
    assert lan.server.tracked() == lan.client.tracked() == 0
    assert end.process.stop() == 0 and end.tunnel() is None


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("options", [(), (PRIVATE_MODE,)], ids=["direct", "private"])
def test_an_interface_goes_and_returns(lab, options, side):
    lan = ipipou.Lan(lab).connect(*options)
    host = getattr(lan, side)
    host.run("ip link del eth0")
    end = lan.near if side == "server" else lan.far
    end.await_log("eth0 has no address for this tunnel: waiting for one")
    lan.plug(host)
    await_answer(lan.client, INNER_SERVER)
    ipipou.reach_each_other(lan.server, lan.client)
    accepted = lan.near.show()["accepted"]
    lan.far.reauthenticate()
    await_(lambda: lan.near.show()["accepted"] > accepted, what="authentication")
    assert end.process.output().count("waiting for one") == 1
    assert lan.near.process.stop() == lan.far.process.stop() == 0
    assert lan.near.tunnel() is lan.far.tunnel() is None
    assert not listens(lan.near) and not listens(lan.far)
