"""Authentication packets go the way that data goes (the kernel's datapath)."""

import subprocess

import pytest

import holders
import uplinks
from ipipou import reach_each_other

pytestmark = pytest.mark.each_kernel

# Before Linux 6.9, `auto` takes it only for an end that is bound to an interface.
KERNEL = ["--datapath", "kernel"]


@pytest.fixture
def net(lab):
    return uplinks.Uplinks(lab)


@pytest.mark.parametrize("local", uplinks.LOCAL_ENDS.values(), ids=uplinks.LOCAL_ENDS)
def test_a_client_authenticates_by_the_uplink_of_its_address(net, local):
    net.authenticates_by_the_second(local, *KERNEL)


@pytest.mark.parametrize("local", uplinks.LOCAL_ENDS.values(), ids=uplinks.LOCAL_ENDS)
def test_a_server_replies_by_the_uplink_of_its_address(net, local):
    net.replies_by_the_second(local, *KERNEL)


def test_a_new_address_does_not_change_the_outer_address(net):
    near = net.server()
    net.client("-b", uplinks.SECOND, *KERNEL)
    near.await_log("tunnel up")
    # The kernel lists an address of link scope before the one in use.
    net.far.run("ip addr add 192.168.100.2/24 dev eth0 scope link")
    assert net.far.run("ip -4 -o addr show dev eth0").index("192.168.100.2") < 60
    reach_each_other(net.far, net.host)
    assert near.show()["tunnels"][0]["local"] == f"{uplinks.SERVER}:10000"


@pytest.mark.parametrize("options", [(), ("--datapath", "tun")], ids=["kernel", "tun"])
def test_an_uplink_in_a_vrf(net, options):
    """With -b @DEV; the routes of a VRF are a table of its own."""
    subprocess.run(["modprobe", "-a", "tun", "vrf"], check=True)
    net.host.batch(
        "rule del lookup 200",
        "link add red type vrf table 300",
        "link set red up",
        "link set eth1 master red",
        "route add default via 192.0.2.1 table 300",
    )
    net.authenticates_by_the_second(uplinks.LOCAL_ENDS["device"], *options)


def test_an_alternate_address_is_refused_in_a_vrf(net):
    """It is an address of the loopback interface, which is outside of the VRF."""
    subprocess.run(["modprobe", "vrf"], check=True)
    net.host.batch("link add red type vrf table 300", "link set red up", "link set eth1 master red")
    net.host.run("ip route add default via 192.0.2.1 table 300")
    argv = ["ipipou", "-b", "@eth1", "-r", f"{uplinks.SERVER}:10000", "--tunl-ip", "172.28.0.1"]
    argv += ["--auth-key-b64", net.keys.private, "--auth-secret", "x"]
    for option in ("--runtime-dir", "--memory-dir"):
        argv += [option, net.host.lab.directory / option]
    always = [*argv, "--force-fou-local-ip-alt"]
    holders.refused(net.host, always, 51, "--force-fou-local-ip-alt: eth1 is in a VRF")
    net.host.run(
        f"ip link add other0 type ipip local {uplinks.SECOND} remote {uplinks.SERVER} dev eth1"
    )
    before = net.host.snapshot()
    done = net.host.run(argv, check=False)
    assert "eth1 is in a VRF, where the alternate address 172.29.0.0 does not work" in done.stderr
    assert "cannot add FOU listener 172.29.0.0:10000" in done.stderr
    assert net.host.snapshot() == before
