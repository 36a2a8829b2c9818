"""The userspace datapath: what may come out of a tunnel, and what may go into one."""

import json
import socket
import struct

import pytest

import ipipou
import packets
from first_version import signed
from gateways import await_answer
from ipipou import CLIENT, SERVER, await_, reach_each_other
from many_ends import Lan, Table, await_dropped, await_reached, dropped, inner, node, outer, reaches
from test_ipv6 import CLIENT6, INNER6, SERVER6, connect, hosts  # noqa: F401
from test_malformed import ICMP6, ipv4, ipv6
from traffic import transfer_both_ways

TUN = ["--datapath", "tun"]
# The interface counts what goes round.
SLOW = [*TUN, "--fast-path", "off"]
INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
PORT = 10000
ROUTER = "fe80::bad"
UDP_SEGMENT = 103  # linux/udp.h


def checked_icmp6(source, destination, message):
    """An ICMPv6 message with its checksum, in an IPv6 packet with the hop limit that the kernel
    wants of neighbours."""
    packet = bytearray(ipv6(source, destination, ICMP6, message))
    packet[7] = 255
    pseudo = bytes(packet[8:40]) + struct.pack("!IBBBB", len(message), 0, 0, 0, ICMP6)
    packet[42:44] = packets.checksum(pseudo + message).to_bytes(2, "big")
    return bytes(packet)


def advertisement():
    """A router that has a default route, and a prefix to make an address of."""
    prefix = socket.inet_pton(socket.AF_INET6, "2001:db8:bad::")
    option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + prefix
    message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + option
    return checked_icmp6(ROUTER, "ff02::1", message)


def redirect6(destination):
    """A redirect to another router."""
    addresses = [socket.inet_pton(socket.AF_INET6, a) for a in ("fe80::7", destination)]
    message = struct.pack("!BBHI", 137, 0, 0, 0) + b"".join(addresses)
    return checked_icmp6(ROUTER, destination, message)


def redirect4(source, destination):
    quoted = packets.inner_icmp_echo(destination, "192.0.2.9")[:28]
    message = struct.pack("!BBH4s", 5, 1, 0, socket.inet_aton("192.0.2.8")) + quoted
    total = packets.checksum(message)
    return ipv4(
        source, destination, packets.ICMP, message[:2] + total.to_bytes(2, "big") + message[4:]
    )


def echo6(source, destination):
    return checked_icmp6(source, destination, struct.pack("!BBHHH", 128, 0, 0, 7, 1))


def inject(host, source, to, payloads, port=PORT):
    """Payloads in UDP, with anybody's address and port."""
    for payload in payloads:
        host.send_udp(source, port, to, PORT, payload)


def gained(end, before):
    """What was dropped since then."""
    return {
        why: n - before.get(why, 0) for why, n in dropped(end).items() if n > before.get(why, 0)
    }


# -- what may come out ----------------------------------------------------------------------


@pytest.mark.parametrize("check", ["strict", "loose", "off"])
def test_packets_from_a_tunnel_cannot_reconfigure_the_host(hosts, check):
    """A router advertisement, redirects, and sources that no host has or that are the host's own, in every
    mode; although the host would believe routers and redirects."""
    server, client = hosts
    near, far = connect(hosts, "IPv4", "--rp-filter", check)
    assert client.ping(INNER6[0], count=1).received == 1
    assert far.process.stop() == 0
    for setting, value in (("accept_ra", 2), ("accept_redirects", 1)):
        server.sysctl(f"net.ipv6.conf.ipipou0.{setting}", value)
    before, routes = dropped(near), server.run("ip -6 route show table all")
    came_out = server.spawn(["tcpdump", "-lni", "ipipou0", "-Q", "in"])
    came_out.await_output("listening")

    nobody6 = ["fe80::1", "febf::1", "::", "::1", "ff02::1", "::ffff:10.0.0.1", INNER6[0], SERVER6]
    nobody4 = ["0.0.0.0", "127.0.0.1", "224.0.0.5", "255.255.255.255", "203.0.113.255"]
    nobody4 += [INNER_SERVER, SERVER]
    wrong = [advertisement(), redirect6(INNER6[0])]
    wrong += [echo6(source, INNER6[0]) for source in nobody6]
    wrong += [packets.inner_icmp_echo(source, INNER_SERVER) for source in nobody4]
    redirects = [redirect4(INNER_CLIENT, INNER_SERVER)]
    # Another fragment than the first may begin with the same byte.
    fragment = ipv4(INNER_CLIENT, INNER_SERVER, packets.ICMP, b"\5" * 64, frag=8)
    inject(client, CLIENT, SERVER, [*wrong, *redirects, fragment, echo6(INNER6[1], INNER6[0])])
    came_out.await_output(rf"{INNER6[1]} > {INNER6[0]}: ICMP6, echo request")
    seen = [line for line in came_out.output().splitlines() if " > " in line]
    assert len(seen) == 2 and f"{INNER_CLIENT} > {INNER_SERVER}" in seen[0], seen
    assert gained(near, before) == {"rx_wrong_source": len(wrong), "rx_redirect": 1}
    assert server.run("ip -6 route show table all") == routes
    assert "2001:db8:bad" not in server.run("ip -6 addr")


def test_packets_from_a_full_tunnel_cannot_reconfigure_the_host(hosts):
    """Every IPv6 source may come in, but for those."""
    server, client = hosts
    near, far = connect(hosts, "IPv4")
    far.process.stop()
    far.argv += ["--default-route"]
    far.start()
    near.await_accepted(2)
    assert client.ping(INNER6[0], count=1).received == 1
    client.sysctl("net.ipv6.conf.ipipou0.accept_ra", 2)
    before, routes = dropped(far), client.run("ip -6 route show table all")
    came_out = client.spawn(["tcpdump", "-lni", "ipipou0", "-Q", "in", "icmp6[0] > 127"])
    came_out.await_output("listening")
    wrong = [advertisement(), redirect6(INNER6[1]), echo6(CLIENT6, INNER6[1])]
    inject(server, SERVER, CLIENT, [*wrong, echo6("2001:db8:5::5", INNER6[1])])
    came_out.await_output("2001:db8:5::5 > ")
    assert came_out.output().count(" IP6 ") == 1
    assert gained(far, before) == {"rx_wrong_source": len(wrong)}
    assert client.run("ip -6 route show table all") == routes


def test_packets_from_many_peers_cannot_reconfigure_the_host(lab):
    """--learn, where anybody is let in, and a table with a network around the host's own address."""
    lan = Lan(lab, 2, ip6=True)
    host, other = lan.hosts
    own = ["--ip6", "fd09::1/64", *TUN]
    learn = ipipou.server(host, "--learn", "--tunl-ip", "10.9.0.1/24", *own)
    wrong = [advertisement(), echo6("fd09::1", "fd09::1")]
    nobody = ["10.9.0.1", "10.9.0.255", "224.0.0.5"]
    wrong += [packets.inner_icmp_echo(source, "10.9.0.1") for source in nobody]
    good = packets.inner_icmp_echo("10.9.0.7", "10.9.0.1")
    inject(other, outer(2), outer(1), [*wrong, good])
    # Nor from outer addresses that no host has.
    for source in ("127.0.0.1", "224.0.0.5", outer(1)):
        inject(other, source, outer(1), [packets.inner_icmp_echo("10.9.0.8", "10.9.0.1")])
    learned = lambda: [entry["inner"] for entry in learn.show()["learned"]]  # noqa: E731
    await_(lambda: "10.9.0.7" in learned(), what="the good one learned")
    assert learned() == ["10.9.0.7"] and dropped(learn)["rx_wrong_source"] == len(wrong)
    assert learn.process.stop() == 0

    nodes = [("10.7.0.2", outer(2)), ("192.168.0.0/16", outer(2)), ("fd08::/16", outer(2))]
    table = Table(lab.directory / "hosts.json", {i: {"host": r} for i, r in nodes})
    end = ipipou.Tunnel(
        host, "-b", "@eth0", "--tunl-ip", "10.7.0.1/24", *own, "--hosts-file", table.path
    )
    host.sysctl("net.ipv6.conf.eth0.disable_ipv6", 0)
    host.batch("addr add 192.168.7.7/24 dev eth0", "addr add fd08::7/64 dev eth0 nodad")
    own = packets.inner_icmp_echo("192.168.7.7", "10.7.0.1")

    def known():
        inject(other, outer(2), outer(1), [own, echo6("fd08::7", "fd09::1")])
        return dropped(end).get("rx_wrong_source", 0) > 1

    good = packets.inner_icmp_echo("10.7.0.2", "10.7.0.1")
    came_out = host.capture("ipipou0", "-Q in src host 10.7.0.2")
    await_(known, what="the new addresses to be known")
    inject(other, outer(2), outer(1), [good])
    came_out.await_packets(1)  # all before it is counted
    before, came_out = dropped(end), host.capture("ipipou0", "-Q in")
    wrong = [advertisement(), echo6("fd08::7", "fd09::1"), own]
    inject(other, outer(2), outer(1), [*wrong, good])
    came_out.await_packets(1)
    assert {packet.src for packet in came_out.packets()} == {"10.7.0.2"}
    assert gained(end, before) == {"rx_wrong_source": len(wrong)}


def test_the_interface_sends_nothing_by_itself(hosts):
    """It has no link-local address and believes nobody; what the kernel would send of its own accord
    is not sent, so that nothing is dropped in a tunnel that is well."""
    for host in hosts:
        host.sysctl("net.ipv6.conf.default.router_solicitation_delay", 0)
    server, client = hosts
    on_wire = server.capture("eth0", f"udp port {PORT}")
    ends = connect(hosts, "IPv4")
    reach_each_other(server, client)
    for host in hosts:
        assert "fe80" not in host.run("ip -6 addr show dev ipipou0")
        assert "addrgenmode none" in host.run("ip -d link show dev ipipou0")
        settings = ["ipv6.conf.ipipou0.accept_ra", "ipv6.conf.ipipou0.accept_redirects"]
        settings += ["ipv4.conf.ipipou0.accept_redirects"]
        assert [host.sysctl(f"net.{setting}") for setting in settings] == ["0"] * 3
        host.batch("link set ipipou0 down", "link set ipipou0 up")
        has_address = lambda: "fd00:9::" in host.run("ip -6 addr show dev ipipou0")  # noqa: E731
        await_(has_address, what="its address again")
        assert "fe80" not in host.run("ip -6 addr show dev ipipou0")
    await_answer(client, INNER6[0])
    assert [dropped(end) for end in ends] == [{}, {}]
    inside = [packet.payload for packet in on_wire.packets()]
    assert not [payload for payload in inside if payload[0] >> 4 == 6 and payload[6] != ICMP6]


def send_batch(host, source, to, segments):
    """Datagrams of one length that the receiver's kernel hands over in one piece."""
    sizes = {len(segment) for segment in segments}
    assert len(sizes) == 1
    with host.udp_socket(source, PORT) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, sizes.pop())
        sender.sendto(b"".join(segments), (to, PORT))


def test_every_packet_of_a_batch_is_judged(lab):
    """The kernel hands over many datagrams of one sender in one piece: one that may come in does not
    take others with it."""
    lan = Lan(lab, 2)
    host, other = lan.hosts
    table = Table(lab.directory / "hosts.json", {inner(2): {"host": outer(2)}})
    end = node(host, 1, "--hosts-file", table.path)
    came_out = host.capture("ipipou0", "-Q in")
    good, foreign = inner(2), inner(3)
    orders = [[good, foreign], [foreign, good], [good, foreign, good, foreign, foreign, good]]
    expected = []
    for number, order in enumerate(orders):
        echo = [
            packets.inner_icmp_echo(source, inner(1), ident=number, sequence=sequence)
            for sequence, source in enumerate(order)
        ]
        send_batch(other, outer(2), outer(1), echo)
        expected += [packet for packet, source in zip(echo, order) if source == good]
    came_out.await_packets(len(expected))
    await_dropped(end, rx_wrong_source=sum(order.count(foreign) for order in orders))
    assert [packet.raw for packet in came_out.stop()] == expected


# -- out of a tunnel, into one --------------------------------------------------------------


def from_inside(source, sport, to, dport, payload):
    """A UDP packet to be sent in a tunnel."""
    return packets.ipv4(source, to, packets.UDP, packets.udp(source, sport, to, dport, payload))


def test_packets_from_inside_a_tunnel_enter_no_tunnel(lab):
    """A client's own valid packet, sent through the tunnel, does not move the tunnel into itself; nor
    does data that comes so reach another tunnel."""
    server, client = ipipou.neighbours(lab)
    keys = ipipou.Keys(server)
    near_options = [*TUN, "-b", SERVER, "--rp-filter", "loose"]
    near = ipipou.server(server, *near_options, keys=keys)
    ipipou.client(client, *TUN, keys=keys)
    near.await_log("tunnel up")
    other = ipipou.Tunnel(
        server, "-s", "-n1", *near_options, "--auth-by-remote-ip", "-r", "203.0.113.9", number=1
    )
    server.send_udp("203.0.113.9", 4000, SERVER, PORT + 1, b"")  # over lo, as if from there
    other.await_log("tunnel up")
    reach_each_other(server, client)
    came_out = server.capture("ipipou1", "-Q in")

    data = packets.inner_icmp_echo("172.28.0.3", "172.28.0.2")
    for sender, payload in [
        (("172.28.0.1", 5555, SERVER, PORT), signed(keys.private)),
        (("224.0.0.5", 5555, SERVER, PORT), signed(keys.private)),
        (("203.0.113.9", 4000, SERVER, PORT + 1), data),
    ]:
        inject(client, CLIENT, SERVER, [from_inside(*sender, payload)])
    await_(lambda: dropped(near).get("rx_inside") == 1, what="the packet from inside")
    await_dropped(other, rx_inside=1)
    assert near.show()["accepted"] == 1 and near.show()["moved"] == 0
    server.send_udp("203.0.113.9", 4000, SERVER, PORT + 1, data)
    assert len(came_out.await_packets(1)) == 1
    reach_each_other(server, client)


@pytest.mark.parametrize("place", ["@ipipou0", INNER_SERVER])
def test_a_tunnel_inside_a_tunnel_works(lab, place):
    server, client = ipipou.neighbours(lab)
    near = ipipou.server(server, *TUN, "--auth-token", "outside")
    ipipou.client(client, *TUN, "--auth-token", "outside")
    near.await_log("tunnel up")
    within = ipipou.Tunnel(server, "-s", "-b", place, *TUN, "--auth-token", "x", number=1)
    ipipou.client(
        client,
        *TUN,
        "--auth-token",
        "x",
        remote=f"{INNER_SERVER}:{PORT + 1}",
        device="ipipou0",
        number=1,
        peer=1,
    )
    within.await_log("tunnel up")
    reach_each_other(server, client, peer=1)
    transfer_both_ways((server, client), 4, addresses=("172.28.0.2", "172.28.0.3"))
    assert dropped(within) == {}


# -- round and round ------------------------------------------------------------------------


def calm(host, *links):
    """Nothing goes round: after another ping each link has sent a packet or two, not thousands."""
    sent = lambda: [host.statistics(link)["tx"]["packets"] for link in links]  # noqa: E731
    before = sent()
    host.ping(INNER_SERVER, count=3, timeout=0.3)
    gained = [now - then for now, then in zip(sent(), before)]
    assert all(0 < more < 100 for more in gained), gained


@pytest.mark.parametrize("how", ["plain", "masqueraded", "IPv6"])
def test_packets_of_a_tunnel_led_into_itself_are_dropped(hosts, how):
    """A route moved by hand leads the tunnel's own packets into it: each is dropped, and it is said
    once."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(
        server, *SLOW, *(["-b", f"[{SERVER6}]"] if how == "IPv6" else []), keys=keys
    )
    remote = SERVER6 if how == "IPv6" else SERVER
    place = f"[{CLIENT6}]:{PORT}" if how == "IPv6" else f"{CLIENT}:{PORT}"
    far = ipipou.client(
        client,
        *SLOW,
        *(["--ip6", "fd00:9::2/64"] if how == "IPv6" else []),
        "-b",
        place,
        remote=f"[{SERVER6}]:{PORT}" if how == "IPv6" else f"{SERVER}:{PORT}",
        keys=keys,
    )
    near.await_log("tunnel up")
    reach_each_other(server, client)
    if how == "masqueraded":
        client.nft(
            "table ip nat { chain out { type nat hook postrouting priority srcnat; "
            'oifname "ipipou0" masquerade; }; }'
        )
    client.run(f"ip route add {remote} dev ipipou0")
    calm(client, "ipipou0")
    far.await_log("leads the tunnel's own packets back into ipipou0")
    calm(client, "ipipou0")
    assert far.process.output().count("own packets back") == 1
    assert dropped(far)["tx_leads_back"] > 0
    client.run(f"ip route del {remote} dev ipipou0")
    if how == "masqueraded":
        client.run("nft delete table ip nat")
        client.run("conntrack -F")
    reach_each_other(server, client)


def test_packets_of_two_tunnels_led_into_each_other_are_dropped(hosts):
    server, client = hosts
    server.run("ip addr add 203.0.113.7/24 dev eth0")
    ends = []
    for number, address in enumerate((SERVER, "203.0.113.7")):
        token = [*SLOW, "--auth-token", "x"]
        near = ipipou.server(server, *token, "-b", address, number=number)
        place = ["-b", f"{CLIENT}:{PORT + number}"]
        remote = f"{address}:{PORT + number}"
        ends.append(
            ipipou.client(client, *token, *place, remote=remote, number=number, peer=number)
        )
        near.await_log("tunnel up")
        reach_each_other(server, client, peer=number)
    client.batch(f"route add {SERVER} dev ipipou1", "route add 203.0.113.7 dev ipipou0")
    calm(client, "ipipou0", "ipipou1")
    calm(client, "ipipou0", "ipipou1")
    assert sum(dropped(end).get("tx_leads_back", 0) for end in ends) > 0


def test_a_table_may_have_networks_around_outer_addresses(lab):
    """As with --route: outer packets are marked and go by the uplink."""
    lan = Lan(lab, 2)
    nodes = {inner(i): {"host": outer(i)} for i in (1, 2)}
    table = Table(lab.directory / "hosts.json", nodes)
    ends = []
    for i, host in enumerate(lan.hosts, 1):
        ends.append(
            ipipou.Tunnel(
                host,
                "-b",
                outer(i),
                "--tunl-ip",
                f"{inner(i)}/24",
                *SLOW,
                "--hosts-file",
                table.path,
            )
        )
    near, far = lan.hosts
    await_reached(near, inner(2))
    # Whether it was there from the start or not.
    table.write(nodes | {"10.0.0.0/28": {"host": outer(2)}})
    ends[0].await_log("the table of hosts has 3 nodes")
    await_(lambda: "10.0.0.0/28" in near.run("ip route show table all"), what="the route")
    assert reaches(near, inner(2), count=3) and reaches(near, outer(2))
    assert "tx_leads_back" not in dropped(ends[0])
    assert near.statistics("ipipou0")["tx"]["packets"] < 100
    assert ends[0].process.stop() == 0
    ends[0].start()
    assert reaches(near, inner(2), count=3) and reaches(near, outer(2))
    assert "10.0.0.0/28" not in near.run("ip route show table main")


def test_the_outer_address_is_not_one_of_the_tunnel(hosts):
    """-b @auto, and the default route is moved into the tunnel by hand."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *SLOW, keys=keys)
    far = ipipou.client(client, *SLOW, "-b", "@auto", keys=keys)
    near.await_log("tunnel up")
    reach_each_other(server, client)
    client.run(f"ip route add {SERVER} dev ipipou0 src {INNER_CLIENT}")
    far.await_log("the route to the server leads into ipipou0, the tunnel itself")
    calm(client, "ipipou0")
    assert far.show()["tunnels"][0]["local"] == f"{CLIENT}:{PORT}"
    client.run(f"ip route del {SERVER} dev ipipou0")
    near.await_accepted(2)
    reach_each_other(server, client)
    assert json.dumps(near.show()["tunnels"]).count(f"{CLIENT}:{PORT}") == 1
