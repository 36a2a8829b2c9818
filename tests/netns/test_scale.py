"""What is read of the host does not grow with what is not the tunnel's."""

import re
import time

import pytest

import ipipou
from foreign import add_what_is_not_ours
from ipipou import CLIENT, SERVER, TOLD, await_, reach_each_other

TUN = ["--datapath", "tun"]
# What else a client is asked to do; with the default route, its uplink is of interest too.
KINDS = {
    "server": (),
    "client": (),
    "routes": ("--route", "10.77.0.0/16"),
    "full": ("--default-route",),
    "gateway": ("--forward", "--masquerade"),
}


class Trace:
    """The netlink messages of a process, as strace sees it get them."""

    def __init__(self, host):
        self.file = host.lab.file("trace")
        calls = "trace=recvmsg,recvfrom,recvmmsg"
        self.prefix = ["strace", "-D", "-f", "-yy", "-qq", "-s", "0", "-e", calls, "-o", self.file]

    def bytes(self):
        """How many it got so far. A call that only asks for the length is not a message."""
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


def routes_of_others_change(trace, end, host):
    """They are not a reason to read anything, for so long that there would be several readings; one to the
    other end is."""
    end.await_quiet()
    before = end.process.output().count(TOLD)
    begin = time.monotonic()
    while time.monotonic() - begin < 1.5:
        got = trace.bytes()
        host.batch(*(f"route {verb} 10.99.0.1/32 via {ipipou.STRANGER}" for verb in ("add", "del")))
        await_(lambda got=got: trace.bytes() > got, what="word of a route")
    host.run(f"ip route add {SERVER}/32 dev eth0")
    await_(lambda: end.process.output().count(TOLD) > before, what="word of the way")
    assert end.process.output().count(TOLD) == before + 1
    host.run(f"ip route del {SERVER}/32 dev eth0")


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_links_and_routes_do_not_slow_a_reading(lab, kind):
    lan = ipipou.Lan(lab)
    keys = ipipou.Keys(lan.server)
    host = lan.server if kind == "server" else lan.client
    trace = Trace(host)
    prefixes = {lan.server: (), lan.client: (), host: trace.prefix}
    near = ipipou.server(lan.server, *TUN, keys=keys, prefix=prefixes[lan.server])
    far = ipipou.client(lan.client, *TUN, *KINDS[kind], keys=keys, prefix=prefixes[lan.client])
    near.await_log("tunnel up")
    end = near if kind == "server" else far
    alone = read_by(trace, end)
    add_what_is_not_ours(host, links=500, routes=50_000)
    if kind == "gateway":  # no question is answered until all of them forward
        end.await_log("turn forwarding of other499 on", timeout=60)
    # Until what came as events is read, there is more.
    await_(lambda: 0 < read_by(trace, end) < alone * 1.5, what=f"readings of {alone} bytes")
    reach_each_other(lan.server, lan.client)

    if kind != "server":  # it does not even hear of routes
        routes_of_others_change(trace, end, host)

    # What is ours is still seen, and put back.
    if kind == "routes":
        end.await_told(lambda: host.run("ip route del 10.77.0.0/16 dev ipipou0"))
        assert "repairing: add route to 10.77.0.0/16" in end.process.output()
        before = end.process.output().count("repairing: add route")
        host.batch("link set ipipou0 down", "link set ipipou0 up")  # its routes go without a word
        again = lambda: end.process.output().count("repairing: add route") > before  # noqa: E731
        await_(again, what="a repair")
        await_(lambda: "10.77.0.0/16" in host.run("ip route show dev ipipou0"), what="the route")
    if kind == "full":
        end.await_told(lambda: host.run("ip rule del priority 32765 fwmark 0x69700000/0xffff0000"))
        assert "repairing: add rule: not fwmark" in end.process.output()
    address, other = (SERVER, "203.0.113.3") if host is lan.server else (CLIENT, "203.0.113.4")
    host.batch(f"addr del {address}/24 dev eth0", f"addr add {other}/24 dev eth0")
    end.await_log(f"our outer address is now {other}")
