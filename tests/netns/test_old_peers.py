"""Peers with the old program (`old = PORT`): each has a port of the server for itself, and what it sends there
is what it always sent."""

import ipipou
from first_version import signed
from hub import PORT, MixedHub, await_state, inner, peers, reload, states
from ipipou import SECRET
from lab import await_
from lan import await_reached, no_answer, outer, reaches

OLD = MixedHub.OLD


def links(host):
    return {link.split("@")[0] for link in host.run("ip -br link").split() if "ipipou0" in link}


def test_one_of_the_peers(lab):
    hub = MixedHub(lab)
    before = [host.snapshot() for host in hub.lan.hosts]
    near = hub.server()
    ends = [hub.client(i) for i in (2, 3)]
    for end in ends:
        end.await_log("connected to")
    far = hub.old_client()
    await_state(near, "peer4", "connected")
    shown = peers(near)["peer4"]
    assert (shown["remote"], shown["protocol"]) == (f"{outer(4)}:{PORT}", 1)
    await_reached(hub.old, inner(1))
    assert reaches(hub.old, inner(2), count=3) and reaches(hub.clients[0], inner(4), count=3)
    near.process.await_output("INFO: peer4: ")
    for end in (far, *ends, near):
        assert end.process.stop() == 0
    assert [host.snapshot() for host in hub.lan.hosts] == before


def test_two_behind_one_address_and_port(lab):
    """A NAT gives hosts behind it the same port where they send to different ones of ours."""
    hub = MixedHub(lab)
    hub.name_old(3, old=OLD + 1)
    near = hub.server()
    seen = {
        port: hub.lan.host.capture("any", f"udp and src port {port}") for port in (OLD, OLD + 1)
    }
    for i, port in ((4, OLD), (3, OLD + 1)):
        packet = signed(hub.keys[i].private)
        hub.lan.host.send_udp(hub.lan.ADDRESS, 777, outer(1), port, packet)
    for i, port in ((4, OLD), (3, OLD + 1)):
        await_state(near, f"peer{i}", "connected")
        assert peers(near)[f"peer{i}"]["remote"] == f"{hub.lan.ADDRESS}:777"
        hub.host.ping(inner(i), count=1, timeout=1)
        seen[port].await_packets(1, condition=lambda p: p.dport == 777)


def test_a_change_of_the_files_disturbs_nobody_else(lab):
    hub = MixedHub(lab)
    near, far = hub.server(), hub.old_client()
    await_state(near, "peer4", "connected")
    ping = hub.old.ping_background(inner(1), interval=0.02)
    ping.await_answers()
    hub.name(2, note="another")
    assert "0 added, 1 changed, 0 removed, 2 untouched" in reload(near)
    hub.name_old(3, old=OLD + 1)
    assert "0 added, 1 changed, 0 removed, 2 untouched" in reload(near)
    await_(lambda: states(near)["peer3"] == "new", what="another peer with the old program")
    ping.stop_complete()
    hub.name_old(enabled=False)
    assert "0 added, 1 changed" in reload(near)
    await_(lambda: f"ipipou0_{OLD}" not in links(hub.host), what="no link")
    assert states(near)["peer4"] == "disabled"
    no_answer(hub.old, inner(1))
    hub.name_old()
    assert "0 added, 1 changed" in reload(near)
    ready = "peer4: ready on"
    await_(lambda: near.process.output().count(ready) == 2, what="the tunnel again")
    far.reauthenticate()
    await_state(near, "peer4", "connected")
    await_reached(hub.old, inner(1))


def test_a_kick_ends_its_session(lab):
    hub = MixedHub(lab)
    near, far = hub.server(), hub.old_client()
    await_state(near, "peer4", "connected")
    hub.host.run(["ipipou", "peer", "kick", "peer4", "--runtime-root", near.root])
    await_state(near, "peer4", "new")
    far.reauthenticate()
    await_state(near, "peer4", "connected")


def test_a_token(lab):
    hub = MixedHub(lab)
    path = hub.peers / "token"
    path.write_text("a token\n")
    path.chmod(0o600)
    hub.name_old(public_key=None, token_file=str(path))
    near = hub.server()
    hub.old_client(proof=["--auth-token", "a token"])
    await_state(near, "peer4", "connected")
    assert not peers(near)["peer4"]["public_key"]
    await_reached(hub.old, inner(1))


def test_replays_and_hellos_prove_nothing(lab):
    """The memory of each peer outlives the process, and a hello that was held back is no old packet."""
    hub = MixedHub(lab)
    near = hub.server()
    packet = signed(hub.keys[4].private)
    hub.old.send_udp(outer(4), PORT, outer(1), OLD, packet)
    await_state(near, "peer4", "connected")
    near.process.kill()
    near.start()
    near.process.await_output("peer4: ready on")
    stranger = hub.lan.host
    stranger.send_udp(hub.lan.ADDRESS, PORT, outer(1), OLD, packet)
    near.process.await_output(rf"peer4: .*{hub.lan.ADDRESS}.*seen before")
    tail = signed(hub.keys[4].private) + bytes(128 - 73)
    stranger.send_udp(hub.lan.ADDRESS, PORT, outer(1), OLD, tail)
    stranger.send_udp(hub.lan.ADDRESS, PORT, outer(1), PORT, signed(hub.keys[4].private))
    assert peers(near)["peer4"]["remote"] is None
    # The memory is of this peer: another server's packets for the same key would be as new.
    assert (near.state / "old" / "peer4" / "memory.json").exists()
    hub.old.send_udp(outer(4), PORT, outer(1), OLD, signed(hub.keys[4].private))
    await_state(near, "peer4", "connected")
    assert peers(near)["peer4"]["remote"] == f"{outer(4)}:{PORT}"


def test_a_port_in_use_stops_nobody_else(lab):
    hub = MixedHub(lab)
    holder = hub.host.udp_socket(outer(1), OLD)
    near = hub.server()
    near.process.await_output(rf"ERROR: peer4: .*{OLD}: the UDP port is in use.*trying again")
    hub.client(2).await_log("connected to")
    holder.close()
    near.process.await_output("peer4: ready on")
    hub.old_client()
    await_state(near, "peer4", "connected")
