"""Hosts that know each other from a table in a file, which changes under way."""

import re

import pytest

import packets
from lab import await_
from many_ends import (
    Lan,
    Names,
    Table,
    await_dropped,
    await_reached,
    dropped,
    hurry,
    inner,
    inner6,
    node,
    outer,
    assert_unanswered,
    reaches,
    refusal,
    remotes,
    warnings,
)

UNREACHABLE = "Destination Host Unreachable"
PORT = 10000


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path / "hosts.json", {inner(i): {"host": outer(i)} for i in (1, 2, 3)})


def nodes(lan, table, *options):
    """A node for each host of the LAN."""
    return [
        node(host, i, "--hosts-file", table.path, *options) for i, host in enumerate(lan.hosts, 1)
    ]


def stop(*ends):
    assert [end.process.stop() for end in ends] == [0] * len(ends)


# -- reaching each other --------------------------------------------------------------------


def test_all_reach_each_other_by_both_families(lab, table):
    """One table for all; one node has a port of its own, so the table has all ports."""
    lan = Lan(lab, 3, ip6=True)
    before = [host.snapshot() for host in lan.hosts]
    ports = {1: PORT, 2: PORT, 3: 7777}
    written = {inner(i): {"host": outer(i), "port": port} for i, port in ports.items()}
    written |= {inner6(i): {"host": outer(i), "port": port} for i, port in ports.items()}
    table.write(written)
    on_wire = lan.host.capture("br0", "udp")
    ends = [
        node(host, i, "--hosts-file", table.path, "--ip6", f"{inner6(i)}/64", *port)
        for i, (host, port) in enumerate(zip(lan.hosts, [[], [], ["--fou-local-port", 7777]]), 1)
    ]
    for i, host in enumerate(lan.hosts, 1):
        for other in {1, 2, 3} - {i}:
            assert host.ping(inner(other), count=2).received == 2
            assert host.ping(inner6(other), count=2).received == 2
    # 3 pairs, both ways, both families, 2 pings with answers.
    flows = {(p.src, p.sport, p.dst, p.dport) for p in on_wire.await_packets(3 * 2 * 2 * 2 * 2)}
    pairs = [(a, b) for a in ports for b in ports if a != b]
    assert flows == {(outer(a), ports[a], outer(b), ports[b]) for a, b in pairs}
    assert remotes(ends[0]) == {
        f"{outer(2)}:{PORT}": [f"{inner(2)}/32", f"{inner6(2)}/128"],
        f"{outer(3)}:7777": [f"{inner(3)}/32", f"{inner6(3)}/128"],
    }
    text = lan.hosts[0].run(["ipipou", "show", "--runtime-root", ends[0].root, "ipipou0"])
    assert "2 remotes" in text and f"remote {outer(3)}:7777: {inner(3)}/32" in text
    assert (ends[0].show()["role"], ends[0].show()["datapath"]) == ("node", "tun")
    for end in ends:
        assert not warnings(end)
        assert dropped(end) == {}
    stop(*ends)
    assert [host.snapshot() for host in lan.hosts] == before


def test_networks_behind_nodes(lab, table):
    """A prefix of the table is routed to its node, which forwards to the hosts behind it."""
    lan = Lan(lab, 2)
    first, gateway = lan.hosts
    behind = lab.host("behind")
    lab.link(gateway, "eth1", "192.168.50.1/24", behind, "eth0", "192.168.50.2/24")
    behind.run("ip route add default via 192.168.50.1")
    written = {inner(i): {"host": outer(i)} for i in (1, 2)}
    table.write(written | {"192.168.50.0/24": {"host": outer(2)}})
    near = node(first, 1, "--hosts-file", table.path)
    far = node(gateway, 2, "--hosts-file", table.path, "--forward")
    seen = behind.capture("eth0", "icmp")
    await_reached(first, "192.168.50.2")
    assert seen.await_packets(1)[0].src == inner(1)
    assert reaches(behind, inner(1)) and reaches(first, inner(2))
    # Somebody of our own network asks for nobody.
    assert UNREACHABLE in refusal(behind, inner(99))
    answer = seen.await_packets(1, condition=lambda p: p.payload[0] == 3)[0]
    assert (answer.payload[1], answer.dst) == (1, "192.168.50.2")
    # The table's networks come and go with it.
    table.write(written)
    hurry(near)
    await_(lambda: "192.168.50.0/24" not in first.run("ip route"), what="route to go")
    assert not warnings(near) and not warnings(far)
    stop(near, far)


def test_an_unknown_inner_address_is_unreachable(lab, table):
    """An address of the network that is in no table: host unreachable, of both families."""
    (host,) = Lan(lab, 1, ip6=True).hosts
    end = node(host, 1, "--hosts-file", table.path, "--ip6", f"{inner6(1)}/64")
    seen = host.capture("ipipou0", "icmp")
    assert UNREACHABLE in refusal(host, inner(9))
    answer = seen.await_packets(1, condition=lambda p: p.payload[0] == 3)[0]
    assert (answer.payload[1], answer.dst) == (1, inner(1))
    request = seen.matching(lambda p: p.payload[0] == 8)[0]
    assert packets.parse(answer.payload[8:]).raw == request.raw
    assert "Address unreachable" in refusal(host, inner6(9))
    await_(lambda: dropped(end).get("tx_unreachable") == 2, what="two answers counted")


def test_nodes_reach_each_other_over_outer_ipv6(lab, tmp_path):
    """Nodes whose outer addresses are of IPv6; an IPv4 one is of no use to them."""
    lan = Lan(lab, 2, ip6=True)
    for i, host in enumerate(lan.hosts, 1):
        host.sysctl("net.ipv6.conf.eth0.disable_ipv6", 0)
        host.run(f"ip addr add 2001:db8::{i}/64 dev eth0 nodad")
    written = {inner(i): {"host": f"2001:db8::{i}"} for i in (1, 2)}
    written |= {inner6(i): {"host": f"2001:db8::{i}"} for i in (1, 2)}
    table = Table(tmp_path / "hosts.json", written | {inner(7): {"host": outer(7)}})
    ends = []
    for i, host in enumerate(lan.hosts, 1):
        place = ["-b", f"[2001:db8::{i}]", "--ip6", f"{inner6(i)}/64"]
        ends.append(node(host, i, *place, "--hosts-file", table.path))
    for i, host in enumerate(lan.hosts, 1):
        await_reached(host, inner(3 - i))
        await_reached(host, inner6(3 - i))
    assert remotes(ends[0]) == {f"[2001:db8::2]:{PORT}": [f"{inner(2)}/32", f"{inner6(2)}/128"]}
    (line,) = warnings(ends[0])
    assert f"node {inner(7)} is left out: ours cannot send to {outer(7)}" in line
    assert all(dropped(end) == {} for end in ends)
    stop(*ends)


# -- who is let in --------------------------------------------------------------------------


def test_wrong_sources_and_strangers_are_dropped_and_counted(lab, table):
    lan = Lan(lab, 2)
    host, other = lan.hosts
    end = node(host, 1, "--hosts-file", table.path, "--fast-path", "off")
    inside = host.capture("ipipou0", "icmp")
    send = {"sport": PORT, "dst": outer(1), "dport": PORT, "inner_dst": inner(1)}
    for source in (inner(3), inner(1), "192.0.2.1"):
        other.send_fou(outer(2), inner_src=source, **send)
    await_dropped(end, rx_wrong_source=3)
    lan.host.send_fou(lan.ADDRESS, inner_src=inner(2), **send)
    other.send_fou(outer(2), inner_src=inner(2), **(send | {"sport": PORT + 1}))
    other.send_udp(outer(2), PORT, outer(1), PORT, b"\0" * 40)
    await_dropped(end, rx_wrong_source=3, rx_stranger=2, rx_malformed=1)
    other.send_fou(outer(2), inner_src=inner(2), **send)
    inside.await_packets(1)
    assert {(p.src, p.dst) for p in inside.packets()} == {
        (inner(2), inner(1)),
        (inner(1), inner(2)),
    }


def test_a_prefix_with_the_nodes_own_remote_is_left_out(lab, table):
    lan = Lan(lab, 2)
    table.write({inner(i): {"host": outer(i)} for i in (1, 2)} | {inner(9): {"host": outer(1)}})
    ends = nodes(lan, table)
    await_reached(lan.hosts[0], inner(2))
    (line,) = warnings(ends[0])
    assert f"node {inner(9)}: {outer(1)}:{PORT} is our own address: left out" in line
    assert UNREACHABLE in refusal(lan.hosts[0], inner(9))
    assert list(remotes(ends[0])) == [f"{outer(2)}:{PORT}"]
    assert not warnings(ends[1])


# -- a table that changes -------------------------------------------------------------------


def test_nodes_come_go_and_move(lab, table):
    lan = Lan(lab, 3)
    first, *_ = lan.hosts
    written = {inner(i): {"host": outer(i), "port": PORT} for i in (1, 2)}
    table.write(written)
    ends = nodes(lan, table)
    near = ends[0]
    await_reached(first, inner(2))
    assert UNREACHABLE in refusal(first, inner(3))
    number = first.run("ip -o link show dev ipipou0").split(":")[0]
    steady = first.ping_background(inner(2), interval=0.02)

    table.write(written | {inner(3): {"host": outer(3)}})
    await_reached(first, inner(3))  # by itself
    near.await_log("the table of hosts has 3 nodes")

    # To another host, and to another port.
    stop(ends[2])
    moved = node(lan.hosts[2], 3, "--hosts-file", table.path, "--fou-local-port", 7777)
    old_port = lan.hosts[2].capture("eth0", f"udp dst port {PORT}")
    assert_unanswered(first, inner(3))
    old_port.await_packets()
    table.write(written | {inner(3): {"host": outer(3), "port": 7777}})
    hurry(near)
    await_reached(first, inner(3))

    table.write(written)
    hurry(near)
    await_(lambda: UNREACHABLE in refusal(first, inner(3)), what="node to go")
    steady.stop_complete()
    assert first.run("ip -o link show dev ipipou0").split(":")[0] == number
    assert list(remotes(near)) == [f"{outer(2)}:{PORT}"] and not warnings(near)
    stop(near, moved)


TWO = f'"{inner(2)}": {{"host": "{outer(2)}"}}'
# What is wrong with a table, and what is said of it after the name of the file.
MISTAKES = {
    f'{{"nodes": {{\n{TWO},\n{TWO}\n}}}}': (
        f':3: node "{inner(2)}" is there twice (first in line 2)'
    ),
    f'{{"nodes": {{\n{TWO},\n\n"192.168.0.0/16": {{"host": "a"}}}}}}': (
        f':4: node "192.168.0.0/16" overlaps "{inner(2)}" of line 2'
    ),
    f'{{"nodes": {{\n{TWO}\n"10.7.0.0/16": {{}}}}}}': ":3:1: expected `,` or `}`",
    '{"nodes": {"10.7.0.1/16": {"host": "a"}}}': (
        ':1: node "10.7.0.1/16" has bits set behind its prefix length: write "10.7.0.0/16"'
    ),
    '{"nodes": {\n"me": {"host": "a"}}}': ':2: node "me" is neither an IP address nor a prefix',
    '{"nodes": {"224.0.0.1": {"host": "a"}}}': (
        ':1: node "224.0.0.1" holds no addresses that a host can have'
    ),
    '{"nodes": {"10.7.0.1": {"host": "192.0.2.256"}}}': (
        ':1: node "10.7.0.1" has the host "192.0.2.256", which is neither an address of one host'
        " nor a name"
    ),
    '{"nodes": {"10.7.0.1": {"host": "a.test:77"}}}': (
        ':1: node "10.7.0.1" has the host "a.test:77": write the port as "port": 77'
    ),
    '{"nodes": {\n"10.7.0.1": {"host": "a",\n"port": 0}}}': (
        ":3:9: invalid value: integer `0`, expected a port (1..65535)"
    ),
    '{"nodes": {"10.7.0.1": {"port": 1}}}': ":1:34: missing field `host`",
    '{"nodes": {"10.7.0.1": {"hots": "a"}}}': ':1:30: unknown field "hots"',
    '{"hosts": {}}': ':1:8: unknown field "hosts"',
    '{"nodes": {}': ":1:12: EOF while parsing an object",
    "": ":1:0: EOF while parsing a value",
    " " * (1 << 20) + "{}": ": has more than 1048576 bytes",
}


def test_a_bad_table_ends_the_program_at_the_start(lab, table):
    (host,) = Lan(lab, 1).hosts
    before = host.snapshot()

    def refused(message, path=table.path):
        own = ["-b", "@eth0", "--tunl-ip", f"{inner(1)}/24", "--hosts-file", path]
        checked = host.run(["ipipou", "check", *own], check=False)
        assert checked.returncode == 2 and checked.stderr.endswith(f"{path}{message}\n"), checked
        end = node(host, 1, "--hosts-file", path, ready=False)
        assert end.process.wait() == 2
        lines = end.process.output().splitlines()
        (line,) = [line for line in lines if line.startswith("ipipou: ")]
        assert line.endswith(f"{path}{message}"), line
        assert host.snapshot() == before

    for text, message in MISTAKES.items():
        table.write_text(text)
        refused(message)
    refused(": No such file or directory (os error 2)", table.path.with_name("none"))
    refused(": is not a file", table.path.parent)


def test_a_check_reads_the_table(lab, table):
    (host,) = Lan(lab, 1).hosts
    check = ["ipipou", "check", "-b", "@eth0", "--tunl-ip", f"{inner(1)}/24"]
    check += ["--hosts-file", table.path]
    assert host.run(check).endswith(f"\n{table.path}: 3 nodes, no mistakes\n")
    table.write({inner6(i): {"host": outer(1), "port": i} for i in range(1, 1100)})
    assert "1099 nodes, no mistakes" in host.run(check)
    done = host.run([*check, "--datapath", "kernel"], check=False)
    assert done.returncode == 2 and "carries 1024 at most" in done.stderr, done


def test_a_bad_update_of_the_table_changes_nothing(lab, table):
    """The last good one stays, each mistake is reported once, and the next good one is used."""
    lan = Lan(lab, 2)
    host = lan.hosts[0]
    near, _ = nodes(lan, table)
    await_reached(host, inner(2))
    before, state = remotes(near), host.snapshot()
    told = []
    for text, message in MISTAKES.items():
        table.write_text(text)
        told.append(f"{table.path}{message}; the last good table of hosts stays")
        for _ in range(2):
            hurry(near)
            await_(lambda: len(warnings(near)) == len(told), what=told[-1])
    table.path.unlink()
    hurry(near)
    gone = f"{table.path}: No such file or directory (os error 2)"
    near.await_log(
        f"{gone}; the last good table of hosts stays".replace("(", r"\(").replace(")", r"\)")
    )
    lines = warnings(near)
    assert all(line.endswith(end) for line, end in zip(lines, told)) and len(lines) == len(told) + 1
    assert reaches(host, inner(2), count=3) and remotes(near) == before
    assert host.snapshot() == state
    table.write({inner(i): {"host": outer(i)} for i in (1, 2)})
    near.await_log("the table of hosts can be read again")  # by itself
    await_(lambda: list(remotes(near)) == [f"{outer(2)}:{PORT}"], what="the good table")
    assert reaches(host, inner(2), count=3)


# -- names ----------------------------------------------------------------------------------


def test_names_move_and_come_later(lab, table):
    """What cannot be looked up is named once; the other nodes work."""
    lan = Lan(lab, 3)
    first, second, third = lan.hosts
    table.write({inner(2): {"host": "b.test"}, inner(3): {"host": "late.test"}})
    everybody = Table(table.path.with_name("all.json"), {inner(1): {"host": outer(1)}})
    with Names(first) as names:
        names.write(b=outer(2))
        near = node(first, 1, "--hosts-file", table.path)
        far = node(second, 2, "--hosts-file", everybody.path)
        await_reached(first, inner(2))
        near.await_log("cannot look up late.test: .*; its node is left out")
        assert UNREACHABLE in refusal(first, inner(3))
        hurry(near)
        steady = first.ping_background(inner(2), interval=0.02)

        names.write(b=outer(2), late=outer(3))
        node(third, 3, "--hosts-file", everybody.path)
        said = first.run(["ipipou", "reload", "--runtime-root", near.root, near.dev])
        assert said == "reading its table again\n"
        near.await_log("late.test can be looked up again")
        await_reached(first, inner(3))
        steady.stop_complete()

        # The host `b` gets another address.
        second.batch(f"addr del {outer(2)}/24 dev eth0", f"addr add {outer(22)}/24 dev eth0")
        far.await_log(f"our outer address is now {outer(22)}")
        to_old = first.capture("eth0", f"udp and dst host {outer(2)}")
        going = first.ping_background(inner(2))
        to_old.await_packets()
        names.write(b=outer(22), late=outer(3))
        near.reauthenticate()  # SIGUSR1 does as well
        going.await_answers()
        going.stop()
        answered = re.search(r" bytes from .*icmp_seq=(\d+)", going.output())
        assert int(answered[1]) > 1, "the old address answered"

        names.write(late=outer(3))
        hurry(near)
        near.await_log(f"cannot look up b.test: .*; {outer(22)} stays")
        assert reaches(first, inner(2), count=3)
        messages = [line for line in warnings(near) if "cannot look up" in line]
        assert len(messages) == 2
