"""A tunnel survives its processes, and what is broken around it is put right."""

import re
import signal

import pytest

import ipipou
from gateways import await_answer
from ipipou import CLIENT, SERVER
from lab import await_

pytestmark = pytest.mark.each_kernel

INNER_SERVER, INNER_CLIENT, ALTERNATE = "172.28.0.0", "172.28.0.1", "172.29.0.0"
ALTERNATE_MODE = "--force-fou-local-ip-alt"
MODES = pytest.mark.parametrize("options", [(), (ALTERNATE_MODE,)], ids=["direct", "alternate"])


@pytest.mark.parametrize("side", ["server", "client"])
@MODES
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


def test_routes_that_the_kernel_made_are_put_back(lab):
    lan = ipipou.Lan(lab).connect()
    for end in (lan.near, lan.far):
        routes = "ip route show table all dev ipipou0"
        whole = end.host.run(routes)
        for command in ("ip route flush dev ipipou0", "ip route flush table local dev ipipou0"):
            end.host.run(command)
            await_(lambda: end.host.run(routes) == whole, what=command)
        await_answer(lan.client, INNER_SERVER)
        assert end.show()["repaired"] >= 1


@MODES
def test_what_a_start_installs_needs_no_repair(lab, options):
    """Each transaction, as `nft monitor` sees it, lets in the client's address and port and nobody
    else, and the first look at the host finds nothing to do."""
    lan = ipipou.Lan(lab).connect(*options)
    near, server = lan.near, lan.server
    admitted = near.admitted()
    near.process.kill()
    monitor = server.spawn(["nft", "monitor", "new", "elements"])

    def heard():
        server.run("nft add table ip marker")
        server.run("nft add set ip marker heard { type ipv4_addr; }")
        server.run("nft flush set ip marker heard")
        server.run("nft add element ip marker heard { 192.0.2.1 }")
        return "ip marker heard" in monitor.output()

    await_(heard, what="word of nft monitor")
    near.start()
    near.await_log("took over the running tunnel")
    server.run("nft add element ip marker heard { 192.0.2.2 }")
    monitor.await_output("192.0.2.2")
    seen = re.findall(r"add element ip ipipou-0 (\w+) \{ (.*?) \}", monitor.output())
    alternate = f" : {ALTERNATE}" if options else ""
    expected = {
        "privates" if options else "remotes": f"{CLIENT} . 10000{alternate}",
        "known": f"{CLIENT} . 10000",
        "known_addresses": CLIENT,
    }
    expected |= {} if options else {"addresses": CLIENT}
    assert set(seen) == set(expected.items())
    assert near.admitted() == admitted
    steps = re.findall(
        r"DEBUG: ((?:install(?! the fast path)|admit|stop|add|create|change|set) .*)",
        near.process.output(),
    )
    assert [step.split()[0] for step in steps] == ["install"], steps
    ipipou.reach_each_other(server, lan.client)
    assert near.show()["repaired"] == 0


def rules(end):
    done = end.host.run("nft list table ip ipipou-0", check=False)
    act = not re.search("flags dormant|policy drop", done.stdout)
    return "goto port" in done.stdout and ". 10000" in done.stdout and act


def listens(end):
    return "10000" in end.host.run("ip fou show")


def right_remote(end):
    return (end.tunnel() or {}).get("remote") == (CLIENT if end.host.name == "server" else SERVER)


def shown(kind, text):
    return lambda end: text in end.host.run(f"ip {kind} show dev ipipou0", check=False).stdout


def has_alternate(end):
    return ALTERNATE in end.host.run("ip -4 addr show dev lo")


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


@pytest.mark.parametrize("side", ["server", "client"])
@MODES
def test_damage_is_repaired_at_once(lab, options, side):
    lan = ipipou.Lan(lab).connect(*options)
    end = lan.near if side == "server" else lan.far
    names = {"local": SERVER if side == "server" else CLIENT, "set": "set ip ipipou-0 remotes"}
    names["addresses"] = "addresses"
    damage = list(DAMAGE)
    if options:
        names = {"local": ALTERNATE, "set": "map ip ipipou-0 privates"}
        names["addresses"] = "known_addresses"
        damage.append((f"ip addr del {ALTERNATE}/32 dev lo", has_alternate))
    for command, is_right in damage:
        assert is_right(end), command
        do = lambda: end.host.run(command.format(**names))  # noqa: E731
        if " fou " in command:  # of listeners the kernel tells nothing
            repairs = end.process.output().count(ipipou.REPAIRING)
            do()
            again = lambda: end.process.output().count(ipipou.REPAIRING)  # noqa: E731
            await_(lambda: again() > repairs, what=f"repair after {command}")
        else:
            end.await_told(do)
        await_(lambda: is_right(end), what=f"repair after {command}")
        await_answer(lan.client, INNER_SERVER)
    ipipou.reach_each_other(lan.server, lan.client)
    assert lan.server.tracked() == lan.client.tracked() == 0
    assert end.process.stop() == 0 and end.tunnel() is None


@pytest.mark.parametrize("side", ["server", "client"])
def test_rules_that_are_all_there_and_do_not_act_are_repaired(lab, side):
    lan = ipipou.Lan(lab).connect()
    end = lan.near if side == "server" else lan.far
    for table in (
        "table ip ipipou-0 { flags dormant; }",
        "chain ip ipipou-0 input { policy drop; }",
    ):
        end.await_told(lambda: end.host.run(f"nft add {table}"))
        await_(lambda: rules(end), what=f"repair after {table}")
        await_answer(lan.client, INNER_SERVER)


@pytest.mark.parametrize("side", ["server", "client"])
@MODES
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


@pytest.mark.parametrize("side", ["server", "client"])
def test_an_interface_moved_to_another_namespace_is_made_again(lab, side):
    """There it still has its pair of addresses, so that the new one has an alternate address while it lives."""
    lan, other = ipipou.Lan(lab).connect(), lab.host("other")
    end = lan.near if side == "server" else lan.far
    said = "perhaps in another network namespace"
    end.await_told(lambda: end.host.run(f"ip link set ipipou0 netns {other.netns}"), said)
    end.await_quiet()
    ipipou.reach_each_other(lan.server, lan.client)
    assert end.tunnel()["local"] == ALTERNATE
    other.run("ip link del ipipou0")
    assert end.process.stop() == 0 and end.tunnel() is None
    assert ALTERNATE not in end.host.run("ip addr")


@pytest.mark.parametrize("side", ["server", "client"])
@MODES
def test_a_renamed_interface_is_made_again(lab, options, side):
    """The new one has the addresses of the old one."""
    lan = ipipou.Lan(lab).connect(*options)
    end = lan.near if side == "server" else lan.far
    local = end.tunnel()["local"]

    def rename():
        # Before 6.2 an interface that is up keeps its name.
        steps = "link set ipipou0 down", "link set ipipou0 name uplink7", "link set uplink7 up"
        end.host.batch(*steps)

    end.await_told(rename, "remove uplink7")
    end.await_quiet()
    ipipou.reach_each_other(lan.server, lan.client)
    assert end.tunnel()["local"] == local
    assert "uplink7" not in end.host.run("ip link")
    end.await_quiet()
    end.process.send_signal(signal.SIGSTOP)
    rename()
    end.process.send_signal(signal.SIGCONT)
    assert end.process.stop() == 0
    assert "made by ipipou" not in end.host.run("ip -d link")


def test_an_interface_in_a_vrf_is_reported(lab):
    """It is left there: whoever put it there may want that."""
    lan = ipipou.Lan(lab).connect()
    host, end = lan.client, lan.far
    host.batch("link add blue type vrf table 10", "link set blue up")
    said = "ipipou0 was put into a VRF"
    end.await_told(lambda: host.run("ip link set ipipou0 master blue"), said)
    end.await_quiet()
    assert end.process.output().count(said) == 1 and "lead to eth0" not in end.process.output()
    assert "master blue" in host.run("ip link show ipipou0")
    host.run("ip link set ipipou0 nomaster")
    await_answer(host, INNER_SERVER)
    ipipou.reach_each_other(lan.server, host)
    end.await_told(lambda: host.run("ip link set ipipou0 master blue"), said)
    assert end.process.stop() == 0 and end.tunnel() is None
