"""The kernel's datapath and names with several addresses, and hosts without IPv4."""

import contextlib
import pathlib
import shutil
import subprocess

import pytest

import ipipou
from ipipou import SERVER, await_

NAME = "server.test:10000"
# Nobody has them; a resolver puts the first before SERVER, and the other behind it.
FIRST, LAST = "203.0.113.3", "203.0.113.200"
SERVER6 = "2001:db8::1"
INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"


@contextlib.contextmanager
def name_of(host, *addresses):
    """What the host's programs find the name `server.test` to be (ip-netns(8))."""
    pathlib.Path("/etc/hosts").touch()
    directory = pathlib.Path("/etc/netns", host.netns)
    directory.mkdir(parents=True)
    (directory / "hosts").write_text("".join(f"{a} server.test\n" for a in addresses))
    try:
        yield
    finally:
        shutil.rmtree(directory)


def connect(hosts, *options):
    keys = ipipou.Keys(hosts[0])
    near = ipipou.server(hosts[0], *options, keys=keys)
    return near, ipipou.client(hosts[1], "--keepalive", 2, keys=keys, remote=NAME)


def test_the_next_address_is_tried_when_one_of_the_server_is_dead(lab):
    """The next one is tried while packets go out and none come back."""
    hosts = ipipou.neighbours(lab)
    with name_of(hosts[1], FIRST, SERVER):
        near, far = connect(hosts)
        far.await_log(f"sent 73 bytes to {FIRST}")
        assert far.show()["datapath"] == "kernel"
        ping = hosts[1].ping_background(INNER_SERVER)
        far.await_log(f"nothing has come back from {FIRST} for .*: trying {SERVER}, another", 90)
        ping.await_answers(timeout=60)
        near.await_log("tunnel up")
        assert far.tunnel()["remote"] == SERVER
        # For a moment programs of the client are still told of the first address's errors, beside the
        # answers that come (`err_count` in ip_tunnel_xmit), and `ping -c` counts those.
        assert hosts[0].ping(INNER_CLIENT, count=2).received == 2


def test_replies_keep_a_server_that_answers_nothing_inside(lab):
    """Pings into the tunnel are dropped by the server's firewall. The client's kernel counts the
    replies to authentication packets before it sees that they are none of the tunnel's."""
    hosts = ipipou.neighbours(lab)
    drop = "chain c { type filter hook input priority 0; ip protocol icmp drop; }"
    hosts[0].nft(f"table ip f {{\n{drop}\n}}")
    with name_of(hosts[1], SERVER, LAST):
        near, far = connect(hosts, "--reply-on-auth-ok")
        near.await_log("tunnel up", 60)
        ping = hosts[1].ping_background(INNER_SERVER)
        before = near.show()["accepted"]
        await_(lambda: near.show()["accepted"] >= before + 13, what="keepalives", timeout=120)
        assert f"trying {LAST}" not in far.process.output()
        assert ping.running() and ping.answers() == 0


@pytest.mark.parametrize("datapath", ["auto", "kernel"])
def test_a_server_on_a_host_without_ipv4(lab, datapath):
    """It takes the userspace datapath, or says why it waits."""
    subprocess.run(["modprobe", "tun"], check=True)
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER6}/64", client, "eth0", "2001:db8::2/64")
    near = ipipou.server(server, "--datapath", datapath, keys=ipipou.Keys(server))
    if datapath == "auto":
        near.await_log(r"userspace datapath \(tun\): eth0 is reached over IPv6 only")
        assert near.show()["tunnels"][0]["local"] == f"[{SERVER6}]:10000"
    else:
        near.await_log(
            "eth0 has IPv6 addresses only, and the kernel's datapath goes over IPv4 only"
        )
        server.run(f"ip addr add {SERVER}/24 dev eth0")
        near.await_log(f"add FOU listener {SERVER}:10000")
    assert near.process.stop() == 0
