"""The fast path on top of the userspace datapath: who takes it, what is left to the datapath, and what
stays of it."""

import json
import signal
import socket
import struct
import time

import pytest

import ipipou
import offloads
from ipipou import CLIENT, SERVER, reach_each_other
from lab import await_
from traffic import transfer_both_ways

pytestmark = pytest.mark.fast_path

TUN = ["--datapath", "tun"]
AUTO = [*TUN, "--fast-path", "auto"]
FAST = "fast path: by eth0"
BOTH = ["ingress", "egress"]
# Where the uplink has no link header.
BARE = ["ingress_bare", "egress"]
# linux/rtnetlink.h, linux/if.h.
RTMGRP_LINK, RTMGRP_TC, RTM_NEWLINK, RTM_NEWQDISC, IFF_UP = 1, 8, 16, 36, 1


@pytest.fixture
def lan(lab):
    made = ipipou.Lan(lab)
    for host in lab.hosts:
        host.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    return made


def filters(host, uplink="eth0"):
    """The names of the programs at the uplink's ingress and the tunnel's egress."""
    commands = [f"tc filter show dev {uplink} ingress", "tc filter show dev ipipou0 egress"]
    words = " ".join(host.run(command, check=False).stdout for command in commands).split()
    # After the hook that was asked for, the kernel tells names of programs.
    return [word for word in words if word in {*BOTH, *BARE}]


def carried(host):
    """Packets that passed the tunnel's interface itself: those that the datapath carried."""
    counted = host.statistics("ipipou0")
    return counted["rx"]["packets"] + counted["tx"]["packets"]


def await_fast(*ends):
    for end in ends:
        end.await_log(FAST)
        await_(lambda: filters(end.host) == BOTH, what=f"filters of {end.host.name}")


def test_packets_pass_the_datapath_and_look_the_same(lan):
    lan.connect(*TUN)
    await_fast(lan.near, lan.far)
    assert filters(lan.server) == BOTH
    on_wire = lan.server.capture("eth0", "udp")
    inside = lan.server.capture("ipipou0", "ip")
    before = carried(lan.server), carried(lan.client)
    reach_each_other(lan.server, lan.client)
    assert (carried(lan.server), carried(lan.client)) == before

    packets = on_wire.await_packets(8)
    assert {(p.src, p.sport, p.dst, p.dport) for p in packets} == {
        (SERVER, 10000, CLIENT, 10000),
        (CLIENT, 10000, SERVER, 10000),
    }
    for packet in packets:
        assert packet.ttl == 64 and packet.frag == 0x4000
        assert packet.payload[0] == 0x45 and len(packet.payload) == 84
    # What comes in is seen there; what goes out has left before.
    assert {p.src for p in inside.await_packets(4)} == {"172.28.0.1"}
    (tunnel,) = lan.near.show()["tunnels"]
    assert tunnel["rx_packets"] >= 4 and tunnel["tx_packets"] >= 4, tunnel
    assert lan.near.show()["fast_path"] == {"uplinks": ["eth0"], "remotes": 1, "why_not": None}


def test_interfaces_are_prepared_before_packets_wait_there(lan):
    """The kernel stops an interface that gets a queueing discipline, and what waits there is lost."""
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    await_(lambda: filters(lan.server) == ["ingress"], what="a filter at the uplink")
    with lan.server.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as told:
        told.bind((0, RTMGRP_LINK | RTMGRP_TC))
        lan.far = ipipou.client(lan.client, *TUN, keys=keys)
        await_fast(near)
        told.settimeout(0)
        events = []
        while not any(event == "up" for event in events):
            message = told.recv(65536)
            kind, index, flags = struct.unpack_from("=4xH14xiI", message)
            if kind == RTM_NEWLINK and b"ipipou0\0" in message and flags & IFF_UP:
                events.append("up")
            if kind == RTM_NEWQDISC and b"clsact\0" in message:
                events.append(index)
    (index,) = events[:-1]
    assert lan.server.run("cat /sys/class/net/ipipou0/ifindex").strip() == str(index)


def test_nothing_stays_of_it_at_the_end(lan):
    lan.connect(*TUN)
    await_fast(lan.near, lan.far)
    lan.near.process.stop()
    assert filters(lan.server) == []
    lan.far.process.stop()
    assert filters(lan.client) == []


@pytest.mark.parametrize("without", ["near", "far"])
def test_an_end_without_it_is_reached_all_the_same(lan, without):
    keys = ipipou.Keys(lan.server)
    off = ["--fast-path", "off"]
    near = ipipou.server(lan.server, *TUN, *(off if without == "near" else []), keys=keys)
    far = ipipou.client(lan.client, *TUN, *(off if without == "far" else []), keys=keys)
    near.await_log("tunnel up")
    slow, fast = (near, far) if without == "near" else (far, near)
    await_fast(fast)
    assert "fast path" not in slow.process.output()
    assert slow.show()["fast_path"]["why_not"] == "--fast-path off"
    reach_each_other(lan.server, lan.client)


def test_a_filter_that_is_removed_comes_back(lan):
    lan.connect(*TUN)
    await_fast(lan.near, lan.far)
    ping = lan.client.ping_background("172.28.0.0")
    ping.await_answers()
    lan.server.run("tc filter del dev eth0 ingress")
    ping.await_answers()
    lan.near.await_log("repairing: install the fast path")
    ping.await_answers()
    assert filters(lan.server) == BOTH
    ping.stop_complete()


def test_a_killed_process_leaves_what_the_next_one_replaces(lan):
    lan.connect(*TUN)
    await_fast(lan.near, lan.far)
    lan.near.process.send_signal(signal.SIGKILL)
    lan.near.process.wait()
    assert filters(lan.server)[0] == "ingress"
    lan.near = ipipou.server(lan.server, *TUN, keys=lan.keys)
    lan.far.reauthenticate()
    lan.near.await_log("tunnel up")
    await_fast(lan.near)
    assert filters(lan.server) == BOTH
    reach_each_other(lan.server, lan.client)
    lan.near.process.stop()
    assert filters(lan.server) == []


def test_a_killed_process_leaves_nothing_for_one_that_has_no_fast_path(lan):
    lan.connect(*TUN)
    await_fast(lan.near, lan.far)
    lan.near.process.send_signal(signal.SIGKILL)
    lan.near.process.wait()
    lan.near = ipipou.server(lan.server, *TUN, "--fast-path", "off", keys=lan.keys)
    assert filters(lan.server) == []


def test_a_peer_whose_authentication_runs_out_is_off_it_at_once(lan):
    lan.connect(*TUN, "--auth-lifetime", "4")
    await_fast(lan.near, lan.far)
    lan.near.await_log("has run out", timeout=10)
    assert lan.client.ping("172.28.0.0", count=1, timeout=1).received == 0
    lan.near.await_log(f"take {CLIENT}:10000 off the fast path")
    lan.far.reauthenticate()
    lan.near.await_log("authenticated again")
    reach_each_other(lan.server, lan.client)


def test_an_uplink_that_segments_has_it_for_what_comes_without_checksums(lan):
    """That is what the kernel does not merge for a socket; with the rest the process is faster."""
    offloads.segmented_on_the_way(lan.client, "eth0")
    lan.connect(*AUTO)
    lan.far.await_log("fast path: by eth0, only what comes without UDP checksums")
    await_fast(lan.near)
    await_(lambda: filters(lan.client) == ["ingress"], what="one filter of the client")
    shown = lan.far.show()["fast_path"]
    assert shown["uplinks"] == ["eth0"] and "one by one" in shown["why_not"]

    def by_process(change):
        """The packets meanwhile that the client's process took out of UDP, and those that it put in."""
        before = lan.client.statistics("ipipou0")
        change()
        after = lan.client.statistics("ipipou0")
        return [after[way]["packets"] - before[way]["packets"] for way in ("rx", "tx")]

    ping = lambda: reach_each_other(lan.server, lan.client)  # noqa: E731
    assert by_process(ping) == [0, 4]
    # Packets of a process have checksums.
    lan.near.process.stop()
    lan.near = ipipou.server(lan.server, *TUN, "--fast-path", "off", keys=lan.keys)
    lan.far.reauthenticate()
    lan.near.await_log("tunnel up")
    assert by_process(ping) == [4, 4]


def test_ipsec_policies_are_not_passed_by(lan):
    """The programs are before the policies of what comes in, and behind those of what goes out."""
    lan.connect(*TUN)
    await_fast(lan.near, lan.far)
    ping = lan.client.ping_background("172.28.0.0")
    ping.await_answers()
    lan.server.run(
        f"ip xfrm policy add dir in src {CLIENT} dst {SERVER} proto udp action block",
    )
    lan.near.await_log("no fast path: this host has IPsec policies")
    await_(lambda: filters(lan.server) == [], what="no filters")
    assert lan.client.ping("172.28.0.0", count=2, timeout=1).received == 0
    lan.server.run("ip xfrm policy flush")
    await_fast(lan.near)
    ping.await_answers()
    lan.server.run("ip xfrm policy setdefault in block")
    await_(lambda: filters(lan.server) == [], what="no filters")
    assert lan.client.ping("172.28.0.0", count=2, timeout=1).received == 0


def test_a_shaper_at_the_tunnel_holds(lan):
    """The program at its egress comes before the shaper."""
    lan.connect(*TUN)
    await_fast(lan.near, lan.far)
    lan.server.run("tc qdisc replace dev ipipou0 root tbf rate 1mbit burst 16kb latency 50ms")
    lan.near.await_log(r"no fast path: packets are shaped at ipipou0 \(qdisc tbf\)")
    await_(lambda: filters(lan.server) == [], what="no filters")
    lan.client.spawn(["iperf3", "-s", "-1", "--forceflush"]).await_output("listening")
    done = json.loads(lan.server.run("iperf3 -c 172.28.0.1 -t 2 -J"))
    assert done["end"]["sum_received"]["bits_per_second"] < 1.5e6
    lan.server.run("tc qdisc del dev ipipou0 root")
    await_fast(lan.near)
    before = carried(lan.server)
    reach_each_other(lan.server, lan.client)
    assert carried(lan.server) == before


STATEFUL = """table ip firewall {
    chain input {
        type filter hook input priority 0
        iifname eth0 ct state established,related accept
        iifname eth0 udp dport 10000 drop
    }
}"""


def test_a_stateful_firewall_at_a_client_that_seldom_says_hello(lan):
    """Data on the fast path does not keep its connection known, and not all packets take it."""
    lan.connect(*TUN)
    await_fast(lan.near, lan.far)
    lan.client.sysctl("net.netfilter.nf_conntrack_udp_timeout", 2)
    lan.client.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", 2)
    lan.client.nft(STATEFUL)
    # Some kernels only tell how many connections they know.
    assert lan.client.ping(SERVER, count=1).received == 1
    lan.far.await_log("no fast path: connections are tracked here")
    await_(lambda: filters(lan.client) == [], what="no filters")
    ping = lan.client.ping_background("172.28.0.0", 0.2)
    ping.await_answers()
    time.sleep(4)
    assert lan.server.ping("172.28.0.1", "-R").received == 3  # with an option, by the datapath


def test_a_stateful_firewall_at_a_client_that_often_says_hello(lan):
    lan.client.nft(STATEFUL)
    lan.connect(*TUN, "--keepalive", "27")
    await_fast(lan.near, lan.far)
    before = carried(lan.client)
    reach_each_other(lan.server, lan.client)
    assert carried(lan.client) == before


def test_without_its_capability_there_is_one_line_and_a_tunnel(lan):
    keys = ipipou.Keys(lan.server)
    drop = ["capsh", "--drop=cap_bpf,cap_sys_admin", "--", "-c", 'exec "$0" "$@"']
    near = ipipou.server(lan.server, *AUTO, keys=keys, prefix=drop)
    ipipou.client(lan.client, *TUN, keys=keys)
    near.await_log("no fast path: cannot make a map: Operation not permitted")
    near.await_log("tunnel up")
    reach_each_other(lan.server, lan.client)


def test_a_path_that_is_narrower_becomes_known(lab):
    """What a router has to drop is lost once; then it goes by the process, which says how long packets
    may be, or fragments them."""
    server, router, client = lab.host("server"), lab.host("router"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", router, "eth0", "203.0.113.254/24")
    lab.link(client, "eth0", "192.0.2.2/24", router, "eth1", "192.0.2.1/24")
    router.sysctl("net.ipv4.ip_forward", 1)
    router.run("ip link set eth1 mtu 1400")
    server.run("ip route add default via 203.0.113.254")
    client.run("ip route add default via 192.0.2.1")
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, keys=keys)
    far = ipipou.client(client, *TUN, keys=keys)
    near.await_log("tunnel up")
    await_fast(near, far)

    def told():
        done = server.run("ping -n -c 1 -W 1 -M do -s 1400 172.28.0.1", check=False)
        return "mtu = 1372" in done.stdout + done.stderr

    assert not told(), "the one that is lost"
    assert told(), "the process has its packets a second later"
    assert server.ping("172.28.0.1", size=1344).received == 3
    before = carried(server)
    assert server.ping("172.28.0.1", size=1000).received == 3
    assert carried(server) == before, "what fits takes the fast path"


def test_an_uplink_that_comes_back_gets_it_again(lan):
    """It has another index then, and the tunnel stays."""
    lan.connect(*TUN)
    await_fast(lan.near, lan.far)
    lan.client.run("ip link del eth0")
    lan.far.await_log("has no address for this tunnel: waiting for one")
    lan.plug(lan.client)
    await_(lambda: filters(lan.client) == BOTH, what="filters")
    await_(lambda: lan.client.ping("172.28.0.0", count=1, timeout=1).received, what="an answer")
    before = carried(lan.client)
    reach_each_other(lan.server, lan.client)
    assert carried(lan.client) == before


def test_an_uplink_that_is_a_bridge(lab):
    hosts = lab.host("server"), lab.host("client")
    lab.link(hosts[0], "eth0", "10.0.0.1/24", hosts[1], "eth0", "10.0.0.2/24")
    for host, address in zip(hosts, (SERVER, CLIENT)):
        host.batch(
            "link add br0 type bridge",
            "link set eth0 master br0",
            f"addr add {address}/24 dev br0",
            "link set br0 up",
        )
    await_(lambda: hosts[1].ping(SERVER, count=1, timeout=1).received, what="an answer")
    keys = ipipou.Keys(hosts[0])
    near = ipipou.server(hosts[0], *TUN, device="br0", keys=keys)
    far = ipipou.client(hosts[1], *TUN, device="br0", keys=keys)
    near.await_log("tunnel up")
    for end in (near, far):
        end.await_log("fast path: by br0")
        await_(lambda: filters(end.host, "br0") == BOTH, what=f"filters of {end.host.name}")
    before = [carried(host) for host in hosts]
    reach_each_other(*hosts)
    assert [carried(host) for host in hosts] == before
    transfer_both_ways(hosts, 20)
