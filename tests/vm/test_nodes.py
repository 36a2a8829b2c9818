"""Nodes that know each other from a table (--hosts-file), carried by the kernel: a link each."""

import json
import os
import re
import signal

import ipipou
from gateways import Switch, SynWatch, await_answer, connect, strict
from lab import await_

NETWORK = "192.168.100"
NOBODY = f"{NETWORK}.99"


def outer(number):
    return f"203.0.113.{number}"


def inner(number):
    return f"{NETWORK}.{number}"


class Nodes:
    """Hosts on one network, each a node, with one table for all of them."""

    def __init__(self, lab, *numbers):
        self.lab, self.switch = lab, Switch(lab)
        self.table = lab.directory / "hosts.json"
        self.hosts, self.ends = {}, {}
        for number in numbers:
            self.hosts[number] = lab.host(f"node{number}")
            self.switch.plug(self.hosts[number], "eth0", f"{outer(number)}/24")

    def write(self, nodes):
        """The table, from {inner address: host, or (host, port)}; as a whole, at once."""

        def entry(where):
            host, port = where if isinstance(where, tuple) else (where, None)
            return {"host": host, **({"port": port} if port else {})}

        text = json.dumps({"nodes": {net: entry(where) for net, where in nodes.items()}})
        new = self.table.with_suffix(".new")
        new.write_text(text)
        os.replace(new, self.table)

    def start(self, *options, **more):
        for number, host in self.hosts.items():
            self.ends[number] = node(host, self.table, inner(number), *options, **more)
        return self

    def everybody(self):
        """All reach each other."""
        for one, host in self.hosts.items():
            for other in self.hosts:
                assert one == other or host.ping(inner(other), count=1).received == 1, (one, other)

    def stop(self):
        for end in self.ends.values():
            assert end.process.stop() == 0


def node(host, table, address, *options, number=0):
    options = ["-b", "@eth0", "--tunl-ip", f"{address}/24", "--hosts-file", table, *options]
    return ipipou.Tunnel(host, *options, number=number)


def links(host, number=0):
    """{(remote, port): (name, local)} of a node's tunnels, as `ip` shows them."""
    found = {}
    for link in json.loads(host.run("ip -j -d link show type ipip")):
        data = link["linkinfo"]["info_data"]
        if link["ifname"].startswith(f"ipipou{number}-"):
            place = data["remote"], data["encap"]["dport"]
            found[place] = link["ifname"], data["local"]
    return found


def unanswered(host, address):
    """What ping says of an address that nobody has."""
    done = host.run(["ping", "-n", "-c", "1", "-W", "5", address], check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_nodes_and_a_network_behind_one(lab):
    """All reach each other and the network; what is in no table is unreachable, and said to be."""
    nodes = Nodes(lab, 1, 2, 3)
    lan, host, gateway = "10.7.0", lab.host("host"), nodes.hosts[3]
    inside = Switch(lab, "inside")
    inside.plug(gateway, "eth1", f"{lan}.1/24")
    inside.plug(host, "eth0", f"{lan}.2/24")
    host.run(f"ip route add default via {lan}.1")
    before = {number: host.snapshot() for number, host in nodes.hosts.items()}
    nodes.write({**{inner(n): outer(n) for n in (1, 2, 3)}, f"{lan}.0/24": outer(3)})
    nodes.start("--datapath", "kernel", "--forward")
    nodes.everybody()
    assert set(links(nodes.hosts[1])) == {(outer(2), 10000), (outer(3), 10000)}
    shown = nodes.ends[1].show()
    assert (shown["role"], shown["datapath"], shown["rules"]) == ("node", "kernel", "installed")
    networks = {remote["remote"]: remote["networks"] for remote in shown["tunnels"][0]["remotes"]}
    assert networks == {
        f"{outer(2)}:10000": [f"{inner(2)}/32"],
        f"{outer(3)}:10000": [f"{lan}.0/24", f"{inner(3)}/32"],
    }

    # The network, from a node and from inside; nobody's address is changed on the way.
    assert connect(nodes.hosts[1], host, f"{lan}.2") == inner(1)
    watch = SynWatch(nodes.hosts[2], links(nodes.hosts[2])[outer(3), 10000][0])
    assert connect(host, nodes.hosts[2], inner(2)) == f"{lan}.2"
    assert watch.segment_size() == 1500 - 28 - 40
    assert "No route to host" in unanswered(nodes.hosts[1], NOBODY)
    answer = unanswered(host, NOBODY)
    assert re.search(rf"From {lan}\.1 .*Destination Host Unreachable", answer), answer
    assert nodes.hosts[1].tracked() == 0
    nodes.stop()
    assert {number: host.snapshot() for number, host in nodes.hosts.items()} == before


def test_two_nodes_behind_one_address(lab):
    """A router leads a port to each of them: at the third, one of the links has an alternate address."""
    nodes = Nodes(lab, 1)
    router, here = lab.host("router"), nodes.hosts[1]
    nodes.switch.plug(router, "wan0", f"{outer(9)}/24")
    inside = Switch(lab, "inside")
    inside.plug(router, "lan0", "10.0.0.1/24")
    router.sysctl("net.ipv4.ip_forward", 1)
    router.nft(
        """
        table ip nat {
            chain prerouting {
                type nat hook prerouting priority dstnat;
                iifname "wan0" udp dport 10002 dnat to 10.0.0.2
                iifname "wan0" udp dport 10003 dnat to 10.0.0.3
            }
            chain postrouting {
                type nat hook postrouting priority srcnat;
                oifname "wan0" masquerade
            }
        }
    """
    )
    before = here.snapshot()
    nodes.write({inner(1): (outer(1), 10000), **{inner(n): (outer(9), 10000 + n) for n in (2, 3)}})
    ends = [node(here, nodes.table, inner(1))]
    for number in (2, 3):
        host = nodes.hosts[number] = lab.host(f"node{number}")
        inside.plug(host, "eth0", f"10.0.0.{number}/24")
        host.run("ip route add default via 10.0.0.1")
        # Those behind the router do without each other: it leads no packet back inside.
        ends.append(node(host, nodes.table, inner(number), number=number))
    for number in (2, 3):
        assert here.ping(inner(number), count=2).received == 2
        assert nodes.hosts[number].ping(inner(1), count=2).received == 2
    found = links(here)
    assert set(found) == {(outer(9), 10002), (outer(9), 10003)}
    alternate = {local for _, local in found.values()} - {outer(1)}
    assert len(alternate) == 1 and alternate.pop().startswith("172.30.")
    assert here.tracked() == 0
    for end in ends:
        assert end.process.stop() == 0
    assert here.snapshot() == before


def test_links_follow_the_table_and_outlive_the_process(lab):
    """Links follow the table, and go on without the process; others are not disturbed."""
    nodes = Nodes(lab, 1, 2, 3, 4)
    table = {inner(n): outer(n) for n in (1, 2, 3)}
    nodes.write(table)
    nodes.start()
    here, end = nodes.hosts[1], nodes.ends[1]
    assert here.ping(inner(3), count=1).received == 1
    assert "No route to host" in unanswered(here, inner(4))
    names = links(here)
    ping = here.ping_background(inner(2), interval=0.02)

    # The third node's address goes to another host; and then there is one more.
    nodes.ends[3].process.stop()
    table[inner(3)] = outer(4)
    nodes.ends[4].process.stop()
    nodes.ends[4] = node(nodes.hosts[4], nodes.table, inner(3))
    nodes.write(table)
    await_(lambda: set(links(here)) == {(outer(2), 10000), (outer(4), 10000)}, what="links")
    await_answer(here, inner(3))
    table[f"{NETWORK}.128/25"] = outer(4)
    nodes.write(table)
    await_(lambda: f"{NETWORK}.128/25" in here.run("ip route"), what="route")
    assert links(here)[outer(2), 10000] == names[outer(2), 10000]

    # One mistake, and the table of before stays.
    nodes.table.write_text('{"nodes": {"192.168.100.7": {"host": "192.0.2.1:1"}}}')
    end.await_log(r"WARN: .*hosts\.json:1: node .192\.168\.100\.7. .*port")
    assert here.ping(inner(3), count=1).received == 1
    nodes.write(table)

    before = here.snapshot(ifindex=True)
    assert end.process.stop(signal.SIGKILL) == -signal.SIGKILL
    assert here.snapshot(ifindex=True) == before
    end.start()
    assert here.snapshot(ifindex=True) == before
    ping.stop_complete()
    del table[inner(2)]
    nodes.write(table)
    await_(lambda: set(links(here)) == {(outer(4), 10000)}, what="one link")
    assert "No route to host" in unanswered(here, inner(2))


def test_strangers_get_nothing_in(lab):
    """Nor does a node with the inner address of another."""
    nodes = Nodes(lab, 1, 2, 3)
    nodes.write({inner(n): outer(n) for n in (1, 2, 3)})
    here, other, stranger = nodes.hosts[1], nodes.hosts[2], nodes.switch.host
    stranger.run(f"ip addr add {outer(66)}/24 dev br0")
    nodes.start()
    link = links(here)[outer(2), 10000][0]
    inside, outside = here.capture(link, "icmp"), here.capture("eth0", "udp src port 10000")
    inner_ends = inner(2), inner(1)
    stranger.send_fou(outer(66), 10000, outer(1), 10000, *inner_ends, ident=1)
    stranger.send_fou(outer(2), 4444, outer(1), 10000, *inner_ends, ident=2)
    stranger.send_ipip(outer(2), outer(1), *inner_ends, ident=3)
    # A real node in the name of another: it is on the link, and gets no further.
    other.send_fou(outer(2), 10000, outer(1), 10000, inner(3), inner(1), ident=4)
    assert other.ping(inner(1), count=1).received == 1

    asked = inside.await_packets(2)
    idents = [int.from_bytes(packet.payload[4:6]) for packet in asked]
    assert idents[0] == 4 and not {1, 2, 3} & set(idents)
    answers = [packet.inner for packet in outside.await_packets(1) if packet.src == outer(1)]
    assert [packet.dst for packet in answers] == [inner(2)]
    nodes.ends[1].await_dropped(stranger_data=2, plain_ipip=1)


def test_a_table_may_have_networks_around_outer_addresses(lab):
    """Those of the links themselves, that is: only packets of others are led into the links, whether
    the table has such networks from the start or not."""
    nodes = Nodes(lab, 1, 2)
    behind, router = Switch(lab, "behind"), lab.host("router")
    place = {1: outer(1), 2: outer(2), 3: "198.51.100.3"}
    nodes.hosts[3] = lab.host("node3")
    behind.plug(nodes.hosts[3], "eth0", f"{place[3]}/24")
    nodes.switch.plug(router, "eth0", f"{outer(254)}/24")
    behind.plug(router, "eth1", "198.51.100.254/24")
    router.sysctl("net.ipv4.ip_forward", 1)
    for number, host in nodes.hosts.items():
        host.run(f"ip route add default via {'198.51.100' if number == 3 else '203.0.113'}.254")
    nodes.hosts[3].run("ip addr add 198.51.100.77/32 dev lo")
    here = nodes.hosts[1]
    strict(here, "eth0")
    before = {number: host.snapshot() for number, host in nodes.hosts.items()}

    table = {inner(number): address for number, address in place.items()}
    around = {"198.51.100.0/24": place[3], "203.0.113.0/28": place[2]}
    nodes.write(table)
    for number, host in nodes.hosts.items():
        options = ["-b", place[number], "--tunl-ip", f"{inner(number)}/24", "--datapath", "kernel"]
        options += ["--fast-path", "off"]  # what it carries, the links do not count
        nodes.ends[number] = ipipou.Tunnel(host, *options, "--hosts-file", nodes.table)
    nodes.everybody()

    def carried():
        return sum(here.statistics(name)["tx"]["packets"] for name, _ in links(here).values())

    def all_goes_by_the_uplink():
        sent = carried()
        nodes.everybody()
        assert here.ping("198.51.100.77", count=1).received == 1
        assert carried() - sent == 5  # to the two others and back, and one to the network
        assert links(here)[place[3], 10000][0] in here.run("ip route get 198.51.100.77")

    nodes.write(table | around)
    for number, host in nodes.hosts.items():
        network = "203.0.113.0/28" if number == 3 else "198.51.100.0/24"
        show = f"ip route show table all {network}"
        await_(lambda: "ipipou0-" in host.run(show), what=network)  # noqa: B023
        nodes.ends[number].await_quiet()
    all_goes_by_the_uplink()
    for end in nodes.ends.values():
        assert end.process.stop() == 0
    assert {number: host.snapshot() for number, host in nodes.hosts.items()} == before
    for end in nodes.ends.values():
        end.start()
    for end in nodes.ends.values():
        end.await_quiet()
    all_goes_by_the_uplink()
    assert [end.show()["repaired"] for end in nodes.ends.values()] == [0, 0, 0]

    # As if nothing had been there.
    nodes.write(table)
    await_(lambda: "198.51.100.0/24" not in here.run("ip route show table all"), what="no route")
    nodes.everybody()
    nodes.stop()
    assert {number: host.snapshot() for number, host in nodes.hosts.items()} == before
