"""Names whose servers do not answer, and names that stand for several addresses."""

import itertools
import time

import pytest

import ipipou
from hub import Hub
from ipipou import CLIENT, SERVER, await_, reach_each_other
from many_ends import Lan, Table, await_reached, inner, node, outer, reaches, remotes, warnings
from name_server import NameServer

TUN = ["--datapath", "tun"]
NAME = "server.test:10000"
# Nobody has it; a resolver puts it first, as it has more bits in common with the client's own.
DEAD = "203.0.113.3"
# It puts this one last.
LAST = "203.0.113.200"
SERVER6, CLIENT6, DEAD6 = "2001:db8::1", "2001:db8::2", "2001:db8::3"
INNER_SERVER = "172.28.0.0"


# -- tables ---------------------------------------------------------------------------------


def test_unanswered_names_do_not_delay_others(lab, tmp_path):
    """Of 41 names one can be looked up, and it is the last; the table changes all the time."""
    lan = Lan(lab, 3)
    first, second, third = lan.hosts
    dead = {inner(50 + i): {"host": f"dead{i}.test"} for i in range(40)}
    written = dead | {inner(2): {"host": "good.test"}}
    table = Table(tmp_path / "hosts.json", written)
    everybody = Table(tmp_path / "all.json", {inner(1): {"host": outer(1)}})
    begin = time.monotonic()
    with NameServer(first, good=outer(2), new=outer(3)) as server:
        near = node(first, 1, "--hosts-file", table.path)
        node(second, 2, "--hosts-file", everybody.path)
        node(third, 3, "--hosts-file", everybody.path)
        await_reached(first, inner(2))
        steady = first.ping_background(inner(2), interval=0.02)
        ports = itertools.count(1)

        def reached_while_it_changes(address):
            written[inner(4)] = {"host": outer(4), "port": next(ports)}
            table.write(written)
            return reaches(first, address, timeout=0.3)

        written[inner(3)] = {"host": "new.test"}
        await_(lambda: reached_while_it_changes(inner(3)), what="answers of a new name")
        changes = near.process.output().count("the table of hosts has")
        await_(
            lambda: reached_while_it_changes(inner(3))
            and near.process.output().count("the table of hosts has") >= changes + 3,
            what="three more tables",
        )
        steady.stop_complete()
        # Both families, at the start and every minute: another table is not a reason.
        rounds = 1 + (time.monotonic() - begin) // 60
        assert server.asked.count("good.test") <= 2 * rounds
        # Ten are named, and then how many more.
        near.await_log(r"cannot look up dead\d+.test: no answer for 5 s; its node is left out")
        near.await_log(r"cannot look up 30 more names either")
        server.tell(**{f"dead{i}": outer(88) for i in range(40)})
        near.await_log(r"dead7.test can be looked up again", timeout=60)
        await_(lambda: f"{outer(88)}:10000" in remotes(near), what="late names", timeout=60)


def test_a_node_without_ipv4(lab, tmp_path):
    """-b @eth0 where there is IPv6 only: names and addresses of that family are used."""
    hosts = ipv6_only(lab)
    table = {inner(1): {"host": CLIENT6}, inner(2): {"host": "server.test"}}
    table = Table(tmp_path / "hosts.json", table)
    with NameServer(hosts[1], server=[SERVER, SERVER6]):
        far = node(hosts[1], 1, "--hosts-file", table.path)
        near = Table(tmp_path / "near.json", {inner(1): {"host": CLIENT6}})
        near = node(hosts[0], 2, "--hosts-file", near.path)
        await_reached(hosts[1], inner(2))
        assert remotes(far) == {f"[{SERVER6}]:10000": [f"{inner(2)}/32"]}
        assert not warnings(far) and not warnings(near)


# -- the server's name ----------------------------------------------------------------------


def ipv6_only(lab):
    """A server and a client that have no IPv4 addresses."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER6}/64", client, "eth0", f"{CLIENT6}/64")
    await_(lambda: client.ping(SERVER6, count=1, timeout=1).received, what="neighbours")
    return server, client


def connect(hosts, options=()):
    """Both ends; the client knows its server by name. It has a keepalive, but its packets alone are
    no reason to look for another server: that may be an old one, which answers nothing."""
    keys = ipipou.Keys(hosts[0])
    near = ipipou.server(hosts[0], *TUN, *options, keys=keys)
    far = ipipou.client(hosts[1], *TUN, "--keepalive", 2, keys=keys, remote=NAME)
    return near, far


def test_the_next_address_is_tried_when_one_of_the_server_is_dead(lab):
    """The next one is tried while packets go out and none come back, to and fro."""
    hosts = ipipou.neighbours(lab)
    with NameServer(hosts[1], server=[DEAD, SERVER]):
        near, far = connect(hosts)
        far.await_log(f"sent 73 bytes to {DEAD}")
        ping = hosts[1].ping_background(INNER_SERVER)
        far.await_log(rf"nothing has come back from {DEAD} for \d+ s: trying {SERVER}, another", 60)
        ping.await_answers(timeout=60)
        near.await_log("tunnel up")
        reach_each_other(*hosts)
        hosts[0].batch(f"addr del {SERVER}/24 dev eth0", f"addr add {DEAD}/24 dev eth0")
        near.await_log(f"our outer address is now {DEAD}")
        ping.await_answers(timeout=60)
        assert far.show()["tunnels"][0]["remote"] == f"{DEAD}:10000"


def test_replies_keep_a_server_that_answers_nothing_inside(lab):
    """Pings into the tunnel are dropped by the server's firewall: replies show that it is there."""
    hosts = ipipou.neighbours(lab)
    drop = "chain c { type filter hook input priority 0; ip protocol icmp drop; }"
    hosts[0].nft(f"table ip f {{\n{drop}\n}}")
    with NameServer(hosts[1], server=[SERVER, LAST]):
        near, far = connect(hosts, ["--reply-on-auth-ok"])
        near.await_log("tunnel up")
        ping = hosts[1].ping_background(INNER_SERVER)
        # More than twice as long as a silent one is given.
        before = near.show()["accepted"]
        await_(lambda: near.show()["accepted"] >= before + 13, what="keepalives", timeout=90)
        assert f"trying {LAST}" not in far.process.output()
        assert ping.running() and ping.answers() == 0


def test_a_host_without_ipv4(lab):
    """A server at @eth0 comes up, and a client passes over the address that it has no way to."""
    hosts = ipv6_only(lab)
    before = [host.snapshot() for host in hosts]
    with NameServer(hosts[1], server=[SERVER, SERVER6]):
        keys = ipipou.Keys(hosts[0])
        near = ipipou.server(hosts[0], keys=keys)
        far = ipipou.client(hosts[1], keys=keys, remote=NAME)
        for end in (near, far):
            end.await_log(r"userspace datapath \(tun\): eth0 is reached over IPv6 only")
        near.await_log(rf"\[{CLIENT6}\]:10000 authenticated: tunnel up")
        reach_each_other(*hosts)
        assert f"the server is at {SERVER6}" in far.process.output()
        assert f"the server is at {SERVER}\n" not in far.process.output()
        assert not [w for w in warnings(far) + warnings(near) if "--auth-" not in w]
        # IPv4 comes late: the server is where most clients look for it.
        hosts[0].run(f"ip addr add {SERVER}/24 dev eth0")
        near.await_log(f"our outer address is now {SERVER}")
        hosts[1].run(f"ip addr add {CLIENT}/24 dev eth0")
        ping = hosts[1].ping_background(INNER_SERVER)
        far.await_log(
            rf"nothing has come back from {SERVER6} for \d+ s: trying {SERVER}, another", 60
        )
        ping.await_answers(timeout=60)
        hosts[0].run(f"ip addr del {SERVER}/24 dev eth0")
        hosts[1].run(f"ip addr del {CLIENT}/24 dev eth0")
        assert near.process.stop() == far.process.stop() == 0
    assert [host.snapshot() for host in hosts] == before


@pytest.mark.parametrize("place", ["@eth0", "@auto"])
def test_the_reachable_ipv6_address_of_a_name_is_used(lab, place):
    """By name and by way, whichever of several addresses there is a way to."""
    hosts = ipipou.neighbours(lab)
    for host, address in zip(hosts, (SERVER6, CLIENT6)):
        host.run(f"ip addr add {address}/64 dev eth0 nodad")
    elsewhere = "198.51.100.1"  # no route leads there
    with NameServer(hosts[1], server=[elsewhere, DEAD6, SERVER6]):
        keys = ipipou.Keys(hosts[0])
        proof = ["--auth-key-b64", keys.private, "--auth-secret", ipipou.SECRET]
        near = ipipou.Tunnel(
            hosts[0],
            *["-s", "-b", f"[{SERVER6}]@eth0", *TUN, "--auth-secret", ipipou.SECRET],
            *["--auth-remote-pubkey-b64", keys.public],
        )
        far = ipipou.Tunnel(
            hosts[1], "-c", "-b", place, "-r", NAME, "--tunl-ip", "172.28.0.1", *proof
        )
        far.await_log(r"userspace datapath \(tun\): server.test is reached over IPv6 only")
        far.await_log(rf"sent 73 bytes to \[{DEAD6}\]")
        ping = hosts[1].ping_background(INNER_SERVER)
        near.await_log("tunnel up", 60)
        ping.await_answers()
        assert elsewhere not in far.process.output()


# -- of a server that answers hellos --------------------------------------------------------


def named_hub(lab):
    """A hub, and the host of a client that knows it by name."""
    hub = Hub(lab, clients=1)
    hub.server()
    return hub, hub.clients[0]


def named_client(hub, *options):
    """It sends no data of its own."""
    own = ["-c", "-b", "@eth0", "-r", NAME, *options, "--datapath", "tun"]
    own += ["--auth-key-b64", hub.keys[2].private, "--auth-secret", ipipou.SECRET]
    own += ["--auth-remote-pubkey-b64", hub.keys[1].public]
    return ipipou.Tunnel(hub.clients[0], *own)


@pytest.mark.parametrize(
    "inside",
    [["--tunl-ip", "10.8.0.2", "--tunl-peer-ip", "10.8.0.1"], ["--tunl-ip", "auto"]],
    ids=["given", "asked for"],
)
def test_hellos_show_which_address_of_a_server_is_dead(lab, inside):
    hub, client = named_hub(lab)
    with NameServer(client, server=[outer(3), outer(1)]):
        far = named_client(hub, *inside)
        far.await_log(rf"nothing has come back from {outer(3)} for \d+ s: trying {outer(1)}")
        far.await_log(f"connected to {outer(1)}")


def test_a_silent_server_is_looked_up_again_soon(lab):
    """As one that has another address since, or in another network. There is a lookup each minute anyway."""
    hub, client = named_hub(lab)
    with NameServer(client, server=[outer(3)]) as names:
        far = named_client(hub, "--tunl-ip", "auto")
        far.await_log(f"to {outer(3)}")
        begin = time.monotonic()
        names.tell(server=[outer(1)])
        far.await_log(f"connected to {outer(1)}", timeout=40)
        assert time.monotonic() - begin < 40
