"""The userspace tunnels that native.py compares: how each is started between two hosts.

A contestant gets what its manual says is fast, and the largest MTU that fits a link of 1500
without fragments. One pair of hosts has one tunnel; it ends with the laboratory it is in.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
from typing import Callable

import lab as laboratory

SERVER, CLIENT = "203.0.113.1", "203.0.113.2"  # on the cable
NEAR, FAR = "172.28.0.0", "172.28.0.1"  # inside the tunnels: the server, the client
PORT = 10000
# Two ends share the CPUs: with more threads than these, both WireGuards are slower.
THREADS = max(1, len(os.sched_getaffinity(0)) // 2)


class Unavailable(Exception):
    """This contestant cannot run on this machine, and why."""


@dataclasses.dataclass
class Pair:
    server: laboratory.Host
    client: laboratory.Host
    near: str = NEAR
    far: str = FAR
    ends: list = dataclasses.field(default_factory=list)  # the processes that carry packets
    leftovers: list = dataclasses.field(default_factory=list)  # files outside of the laboratory

    def sides(self):
        """(host, its outer, its inner address, the other's outer, the other's inner), twice."""
        yield self.server, SERVER, NEAR, CLIENT, FAR
        yield self.client, CLIENT, FAR, SERVER, NEAR

    def spawn(self, host, argv):
        self.ends.append(host.spawn(argv))
        return self.ends[-1]

    def end(self):
        for end in reversed(self.ends):
            end.kill()
        for path in self.leftovers:
            path.unlink(missing_ok=True)

    def file(self, stem, text):
        path = self.server.lab.file(stem, ".conf")
        path.touch(0o600)
        path.write_text(text)
        return path


@dataclasses.dataclass(frozen=True)
class Contestant:
    name: str
    start: Callable
    version: Callable = lambda: ""  # raises Unavailable


def program(name):
    """The path of a program, or Unavailable."""
    if not (path := shutil.which(name)):
        raise Unavailable(f"no program {name}")
    return path


def first_line(*argv, pattern=r"\d[\w.+~-]*"):
    """The version in what a program prints first."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).splitlines()
    found = re.search(pattern, lines[0]) if lines else None
    return found[0] if found else "unknown version"


def veth(pair):
    pair.near, pair.far = SERVER, CLIENT


# -- ipipou -----------------------------------------------------------------------------------


def ipipou_binary():
    return os.environ.get("IPIPOU_BINARY", "target/release/ipipou")


def ipipou_version():
    binary = ipipou_binary()
    if not pathlib.Path(binary).exists():
        raise Unavailable(f"no {binary}")
    options = subprocess.run([binary, "-h"], capture_output=True, text=True, check=True).stdout
    if "--datapath" not in options:
        raise Unavailable(f"{binary} has no option --datapath")
    return first_line(binary, "--version")


def ipipou(*more):
    def start(pair):
        def run(host, *options):
            places = [f"--{what}-dir={host.lab.file(what, '')}" for what in ("runtime", "memory")]
            common = ["-n0", "--datapath", "tun", "-b", "@eth0", "--auth-token", "bench", "-v"]
            return pair.spawn(host, [ipipou_binary(), *options, *common, *more, *places])

        near = run(pair.server, "-s")
        near.await_output("ready on")
        run(pair.client, "-c", "-r", f"{SERVER}:{PORT}", "--tunl-ip", FAR)
        near.await_output("tunnel up")

    return start


# -- WireGuard --------------------------------------------------------------------------------


def wireguard_go_version():
    """The package's, where native.sh has fetched one: 0.0.20231211 says it is older."""
    path = program("wireguard-go")
    program("wg")
    note = pathlib.Path(f"{path}.version")
    return note.read_text().strip() if note.exists() else first_line(path, "--version")


def boringtun_version():
    path = program("boringtun-cli")
    program("wg")
    return first_line(path, "--version")


def wireguard(*command):
    def start(pair):
        keys = {}
        for host, *_ in pair.sides():
            private = host.run("wg genkey")
            keys[host] = private, host.run("wg pubkey", input=private).strip()
        for (host, _, inner, remote, peer), other in zip(pair.sides(), (pair.client, pair.server)):
            # Its socket is in /run/wireguard, which namespaces share: a name of its own.
            dev = f"wg{os.getpid()}{host.name[0]}"
            pair.leftovers.append(pathlib.Path(f"/run/wireguard/{dev}.sock"))
            pair.spawn(host, [*command, dev])
            laboratory.await_(
                lambda: host.run(["wg", "show", dev], check=False).returncode == 0,
                what=f"socket for {dev}",
            )
            secret = pair.file("wg", keys[host][0])
            host.run(
                f"wg set {dev} listen-port {PORT} private-key {secret} peer {keys[other][1]}"
                f" allowed-ips {peer}/32 endpoint {remote}:{PORT}"
            )
            # 1500 - 20 IPv4 - 8 UDP - 16 header - 16 tag
            up(host, dev, inner, peer, mtu=1440)

    return start


def up(host, dev, inner, peer, mtu):
    host.batch(
        f"addr add {inner} peer {peer} dev {dev}",
        f"link set {dev} mtu {mtu} up",
    )


# -- fastd ------------------------------------------------------------------------------------


def fastd(pair):
    keys = {}
    for host, *_ in pair.sides():
        said = host.run("fastd --generate-key --machine-readable").split()
        secret = pair.file("fastd-key", f'secret "{said[0]}";\n')
        show = f"fastd --config {secret} --show-key --machine-readable"
        keys[host] = said[0], host.run(show).strip()
    for (host, outer, inner, remote, peer), other in zip(pair.sides(), (pair.client, pair.server)):
        # Its manual: "null" has one byte of header, so 1500 - 28 - 1.
        settings = f"""
            mode tun;
            method "null";
            mtu 1471;
            interface "fastd0";
            bind {outer}:{PORT};
            secret "{keys[host][0]}";
            peer "other" {{
                key "{keys[other][1]}";
                remote {remote}:{PORT};
            }}
        """
        end = pair.spawn(host, ["fastd", "--config", pair.file("fastd", settings)])
        laboratory.await_(
            lambda: end.running() and host.run("ip link show fastd0", check=False).returncode == 0,
            what="fastd0",
        )
        up(host, "fastd0", inner, peer, mtu=1471)


# -- OpenVPN ----------------------------------------------------------------------------------


def openvpn(pair):
    """Point to point without cipher, key and TLS, which 2.6 allows: its least work per packet."""
    for host, outer, inner, remote, peer in pair.sides():
        options = f"""
            --dev tun0 --dev-type tun --proto udp --port {PORT} --local {outer} --remote {remote}
            --ifconfig {inner} {peer} --cipher none --auth none --tun-mtu 1472
            --sndbuf 2000000 --rcvbuf 2000000 --fast-io
        """
        pair.spawn(host, ["openvpn", *options.split()])
    for end in pair.ends:
        end.await_output("Initialization Sequence Completed", timeout=30)


VETH, IPIPOU, PLAIN = "veth", "ipipou", "ipipou --fast-path off"
ALL = [
    Contestant(VETH, veth),
    Contestant(IPIPOU, ipipou(), ipipou_version),
    Contestant(PLAIN, ipipou("--fast-path", "off"), ipipou_version),
    Contestant(
        "wireguard-go",
        wireguard("env", f"GOMAXPROCS={THREADS}", "wireguard-go", "-f"),
        wireguard_go_version,
    ),
    Contestant(
        "boringtun",
        wireguard("boringtun-cli", "-f", "--disable-drop-privileges", "--threads", THREADS),
        boringtun_version,
    ),
    Contestant("fastd", fastd, lambda: first_line(program("fastd"), "--version", pattern=r"\d+")),
    Contestant("openvpn", openvpn, lambda: first_line(program("openvpn"), "--version")),
]
