"""Rules that a dead process left, whose link and listener somebody has removed: nobody else would ever remove
them, and they would keep the data of another datapath out."""

import ipipou
from hub import MixedHub, await_state, inner
from lan import await_reached

# Of such a table, what hurts.
GUARD = """
table ip %s {
  chain input { type filter hook input priority -150; udp dport %d goto port; }
  chain port { drop; }
}
"""


def tables(host):
    return set(host.run("nft list tables").split("\n")) - {""}


def test_a_start_at_that_port_removes_them(lab):
    lan = ipipou.Lan(lab)
    lan.server.nft(GUARD % ("ipipou-0", 10000))
    lan.server.nft(GUARD % ("ipipou-1", 10001))  # of another tunnel
    others = {"table ip ipipou-1"}
    lan.connect("--datapath", "tun")
    lan.near.await_log("removed the nft table ipipou-0 that an earlier process left")
    assert tables(lan.server) == others


def test_those_of_ports_of_old_peers_go_as_well(lab):
    hub = MixedHub(lab)
    for port in (MixedHub.OLD, 10077):
        hub.host.nft(GUARD % (f"ipipou-0-{port}", port))
    hub.host.nft(GUARD % ("ipipou-0-10078", 10099))  # not the one that its name says
    near = hub.server()
    hub.old_client()
    await_state(near, "peer4", "connected")
    await_reached(hub.old, inner(1))
    assert tables(hub.host) == {"table ip ipipou-0-10078"}
