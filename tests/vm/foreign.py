"""Interfaces and routes that are nobody's business, and what a process reads of its host."""

import re

import ipipou
from lab import await_


class Trace:
    """The netlink messages of a process, as strace sees it get them."""

    def __init__(self, host):
        self.file = host.lab.file("trace")
        calls = "trace=recvmsg,recvfrom,recvmmsg"
        self.prefix = ["strace", "-D", "-f", "-yy", "-qq", "-s", "0", "-e", calls, "-o", self.file]

    def bytes(self):
        """How many it got so far. A call that only asks for the length is no message."""
        lines = self.file.read_text().splitlines()
        netlink = [line for line in lines if "NETLINK:" in line and "MSG_PEEK" not in line]
        sizes = [re.search(r"= (\d+)$", line) for line in netlink]
        return sum(int(size[1]) for size in sizes if size)


def read_by(trace, end, times=20):
    """Bytes of netlink messages for one reading; the host is read for each answer."""
    before = trace.bytes()
    for _ in range(times):
        end.show()
    await_(lambda: trace.bytes() > before, what="messages in the trace")
    return (trace.bytes() - before) / times


def add_what_is_not_ours(host, links, routes):
    lines = [f"link add other{i} type bridge" for i in range(links)]
    lines += [f"addr add 10.{200 + i // 250}.{i % 250}.1/32 dev other{i}" for i in range(links)]
    lines += [
        f"route add 11.{i // 65536}.{i // 256 % 256}.{i % 256}/32 via {ipipou.STRANGER}"
        for i in range(routes)
    ]
    host.run("ip -batch -", input="\n".join([*lines, ""]), timeout=300)
