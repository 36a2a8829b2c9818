"""Facts about the kernel that the design stands on, without ipipou."""

import pytest

pytestmark = pytest.mark.each_kernel

SERVER, CLIENT, ALTERNATE, PORT = "203.0.113.1", "203.0.113.2", "172.29.0.1", 10000


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["in-order", "last-first"])
def test_hook_input_may_give_whole_datagrams_another_local_address(lab, order):
    """The packet is routed and put together by then, and the socket of that address has it. Nothing has to track
    connections for that, or put fragments together earlier."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", client, "eth0", f"{CLIENT}/24")
    server.run(f"ip addr add {ALTERNATE}/32 dev lo")
    rules = f"""
        table ip guard {{
            counter datagrams {{ }}
            chain input {{
                type filter hook input priority mangle
                udp dport {PORT} counter name datagrams ip daddr set {ALTERNATE}
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
    assert rewritten.recv(1000) == payload
    assert server.counter("guard", "datagrams") == 1
    hooks = server.hooks()
    if hooks is not None:
        assert not any("conntrack" in hook for hook in hooks)
