"""Hosts made of network namespaces, for tests that need a real kernel. Standard library only.

    with Lab(directory) as lab:
        server, client = lab.host("server"), lab.host("client")
        lab.link(server, "eth0", "203.0.113.1/24", client, "eth0", "203.0.113.2/24")
        assert client.ping("203.0.113.1").received

Every host is a fresh namespace: nothing in it tracks connections until a test makes it. What a
host starts, the lab ends; what the lab makes, it removes.
"""

import contextlib
import ctypes
import fcntl
import functools
import itertools
import json
import os
import pathlib
import re
import socket
import struct
import subprocess

import packets
from packets import inner_icmp_echo  # noqa: F401  (tests import it from here)
from processes import (  # noqa: F401  (tests import them from here)
    BackgroundPing,
    Capture,
    Pings,
    Process,
    await_,
    pings_of,
    processor_time,
    resident,
)

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_serial = itertools.count()

# Loading ipip, sit or ip6_tunnel puts a device into every namespace. Loaded before the first one
# is made, they are part of what a host looks like, and not a difference a test finds.
PRELOADED = ["ipip", "fou"]


def preload_modules():
    subprocess.run(["modprobe", "-a", *PRELOADED], check=True)


@functools.cache
def has_fou():
    """Whether this kernel knows FOU."""
    return subprocess.run(["ip", "fou", "show"], capture_output=True).returncode == 0


class Host:
    """One network namespace."""

    def __init__(self, lab, name):
        self.lab = lab
        self.name = name
        self.netns = f"{name}-{os.getpid()}-{next(_serial)}"
        subprocess.run(["ip", "netns", "add", self.netns], check=True)
        # IPv4 settings of a new namespace are copied from the first one: say what is wanted.
        self.sysctl("net.ipv4.conf.all.rp_filter", 0)
        self.sysctl("net.ipv4.conf.default.rp_filter", 0)
        # An IPv6 address is usable at once: no test is about duplicate address detection.
        self.sysctl("net.ipv6.conf.default.accept_dad", 0)
        self.run("ip link set lo up")

    def __repr__(self):
        return f"<host {self.name}>"

    # -- programs ---------------------------------------------------------------------------

    def inside(self, argv):
        """The argument vector that runs `argv` in this host."""
        return ["ip", "netns", "exec", self.netns, *argv]

    def run(self, command, check=True, input=None, timeout=90):
        """Runs a command line (no shell) or an argument list; its standard output.

        With check=False, the CompletedProcess instead. A namespace that goes with thousands of links holds up
        all others for half a minute.
        """
        argv = command.split() if isinstance(command, str) else [str(word) for word in command]
        # iproute2 changes the namespace by itself; that spares one program start.
        argv = ["ip", "-n", self.netns, *argv[1:]] if argv[0] == "ip" else self.inside(argv)
        done = subprocess.run(argv, input=input, capture_output=True, text=True, timeout=timeout)
        if not check:
            return done
        if done.returncode:
            raise AssertionError(f"{self.name}: {command}: {done.returncode}: {done.stderr}")
        return done.stdout

    def batch(self, *commands):
        """Several `ip` commands (without that word) in one program start; stops at an error."""
        self.run("ip -batch -", input="\n".join([*commands, ""]))

    def nft(self, ruleset):
        """Loads a ruleset, given as the text of an nft file, in one transaction."""
        self.run("nft -f -", input=ruleset)

    def spawn(self, argv, kind=Process):
        """Starts a program in the background; the lab ends it."""
        process = kind(self, argv, self.lab.file(f"{self.name}-{pathlib.Path(argv[0]).name}"))
        self.lab.processes.append(process)
        return process

    # -- namespace --------------------------------------------------------------------------

    @contextlib.contextmanager
    def entered(self):
        """This thread is in the namespace: for sockets (they stay there) and /proc/sys/net."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.netns}") as there:
            _setns(there)
            try:
                yield
            finally:
                _setns(home)

    def sysctl(self, key, value=None):
        """Sets a setting of the namespace, or reads it."""
        path = pathlib.Path("/proc/sys", *key.split("."))
        with self.entered():
            if value is None:
                return path.read_text().strip()
            return path.write_text(str(value))

    def socket(self, *arguments):
        """A Python socket in this namespace."""
        with self.entered():
            return socket.socket(*arguments)

    def udp_socket(self, address, port, timeout=5):
        """A bound UDP socket whose recv() gives up after `timeout` seconds."""
        bound = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.settimeout(timeout)
        bound.bind((address, port))
        return bound

    def remove(self):
        subprocess.run(["ip", "netns", "del", self.netns], check=True)

    # -- traffic ----------------------------------------------------------------------------

    def ping(self, address, *options, count=3, timeout=5, size=None, source=None):
        """Pings and returns how many were sent and answered.

        One by one: after a first answer, ping waits for others no longer than two round trips,
        whatever the timeout. Who polls, or awaits no answer, gives a short one."""
        argv = ["ping", "-n", "-q", "-c", 1, "-W", timeout]
        argv += ["-s", size] if size is not None else []
        argv += ["-I", source] if source else []
        argv += options
        each = [pings_of(self.run([*argv, address], check=False).stdout) for _ in range(count)]
        return Pings(sum(ping.sent for ping in each), sum(ping.received for ping in each))

    def ping_background(self, address, interval=0.05):
        """A ping that goes on until stop(), which returns its Pings."""
        return self.spawn(["ping", "-n", "-i", interval, address], BackgroundPing)

    def await_carrier(self, dev):
        """Waits for it, and for the IPv6 address that it brings; routes lose a flag."""
        ip6 = self.sysctl(f"net.ipv6.conf.{dev}.disable_ipv6") == "0"
        show = f"addr show dev {dev}\nroute show dev {dev}\n"

        def settled():
            words = self.run("ip -batch -", input=show).split()
            is_up = "UP" in words and not {"linkdown", "tentative"} & set(words)
            return is_up and (not ip6 or any(word.startswith("fe80:") for word in words))

        await_(settled, what=f"carrier of {dev}", interval=0.01)

    def capture(self, dev, expression=""):
        """A tcpdump that is already listening; the expression is a pcap filter."""
        return Capture(self, dev, expression)

    def send_raw(self, packet):
        """Sends an IPv4 packet as it is, header included; the source may be anybody's."""
        with self.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))

    def send_udp(self, src, sport, dst, dport, payload, checksum=True, ttl=64):
        datagram = packets.udp(src, sport, dst, dport, payload, checksum)
        self.send_raw(packets.ipv4(src, dst, packets.UDP, datagram, ttl))

    def send_ipip(self, src, dst, inner_src, inner_dst, **echo):
        """Plain IPIP: an inner echo request in IP protocol 4, no UDP."""
        inner = inner_icmp_echo(inner_src, inner_dst, **echo)
        self.send_raw(packets.ipv4(src, dst, packets.IPIP, inner))

    def send_fou(self, src, sport, dst, dport, inner_src, inner_dst, checksum=True, **echo):
        """FOU as the kernel makes it: an inner echo request in a UDP datagram."""
        inner = inner_icmp_echo(inner_src, inner_dst, **echo)
        self.send_udp(src, sport, dst, dport, inner, checksum)

    def send_fragments(
        self, src, sport, dst, dport, payload, count=3, order=None, ident=None, checksum=True
    ):
        """A UDP datagram in `count` fragments; `order` lists the indices of those to send."""
        datagram = packets.udp(src, sport, dst, dport, payload, checksum)
        ident = 0x4000 + next(_serial) % 0x8000 if ident is None else ident
        parts = list(packets.fragments(src, dst, packets.UDP, datagram, count, ident))
        for index in range(count) if order is None else order:
            self.send_raw(parts[index])

    # -- what is there ----------------------------------------------------------------------

    def statistics(self, dev):
        """{"rx": {"packets": …, "bytes": …, "errors": …, "dropped": …}, "tx": {…}} of a device."""
        return json.loads(self.run(f"ip -s -j link show dev {dev}"))[0]["stats64"]

    def tunnel(self, dev):
        """The attributes of a tunnel device, as `ip -j -d link` gives them, or None."""
        done = self.run(f"ip -j -d link show dev {dev}", check=False)
        return json.loads(done.stdout)[0]["linkinfo"]["info_data"] if done.returncode == 0 else None

    def counter(self, table, name, family="ip"):
        """The packets a named nft counter has seen."""
        listing = json.loads(self.run(f"nft -j list counter {family} {table} {name}"))
        return next(e["counter"]["packets"] for e in listing["nftables"] if "counter" in e)

    def connections(self):
        """The lines of the connection tracking table (`conntrack -L`)."""
        return self.run("conntrack -L -o extended").splitlines()

    def tracked(self):
        """How many connections are tracked."""
        return int(self.run("conntrack -C"))

    def hooks(self, family="ip"):
        """What is hooked into the namespace's netfilter, by function name; None before 6.4.

        Debian's 6.1 has no nfnetlink_hook, so nobody can ask it."""
        if subprocess.run(["modprobe", "-q", "nfnetlink_hook"], check=False).returncode:
            return None
        return re.findall(r"[-+]?\d{10} (.+)", self.run(f"nft list hooks {family}"))

    def snapshot(self, ifindex=False):
        """Links, addresses, routes, rules, nft and FOU, as text that two moments agree on.

        Counters and lifetimes are left out; interface numbers too, unless asked for."""
        parts = []
        ip_batch = "link\naddr\nroute show table all\nrule\n" + ("fou show\n" if has_fou() else "")
        for command, batch in (("ip -d -batch -", ip_batch), ("nft -s list ruleset", None)):
            text = self.run(command, input=batch)
            if not ifindex:
                text = re.sub(r"(?m)^\d+: ", "", text)
                text = re.sub(r"@if\d+|link-netns \S+|link-netnsid \d+", "", text)
            text = re.sub(r"\b(valid_lft|preferred_lft|expires) \S+", "", text)
            text = re.sub(r"\bcounter packets \d+ bytes \d+", "counter", text)
            # Who used up how much of a meter; newer ones of nft list it.
            text = re.sub(r"\n\s*elements = \{[^}]*\blimit rate\b[^}]*\}", "", text)
            parts += (re.sub(r" +", " ", line).rstrip() for line in text.splitlines())
        return "\n".join(parts) + "\n"


def _setns(namespace):
    if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def no_checksum_offload(host, dev):
    """Packets leave with their checksums complete, as by a plain network card (linux/ethtool.h)."""
    value = ctypes.create_string_buffer(struct.pack("II", 0x17, 0))  # ETHTOOL_STXCSUM
    request = struct.pack("16sP", dev.encode(), ctypes.addressof(value))
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8946, request)  # SIOCETHTOOL


class Nat:
    """Masquerading by a router, as a home router does it: many inside, one address outside."""

    def __init__(self, router, outside, first, last):
        self.router = router
        self.outside = outside
        router.sysctl("net.ipv4.ip_forward", 1)
        self._load(first, last)

    def _load(self, first, last):
        rules = f"""
            table ip nat {{}}
            delete table ip nat
            table ip nat {{
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    oifname "{self.outside}" meta l4proto udp masquerade to :{first}-{last}
                    oifname "{self.outside}" masquerade
                }}
            }}
        """
        self.router.nft(rules)

    def flush(self):
        """Forgets the mappings, as after a reboot."""
        self.router.run("conntrack -F")

    def remap(self, first, last):
        """From now on every UDP flow comes from another outside port."""
        self._load(first, last)
        self.flush()


class Lab:
    """Makes hosts, and removes all there is at the end."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.hosts = []
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def file(self, stem, suffix=".log"):
        """A new file name in the lab's directory."""
        return self.directory / f"{next(_serial)}-{stem}{suffix}"

    def host(self, name):
        host = Host(self, name)
        self.hosts.append(host)
        return host

    def link(self, a, dev_a, address_a, b, dev_b, address_b):
        """A cable between two hosts; an address is with its prefix length, or None."""
        a.run(f"ip link add {dev_a} type veth peer name {dev_b} netns {b.netns}")
        for host, dev, address in ((a, dev_a, address_a), (b, dev_b, address_b)):
            host.batch(f"addr add {address} dev {dev}" if address else "", f"link set {dev} up")
        a.await_carrier(dev_a)
        b.await_carrier(dev_b)

    def nat(self, router, outside, first=10000, last=19999):
        """Makes a host a masquerading router; outside UDP ports are first..last."""
        return Nat(router, outside, first, last)

    def logs(self):
        """What the processes printed, for the report of a failed test."""
        for process in self.processes:
            yield " ".join(process.argv), process.output()

    def close(self):
        for process in reversed(self.processes):
            process.kill()
        for host in reversed(self.hosts):
            host.remove()
        self.processes.clear()
        self.hosts.clear()
