"""Which inner sources a remote may use, and what the host's own addresses do to a tunnel."""

import pytest

import ipipou
from ipipou import CLIENT, SERVER

TUN = ["--datapath", "tun"]
INNER_SERVER, INNER_CLIENT, UNROUTED = "172.28.0.0", "172.28.0.1", "10.99.0.7"


@pytest.mark.parametrize("check", ["strict", "loose", "off"])
def test_the_reverse_path_filter_judges_unrouted_ipv4_sources(lab, check):
    """Strict, the default: an inner packet comes from where it is routed to. The answer to the one
    that is taken is sent after it, if it is taken as well."""
    lan = ipipou.Lan(lab)
    lan.connect(*TUN, "--rp-filter", check)
    lan.server.run(f"ip route add 10.98.0.0/16 via {ipipou.STRANGER}")
    socket = lan.server.udp_socket(INNER_SERVER, 7, timeout=20)
    sources = [UNROUTED, "10.98.0.7", INNER_CLIENT]
    for source in sources:  # in order: the last shows that the others had their time
        lan.client.send_udp(source, 7, INNER_SERVER, 7, source.encode())
    taken = {"strict": sources[2:], "loose": sources[1:], "off": sources}[check]
    assert [socket.recv(100).decode() for _ in taken] == taken
    socket.close()


def test_an_unrouted_ipv4_source_from_outside_is_dropped(lab):
    """The same from the remote's address and port, without our own end."""
    lan = ipipou.Lan(lab)
    lan.connect(*TUN)
    socket = lan.server.udp_socket(INNER_SERVER, 7, timeout=20)
    seen = lan.server.capture("ipipou0", f"host {UNROUTED}")
    for source in (UNROUTED, INNER_CLIENT):
        lan.client.send_fou(CLIENT, 10000, SERVER, 10000, source, INNER_SERVER)
    assert seen.await_packets(1)[0].src == UNROUTED  # the kernel's filter is behind this
    lan.client.send_udp(INNER_CLIENT, 7, INNER_SERVER, 7, b"last")
    assert socket.recv(100) == b"last"
    assert [packet.src for packet in seen.stop()] == [UNROUTED], "it was answered"
    socket.close()


def test_a_host_network_with_the_peers_inner_address_is_reported(lab):
    """Docker's bridge for 172.28.0.0/16: said at the start, and when it comes later."""
    lan = ipipou.Lan(lab)
    lan.connect(*TUN)
    ipipou.reach_each_other(lan.server, lan.client)
    message = rf"{INNER_CLIENT}, an address at the other end of the tunnel, is one of br1 as well"
    lan.server.batch("link add br1 type bridge", f"addr add {INNER_CLIENT}/16 dev br1")
    lan.near.await_log(message)
    assert lan.near.process.stop() == 0
    lan.near.start()
    lan.near.await_log(message)
    lan.server.run("ip link del br1")
    lan.far.reauthenticate()
    lan.near.await_log("tunnel up")
    ipipou.reach_each_other(lan.server, lan.client)
    # A rule of somebody's takes the packets elsewhere.
    lan.server.batch(
        f"route add {INNER_CLIENT} via {ipipou.STRANGER} table 77",
        f"rule add to {INNER_CLIENT} lookup 77",
    )
    lan.near.await_log(rf"the routes of this host lead to eth0 with packets for {INNER_CLIENT}")
    for _ in range(3):
        lan.near.show()  # the host is read for every answer
    assert lan.near.process.output().count("lead to eth0") == 1
