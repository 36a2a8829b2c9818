"""Networks with gateways, for the tests of both directories: who is where, and by which way.

    Internet   a client on a LAN with two routers, a server, and a third host out there
    Border     a server between its clients and a network of its own
    Sites      two LANs, each behind a gateway
    Container  a host behind a bridge of another one
"""

import json
import re
import socket

import ipipou
from ipipou import CLIENT, SERVER
from lab import await_

TOKEN = ("--auth-token", "a token")
INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
INNER = "172.28.0.0/31"

# `rtm_protocol` of what the program made.
OURS = 105


class Switch:
    """A host that others are plugged into."""

    def __init__(self, lab, name="switch"):
        self.host = lab.host(name)
        self._ports = 0
        only_ipv4(self.host)
        self.host.batch("link add br0 type bridge", "link set br0 up")

    def plug(self, host, dev, address):
        """A cable from a host to this switch; without IPv6, whose addresses come late."""
        only_ipv4(host)
        self._ports += 1
        port = f"port{self._ports}"
        self.host.batch(
            f"link add {port} master br0 type veth peer name {dev} netns {host.netns}",
            f"link set {port} up",
        )
        host.batch(f"addr add {address} dev {dev}", f"link set {dev} up")
        only_ipv4(host, False)  # its tunnel may have IPv6
        host.await_carrier(dev)


def only_ipv4(host, yes=True):
    host.sysctl("net.ipv6.conf.default.disable_ipv6", int(yes))


def strict(host, *devices):
    """The reverse path filter as some distributions set it."""
    for name in ("all", *devices):
        host.sysctl(f"net.ipv4.conf.{name}.rp_filter", 1)


def state(host):
    """All that a gateway changes, as text that two moments agree on."""
    shown = [
        "-d link",
        "addr",
        "route show table all",
        "-6 route show table all",
        "rule",
        "-6 rule",
    ]
    text = "".join(host.run(f"ip {what}") for what in shown)
    text = re.sub(r"\b(valid_lft|preferred_lft|expires|\w+_timer) +\S+", "", text)
    rules = host.run("nft -s list ruleset")
    settings = host.run(["sysctl", "-a", "-r", r"^net\.ipv[46]\.(conf\.|ip_forward)"])
    return text + re.sub(r"\bcounter packets \d+ bytes \d+", "counter", rules) + settings


def routes(host, family="-4"):
    """{destination: table} of the routes that the program made."""
    shown = json.loads(host.run(f"ip -j {family} route show table all proto {OURS}") or "[]")
    return {route["dst"]: route.get("table", "main") for route in shown}


def rules(host, family="-4"):
    """The policy rules that the program made, as `ip rule` shows them."""
    lines = host.run(f"ip {family} rule").splitlines()
    return [line for line in lines if line.endswith(f"proto {OURS}")]


def mtu(host, dev="ipipou0"):
    return json.loads(host.run(f"ip -j link show dev {dev}"))[0]["mtu"]


def await_mtu(host, expected):
    await_(lambda: mtu(host) == expected, what=f"an MTU of {expected}")


def gateway_rules(host, number=0):
    """The program's nft table for forwarding; empty when there is none."""
    return host.run(f"nft list table ip ipipou-{number}-gateway", check=False).stdout


def connect(client, host, address, port=8080, timeout=20):
    """A TCP connection from `client` to `host` with a word each way; whom `host` has seen."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.settimeout(timeout)
        listener.bind((address, port))
        listener.listen()
        with client.socket(family, socket.SOCK_STREAM) as there:
            there.settimeout(timeout)
            there.connect((address, port))
            here, peer = listener.accept()
            with here:
                here.settimeout(timeout)
                there.sendall(b"ping")
                assert here.recv(100) == b"ping"
                here.sendall(b"pong")
                assert there.recv(100) == b"pong"
    return peer[0]


class Door:
    """A port of a host, and the connections to it, which stay open as long as it does."""

    def __init__(self, host, port, address=""):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._open = [host.socket(family, socket.SOCK_STREAM)]
        self._open[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._open[0].settimeout(20)
        self._open[0].bind((address, port))
        self._open[0].listen()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in reversed(self._open):
            one.close()

    def enter(self, client, address, port):
        """A connection of `client` to there, which leads here: both of its ends."""
        there = client.socket(self._open[0].family, socket.SOCK_STREAM)
        self._open.append(there)
        there.settimeout(20)
        there.connect((address, port))
        here, _ = self._open[0].accept()
        self._open.append(here)
        here.settimeout(20)
        return here, there

    @staticmethod
    def answers(here, there):
        """Whether a word that the client says is repeated."""
        there.sendall(b"ls")
        here.sendall(here.recv(2))
        return there.recv(2) == b"ls"


def await_answer(host, address, **how):
    """Waits until a ping is answered."""
    await_(lambda: host.ping(address, count=1, timeout=0.3, **how).received, what=f"{address}")


def gets_to(there, dev, host, address, mark):
    """Whether a ping of `host` is seen at an interface of `there`. So is one of `mark`, a host and
    an address, which is sent after it and answered."""
    sizes = 100, 101
    seen = there.capture(dev, "icmp")
    host.ping(address, count=1, timeout=0.1, size=sizes[0])
    await_answer(*mark, size=sizes[1])
    pings, marks = (lambda p, size=size: len(p.payload) == 8 + size for size in sizes)
    seen.await_packets(condition=marks)
    return bool(seen.matching(pings))


class SynWatch:
    """A tcpdump that tells the segment size which the next connection asks for."""

    def __init__(self, host, dev):
        syn = "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"
        self._process = host.spawn(["tcpdump", "-i", dev, "-nlv", "--immediate-mode", syn])
        self._process.await_output("listening on")

    def segment_size(self):
        return int(self._process.await_output(r"mss (\d+)")[1])


class Internet:
    """client - LAN - two masquerading routers - server and a third host.

    The client's way out is the first router; it is the router's address that others see."""

    LAN, ROUTERS = "192.168.1.100", ("192.168.1.1", "192.168.1.2")
    OUTSIDE = ("203.0.113.11", "203.0.113.12")
    THIRD = "203.0.113.80"

    def __init__(self, lab):
        self.lab = lab
        self.server, self.third, self.client = map(lab.host, ("server", "third", "client"))
        outside, inside = Switch(lab, "outside"), Switch(lab, "inside")
        outside.plug(self.server, "eth0", f"{SERVER}/24")
        outside.plug(self.third, "eth0", f"{self.THIRD}/24")
        inside.plug(self.client, "eth0", f"{self.LAN}/24")
        self.routers = []
        for number, (lan, wan) in enumerate(zip(self.ROUTERS, self.OUTSIDE), 1):
            router = lab.host(f"router{number}")
            inside.plug(router, "lan0", f"{lan}/24")
            outside.plug(router, "wan0", f"{wan}/24")
            lab.nat(router, "wan0")
            self.routers.append(router)
        self.client.run(f"ip route add default via {self.ROUTERS[0]}")

    def forward(self, port):
        """The first router hands on to the client what comes from outside for this port."""
        self.routers[0].nft(
            f"""
            table ip door {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat;
                    iifname wan0 tcp dport {port} dnat to {self.LAN}
                }}
            }}"""
        )

    def serve(self, *options, **more):
        """A server that everything may go through; the third host knows no way to the client."""
        return ipipou.server(self.server, *TOKEN, "--masquerade", "eth0", *options, **more)

    def connect(self, *options, **more):
        """The client's end; everything goes through it."""
        return ipipou.client(self.client, *TOKEN, "--default-route", *options, **more)


class Border:
    """client, stranger - eth0, server, eth1 - third.

    Client and stranger send to the third host by the server; the third host knows ways only if
    `back` is asked for."""

    STRANGER, THIRD, OWN = "203.0.113.66", "198.51.100.80", "198.51.100.1"
    NETWORK = "198.51.100.0/24"

    def __init__(self, lab, back=()):
        names = ("server", "client", "stranger", "third")
        self.server, self.client, self.stranger, self.third = map(lab.host, names)
        near, far = Switch(lab, "near"), Switch(lab, "far")
        near.plug(self.server, "eth0", f"{SERVER}/24")
        near.plug(self.client, "eth0", f"{CLIENT}/24")
        near.plug(self.stranger, "eth0", f"{self.STRANGER}/24")
        far.plug(self.server, "eth1", f"{self.OWN}/24")
        far.plug(self.third, "eth0", f"{self.THIRD}/24")
        self.stranger.run(f"ip route add {self.NETWORK} via {SERVER}")
        for network in back:
            self.third.run(f"ip route add {network} via {self.OWN}")

    def connect(self, *options, route=NETWORK):
        """Starts both ends, the server with these options; they see each other."""
        self.near = ipipou.server(self.server, *TOKEN, *options)
        self.far = ipipou.client(self.client, *TOKEN, "--route", route)
        await_answer(self.client, INNER_SERVER)
        return self

    def passes_a_narrower_uplink(self, size):
        """Both ends' uplinks become narrower; then three packets of this many bytes, which may be
        fragmented, come from behind the server and are answered."""
        await_answer(self.third, INNER_CLIENT)
        for host in (self.server, self.client):
            host.run("ip link set eth0 mtu 1400")
        for host in (self.server, self.client):
            await_mtu(host, 1372)
        return self.third.ping(INNER_CLIENT, "-M", "dont", size=size - 28).received == 3

    def stop(self):
        assert self.far.process.stop() == 0
        assert self.near.process.stop() == 0


class Sites:
    """host - LAN - gateway ======= gateway - LAN - host, both gateways with strict checks."""

    LANS = ("10.1.0", "10.2.0")

    def __init__(self, lab):
        self.gateways = (lab.host("gateway1"), lab.host("gateway2"))
        self.hosts = (lab.host("host1"), lab.host("host2"))
        wan = Switch(lab, "wan")
        for gateway, address in zip(self.gateways, (CLIENT, SERVER)):
            wan.plug(gateway, "eth0", f"{address}/24")
        for gateway, host, lan in zip(self.gateways, self.hosts, self.LANS):
            lab_lan = Switch(lab, f"lan-{host.name}")
            lab_lan.plug(gateway, "eth1", f"{lan}.1/24")
            lab_lan.plug(host, "eth0", f"{lan}.2/24")
            host.run(f"ip route add default via {lan}.1")
            strict(gateway, "eth0", "eth1")

    def join(self):
        """Each gateway leads the other's LAN into the tunnel."""
        first, second = self.LANS
        self.server = ipipou.server(
            self.gateways[1], *TOKEN, "--forward", "--route", f"{first}.0/24"
        )
        self.client = ipipou.client(
            self.gateways[0], *TOKEN, "--forward", "--route", f"{second}.0/24"
        )
        return self


class Container:
    """A host behind a bridge of another one, which publishes its ports, as container runtimes do."""

    BRIDGE, ADDRESS = "172.17.0.1", "172.17.0.2"
    BRIDGE6, ADDRESS6 = "fd17::1", "fd17::2"

    def __init__(self, lab, outer):
        self.outer, self.host = outer, lab.host("container")
        for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            outer.sysctl(f"net.{key}", 1)
        outer.batch(
            "link add docker0 type bridge",
            f"addr add {self.BRIDGE}/16 dev docker0",
            f"addr add {self.BRIDGE6}/64 dev docker0 nodad",
            f"link add veth0 master docker0 type veth peer name eth0 netns {self.host.netns}",
            "link set docker0 up",
            "link set veth0 up",
        )
        self.host.batch(
            f"addr add {self.ADDRESS}/16 dev eth0",
            f"addr add {self.ADDRESS6}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {self.BRIDGE}",
            f"route add default via {self.BRIDGE6}",
        )
        self.host.await_carrier("eth0")

    def publish(self, port, to=None):
        """What comes for the port of the host is for that of the container (or who else has the
        address); the container's own connections have the host's address."""
        for family, own, address in (
            ("ip", f"{self.BRIDGE}/16", to or self.ADDRESS),
            ("ip6", f"{self.BRIDGE6}/64", f"[{self.ADDRESS6}]"),
        ):
            self.outer.nft(
                f"""
                table {family} docker {{
                    chain prerouting {{
                        type nat hook prerouting priority dstnat;
                        iifname != docker0 tcp dport {port} dnat to {address}:80
                    }}
                    chain postrouting {{
                        type nat hook postrouting priority srcnat;
                        {family} saddr {own} oifname != docker0 masquerade
                    }}
                }}"""
            )
