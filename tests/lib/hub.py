"""A server whose peers are named in files, and its clients, in the hosts of a switch."""

import base64
import functools
import os
import pathlib
import socket

from nacl.signing import SigningKey

import ipipou
from ipipou import Tunnel
from lab import await_
from lan import Lan, dropped, outer

PORT = 10000
NETWORK, NETWORK6 = "10.8.0.0/24", "fd08::/64"
LIFETIME = "60s"


@functools.cache
def more_than_have_links():
    """A file of peers who never come, and so many that the kernel's datapath makes one link for all."""
    lines = []
    for number in range(512):
        public = base64.b64encode(bytes(SigningKey(os.urandom(32)).verify_key)).decode()
        lines += [f"[peer.other{number}]", f'public-key = "{public}"']
        lines += [f'address = "10.8.{2 + number // 250}.{1 + number % 250}"', ""]
    return "\n".join(lines)


def inner(i):
    return f"10.8.0.{i}"


def inner6(i):
    return f"fd08::{i}"


class Hub:
    """The server is host 1; the others are its clients, called peer2, peer3, …"""

    def __init__(self, lab, clients=3, datapath="tun", ip6=False, prefix=24):
        self.lan = Lan(lab, 1 + clients, ip6=ip6)
        self.host, *self.clients = self.lan.hosts
        self.datapath, self.ip6, self.prefix = ["--datapath", datapath], ip6, prefix
        self.keys = {i: ipipou.Keys(self.host) for i in range(1, 2 + clients)}
        self.peers = pathlib.Path(lab.directory) / "peers.d"
        self.peers.mkdir()
        for i in range(2, 2 + clients):
            self.name(i)

    def name(self, i, **more):
        """Writes the file of a peer, as a whole, as `ipipou peer add` does."""
        addresses = [inner(i), inner6(i)] if self.ip6 else [inner(i)]
        fields = {
            "public-key": self.keys[i].public,
            "address": addresses,
            "lifetime": LIFETIME,
        } | {name.replace("_", "-"): value for name, value in more.items()}
        lines = [f"[peer.peer{i}]"] + [f"{name} = {toml(value)}" for name, value in fields.items()]
        self.write(f"peer{i}.toml", "\n".join(lines) + "\n")

    def write(self, name, text):
        beside = self.peers / (name + ".new")
        beside.write_text(text)
        beside.rename(self.peers / name)

    def write_conf(self, *more, key=True):
        """The server's file, for commands; its path."""
        conf = self.peers.parent / "hub0.conf"
        lines = [
            "server",
            "fou-dev eth0",
            f"tunl-ip {inner(1)}/{self.prefix}",
            f"peers {self.peers}",
        ]
        lines += [f"auth-key-b64 {self.keys[1].private}"] if key else []
        lines += [f"auth-secret {ipipou.SECRET}", *more]
        conf.touch(0o600)
        conf.write_text("\n".join(lines))
        return conf

    def forget(self, i):
        (self.peers / f"peer{i}.toml").unlink()

    def server(self, *options, **more):
        own = ["-s", "-b", "@eth0", "--tunl-ip", f"{inner(1)}/{self.prefix}", "--peers", self.peers]
        own += ["--ip6", f"{inner6(1)}/64"] if self.ip6 else []
        own += ["--auth-key-b64", self.keys[1].private, "--auth-secret", ipipou.SECRET]
        return Tunnel(self.host, *own, *self.datapath, *options, **more)

    def standby(self, i, *options, **more):
        """Another server, on host `i`; it has the same peers and the same address inside."""
        own = ["-s", "-b", "@eth0", "--tunl-ip", f"{inner(1)}/{self.prefix}", "--peers", self.peers]
        own += ["--auth-key-b64", self.keys[i].private, "--auth-secret", ipipou.SECRET]
        return Tunnel(self.lan.hosts[i - 1], *own, *self.datapath, *options, **more)

    def servers(self, *standby):
        """What makes a client ask host 1 first, and then these."""
        every = [1, *standby]
        keys = ",".join(self.keys[i].public for i in every)
        return [
            "-r",
            ",".join(f"{outer(i)}:{PORT}" for i in every),
            "--auth-remote-pubkey-b64",
            keys,
        ]

    def client(self, i, *options, **more):
        """The client on host `i`; it has a keepalive that no test lives to see."""
        own = ["-c", "-b", "@eth0", "-r", f"{outer(1)}:{PORT}", "--route", NETWORK]
        own += ["--tunl-ip", inner(i), "--tunl-peer-ip", inner(1)]
        own += ["--ip6", f"{inner6(i)}/64"] if self.ip6 else []
        own += ["--auth-key-b64", self.keys[i].private, "--auth-secret", ipipou.SECRET]
        own += ["--auth-remote-pubkey-b64", self.keys[1].public]
        return Tunnel(self.lan.hosts[i - 1], *own, *self.datapath, *options, **more)

    def guest(self, i, *options, **more):
        """A client on host `i` whose inner addresses the server tells."""
        own = ["-c", "-b", "@eth0", "-r", f"{outer(1)}:{PORT}", "--tunl-ip", "auto"]
        own += ["--auth-key-b64", self.keys[i].private, "--auth-secret", ipipou.SECRET]
        own += ["--auth-remote-pubkey-b64", self.keys[1].public]
        return Tunnel(self.lan.hosts[i - 1], *own, *self.datapath, *options, **more)

    def answers(self):
        """A capture of what the server answers; whom, `is_to` says. The fast path sends it in UDP at once."""
        return self.host.capture("any", f"udp and src {outer(1)}")

    def connect(self, *options):
        """Starts the server and all clients, which are connected when this returns."""
        near = self.server(*options)
        ends = [self.client(i) for i in range(2, 2 + len(self.clients))]
        for end in ends:
            end.await_log("connected to")
        return near, ends


def is_to(address):
    """A condition for packets with an inner one to this address."""
    destination = socket.inet_aton(address)
    return lambda packet: packet.payload[:1] == b"\x45" and packet.payload[16:20] == destination


class MixedHub(Hub):
    """A hub whose peer 4 runs the old program, at a port of the server that is its own."""

    OLD = 10003

    def __init__(self, lab, datapath="tun", **more):
        super().__init__(lab, clients=3, datapath=datapath)
        self.old = self.clients[-1]
        self.name_old(**more)

    def name_old(self, i=4, **more):
        """Names peer `i` as one with the old program; a field that is None is left out."""
        fields = {"public-key": self.keys[i].public, "address": inner(i), "old": self.OLD}
        fields |= {name.replace("_", "-"): value for name, value in more.items()}
        lines = [f"{name} = {toml(value)}" for name, value in fields.items() if value is not None]
        self.write(f"peer{i}.toml", "\n".join([f"[peer.peer{i}]", *lines, ""]))

    def old_client(self, *options, i=4, port=OLD, proof=None):
        """A client that sends one packet of the old kind."""
        own = ["-c", "-b", "@eth0", "-r", f"{outer(1)}:{port}", "--route", NETWORK]
        own += ["--tunl-ip", inner(i), "--tunl-peer-ip", inner(1), "--protocol", "1"]
        own += proof or ["--auth-key-b64", self.keys[i].private, "--auth-secret", ipipou.SECRET]
        return Tunnel(self.lan.hosts[i - 1], *own, *self.datapath, *options)


def toml(value):
    """A value as TOML has it."""
    match value:
        case bool():
            return "true" if value else "false"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case str() if value.startswith("@"):
            return value[1:]  # a date
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case _:
            return str(value)


def peers(server):
    """What `show` says of each peer, by its name."""
    return {peer["name"]: peer for peer in server.show()["peers"]["peers"]}


def states(server):
    return {name: peer["state"] for name, peer in peers(server).items()}


def await_state(server, name, state):
    await_(lambda: states(server).get(name) == state, what=f"{name} {state}")


def hellos(server):
    """Hellos by what became of them, without the zeros."""
    return {what: n for what, n in server.show()["peers"]["hellos"].items() if n}


def data_as_long_as_a_hello_passes(hub):
    """Both ways, and between two clients: it is told apart by its first bits."""
    near, ends = hub.connect()
    before = hellos(near)
    ways = (hub.clients[0], inner(1)), (hub.host, inner(2)), (hub.clients[0], inner(3))
    for host, address in ways:
        # IPv4 and ICMP headers have 28 bytes.
        assert host.ping(address, size=128 - 28, count=5).received == 5
    assert hellos(near) == before
    assert not any(dropped(end) for end in (near, *ends))


def killed_and_started_again(hub):
    """A server whose datapath carries data meanwhile; its clients are connected for a lease more."""
    near, ends = hub.connect()
    ping = hub.clients[0].ping_background(inner(1))
    ping.await_answers()
    near.process.kill()
    near = hub.server()
    near.await_log("took over the running tunnel to")
    connected = {f"peer{i}" for i in range(2, 2 + len(ends))}
    assert {states(near)[name] for name in connected} == {"connected"}
    ping.stop_complete()
    for end in ends:
        end.reauthenticate()
    await_(
        lambda: hellos(near).get("admitted", 0) + hellos(near).get("refreshed", 0) >= 3,
        what="hellos of all",
    )


def reload(server):
    """Has the files read again; what the server says of them."""
    seen = len(server.process.output())
    server.process.send_signal(1)
    sign = "untouched", "everything stays as it was"
    await_(
        lambda: any(word in server.process.output()[seen:] for word in sign),
        what="files that were read",
    )
    return server.process.output()[seen:]
