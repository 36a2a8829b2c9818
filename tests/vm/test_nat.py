"""Clients behind a masquerading router."""

import pytest

import ipipou
from ipipou import SERVER, await_, reach_each_other
from masquerade import DIRECT, NEW_PORTS, OUTSIDE, Internet

pytestmark = [pytest.mark.each_kernel, pytest.mark.both_lanes]


@pytest.fixture
def internet(lab):
    return Internet(lab)


def remote(tunnel):
    """Where a server's tunnel goes: (address, port), as `ip` shows it."""
    found = tunnel.tunnel()
    return found["remote"], found["encap"]["dport"]


def await_new_port(tunnel):
    await_(lambda: remote(tunnel)[1] in NEW_PORTS, what="new port")


def test_three_clients_two_behind_one_address(internet):
    clients = [internet.inside(7), internet.inside(8), internet.direct]
    keys = [ipipou.Keys(internet.server) for _ in clients]
    ends = []
    for number, client in enumerate(clients):
        ends.append(ipipou.server(internet.server, keys=keys[number], number=number))
        ipipou.client(client, keys=keys[number], peer=number)
        ends[number].await_log("tunnel up")
    ends[1].await_local("172.29.0.1")
    assert [end.tunnel()["local"] for end in ends] == [SERVER, "172.29.0.1", SERVER]
    for number, client in enumerate(clients):
        reach_each_other(internet.server, client, number)

    (first, port0), (second, port1), (third, port2) = map(remote, ends)
    assert (first, second, third) == (OUTSIDE, OUTSIDE, DIRECT)
    assert {port0, port1} <= set(range(20000, 21000)) and port0 != port1 and port2 == 10000
    assert ends[0].admitted() == {f"{OUTSIDE}:{port0}": None}
    assert ends[1].admitted() == {f"{OUTSIDE}:{port1}": "172.29.0.1"}
    assert ends[2].admitted() == {f"{DIRECT}:10000": None}
    assert internet.server.tracked() == 0


def test_a_tunnel_with_an_alternate_address_follows_its_remote(internet):
    """The one behind the router whose link has an alternate address gets a new mapping."""
    keys = ipipou.Keys(internet.server)
    clients = [internet.inside(7), internet.inside(8)]
    near, far = [], []
    for number, client in enumerate(clients):
        near.append(ipipou.server(internet.server, keys=keys, number=number))
        far.append(ipipou.client(client, keys=keys, peer=number))
        near[number].await_log("tunnel up")
    near[1].await_local("172.29.0.1")
    internet.nat.remap(NEW_PORTS[0], NEW_PORTS[-1])
    for number in (1, 0):
        far[number].reauthenticate()
        near[number].await_log("moved from")
        # The second one's link is refused the direct way first, which the other has.
        await_new_port(near[number])
        reach_each_other(internet.server, clients[number], number)
    assert near[1].tunnel()["local"] == "172.29.0.1"


def test_a_killed_server_adopts_a_tunnel_to_a_nat_port(internet):
    """What is found has the port of the NAT, and no packet is lost."""
    client, keys = internet.inside(7), ipipou.Keys(internet.server)
    near = ipipou.server(internet.server, keys=keys)
    far = ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    before = near.admitted()
    assert list(before) == [f"{OUTSIDE}:{remote(near)[1]}"] and remote(near)[1] != 10000
    ping = client.ping_background("172.28.0.0")
    ping.await_answers()
    near.process.kill()
    near.start()
    ping.await_answers()
    assert near.admitted() == before
    ping.stop_complete()
    ipipou.later_second()
    far.reauthenticate()
    near.await_log("authenticated again")
    assert near.show()["moved"] == 0 and near.rejected() == {}


@pytest.mark.parametrize("way", ["signal", "keepalive", "reauth-only"])
def test_mapping_changes(internet, way):
    """Another outside port: traffic is refused until the client authenticates again."""
    client, keys = internet.inside(7), ipipou.Keys(internet.server)
    near = ipipou.server(internet.server, keys=keys)
    far = ipipou.client(client, *(["--keepalive", "1"] if way == "keepalive" else []), keys=keys)
    near.await_log("tunnel up")
    reach_each_other(internet.server, client)

    internet.nat.remap(NEW_PORTS[0], NEW_PORTS[-1])
    if way != "keepalive":
        assert client.ping("172.28.0.0", count=1, timeout=0.3).received == 0
        near.await_dropped(stranger_data=1)
    if way == "signal":
        far.reauthenticate()
    if way == "reauth-only":
        client.run([*far.argv, "--reauth-only"])
    near.await_log("moved from")
    await_new_port(near)
    reach_each_other(internet.server, client)
    assert near.show()["moved"] == 1
    assert list(near.admitted()) == [f"{OUTSIDE}:{remote(near)[1]}"]

    if way == "reauth-only":  # and it does not shut out the process that goes on
        far.reauthenticate()
        near.await_accepted(3)
