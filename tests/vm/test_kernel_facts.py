"""Facts about the kernel that the design stands on, without ipipou."""

import pytest

pytestmark = pytest.mark.each_kernel

SERVER, CLIENT, ALTERNATE, PORT = "203.0.113.1", "203.0.113.2", "172.29.0.1", 10000

# No packet comes to a chain that nothing hooks or jumps to. Its statement counts all the same:
# adding it switches on nf_defrag_ipv4, and nothing else, in the namespace.
DEFRAGMENTING = "chain never { ip protocol udp tproxy to :1; }"
TRACKING = "chain tracking { type filter hook prerouting priority 0; ct state invalid counter; }"


@pytest.mark.parametrize(
    "chain, fragments_seen, arrives, tracked",
    [("", 3, False, 0), (DEFRAGMENTING, 0, True, 0), (TRACKING, 0, True, 1)],
    ids=["nothing", "tproxy", "conntrack"],
)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["in-order", "last-first"])
def test_raw_chain_sees_whole_datagrams(lab, chain, fragments_seen, arrives, tracked, order):
    """An unreachable tproxy statement reassembles before priority raw, without conntrack.

    Without it the rewriting takes the first fragment away from the others; and conntrack, as
    the last case shows, would be noticed."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", client, "eth0", f"{CLIENT}/24")
    server.run(f"ip addr add {ALTERNATE}/32 dev lo")
    rules = f"""
        table ip guard {{
            counter datagrams {{ }}
            counter fragments {{ }}
            {chain}
            chain prerouting {{
                type filter hook prerouting priority raw;
                ip frag-off & 0x3fff != 0 counter name fragments
                udp dport {PORT} counter name datagrams notrack ip daddr set {ALTERNATE}
            }}
        }}
    """
    server.nft(rules)
    payload = bytes(range(200))
    rewritten = server.udp_socket(ALTERNATE, PORT, timeout=5)
    other = server.udp_socket(SERVER, 4000)
    client.send_fragments(CLIENT, 1234, SERVER, PORT, payload, count=3, order=order)
    client.send_udp(CLIENT, 1234, SERVER, 4000, b"end")
    assert other.recv(10) == b"end"  # so whatever came before has been dealt with
    if arrives:
        assert rewritten.recv(1000) == payload
    else:
        rewritten.setblocking(False)
        with pytest.raises(BlockingIOError):
            rewritten.recv(1000)
    assert server.counter("guard", "datagrams") == 1
    assert server.counter("guard", "fragments") == fragments_seen
    assert server.tracked() == tracked
    hooks = server.hooks()
    if hooks is not None:
        assert any("conntrack_defrag" in hook for hook in hooks) == arrives
        assert any("conntrack_in" in hook for hook in hooks) == bool(tracked)
