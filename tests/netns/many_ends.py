"""Tunnels with many peers: hosts at one switch, and tables of them."""

import contextlib
import json
import os
import pathlib
import shutil
import signal

from ipipou import Tunnel
from lan import (  # noqa: F401  (tests import them from here)
    Lan,
    await_dropped,
    await_reached,
    dropped,
    assert_unanswered,
    outer,
    reaches,
)

TUN = ["--datapath", "tun"]


def inner(i):
    return f"192.168.100.{i}"


def inner6(i):
    return f"fd00::{i}"


class Table:
    """A file with a table of hosts, replaced as a whole as an administrator does."""

    def __init__(self, path, nodes):
        self.path = path
        self.write(nodes)

    def write(self, nodes):
        self.write_text(json.dumps({"nodes": nodes}, indent=1))

    def write_text(self, text):
        beside = self.path.with_suffix(".new")
        beside.write_text(text)
        beside.rename(self.path)


class Names:
    """What a host's programs look names up in: files of its own, which `ip netns exec` mounts.

    To be used before the program that reads them is started."""

    def __init__(self, host):
        self.directory = pathlib.Path("/etc/netns", host.netns)

    def __enter__(self):
        self.directory.mkdir(parents=True)
        # Nobody listens there: what is not in the file of hosts is unknown at once.
        (self.directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        self.write()
        return self

    def write(self, **addresses):
        """The name `a.test` is given as `a`. The file stays the same one: it is mounted. It is never
        empty or half written, because it has one size and is written by one call."""
        lines = [f"{address} {name}.test" for name, address in addresses.items()]
        text = "\n".join(["127.0.0.1 localhost", *lines]).ljust(1024, "\n")
        hosts = os.open(self.directory / "hosts", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.write(hosts, text.encode())
        finally:
            os.close(hosts)

    def __exit__(self, *_):
        shutil.rmtree(self.directory)
        with contextlib.suppress(OSError):
            os.rmdir(self.directory.parent)


def node(host, i, *options, ready=True):
    """The node number `i` of a table."""
    own = ["-b", "@eth0", "--tunl-ip", f"{inner(i)}/24"]
    return Tunnel(host, *own, *TUN, *options, ready=ready)


def hurry(*ends):
    """Everything is read and looked up at once, and not some seconds later."""
    for end in ends:
        end.process.send_signal(signal.SIGHUP)


def remotes(end):
    """{remote: its inner networks}, as `show` has them."""
    (tunnel,) = end.show()["tunnels"]
    return {remote["remote"]: remote["networks"] for remote in tunnel["remotes"]}


def refusal(host, address):
    """Who says that there is no host behind the address, and how, as ping shows it."""
    said = host.run(["ping", "-n", "-c1", "-W5", address], check=False).stdout
    lines = [line for line in said.splitlines() if line.startswith("From ")]
    return lines[0] if lines else said


def warnings(end):
    """The lines that say what is wrong."""
    return [line for line in end.process.output().splitlines() if "WARN: " in line]
