"""Hosts at one switch, and whether they reach each other."""

from gateways import Switch, only_ipv4
from lab import await_


def outer(i):
    return f"10.0.0.{i}"


class Lan(Switch):
    """A switch, which is a host itself, and hosts at it: 10.0.0.1, 10.0.0.2, …

    Without IPv6, every packet in a tunnel is the test's: no host asks for routers."""

    ADDRESS = outer(100)

    def __init__(self, lab, count, ip6=False):
        super().__init__(lab)
        self.host.run(f"ip addr add {self.ADDRESS}/24 dev br0")
        self.hosts = [lab.host(f"h{i}") for i in range(1, count + 1)]
        for i, host in enumerate(self.hosts, 1):
            self.plug(host, "eth0", f"{outer(i)}/24")
            only_ipv4(host, not ip6)


def dropped(end):
    """What the datapath dropped, by reason, without the zeros; and without the redirects that the kernel
    sends now and then to peers who reach each other through it."""
    counts = {why: d["packets"] for why, d in end.show()["dropped"].items()}
    return {why: count for why, count in counts.items() if count and why != "tx_redirect"}


def await_dropped(end, **counts):
    await_(lambda: dropped(end) == counts, what=f"{counts} dropped by {end.host}")


def reaches(host, address, count=1, timeout=5):
    return host.ping(address, count=count, timeout=timeout).received == count


def assert_unanswered(host, address):
    """No ping comes back in the time that others have for it."""
    assert not reaches(host, address, timeout=0.3), f"{address} answers {host}"


def await_reached(host, address):
    await_(lambda: reaches(host, address, timeout=0.3), what=f"answers of {address} to {host}")
