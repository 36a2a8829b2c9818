"""A tunnel between two hosts on one network."""

import pytest

import ipipou
from ipipou import CLIENT, SERVER


@pytest.fixture
def hosts(lab):
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", client, "eth0", f"{CLIENT}/24")
    return server, client


def test_direct_tunnel(hosts):
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    far = ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    print(server.run("nft list ruleset"))
    print(near.show())
    assert client.ping("172.28.0.0").lost == 0
    assert server.ping("172.28.0.1").lost == 0
    assert server.tracked() == client.tracked() == 0
    assert far.process.running()
