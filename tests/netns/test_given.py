"""What a server gives its client (`--tunl-ip auto`), and what the client does not let it have."""

import json

import pytest

import ipipou
from hub import PORT, Hub, inner, states
from ipipou import Tunnel
from lab import await_
from lan import await_reached, outer

SERVER, OTHER = 3, 4  # hosts of the switch; 2 is the client


class Given:
    """A client on host 2, whose server on host 3 gives what a test tells it to."""

    def __init__(self, lab):
        self.hub = Hub(lab, clients=3)
        self.hub.forget(SERVER), self.hub.forget(OTHER)
        self.client = self.hub.clients[0]
        self.files = self.hub.peers.parent / "gives.d"
        self.files.mkdir()

    def give(self, *addresses):
        text = ", ".join(f'"{address}"' for address in addresses)
        key = self.hub.keys[2].public
        beside = self.files / "peer2.new"
        beside.write_text(f'[peer.peer2]\npublic-key = "{key}"\naddress = [{text}]\n')
        beside.rename(self.files / "peer2.toml")

    def server(self, network, *options):
        own = ["-s", "-b", "@eth0", "--tunl-ip", network, "--peers", self.files]
        own += ["--auth-key-b64", self.hub.keys[SERVER].private, "--auth-secret", ipipou.SECRET]
        return Tunnel(self.hub.lan.hosts[SERVER - 1], *own, *self.hub.datapath, *options)

    def connect(self, *options, servers=(SERVER,)):
        at = ",".join(f"{outer(i)}:{PORT}" for i in servers)
        keys = ",".join(self.hub.keys[i].public for i in servers)
        own = ["-c", "-b", "@eth0", "-r", at, "--tunl-ip", "auto", "--auth-remote-pubkey-b64", keys]
        own += ["--auth-key-b64", self.hub.keys[2].private, "--auth-secret", ipipou.SECRET]
        return Tunnel(self.client, *own, *self.hub.datapath, *options)

    def addresses(self, device="ipipou0"):
        shown = json.loads(self.client.run(f"ip -j address show dev {device} scope global"))
        return {f"{a['local']}/{a['prefixlen']}" for a in shown[0]["addr_info"]}


def test_an_address_of_another_server_is_not_taken_nor_remembered(lab):
    """A server that gives another one's outer address would cut its client off from that one."""
    given = Given(lab)
    given.give(outer(OTHER))
    bad = given.server("10.0.0.5/31")
    other = given.hub.standby(OTHER)
    far = given.connect(servers=(SERVER, OTHER))
    far.await_log(f"{outer(OTHER)}/31 is not taken: packets of the tunnel itself go to or from")
    assert given.addresses() == set()
    assert "dev eth0" in given.client.run(f"ip route get {outer(OTHER)}")
    bad.process.kill()
    far.await_log(f"connected to {outer(OTHER)}", timeout=60)
    far.await_log(f"from the server: {inner(2)}/24")
    await_reached(given.client, inner(1))
    far.process.stop()
    # With that one alone, and what is remembered.
    far = given.connect(servers=(OTHER,))
    far.await_log(f"connected to {outer(OTHER)}")
    assert given.addresses() == {f"{inner(2)}/24"}
    await_(lambda: states(other) == {"peer2": "connected"})


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
def test_what_a_route_refuses_is_not_taken(lab, kind):
    """Such routes are there so that packets to private networks do not leave the host."""
    given = Given(lab)
    given.client.run("ip route add default via 10.0.0.1 dev eth0")
    given.client.run(f"ip route add {kind} 192.168.0.0/16")
    given.give("192.168.9.9")
    given.server("192.168.9.1/24")
    far = given.connect()
    far.await_log("192.168.9.9/24 is not taken: this host has a route to 192.168.9.9/32")
    assert given.addresses() == set()
    # Where all that has no other route is refused, an address in a tunnel is not an exception.
    given.client.run(f"ip route replace {kind} default")
    given.client.run(f"ip route del {kind} 192.168.0.0/16")
    far.await_log("this host has had the network 192.168.9.9/32, or a route to it, within an hour")
    far.process.stop(), far.start()
    await_(lambda: given.addresses() == {"192.168.9.9/24"})


def test_a_network_of_a_bridge_is_not_taken_while_that_has_no_address(lab):
    given = Given(lab)
    given.client.run("ip link add docker0 type bridge")
    given.client.run("ip address add 192.168.9.1/24 dev docker0")
    given.give("192.168.9.9")
    given.server("192.168.9.2/24")
    far = given.connect()
    far.await_log("192.168.9.9/24 is not taken: another interface has the network 192.168.9.0/24")
    given.client.run("ip address del 192.168.9.1/24 dev docker0")
    far.await_log("this host has had the network 192.168.9.0/24, or a route to it, within an hour")
    assert given.addresses() == set()


def test_a_route_of_the_host_counts_also_once_the_address_is_ours(lab):
    """The kernel finds our own route then. It must be no way to what the user did not name."""
    given = Given(lab)
    given.client.run("ip route add 192.168.0.0/16 via 10.0.0.1 dev eth0 metric 100")
    given.give("192.168.9.9")
    given.server("192.168.9.1/16")
    far = given.connect("--route", "192.168.9.0/24")
    far.await_log(
        "192.168.9.9 is taken without its network: this host has a route to 192.168.0.0/16"
    )
    await_(lambda: given.addresses() == {"192.168.9.9/32"})
    far.await_log("connected to")
    given.client.run("ip link add brief0 type bridge")  # a reading
    given.client.run("ip link del brief0")
    await_reached(given.client, "192.168.9.1")
    assert given.addresses() == {"192.168.9.9/32"}


def test_a_route_that_comes_later_takes_the_address_away(lab):
    given = Given(lab)
    given.give("192.168.9.9")
    given.server("192.168.9.1/16")
    far = given.connect()
    await_(lambda: given.addresses() == {"192.168.9.9/16"})
    given.client.run("ip route add 192.168.9.0/24 via 10.0.0.1 dev eth0")
    far.await_log("192.168.9.9/16 is not taken: this host has a route to 192.168.9.0/24")
    await_(lambda: given.addresses() == set())
    assert "dev eth0" in given.client.run("ip route get 192.168.9.9")


def test_what_the_host_has_is_not_taken_and_what_the_user_names_is(lab):
    given = Given(lab)
    given.client.run("ip link add lan0 type bridge")
    given.client.run("ip link set lan0 up")
    given.client.run("ip address add 192.168.7.2/24 dev lan0 noprefixroute")
    given.client.run("ip route add 192.168.0.0/16 via 192.168.7.1 dev lan0 onlink")
    given.client.run("ip route add default via 10.0.0.1 dev eth0")
    given.give("192.168.9.9")
    near = given.server("192.168.9.1/24")
    far = given.connect()
    far.await_log("192.168.9.9/24 is not taken: this host has a route to 192.168.0.0/16")
    assert near.process.stop() == 0
    given.give("192.168.7.9")
    near = given.server("192.168.7.1/24")
    far.reauthenticate()
    far.await_log("192.168.7.9/24 is not taken: another interface has the network 192.168.7.0/24")
    assert given.addresses() == set()
    assert "dev lan0" in given.client.run("ip route get 192.168.9.1")
    far.process.stop(), near.process.stop()

    given.give("192.168.9.9")
    near = given.server("192.168.9.1/24")
    far = given.connect("--route", "192.168.9.0/24")
    far.await_log("from the server: 192.168.9.9/24")
    await_reached(given.client, "192.168.9.1")
    assert "dev lan0" in given.client.run("ip route get 192.168.8.1")


def test_a_public_network_is_taken_only_where_the_user_names_it(lab):
    given = Given(lab)
    given.client.run("ip route add default via 10.0.0.1 dev eth0")
    given.give("8.8.8.8")
    near = given.server("8.8.8.1/24")
    far = given.connect()
    far.await_log("8.8.8.8/24 is not taken: it is not for private use; --route 8.8.8.0/24 takes it")
    assert "via 10.0.0.1 dev eth0" in given.client.run("ip route get 8.8.8.1")
    far.process.stop()
    far = given.connect("--route", "8.8.8.0/24")
    far.await_log("from the server: 8.8.8.8/24")
    await_reached(given.client, "8.8.8.1")
    near.process.stop()


def test_an_ipv6_address_that_the_kernel_refuses_costs_only_ipv6(lab):
    given = Given(lab)
    for host, setting in (given.client, 1), (given.hub.lan.hosts[SERVER - 1], 0):
        host.run(f"sysctl -qw net.ipv6.conf.default.disable_ipv6={setting}")
    given.give(inner(2), "fd08::2")
    near = given.server(f"{inner(1)}/24", "--ip6", "fd08::1/64")
    for _ in range(2):  # the second start begins with what is remembered
        far = given.connect("--route", "192.168.7.0/24")
        far.await_log("fd08::2/64 is not taken: the kernel refuses it")
        await_reached(given.client, inner(1))
        await_(lambda: "dev ipipou0" in given.client.run("ip route get 192.168.7.1"))
        assert given.addresses() == {f"{inner(2)}/24"}
        assert far.show()["repaired"] == 0
        far.process.stop()
    near.process.stop()
