"""A peer whose path is narrow, beside another one: what goes to each is as its own path takes it."""

import contextlib
import socket

from hub import Hub, inner, inner6
from lab import no_checksum_offload
from lan import outer
from test_integrity import UDP_SEGMENT
from test_paths import FULL, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT, narrow_to


def test_fragments_for_one_remote_leave_what_goes_to_another_whole(lab):
    """Whether outer packets may be fragmented is a setting of the socket, which several threads send by."""
    hub = Hub(lab, clients=2, ip6=True)
    hub.lan.host.sysctl("net.ipv4.conf.all.send_redirects", 0)
    hub.lan.host.sysctl("net.ipv4.conf.br0.send_redirects", 0)
    hub.lan.host.sysctl("net.ipv4.ip_forward", 1)
    hub.lan.host.run(f"ip route add {outer(2)}/32 dev br0 mtu lock 1280")
    hub.host.run(f"ip route add {outer(2)}/32 via {hub.lan.ADDRESS}")
    no_checksum_offload(hub.host, "eth0")  # what is captured is what a card sends
    hub.connect("--tun-queues", 2, "--fast-path", "off")
    narrow_to(hub.host, inner(2), FULL, 1252)
    fragments = f"src {outer(1)} and dst {outer(2)} and ip[6:2] & 0x3fff != 0"
    fragments = hub.host.capture("eth0", fragments)
    loose = hub.host.capture("eth0", f"src {outer(1)} and dst {outer(3)} and ip[6] & 0x40 = 0")
    with contextlib.ExitStack() as stack:
        # They are spread over the threads.
        flows = [
            (
                stack.enter_context(hub.host.socket(socket.AF_INET6, socket.SOCK_DGRAM)),
                stack.enter_context(hub.host.socket(socket.AF_INET, socket.SOCK_DGRAM)),
            )
            for _ in range(8)
        ]
        for _, many in flows:
            many.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT)
            many.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1300)
        for _ in range(200):
            for narrow, many in flows:
                narrow.sendto(bytes(1280 - 48), (inner6(2), 7000))
                many.sendto(bytes(1300 * 20), (inner(3), 7000))
    fragments.await_packets(1000)
    assert loose.stop() == []
