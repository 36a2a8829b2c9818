"""The fast path of a host whose packets leave by the uplink that its routes say: it is bound to none."""

import pytest

import ipipou
import packets
from ipipou import CLIENT, reach_each_other
from lab import await_
from many_ends import Table, inner
from test_fast_path import BOTH, TUN, carried, filters
from traffic import transfer_both_ways

pytestmark = pytest.mark.fast_path

OUTER = "10.9.0.1"
FIRST, SECOND = "198.51.100.1", "192.0.2.1"
NOT_BOUND = ["-b", OUTER, "--fast-path", "on"]


@pytest.fixture
def host(lab):
    """Its address is at no uplink, as where routers are told by a routing protocol."""
    host = lab.host("server")
    host.run(f"ip addr add {OUTER}/32 dev lo")
    return host


def test_it_follows_the_routes_from_one_uplink_to_the_other(lab, host):
    core, peer = lab.host("core"), lab.host("client")
    core.sysctl("net.ipv4.ip_forward", 1)
    lab.link(core, "eth0", "203.0.113.254/24", peer, "eth0", f"{CLIENT}/24")
    lab.link(host, "eth0", "198.51.100.2/24", core, "eth1", f"{FIRST}/24")
    lab.link(host, "eth1", "192.0.2.2/24", core, "eth2", f"{SECOND}/24")
    peer.run("ip route add default via 203.0.113.254")
    host.run(f"ip route add {CLIENT} via {FIRST}")
    core.run(f"ip route add {OUTER} via 198.51.100.2")
    keys = ipipou.Keys(host)
    proof = ["--auth-remote-pubkey-b64", keys.public, "--auth-secret", ipipou.SECRET]
    near = ipipou.Tunnel(host, "-s", *NOT_BOUND, *TUN, *proof)
    far = ipipou.client(peer, *TUN, remote=f"{OUTER}:10000", keys=keys)
    near.await_log("fast path: by eth0")
    await_(lambda: filters(host) == BOTH, what="filters at the first")
    far.await_log("fast path: by eth0")
    before = carried(host)
    reach_each_other(host, peer)
    assert carried(host) == before

    ping = peer.ping_background("172.28.0.0")
    ping.await_answers()
    host.run(f"ip route replace {CLIENT} via {SECOND}")
    core.run(f"ip route replace {OUTER} via 192.0.2.2")
    near.await_log("fast path: by eth1")
    await_(lambda: filters(host, "eth1") == BOTH, what="filters at the second")
    assert "ingress" not in filters(host)
    ping.await_answers(10)
    # That is a second: the route is followed some tenths of a second late.
    assert ping.stop().lost <= 20
    before = carried(host)
    reach_each_other(host, peer)
    assert carried(host) == before
    transfer_both_ways([host, peer], 20)
    near.process.stop()
    assert filters(host, "eth1") == []


def test_peers_by_several_uplinks_are_on_it_together(lab, host, tmp_path):
    first, second = lab.host("first"), lab.host("second")
    lab.link(host, "eth0", "198.51.100.2/24", first, "eth0", f"{FIRST}/24")
    lab.link(host, "eth1", "192.0.2.2/24", second, "eth0", f"{SECOND}/24")
    first.run(f"ip route add {OUTER} via 198.51.100.2")
    second.run(f"ip route add {OUTER} via 192.0.2.2")
    host.sysctl("net.ipv4.conf.all.rp_filter", 1)
    outers = [OUTER, FIRST, SECOND]
    table = Table(tmp_path / "hosts.json", {inner(i): {"host": a} for i, a in enumerate(outers, 1)})
    ends = [
        ipipou.Tunnel(one, *local, *TUN, "--tunl-ip", f"{inner(i)}/24", "--hosts-file", table.path)
        for i, (one, local) in enumerate(
            [(host, NOT_BOUND), (first, ["-b", "@eth0"]), (second, ["-b", "@eth0"])], 1
        )
    ]
    ends[0].await_log("fast path: by eth0, eth1")
    for uplink in ("eth0", "eth1"):
        await_(lambda: filters(host, uplink) == BOTH, what=f"filters of {uplink}")  # noqa: B023
    before = carried(host)
    for one in (first, second):
        assert one.ping(inner(1)).received == 3
    assert host.ping(inner(2)).received == host.ping(inner(3)).received == 3
    assert carried(host) == before

    # The kernel drops a source that comes by the wrong uplink (rp_filter), and so it stays.
    inside = host.capture("ipipou0", "icmp")
    for source, what in ((FIRST, b"by the wrong one"), (SECOND, b"by its own")):
        echo = packets.inner_icmp_echo(inner(outers.index(source) + 1), inner(1), payload=what)
        datagram = packets.udp(source, 10000, OUTER, 10000, echo, with_checksum=False)
        second.send_raw(packets.ipv4(source, OUTER, packets.UDP, datagram))
    assert inside.await_packets(1)[0].payload.endswith(b"by its own")
    assert host.ping(inner(2), count=1).received == 1
