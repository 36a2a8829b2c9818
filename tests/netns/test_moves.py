"""The userspace datapath while addresses change, things break, and processes die."""

import signal

import pytest

import ipipou
from gateways import await_answer
from ipipou import CLIENT, SERVER, await_, reach_each_other
from masquerade import NEW_PORTS, OUTSIDE, Internet
from names import names_of

pytestmark = pytest.mark.both_lanes

TUN = ["--datapath", "tun"]
INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
OTHER, MOVED = "203.0.113.3", "203.0.113.9"


@pytest.fixture
def internet(lab):
    return Internet(lab)


@pytest.fixture
def hosts(lab):
    """A server and a client without IPv6, whose addresses come when they like."""
    made = ipipou.neighbours(lab)
    for host in made:
        host.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        host.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    return made


def remote(end):
    """Where a server's tunnel goes: (address, port)."""
    address, _, port = end.show()["tunnels"][0]["remote"].rpartition(":")
    return address, int(port)


# -- NAT ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["signal", "keepalive", "reauth-only"])
def test_mapping_changes(internet, way):
    """Another outside port: traffic is refused until the client authenticates again."""
    client, keys = internet.inside(7), ipipou.Keys(internet.server)
    near = ipipou.server(internet.server, *TUN, keys=keys)
    keepalive = ["--keepalive", "1"] if way == "keepalive" else []
    far = ipipou.client(client, *TUN, *keepalive, keys=keys)
    near.await_log("tunnel up")
    reach_each_other(internet.server, client)
    assert remote(near)[0] == OUTSIDE and remote(near)[1] in range(20000, 21000)

    internet.nat.remap(NEW_PORTS[0], NEW_PORTS[-1])
    if way != "keepalive":
        before = near.show()["dropped"]["rx_stranger"]["packets"]
        assert client.ping(INNER_SERVER, count=1, timeout=0.3).received == 0
        near.await_dropped(rx_stranger=before + 1)
    if way == "signal":
        far.reauthenticate()
    if way == "reauth-only":
        # The port is the running client's.
        client.run([*far.argv, "--reauth-only"])
    near.await_log("moved from")
    assert remote(near)[1] in NEW_PORTS
    reach_each_other(internet.server, client)
    assert near.show()["moved"] == 1


def test_two_clients_behind_one_address(internet):
    """Two servers on one host: the kernel needs no alternate address to tell the tunnels apart."""
    clients, ends = [internet.inside(7), internet.inside(8)], []
    for number, client in enumerate(clients):
        keys = ipipou.Keys(internet.server)
        near = ipipou.server(internet.server, *TUN, keys=keys, number=number)
        far = ipipou.client(client, *TUN, keys=keys, peer=number)
        near.await_log("tunnel up")
        ends.append((near, far))
    (near0, far0), (near1, far1) = ends
    assert remote(near0)[0] == remote(near1)[0] == OUTSIDE and remote(near0) != remote(near1)
    for number, client in enumerate(clients):
        reach_each_other(internet.server, client, number)

    internet.nat.remap(NEW_PORTS[0], NEW_PORTS[-1])
    for (near, far), number in ((ends[1], 1), (ends[0], 0)):
        far.reauthenticate()
        near.await_log("moved from")
        reach_each_other(internet.server, clients[number], number)
    assert near1.process.stop() == far1.process.stop() == 0
    reach_each_other(internet.server, clients[0])
    assert near0.process.stop() == far0.process.stop() == 0


# -- roaming --------------------------------------------------------------------------------


def test_client_follows_its_route(lab):
    """-b @auto: one uplink goes down, comes back, and a route is replaced."""
    server, core, client = lab.host("server"), lab.host("core"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", core, "eth0", "203.0.113.254/24")
    lab.link(client, "eth0", "198.51.100.2/24", core, "eth1", "198.51.100.1/24")
    lab.link(client, "eth1", "192.0.2.2/24", core, "eth2", "192.0.2.1/24")
    core.sysctl("net.ipv4.ip_forward", 1)
    server.run("ip route add default via 203.0.113.254")
    first = "route add default via 198.51.100.1 metric 100"
    client.batch(first, "route add default via 192.0.2.1 metric 200")

    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, keys=keys)
    ipipou.client(client, *TUN, keys=keys, device="auto")
    near.await_log("tunnel up")
    assert remote(near) == ("198.51.100.2", 10000)
    ping = client.ping_background(INNER_SERVER)
    ping.goes_on(lambda: client.run("ip link set eth0 down"))
    assert remote(near) == ("192.0.2.2", 10000)
    ping.goes_on(lambda: client.batch("link set eth0 up", first))
    near.await_log("moved from 192.0.2.2:10000 to 198.51.100.2:10000")
    ping.goes_on(lambda: client.run("ip route add 203.0.113.0/24 via 192.0.2.1"))
    # The old way would do as well: answers do not tell that it was left.
    await_(lambda: remote(near) == ("192.0.2.2", 10000), what="the third move")
    assert near.show()["moved"] == 3
    reach_each_other(server, client)


def test_a_client_follows_a_new_router(lab):
    """A DHCP client sets the address first; and later the router is another one."""
    server, router, client = lab.host("server"), lab.host("router"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", router, "eth0", "203.0.113.254/24")
    lab.link(client, "eth0", "198.51.100.2/24", router, "eth1", "198.51.100.1/24")
    router.sysctl("net.ipv4.ip_forward", 1)
    server.run("ip route add default via 203.0.113.254")
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, keys=keys)
    far = ipipou.client(client, *TUN, keys=keys)
    far.await_log("ready on")
    client.run("ip route add default via 198.51.100.1")
    near.await_log("198.51.100.2:10000 authenticated: tunnel up")
    client.run("ip addr add 198.51.100.3/24 dev eth0")
    router.run("ip addr add 198.51.100.9/24 dev eth1")
    client.run("ip route replace default via 198.51.100.9")
    near.await_log("198.51.100.2:10000 authenticated again")
    reach_each_other(server, client)


def test_addresses_are_replaced(hosts):
    """-b @eth0 on both ends: the client's address, none for a while, and the server's by name."""
    server, client = hosts
    with names_of(client) as names:
        names.write_text(f"{SERVER} server.example\n")
        keys = ipipou.Keys(server)
        near = ipipou.server(server, *TUN, keys=keys)
        far = ipipou.client(client, *TUN, keys=keys, remote="server.example:10000")
        near.await_log("tunnel up")
        ping = client.ping_background(INNER_SERVER)
        replace = f"addr del {CLIENT}/24 dev eth0", f"addr add {OTHER}/24 dev eth0"
        ping.goes_on(lambda: client.batch(*replace))
        assert remote(near) == (OTHER, 10000)
        client.run(f"ip addr del {OTHER}/24 dev eth0")
        far.await_log("eth0 has no address for this tunnel")
        ping.goes_on(lambda: client.run(f"ip addr add {CLIENT}/24 dev eth0"))
        assert remote(near) == (CLIENT, 10000)

        server.batch(f"addr del {SERVER}/24 dev eth0", f"addr add {MOVED}/24 dev eth0")
        near.await_log(f"our outer address is now {MOVED}")
        names.write_text(f"{MOVED} server.example\n")
        far.reauthenticate()
        far.await_log(f"the server is at {MOVED}")
        near.await_log("authenticated again")
        reach_each_other(server, client)
        (tunnel,) = far.show()["tunnels"]
        assert tunnel["remote"] == f"{MOVED}:10000"


# -- repair ---------------------------------------------------------------------------------

DAMAGE = [
    "ip link del ipipou0",
    "ip link set ipipou0 down",
    "ip addr flush dev ipipou0",
    "ip link set ipipou0 alias other",
    "ip addr add 172.28.0.9 peer {peer} dev ipipou0",
]


# Routes that the kernel makes with an address, and does not make again.
FLUSHED = [
    "ip route flush dev ipipou0",
    "ip route del {peer} dev ipipou0",
    "ip route flush proto kernel dev ipipou0",
    "ip route flush table local dev ipipou0",
]


@pytest.mark.parametrize("side", ["server", "client"])
def test_damage_is_repaired(hosts, side):
    server, client = hosts
    keys = ipipou.Keys(server)
    before = [host.snapshot() for host in hosts]
    near = ipipou.server(server, *TUN, keys=keys)
    far = ipipou.client(client, *TUN, keys=keys)
    near.await_log("tunnel up")
    end, peer = (near, INNER_CLIENT) if side == "server" else (far, INNER_SERVER)
    whole = end.host.snapshot()
    # The kernel tells of these only who asks for routes: they are found by the way.
    for command in FLUSHED:
        repaired = end.show()["repaired"]
        end.host.run(command.format(peer=peer))
        await_(lambda: end.host.snapshot() == whole, what=f"repair after {command}")
        await_answer(client, INNER_SERVER)
        await_(lambda: end.show()["repaired"] > repaired, what="a repair")  # noqa: B023
    assert "repairing: put back the route to " in end.process.output()
    for command in DAMAGE:
        end.await_told(lambda: end.host.run(command.format(peer=peer)))
        await_(lambda: end.host.snapshot() == whole, what=f"repair after {command}")
        await_answer(client, INNER_SERVER)
    assert end.show()["repaired"] >= len(DAMAGE)
    # The user's, so it stays as he sets it.
    end.host.run("ip link set ipipou0 mtu 1300 down")
    await_(lambda: " UP" in end.host.run("ip -br link show dev ipipou0").replace(",UP", " UP"))
    assert "mtu 1300" in end.host.run("ip link show ipipou0")
    assert near.process.stop() == far.process.stop() == 0
    assert [host.snapshot() for host in hosts] == before


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_new_address_is_followed_at_once(lab, side):
    """It is followed because the kernel tells of it, and not when the host is read by the way."""
    lan = ipipou.Lan(lab).connect(*TUN)
    end = lan.near if side == "server" else lan.far
    old, network = {"server": SERVER, "client": CLIENT}[side], "203.0.113.{}/24"
    addresses = [f"{old}/24", *map(network.format, range(10, 13))]

    def move():
        gone = addresses.pop(0)
        end.host.batch(f"addr del {gone} dev eth0", f"addr add {addresses[0]} dev eth0")

    end.await_told(move, "our outer address is now ")


def test_uplink_goes_and_returns(lab):
    """The interface of -b @eth0 is deleted, and made again."""
    lan = ipipou.Lan(lab).connect(*TUN)
    for end, host in ((lan.near, lan.server), (lan.far, lan.client)):
        host.run("ip link del eth0")
        end.await_log("waiting for one")
        lan.plug(host)
        await_answer(lan.client, INNER_SERVER)
    reach_each_other(lan.server, lan.client)
    assert lan.near.process.stop() == lan.far.process.stop() == 0


def test_killed_and_started_again(hosts):
    """Nothing is left of the killed, and with --keepalive all goes on by itself."""
    server, client = hosts
    keys = ipipou.Keys(server)
    before = [host.snapshot() for host in hosts]
    near = ipipou.server(server, *TUN, keys=keys)
    far = ipipou.client(client, *TUN, "--keepalive", "1", keys=keys)
    near.await_log("tunnel up")
    reach_each_other(server, client)
    for end in (far, near, far):
        assert end.process.stop(signal.SIGKILL) == -signal.SIGKILL
        # A TUN interface is its process'; the kernel may take a moment.
        await_(lambda: end.host.snapshot() in before, what="clean host")  # noqa: B023
        end.start()
        await_answer(client, INNER_SERVER)
    reach_each_other(server, client)
    assert far.process.stop(signal.SIGINT) == near.process.stop() == 0
    assert [host.snapshot() for host in hosts] == before


def test_a_stop_under_load_is_clean(hosts):
    """SIGTERM under load: at once, and clean."""
    server, client = hosts
    before = [host.snapshot() for host in hosts]
    near = ipipou.server(server, *TUN, "--auth-token", "hello")
    far = ipipou.client(client, *TUN, "--auth-token", "hello")
    near.await_log("tunnel up")
    for host, to in ((client, INNER_SERVER), (server, INNER_CLIENT)):
        host.spawn(["ping", "-q", "-f", "-s", "1400", to])
    await_(lambda: near.show()["tunnels"][0]["rx_packets"] > 1000, 10, "load")
    assert near.process.stop() == far.process.stop() == 0
    assert [host.snapshot() for host in hosts] == before
