"""Clients behind a masquerading router."""

from ipipou import SERVER

OUTSIDE, DIRECT = "198.51.100.2", "192.0.2.2"
NEW_PORTS = range(30000, 31000)


class Internet:
    """A server, a masquerading router, and a client with an address of its own."""

    def __init__(self, lab):
        self.server, core = lab.host("server"), lab.host("core")
        self.router, self.direct = lab.host("router"), lab.host("direct")
        self.lab = lab
        lab.link(self.server, "eth0", f"{SERVER}/24", core, "eth0", "203.0.113.254/24")
        lab.link(self.router, "wan0", f"{OUTSIDE}/24", core, "eth1", "198.51.100.1/24")
        lab.link(self.direct, "eth0", f"{DIRECT}/24", core, "eth2", "192.0.2.1/24")
        core.sysctl("net.ipv4.ip_forward", 1)
        self.server.run("ip route add default via 203.0.113.254")
        self.router.run("ip route add default via 198.51.100.1")
        self.direct.run("ip route add default via 192.0.2.1")
        self.nat = lab.nat(self.router, "wan0", 20000, 20999)

    def inside(self, number):
        """A host behind the router."""
        host = self.lab.host(f"inside{number}")
        network = f"192.168.{number}"
        self.lab.link(
            self.router, f"lan{number}", f"{network}.1/24", host, "eth0", f"{network}.2/24"
        )
        host.run(f"ip route add default via {network}.1")
        return host
