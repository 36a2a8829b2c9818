#!/usr/bin/env python3
"""How fast tunnels are, against each other. Runs in a guest: see benches/run.sh.

Every lane is two hosts (network namespaces) and one cable. The lanes are measured in turn, round
after round, and each figure is divided by the same round's figure of the link made by hand; the
table shows the median of these ratios. The machine has one CPU, so a figure is the cost of the
whole path: both hosts, both directions.

TCP is iperf3. UDP is 64 bytes of payload from one system call for 64 packets (sendmmsg, recvmmsg)
in one process, so that the kernel's path is what is measured and not the measuring programs. A round trip is
one such packet, and one back. "Segmented" is over cables that pass no superpackets (tests/lib/offloads.py).
"""

import argparse
import ctypes
import dataclasses
import json
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, "/tests")
import ipipou  # noqa: E402
import lab as laboratory  # noqa: E402
import offloads  # noqa: E402
from hub import more_than_have_links  # noqa: E402
from ipipou import CLIENT, SERVER  # noqa: E402

NEAR, FAR = "172.28.0.0", "172.28.0.1"  # inside the tunnels: the server, the client
ALTERNATE = "172.29.0.0"
BATCH, PAYLOAD = 64, 64


# -- what is measured -------------------------------------------------------------------------


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


class _Msghdr(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _Mmsghdr(ctypes.Structure):
    """struct mmsghdr of recvmmsg(2)."""

    _fields_ = [("header", _Msghdr), ("len", ctypes.c_uint)]


_libc = ctypes.CDLL(None, use_errno=True)
_buffer = ctypes.create_string_buffer(BATCH * PAYLOAD)
_vectors = (_Iovec * BATCH)(
    *(_Iovec(ctypes.addressof(_buffer) + i * PAYLOAD, PAYLOAD) for i in range(BATCH))
)
_headers = (_Mmsghdr * BATCH)(
    *(_Mmsghdr(_Msghdr(iov=ctypes.pointer(_vectors[i]), iovlen=1)) for i in range(BATCH))
)


def udp_rate(source, source_address, sink, sink_address, batches=100):
    """Packets per second through the lane; every packet sent is received, or this fails."""
    with source.udp_socket(source_address, 0) as near, sink.udp_socket(sink_address, 5000) as far:
        near.connect((sink_address, 5000))
        near.setblocking(True)
        far.setblocking(False)
        started = time.perf_counter()
        for _ in range(batches):
            if _libc.sendmmsg(near.fileno(), _headers, BATCH, 0) != BATCH:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            missing, tries = BATCH, 0
            while missing:
                missing -= max(0, _libc.recvmmsg(far.fileno(), _headers, missing, 0, None))
                if missing:
                    tries += 1
                    if tries > 1000:
                        raise AssertionError(f"{missing} packets were lost")
                    time.sleep(0)  # the rest is with ksoftirqd
        return batches * BATCH / (time.perf_counter() - started)


def round_trip_rate(lane, count=1000):
    """Round trips per second of one packet that goes there and back."""
    near, far = lane.near, lane.far
    with lane.client.udp_socket(far, 0) as asks, lane.server.udp_socket(near, 5000) as answers:
        asks.connect((near, 5000))
        asks.settimeout(10)
        answers.settimeout(10)
        started = time.perf_counter()
        for _ in range(count):
            asks.send(bytes(PAYLOAD))
            question, whose = answers.recvfrom(PAYLOAD)
            answers.sendto(question, whose)
            asks.recv(PAYLOAD)
        return count / (time.perf_counter() - started)


# The kernel tells each change of a card, and after a moment an ipipou reads its host, which is as much work
# as a tenth of what is measured.
SETTLED = 2


def segmented(measure):
    """The same over a cable that segments."""

    def cable(lane, segmented):
        for host in (lane.server, lane.client):
            offloads.segmented_on_the_way(host, "eth0", segmented)
        time.sleep(SETTLED)

    def measured(lane):
        cable(lane, segmented=True)
        try:
            return measure(lane)
        finally:
            cable(lane, segmented=False)

    return measured


def udp_up(lane):
    return udp_rate(lane.client, lane.far, lane.server, lane.near)


def udp_down(lane):
    return udp_rate(lane.server, lane.near, lane.client, lane.far)


def tcp_rate(lane, reverse=False):
    """Bits per second from the client to the server, or back."""
    argv = ["iperf3", "-J", "-c", lane.near, "-n", lane.amount, *(["-R"] if reverse else [])]
    result = json.loads(lane.client.run(argv, timeout=300))
    return result["end"]["sum_received"]["bits_per_second"]


METERS = {
    "TCP up": lambda lane: tcp_rate(lane),
    "TCP down": lambda lane: tcp_rate(lane, reverse=True),
    "UDP up": udp_up,
    "UDP down": udp_down,
    "round trips": round_trip_rate,
    "TCP up, segmented": segmented(tcp_rate),
    "UDP up, segmented": segmented(udp_up),
}


# -- the lanes --------------------------------------------------------------------------------


@dataclasses.dataclass
class Lane:
    name: str
    server: laboratory.Host
    client: laboratory.Host
    near: str = NEAR
    far: str = FAR
    amount: str = "60M"  # of TCP data in a measurement


def link_by_hand(host, local, remote, inner, peer, alternate=None):
    host.batch(
        "fou add port 10000 ipproto 4",
        f"link add ipipou0 type ipip local {alternate or local} remote {remote} encap fou"
        " encap-sport 10000 encap-dport 10000",
        f"addr add {inner} peer {peer} dev ipipou0",
        "link set ipipou0 up",
    )


def plain(lane):
    lane.near, lane.far = SERVER, CLIENT


def by_hand(lane):
    link_by_hand(lane.server, SERVER, CLIENT, NEAR, FAR)
    link_by_hand(lane.client, CLIENT, SERVER, FAR, NEAR)


PLAIN = ["--fast-path", "off"]


def ours(*options, server_options=()):
    def make(lane):
        keys = ipipou.Keys(lane.server)
        near = ipipou.server(lane.server, *options, *server_options, keys=keys)
        ipipou.client(lane.client, *options, keys=keys)
        near.await_log("tunnel up")

    return make


def our_shared_link(lane):
    """A server whose files name so many peers that they share a link, and one of them."""
    lane.near, lane.far = "10.8.0.1", "10.8.0.2"
    server, client = (ipipou.Keys(host) for host in (lane.server, lane.client))
    peers = lane.server.lab.file("peers", ".toml")
    one = f'[peer.one]\npublic-key = "{client.public}"\naddress = "{lane.far}"\n'
    peers.write_text(one + more_than_have_links())
    own = [*PLAIN, "-b", "@eth0", "--auth-secret", ipipou.SECRET]
    own_server = ["-s", "--tunl-ip", f"{lane.near}/16", "--peers", peers]
    own_server += ["--auth-key-b64", server.private]
    near = ipipou.Tunnel(lane.server, *own_server, *own)
    own_client = ["-c", "-r", f"{SERVER}:10000", "--tunl-ip", lane.far, "--tunl-peer-ip", lane.near]
    own_client += ["--auth-key-b64", client.private, "--auth-remote-pubkey-b64", server.public]
    ipipou.Tunnel(lane.client, *own_client, *own).await_log("connected to")
    near.await_log("share one interface")


def our_server_only(*options):
    def make(lane):
        near = ipipou.server(lane.server, "--auth-token", "token", *options)
        link_by_hand(lane.client, CLIENT, SERVER, FAR, NEAR)
        lane.client.send_udp(CLIENT, 10000, SERVER, 10000, b"token")
        near.await_log("tunnel up")

    return make


def our_client_only(lane):
    link_by_hand(lane.server, SERVER, CLIENT, NEAR, FAR)
    ipipou.client(lane.client, "--auth-token", "token", *PLAIN)


def our_client_tracked(lane):
    """Behind a firewall that takes only answers."""
    lane.client.nft(
        """
        table ip firewall {
            chain input {
                type filter hook input priority filter; policy drop;
                ct state { established, related } accept
                iifname { "lo", "ipipou0" } accept
            }
        }
    """
    )
    our_client_only(lane)


def conntrack_nat(lane):
    """The old tool's way, where two clients share an address."""
    lane.server.run(f"ip addr add {ALTERNATE}/32 dev eth0")
    link_by_hand(lane.server, SERVER, CLIENT, NEAR, FAR, alternate=ALTERNATE)
    link_by_hand(lane.client, CLIENT, SERVER, FAR, NEAR)
    rules = f"""
        table ip ipipou {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                ip saddr {CLIENT} ip daddr {SERVER} udp sport 10000 udp dport 10000 \
                    dnat to {ALTERNATE}
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                ip saddr {ALTERNATE} ip daddr {CLIENT} udp sport 10000 snat to {SERVER}
            }}
        }}
    """
    lane.server.nft(rules)


def wireguard(lane):
    lane.amount = "8M"
    keys = {}
    ends = [(lane.server, NEAR, CLIENT, FAR), (lane.client, FAR, SERVER, NEAR)]
    for host, *_ in ends:
        private = host.run("wg genkey")
        keys[host.netns] = private, host.run("wg pubkey", input=private).strip()
    for (host, inner, remote, peer), (other, *_) in zip(ends, reversed(ends)):
        secret = host.lab.file("wg", ".key")
        secret.write_text(keys[host.netns][0])
        host.batch(
            "link add wg0 type wireguard",
            f"addr add {inner} peer {peer} dev wg0",
            "link set wg0 up",
        )
        host.run(
            f"wg set wg0 listen-port 10000 private-key {secret} peer {keys[other.netns][1]}"
            f" allowed-ips {peer}/32 endpoint {remote}:10000"
        )


def by_hand_checked(lane):
    """With the source check that ipipou switches on (and Debian's systemd, loosely)."""
    by_hand(lane)
    for host in (lane.server, lane.client):
        host.sysctl("net.ipv4.conf.ipipou0.rp_filter", 1)


BASELINE = "FOU/IPIP by hand with `ip`"
TUN = ["--datapath", "tun"]
MIXED = "ipipou server in userspace, client by hand"
LANES = {
    BASELINE: by_hand,
    "the same, rp_filter on": by_hand_checked,
    "ipipou server and client": ours(),
    "ipipou server, client by hand": our_server_only(),
    MIXED: our_server_only(*TUN),
    "no fast path: ipipou server, client by hand": our_server_only(*PLAIN),
    "no fast path: the same, server in userspace": our_server_only(*TUN, *PLAIN),
    "no fast path: ipipou client, server by hand": our_client_only,
    "no fast path: the same, its host tracks connections": our_client_tracked,
    "no fast path: ipipou server and client": ours(*PLAIN),
    "no fast path: the same, server's alternate address": ours(
        *PLAIN, server_options=["--force-fou-local-ip-alt"]
    ),
    "no fast path: the same, server's link that many peers share": our_shared_link,
    "conntrack NAT, as the Python tool": conntrack_nat,
    "WireGuard": wireguard,
    "no tunnel": plain,
}
# The least ratios.
TARGETS = {
    "ipipou server and client": {
        "TCP up": 0.99,
        "TCP down": 0.99,
        "UDP up": 1.15,
        "UDP down": 1.15,
        "round trips": 1.10,
        "TCP up, segmented": 0.99,
        "UDP up, segmented": 1.15,
    },
    # The process makes 0.25 and 0.72 of it.
    MIXED: {"TCP up, segmented": 0.65, "UDP up, segmented": 1.10},
    "no fast path: ipipou server, client by hand": {
        "TCP up": 0.97,
        "TCP down": 0.97,
        "UDP up": 0.90,
        "UDP down": 0.90,
    },
}
# Of Linux before 6.2, which the fast path is slower on.
OLDER = 0.03


def make(lab, name, build):
    number = len(lab.hosts)
    lane = Lane(name, lab.host(f"server{number}"), lab.host(f"client{number}"))
    lab.link(lane.server, "eth0", f"{SERVER}/24", lane.client, "eth0", f"{CLIENT}/24")
    build(lane)
    if lane.client.ping(lane.near, count=2).received == 0:
        raise AssertionError(f"{name}: no ping")
    lane.server.spawn(["iperf3", "-s", "--forceflush"]).await_output("listening")
    return lane


def compare(lanes, meters, rounds):
    """{meter: {lane: [figure of every round]}}"""
    figures = {meter: {lane.name: [] for lane in lanes} for meter in meters}
    for number in range(rounds + 1):
        for lane in lanes if number % 2 else reversed(lanes):
            for meter in meters:
                figure = METERS[meter](lane)
                if number:  # the first round warms up
                    figures[meter][lane.name].append(figure)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return figures


def throughput(figures):
    """The ratios, as rows of a table; and whether the targets are met."""
    release = tuple(int(number) for number in platform.release().split(".")[:2])
    less = OLDER if release < (6, 2) else 0
    targets = {
        lane: {meter: target - less for meter, target in of_lane.items()}
        for lane, of_lane in TARGETS.items()
    }
    yield "| throughput against the link made by hand | " + " | ".join(figures) + " |"
    yield "|---|" + "--:|" * len(figures)
    for name in next(iter(figures.values())):
        cells = []
        for meter, by_lane in figures.items():
            ratios = [mine / base for mine, base in zip(by_lane[name], by_lane[BASELINE])]
            spread = (max(ratios) - min(ratios)) / 2
            met, target = "", targets.get(name, {}).get(meter)
            if target:
                met = (
                    f" ✓ (≥ {target:.2f})" if statistics.median(ratios) >= target else " **missed**"
                )
            cells.append(f"{statistics.median(ratios):.3f} ±{spread:.3f}{met}")
        yield f"| {name} | " + " | ".join(cells) + " |"


# -- the daemon's own time ----------------------------------------------------------------------


class Pair:
    """A server, and a client that sends authentication packets and has no tunnel."""

    def __init__(self, lab, keys):
        number = len(lab.hosts)
        self.server, self.client = lab.host(f"server{number}"), lab.host(f"client{number}")
        lab.link(self.server, "eth0", f"{SERVER}/24", self.client, "eth0", f"{CLIENT}/24")
        self.keys = keys or ipipou.Keys(self.server)
        self.near = ipipou.server(self.server, keys=self.keys)
        self.pid, self.port = self.near.process.pid, 20000

    def authenticate(self, said):
        """A packet from a port of its own; returns when the server has said so."""
        self.port += 1
        times = self.near.process.output().count(said)
        options = ["-c", "-b", f":{self.port}@eth0", "-r", f"{SERVER}:10000", "--tunl-ip", FAR]
        proof = ["--auth-key-b64", self.keys.private, "--auth-secret", ipipou.SECRET]
        places = [f"--{what}-dir={self.server.lab.directory}/one" for what in ("memory", "runtime")]
        command = ["ipipou", *options, *proof, *places, "--reauth-only"]
        self.client.run(command)
        laboratory.await_(
            lambda: self.near.process.output().count(said) > times, what=said, interval=0.001
        )


# How strace shows a packet that comes out of an NFQUEUE; older ones do not know the name.
QUEUED = re.compile(r"nlmsg_type=(0x300\b|NFNL_SUBSYS_QUEUE<<8\|NFQNL_MSG_PACKET)")
SAID = {"first packet → tunnel up": "tunnel up", "another port → moved": "moved from"}


def work(lab, moves=9):
    """The median of what the server's process spends on a packet, and its memory afterwards."""
    spent, pair = {what: [] for what in SAID}, None
    for what, said in SAID.items():
        for _ in range(moves):
            if pair is None or said == "tunnel up":
                pair = Pair(lab, pair and pair.keys)
            time.sleep(0.5)  # whatever it does at first is done
            before = laboratory.processor_time(pair.pid)
            pair.authenticate(said)
            spent[what].append(laboratory.processor_time(pair.pid) - before)
    return {what: statistics.median(times) for what, times in spent.items()}, laboratory.resident(
        pair.pid
    )


def system_calls(lab):
    """From the packet to the line in the log: how many system calls, how many programs started."""
    pair, made = Pair(lab, None), {}
    for what, said in SAID.items():
        trace = lab.file("strace")
        strace = ["strace", "-f", "-qq", "-s", "200", "-o", trace, "-p", pair.pid]
        tracer = pair.server.spawn(strace)
        time.sleep(1)
        pair.authenticate(said)
        time.sleep(1)  # and what comes after it, for the programs
        tracer.stop(signal.SIGINT)
        lines = trace.read_text().splitlines()
        last = next(i for i, line in enumerate(lines) if said in line)
        first = max(i for i in range(last) if QUEUED.search(lines[i]))
        calls = sum("resumed>" not in line for line in lines[first + 1 : last + 1]) + 1
        programs = sum("execve(" in line or "fork(" in line for line in lines)
        made[what] = calls, programs
    return made


def of_the_process():
    """What moves of a peer cost the server's process, as rows of a table."""
    with tempfile.TemporaryDirectory() as directory, laboratory.Lab(directory) as lab:
        spent, memory = work(lab)
        calls = system_calls(lab)
    rows = ["", "| the server's process | own time | system calls | programs started |"]
    rows += ["|---|--:|--:|--:|"]
    for what, instructions in spent.items():
        number, programs = calls[what]
        rows.append(f"| {what} | {instructions / 1e6:.2f} ms | {number} | {programs} |")
    rows += ["", f"Resident memory of a server: {memory / 1024:.1f} MiB (target: at most 10)."]
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--meters", nargs="+", choices=METERS, default=list(METERS))
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=list(LANES))
    options = parser.parse_args()
    laboratory.preload_modules()
    subprocess.run(["modprobe", "tun"], check=True)
    rows = []
    names = dict.fromkeys([BASELINE, *options.lanes])
    with tempfile.TemporaryDirectory() as directory:
        with laboratory.Lab(directory) as lab:
            lanes = [make(lab, name, LANES[name]) for name in names]
            rows += throughput(compare(lanes, options.meters, options.rounds))
    if options.lanes == list(LANES):
        rows += of_the_process()
    for row in rows:
        print(f"result: {row}", flush=True)


if __name__ == "__main__":
    main()
