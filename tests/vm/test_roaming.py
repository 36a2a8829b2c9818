"""Ends that change their address while the tunnel stays."""

import pathlib

import pytest

import ipipou
from ipipou import CLIENT, SERVER, await_, reach_each_other

pytestmark = [pytest.mark.each_kernel, pytest.mark.both_lanes]

MOVED, OTHER = "203.0.113.9", "203.0.113.3"
INNER_SERVER = "172.28.0.0"


@pytest.fixture
def uplinks(lab):
    """A server and a client, and a router between them that the client has two ways to."""
    server, core, client = lab.host("server"), lab.host("core"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", core, "eth0", "203.0.113.254/24")
    lab.link(client, "eth0", "198.51.100.2/24", core, "eth1", "198.51.100.1/24")
    lab.link(client, "eth1", "192.0.2.2/24", core, "eth2", "192.0.2.1/24")
    core.sysctl("net.ipv4.ip_forward", 1)
    server.run("ip route add default via 203.0.113.254")
    client.batch(
        "route add default via 198.51.100.1 metric 100",
        "route add default via 192.0.2.1 metric 200",
    )
    return server, client


def test_client_follows_its_route(uplinks):
    """-b @auto: one uplink goes down, comes back, and a route is replaced."""
    server, client = uplinks
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    # Before Linux 6.9, `auto` takes userspace for it.
    ipipou.client(client, "--datapath", "kernel", keys=keys, device="auto")
    near.await_log("tunnel up")
    assert list(near.admitted()) == ["198.51.100.2:10000"]
    ping = client.ping_background(INNER_SERVER)
    ping.goes_on(lambda: client.run("ip link set eth0 down"))
    assert list(near.admitted()) == ["192.0.2.2:10000"]

    back = "link set eth0 up", "route add default via 198.51.100.1 metric 100"
    client.batch(*back)
    near.await_log("moved from 192.0.2.2:10000 to 198.51.100.2:10000")
    # The router may be just about to give up its question who has the address that was gone.
    ping.await_answers()
    reach_each_other(server, client)
    ping.goes_on(lambda: client.run("ip route add 203.0.113.0/24 via 192.0.2.1"))
    # The old way would do as well: answers do not tell that it was left.
    await_(lambda: list(near.admitted()) == ["192.0.2.2:10000"], what="the third move")
    assert near.show()["moved"] == 3
    reach_each_other(server, client)


def test_client_address_is_replaced(hosts):
    """-b @eth0: the tunnel follows the interface's address, also when there is none for a while."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    far = ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    ping = client.ping_background(INNER_SERVER)
    replace = f"addr del {CLIENT}/24 dev eth0", f"addr add {OTHER}/24 dev eth0"
    ping.goes_on(lambda: client.batch(*replace))
    # A fast path sends from the former address until the process has heard that it is gone.
    await_(lambda: list(near.admitted()) == [f"{OTHER}:10000"], what="the first move")
    assert far.tunnel()["local"] == near.tunnel()["remote"] == OTHER

    client.run(f"ip addr del {OTHER}/24 dev eth0")
    far.await_log("eth0 has no address for this tunnel")
    ping.goes_on(lambda: client.run(f"ip addr add {CLIENT}/24 dev eth0"))
    await_(lambda: list(near.admitted()) == [f"{CLIENT}:10000"], what="the second move")
    reach_each_other(server, client)
    assert f"{OTHER}" not in client.run("ip fou show")


def test_a_server_moves_between_direct_and_alternate_address(hosts):
    """Two remotes at one address: one link has an alternate address until it roams, and after it returns."""
    server, client = hosts
    client.run(f"ip addr add {OTHER}/24 dev eth0")
    keys = ipipou.Keys(server)
    near, far = [], []
    for number in (0, 1):
        near.append(ipipou.server(server, keys=keys, number=number))
        far.append(ipipou.client(client, keys=keys, number=number, peer=number))
        near[number].await_log("tunnel up")
    near[1].await_local("172.29.0.1")
    reach_each_other(server, client, 1)

    def move_to(address):
        assert far[1].process.stop() == 0
        options = ["--fou-local-ip", address]
        far[1] = ipipou.client(client, *options, keys=keys, number=1, peer=1)
        near[1].await_log(rf"moved from \S+ to {address}:10001")

    move_to(OTHER)
    near[1].await_local(SERVER)
    reach_each_other(server, client, 1)
    reach_each_other(server, client, 0)
    assert near[1].admitted() == {f"{OTHER}:10001": None}
    assert far[1].tunnel()["local"] == OTHER
    assert "172.29.0.1" not in server.run("ip -4 -br addr") + server.run("ip fou show")

    move_to(CLIENT)
    near[1].await_local("172.29.0.1")
    reach_each_other(server, client, 1)
    reach_each_other(server, client, 0)
    assert near[1].admitted() == {f"{CLIENT}:10001": "172.29.0.1"}
    assert near[0].tunnel()["local"] == SERVER


def test_a_client_follows_the_name_of_its_server(hosts):
    """The server's address is replaced, and the name points to the new one."""
    server, client = hosts
    pathlib.Path("/etc/hosts").touch()  # in this host, the next one is seen in its place
    names = pathlib.Path("/etc/netns", client.netns, "hosts")
    names.parent.mkdir(parents=True)
    names.write_text(f"{SERVER} server.example\n")
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    far = ipipou.client(client, keys=keys, remote="server.example:10000")
    near.await_log("tunnel up")
    reach_each_other(server, client)

    server.batch(f"addr del {SERVER}/24 dev eth0", f"addr add {MOVED}/24 dev eth0")
    near.await_log(f"change ipipou0 to local {MOVED}")  # only then it hears there
    names.write_text(f"{MOVED} server.example\n")
    far.reauthenticate()
    far.await_log(f"the server is at {MOVED}")
    near.await_log("authenticated again")
    reach_each_other(server, client)
    assert far.admitted() == {f"{MOVED}:10000": None}
    assert far.tunnel()["remote"] == near.tunnel()["local"] == MOVED
