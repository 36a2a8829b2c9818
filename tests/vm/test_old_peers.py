"""A peer with the old program at a server with many, on the kernel's datapath: it has a listener, a link and
rules of its own."""

import pytest

from first_version import handmade_tunnel, signed
from hub import PORT, MixedHub, await_state, inner, is_to, peers, reload, states
from ipipou import await_, later_second
from lan import await_reached, outer, reaches

OLD = MixedHub.OLD
LINK = f"ipipou0_{OLD}"


@pytest.fixture
def hub(lab):
    return MixedHub(lab, datapath="kernel")


def test_it_is_one_of_the_peers(hub):
    before = [host.snapshot() for host in hub.lan.hosts]
    near = hub.server()
    ends = [hub.client(i) for i in (2, 3)]
    for end in ends:
        end.await_log("connected to")
    far = hub.old_client()
    await_state(near, "peer4", "connected")
    await_reached(hub.old, inner(1))
    for i in (2, 3):
        assert reaches(hub.old, inner(i), count=2)
    assert reaches(hub.clients[0], inner(4), count=2) and reaches(hub.host, inner(4))
    # Nobody else comes in by its port, and it sends from its own address only: what is let in is answered.
    seen = hub.answers()
    hub.old.send_fou(outer(4), PORT, outer(1), OLD, inner(2), inner(1))
    hub.lan.host.send_fou(hub.lan.ADDRESS, PORT, outer(1), OLD, inner(4), inner(1))
    hub.old.send_fou(outer(4), PORT, outer(1), OLD, inner(4), inner(1))
    seen.await_packets(1, condition=is_to(inner(4)))
    assert not seen.matching(is_to(inner(2)))
    # The process is killed, and the next one goes on.
    ping = hub.old.ping_background(inner(1))
    ping.await_answers()
    near.process.kill()
    near = hub.server()
    near.await_log("peer4: took over the running tunnel to")
    ping.await_answers()
    ping.stop_complete()
    assert states(near)["peer4"] == "connected"
    # Another peer changes, and the ping goes on; this one goes.
    hub.name_old(enabled=False)
    assert "0 added, 1 changed, 0 removed, 2 untouched" in reload(near)
    await_(lambda: LINK not in hub.host.run("ip link"), what="no link")
    for end in (far, *ends, near):
        assert end.process.stop() == 0
    assert [host.snapshot() for host in hub.lan.hosts] == before


def test_the_old_packet_byte_for_byte(hub):
    """The first version's end, made by hand: the packet, and a tunnel to the port."""
    near = hub.server()
    handmade_tunnel(hub.old, outer(4), outer(1), inner(4), inner(1), port=OLD)
    hub.old.send_udp(outer(4), PORT, outer(1), OLD, signed(hub.keys[4].private))
    await_state(near, "peer4", "connected")
    await_reached(hub.old, inner(1))
    assert peers(near)["peer4"]["remote"] == f"{outer(4)}:{PORT}"
    # It moves, as behind a NAT; what was sent before is worth nothing any more.
    hub.old.send_udp(outer(4), 4444, outer(1), OLD, signed(hub.keys[4].private))
    await_(lambda: peers(near)["peer4"]["remote"] == f"{outer(4)}:4444", what="another port")


def test_it_comes_back_by_its_port(hub):
    """The queue of a tunnel that ended is free for the next one at once: this process lives on."""
    near, far = hub.server(), hub.old_client()
    await_state(near, "peer4", "connected")

    def ready(port, change):
        sign = f"peer4: ready on {port}"
        seen = near.process.output().count(sign)
        change()
        await_(lambda: near.process.output().count(sign) > seen, what=sign)

    def kick():
        hub.host.run(["ipipou", "peer", "kick", "peer4", "--runtime-root", near.root])

    def again():
        hub.name_old(enabled=False)
        reload(near)
        await_(lambda: LINK not in hub.host.run("ip link"), what="no link")
        hub.name_old()
        reload(near)

    ready(OLD, kick)
    ready(OLD, again)
    hub.name_old(3, old=OLD + 1)
    reload(near)
    near.process.await_output(f"peer3: ready on {OLD + 1}")

    def exchange():
        hub.name_old(3, old=OLD)
        hub.name_old(4, old=OLD + 1)
        reload(near)

    ready(OLD + 1, exchange)
    near.process.await_output(f"peer3: ready on {OLD}")
    hub.name_old(old=OLD)
    hub.name_old(3, old=OLD + 2)
    ready(OLD, lambda: reload(near))
    assert "NFQUEUE" not in near.process.output()
    far.reauthenticate()
    await_state(near, "peer4", "connected")
    await_reached(hub.old, inner(1))


LEAVING = {
    "removed": lambda hub: hub.forget(4),
    "disabled": lambda hub: hub.name_old(enabled=False),
    "at another port": lambda hub: hub.name_old(old=OLD + 1),
    "with the new program": lambda hub: hub.name(4),
    "with another key": lambda hub: (hub.name_old(public_key=hub.keys[3].public), hub.forget(3)),
}


def test_who_left_while_the_server_was_dead_is_let_in_no_more(hub):
    before = hub.host.snapshot()
    far = None
    for how, leave in LEAVING.items():
        hub.name_old()
        near = hub.server()
        if far:
            later_second()
            far.reauthenticate()
        else:
            far = hub.old_client()
        await_state(near, "peer4", "connected")
        await_reached(hub.old, inner(1))
        near.process.kill()
        leave(hub)
        near = hub.server()
        assert LINK not in hub.host.run("ip link"), how
        assert not reaches(hub.old, inner(1), count=2, timeout=1), how
        if how != "with another key":
            assert f"port {OLD} " not in hub.host.run("ip fou show"), how
            assert f"ipipou-0-{OLD}" not in hub.host.run("nft list tables"), how
        assert near.process.stop() == 0
        assert hub.host.snapshot() == before, how


def test_another_datapath_takes_the_ports_of_one_that_was_killed(hub):
    near = hub.server()
    far = hub.old_client()
    await_state(near, "peer4", "connected")
    near.process.kill()
    hub.host.run("modprobe tun")
    hub.datapath = ["--datapath", "tun"]
    near = hub.server()
    near.process.await_output("peer4: ready on 10003 as server, datapath tun")
    assert "port" not in hub.host.run("ip fou show")
    far.reauthenticate()
    await_state(near, "peer4", "connected")
    await_reached(hub.old, inner(1))
