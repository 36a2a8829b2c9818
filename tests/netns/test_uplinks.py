"""Which of a host's addresses and uplinks are used (the userspace datapath)."""

import pytest

import ipipou
import uplinks
from ipipou import CLIENT, SERVER, await_, reach_each_other

TUN = ["--datapath", "tun"]
SERVER6, CLIENT6 = "2001:db8::1", "2001:db8::2"


@pytest.fixture
def net(lab):
    return uplinks.Uplinks(lab)


@pytest.mark.parametrize("local", uplinks.LOCAL_ENDS.values(), ids=uplinks.LOCAL_ENDS)
def test_a_client_authenticates_by_the_uplink_of_its_address(net, local):
    net.authenticates_by_the_second(local, *TUN)


@pytest.mark.parametrize("local", uplinks.LOCAL_ENDS.values(), ids=uplinks.LOCAL_ENDS)
def test_a_server_replies_by_the_uplink_of_its_address(net, local):
    net.replies_by_the_second(local, *TUN)


def local(end):
    return end.show()["tunnels"][0]["local"].rpartition(":")[0].strip("[]")


@pytest.mark.parametrize("scope", ["link", "host", "global"])
def test_a_new_address_does_not_change_the_outer_address(lab, scope):
    server, client = ipipou.neighbours(lab)
    keys = ipipou.Keys(server)
    near, far = ipipou.server(server, *TUN, keys=keys), ipipou.client(client, *TUN, keys=keys)
    near.await_log("tunnel up")
    for host, end, address in ((server, near, SERVER), (client, far, CLIENT)):
        host.batch(
            f"addr add 192.168.100.2/24 dev eth0 scope {scope}", "addr add 169.254.9.9/16 dev eth0"
        )
        assert local(end) == address  # the host is read for every answer
    reach_each_other(server, client)
    # Both may choose only now, and choose the same.
    for end, address in ((near, SERVER), (far, CLIENT)):
        assert end.process.stop() == 0
        end.start()
        await_(lambda: local(end) in (address, "192.168.100.2"), what="a choice")  # noqa: B023
        assert scope == "global" or local(end) == address


def test_a_client_takes_the_address_of_its_route(lab):
    server, client = ipipou.neighbours(lab)
    client.batch(f"addr del {CLIENT}/24 dev eth0", "addr add 192.168.100.2/24 dev eth0")
    client.run(f"ip addr add {CLIENT}/24 dev eth0")
    keys = ipipou.Keys(server)
    near, far = ipipou.server(server, *TUN, keys=keys), ipipou.client(client, *TUN, keys=keys)
    near.await_log("tunnel up")
    assert local(far) == CLIENT
    reach_each_other(server, client)


def test_the_preferred_ipv6_address_is_used(lab):
    """One that is still looked for in others is waited for; temporary and deprecated ones are not
    chosen; what is in use stays."""
    server, client = ipipou.neighbours(lab)
    server.sysctl("net.ipv6.conf.eth0.accept_dad", 1)
    server.sysctl("net.ipv6.conf.eth0.dad_transmits", 30)
    server.run(f"ip addr add {SERVER6}/64 dev eth0")
    client.batch(
        "addr add 2001:db8::99/64 dev eth0 preferred_lft 0", f"addr add {CLIENT6}/64 dev eth0"
    )
    keys = ipipou.Keys(server)
    proof = ["--auth-remote-pubkey-b64", keys.public, "--auth-secret", ipipou.SECRET]
    near = ipipou.Tunnel(server, "-s", "-b", f"[{SERVER6}]", *proof, ready=False)
    near.await_log(f"{SERVER6} is gone: waiting for it")
    server.batch(f"addr del {SERVER6}/64 dev eth0", f"addr add {SERVER6}/64 dev eth0 nodad")
    near.await_log(rf"open UDP socket \[{SERVER6}\]")
    far = ipipou.client(client, *TUN, remote=f"[{SERVER6}]:10000", keys=keys)
    near.await_log("tunnel up")
    assert (local(near), local(far)) == (SERVER6, CLIENT6)
    client.run("ip addr add 2001:db8::3/64 dev eth0")
    server.run("ip addr add 2001:db8::4/64 dev eth0")
    assert (local(near), local(far)) == (SERVER6, CLIENT6)
    reach_each_other(server, client)
