"""Paths that are narrower than the interface they begin with, and those who only say that they are:
whatever happens, nothing is damaged, and no packet of up to 1280 bytes is lost for good."""

import socket
import struct
import threading

import pytest

import ipipou
import packets
from gateways import await_answer
from ipipou import CLIENT, SERVER, await_
from lab import no_checksum_offload
from many_ends import Table, await_reached, dropped, inner, node
from test_integrity import TUN, UDP_SEGMENT, connect
from test_ipv6 import CLIENT6, INNER6, SERVER6
from test_outer import across
from traffic import SO_RCVBUFFORCE, no_damage, transfer, transfer_both_ways

INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
PORT = 10000
FULL = 1500 - 28  # bytes of an inner packet that fills a packet of 1500
# linux/in.h. Packets may be fragmented, and are so by the interface's MTU, whatever the kernel was
# told of the path.
IP_MTU_DISCOVER, IP_PMTUDISC_OMIT = 10, 5
NEAR, FAR = "198.51.100.2", "192.0.2.2"


def passes(host, address, size, *how):
    """Whether every packet of this many bytes is answered."""
    return host.ping(address, *how, size=size - 28, count=5).received == 5


def narrow_to(host, address, size, mtu):
    """Waits until the sender of a packet that may not be fragmented hears how long it may be: the
    first one was sent, and a router had to say so."""

    def is_told():
        host.ping(address, "-M", "do", size=size - 28, count=1)  # new ones do not say how long
        return f" mtu {mtu}" in host.run(f"ip route get {address}")

    await_(is_told, what=f"{mtu} bytes")


# -- real ones ------------------------------------------------------------------------------


class Star:
    """A node, and two others behind a router, whose cables take less than its own."""

    def __init__(self, lab, near, far):
        self.server, self.router = lab.host("server"), lab.host("router")
        self.near, self.far = lab.host("near"), lab.host("far")
        cables = (
            (self.server, SERVER, "203.0.113.254", "eth0", 1500),
            (self.near, NEAR, "198.51.100.1", "eth1", near),
            (self.far, FAR, "192.0.2.1", "eth2", far),
        )
        for host, own, gateway, dev, mtu in cables:
            lab.link(host, "eth0", f"{own}/24", self.router, dev, f"{gateway}/24")
            host.run(f"ip route add default via {gateway}")
            self.router.run(f"ip link set {dev} mtu {mtu}")
        self.router.sysctl("net.ipv4.ip_forward", 1)


def numbered(number, length):
    return number.to_bytes(4, "big") * (length // 4)


class Count(threading.Thread):
    """Receives datagrams that are one number again and again, until an empty one comes."""

    def __init__(self, host, address):
        super().__init__(daemon=True)
        self.socket = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self.socket.bind((address, 7000))
        self.right, self.wrong = 0, []
        self.start()

    def run(self):
        with self.socket:
            while datagram := self.socket.recv(65536):
                if datagram == datagram[:4] * (len(datagram) // 4):
                    self.right += 1
                else:
                    self.wrong.append(datagram)


@pytest.mark.parametrize("checksum", ["--encap-csum", "--no-encap-csum"])
def test_a_narrow_path_affects_only_its_remote(lab, tmp_path, checksum):
    """While the path to one remote is narrow, what goes to another is not fragmented by a router,
    where numbers that repeat would put together parts of different packets."""
    star = Star(lab, 1300, 1400)
    no_checksum_offload(star.server, "eth0")  # what is captured is what a card sends
    star.far.nft(
        """
        table ip loss {
            chain prerouting {
                type filter hook prerouting priority raw;
                numgen random mod 50 == 0 drop
            }
        }
        """
    )
    hosts = {1: SERVER, 2: NEAR, 3: FAR}
    table = tmp_path / "hosts.json"
    Table(table, {inner(i): {"host": address} for i, address in hosts.items()})
    nodes = star.server, star.near, star.far
    # On a fast path what fits overtakes what does not: here the packet that ends the count.
    options = ["--hosts-file", table, checksum, "--fast-path", "off"]
    ends = [node(host, i, *options) for i, host in enumerate(nodes, 1)]
    for i in (2, 3):
        await_reached(star.server, inner(i))
    narrow_to(star.server, inner(2), FULL, 1272)
    narrow_to(star.server, inner(3), FULL, 1372)
    loose = f"src host {SERVER} and ip[6] & 0x40 = 0 and (udp or ip[6:2] & 0x1fff != 0)"
    may_be_fragmented = star.server.capture("eth0", loose)
    count = Count(star.far, inner(3))
    with star.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT)
        for number in range(300):
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1400)
            batch = b"".join(numbered(20 * number + i, 1400) for i in range(20))
            sender.sendto(batch, (inner(3), 7000))
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
            sender.sendto(numbered(number, 1400), (inner(2), 7000))  # its path stays narrow
        while count.is_alive():
            sender.sendto(b"", (inner(3), 7000))
            count.join(0.05)
    # Some were lost by the rule, and others because nobody waits for a receiver.
    assert not count.wrong and count.right > 1000
    assert may_be_fragmented.stop() == []
    created = star.router.run("nstat -asz IpFragCreates").split()
    assert created[created.index("IpFragCreates") + 1] == "0"
    no_damage(nodes)
    assert not any("tx_failed" in dropped(end) for end in ends)


@pytest.mark.parametrize("queues", [1, 2])
def test_packets_that_do_not_fit_are_fragmented_inside(lab, queues):
    """What may be fragmented is, before it leaves; a sender that forbids it hears how long a packet may be;
    what the kernel left to us to segment gets segments that fit."""
    hosts, routers = across(lab, 1400)
    server, client = hosts
    no_checksum_offload(client, "eth0")  # what is captured is what a card sends
    ends = connect(hosts, "--tun-queues", queues)
    both = (client, INNER_SERVER), (server, INNER_CLIENT)
    for host, address in both:
        narrow_to(host, address, FULL, 1372)
    for host, address in both:
        assert passes(host, address, 1372, "-M", "do")
        assert passes(host, address, FULL, "-M", "dont")
        assert passes(host, address, 8000, "-M", "dont")
    too_long = client.capture("eth0", f"src host {NEAR} and udp and ip[2:2] > 1400")
    transfer_both_ways(hosts, 4, flows=queues)
    with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT)
        with server.udp_socket(INNER_SERVER, 7000, timeout=20) as receiver:
            for length in (1344, 1348, 1444, 5000):
                sender.sendto(numbered(7, length), (INNER_SERVER, 7000))
                assert receiver.recv(65536) == numbered(7, length)
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1444)
            sender.sendto(b"".join(numbered(i, 1444) for i in range(30)), (INNER_SERVER, 7000))
            for i in range(30):
                assert receiver.recv(65536) == numbered(i, 1444)
    assert too_long.stop() == []
    for router in routers:
        counts = router.run("nstat -asz IpFragCreates").split()
        assert counts[counts.index("IpFragCreates") + 1] == "0"
    for end in ends:
        assert dropped(end).keys() <= {"tx_too_long"}
    no_damage(hosts)


def test_inner_ipv6_passes_the_narrowest_path(lab):
    """1280 bytes must pass everywhere (RFC 8200, 5), also with a header more."""
    hosts, _ = across(lab, 1280)
    near = ipipou.server(hosts[0], *TUN, "--ip6", f"{INNER6[0]}/64")
    ipipou.client(hosts[1], *TUN, "--ip6", f"{INNER6[1]}/64")
    near.await_log("tunnel up")
    for host, address in zip(hosts, (INNER_CLIENT, INNER_SERVER)):
        narrow_to(host, address, FULL, 1252)
    for host, address6 in zip(hosts, reversed(INNER6)):
        assert passes(host, address6, 1280 - 20, "-M", "do")
        narrow_to(host, address6, 1400 - 20, 1280)
    transfer_both_ways(hosts, 4, addresses=INNER6)
    transfer_both_ways(hosts, 4)
    no_damage(hosts)


@pytest.mark.parametrize("outer", ["IPv4", "IPv6"])
def test_an_uplink_too_narrow_for_ipv6_gets_outer_fragments(hosts, outer):
    """The ends' own cable: what does not fit into it leaves in fragments, and none is lost."""
    server, client = hosts
    near, far = (SERVER, CLIENT) if outer == "IPv4" else (f"[{SERVER6}]", f"[{CLIENT6}]")
    for host, own6 in ((server, SERVER6), (client, CLIENT6)):
        host.run(f"ip addr add {own6}/64 dev eth0 nodad")
        host.run("ip link set eth0 mtu 1280")
    await_answer(client, SERVER6)
    end = ipipou.Tunnel(server, "-s", "-b", f"{near}:{PORT}@eth0", "--ip6", f"{INNER6[0]}/64", *TUN)
    ipipou.Tunnel(
        *[client, "-c", "-b", f"{far}@eth0", "-r", f"{near}:{PORT}"],
        *["--tunl-ip", INNER_CLIENT, "--ip6", f"{INNER6[1]}/64", *TUN],
    )
    end.await_log("tunnel up")
    await_answer(client, INNER6[0])
    for host, address, address6 in zip(hosts, (INNER_CLIENT, INNER_SERVER), reversed(INNER6)):
        assert passes(host, address6, 1280 - 20, "-M", "do")
        assert passes(host, address, 1280, "-M", "dont")
    transfer_both_ways(hosts, 4, addresses=INNER6)
    no_damage(hosts)


# -- those who only say so ------------------------------------------------------------------


def quote(source, port, destination, remote_port):
    """The beginning of an outer packet of 1500 bytes."""
    datagram = packets.udp(source, port, destination, remote_port, bytes(FULL))
    return packets.ipv4(source, destination, packets.UDP, datagram, frag=0x4000)[:28]


def icmp(code, mtu, quoted):
    """ICMP "destination unreachable"; code 4 is "fragmentation needed"."""
    message = struct.pack("!BBHHH", 3, code, 0, 0, mtu) + quoted
    return message[:2] + packets.checksum(message).to_bytes(2, "big") + message[4:]


def say_too_long(host, mtu, quoted):
    """ICMP "fragmentation needed", from any address, to the server."""
    host.send_raw(packets.ipv4("192.0.2.77", SERVER, packets.ICMP, icmp(4, mtu, quoted)))


def icmp6(kind, code, mtu, source, port, destination, remote_port):
    """ICMPv6; the kernel fills in the sum."""
    addresses = socket.inet_pton(socket.AF_INET6, source)
    addresses += socket.inet_pton(socket.AF_INET6, destination)
    quoted = struct.pack("!IHBB", 6 << 28, FULL + 8, packets.UDP, 64) + addresses
    quoted += struct.pack("!HHHH", port, remote_port, FULL + 8, 1) + bytes(100)
    return struct.pack("!BBHI", kind, code, 0, mtu) + quoted


def say_too_long6(host, mtu, source, *quoted):
    """ICMPv6 "packet too big"."""
    with host.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.sendto(icmp6(2, 0, mtu, source, *quoted), (source, 0))


FORGED = [
    # Another port or address of the remote's, however little it says.
    (CLIENT, PORT + 1, 1400),
    ("203.0.113.99", PORT, 1400),
    # The right ones, and less than is believed.
    (CLIENT, PORT, 1279),
    (CLIENT, PORT, 552),
    (CLIENT, PORT, 68),
    (CLIENT, PORT, 0),
]


def test_forged_icmp_errors_change_nothing(hosts):
    server, client = hosts
    near, _ = connect(hosts)
    on_wire = server.capture("eth0", f"src host {SERVER} and udp")
    for remote, port, mtu in FORGED:
        for _ in range(3):
            say_too_long(client, mtu, quote(SERVER, PORT, remote, port))
            assert passes(server, INNER_CLIENT, FULL, "-M", "do"), (remote, port, mtu)
    # Plain IPIP, which no tunnel of ipipou has.
    quoted = packets.ipv4(SERVER, CLIENT, packets.IPIP, bytes(FULL), frag=0x4000)[:28]
    say_too_long(client, 552, quoted)
    assert passes(server, INNER_CLIENT, FULL, "-M", "do")
    whole = [p for p in on_wire.stop() if len(p.raw) == 1500]
    assert len(whole) >= 5 * (3 * len(FORGED) + 1)
    near.await_log("the path to .* takes packets of 1279 bytes only.* --mtu 1251")
    assert near.process.output().count("takes packets of") == 1
    assert dropped(near) == {}
    transfer_both_ways(hosts, 4)
    no_damage(hosts)


def test_icmp_errors_about_the_remote_shorten_packets_and_lose_none(hosts):
    """From 1280 on it may be true. Nothing that is sent goes lost by it, because it is not a router."""
    server, client = hosts
    no_checksum_offload(server, "eth0")  # what is captured is what a card sends
    near, _ = connect(hosts)
    too_long = lambda p: len(p.raw) > 1280  # noqa: E731
    say_too_long(client, 1280, quote(SERVER, PORT, CLIENT, PORT))
    narrow_to(server, INNER_CLIENT, FULL, 1252)
    on_wire = server.capture("eth0", f"src host {SERVER} and udp")
    assert passes(server, INNER_CLIENT, 1252, "-M", "do")
    assert passes(server, INNER_CLIENT, FULL, "-M", "dont")
    assert not any(map(too_long, on_wire.stop()))
    transfer_both_ways(hosts, 4)
    assert dropped(near).keys() <= {"tx_too_long"}
    no_damage(hosts)


class Flood(threading.Thread):
    """Some thousands of forged errors in a second, until it is ended."""

    def __init__(self, host, outer):
        super().__init__(daemon=True)
        if outer == "IPv4":
            self.raw = host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            self.to = SERVER, 0
            self.messages = [icmp(4, mtu, quote(SERVER, PORT, *to)) for *to, mtu in FORGED]
            # Protocol unreachable, source route failed, prohibited: ENOPROTOOPT, EOPNOTSUPP, EHOSTUNREACH.
            right = quote(SERVER, PORT, CLIENT, PORT)
            self.messages += [icmp(code, 0, right) for code in (2, 5, 13)]
        else:
            self.raw = host.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            self.to = SERVER6, 0
            right, wrong = ((SERVER6, PORT, CLIENT6, PORT + i) for i in (0, 1))
            self.messages = [icmp6(2, 0, 1279, *right), icmp6(2, 0, 1400, *wrong)]
            # Prohibited, port unreachable, a parameter problem: EACCES, ECONNREFUSED, EPROTO.
            self.messages += [icmp6(*kind, 0, *right) for kind in ((1, 1), (1, 4), (4, 0))]
        self.ending = threading.Event()
        self.start()

    def run(self):
        while not self.ending.wait(0.002):
            for message in self.messages * 2:
                self.raw.sendto(message, self.to)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.join()
        self.raw.close()


def mean_size(host, change):
    """The mean size of what a host sends meanwhile; many segments that leave in one call are one packet."""
    before = host.statistics("eth0")["tx"]
    change()
    after = host.statistics("eth0")["tx"]
    count, size = (after[what] - before[what] for what in ("packets", "bytes"))
    return size / count


@pytest.mark.parametrize("outer", ["IPv4", "IPv6"])
def test_flood_of_forged_errors_loses_nothing_and_slows_nothing(hosts, outer):
    """The kernel returns each as the result of some call, whatever that is for: it is made again."""
    server, client = hosts
    slow = ["--fast-path", "off"]  # all calls are the program's
    near = connect(hosts, *slow)[0] if outer == "IPv4" else connect6(hosts, *slow)
    full = 1500 - (28 if outer == "IPv4" else 48)
    bulk = lambda: transfer(server, client, INNER_CLIENT, 40)  # noqa: E731
    quiet = mean_size(server, bulk)
    with Flood(client, outer):
        for _ in range(3):
            assert mean_size(server, bulk) > quiet / 2
        assert passes(server, INNER_CLIENT, full, "-M", "do")
    assert "one by one" not in near.process.output()
    assert near.show()["offloads"].endswith("udp gso gro")
    assert dropped(near) == {}
    no_damage(hosts)


def connect6(hosts, *options):
    """A tunnel over IPv6; the server's end."""
    server, client = hosts
    for host, own6 in ((server, SERVER6), (client, CLIENT6)):
        host.run(f"ip addr add {own6}/64 dev eth0 nodad")
    await_answer(client, SERVER6)
    near = ipipou.Tunnel(server, "-s", "-b", f"[{SERVER6}]:{PORT}@eth0", *TUN, *options)
    ipipou.Tunnel(
        *[client, "-c", "-b", f"[{CLIENT6}]@eth0", "-r", f"[{SERVER6}]:{PORT}"],
        *["--tunl-ip", INNER_CLIENT, *TUN, *options],
    )
    near.await_log("tunnel up")
    return near


def test_forged_icmpv6_errors_change_nothing(hosts):
    server, client = hosts
    near = connect6(hosts)
    full = 1500 - 48
    for port, mtu in ((PORT + 1, 1400), (PORT, 1279), (PORT, 600)):
        say_too_long6(client, mtu, SERVER6, PORT, CLIENT6, port)
        assert passes(server, INNER_CLIENT, full, "-M", "do"), (port, mtu)
    near.await_log("the path to .* takes packets of 1279 bytes only.* --mtu 1231")
    say_too_long6(client, 1300, SERVER6, PORT, CLIENT6, PORT)
    narrow_to(server, INNER_CLIENT, full, 1252)
    assert passes(server, INNER_CLIENT, full, "-M", "dont")
    transfer_both_ways(hosts, 4)
    no_damage(hosts)
