"""Peers with the old program (`old = PORT`): each has a port of the server for itself, and what it sends there
is what it always sent."""

import pathlib
import subprocess

import ipipou
import pytest
from first_version import signed
from hub import PORT, MixedHub, await_state, inner, peers, reload, states
from ipipou import SECRET, Tunnel
from lab import await_
from lan import Lan, await_reached, assert_unanswered, outer, reaches

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
    """A NAT gives hosts behind it the same port where they send to different ports of the server."""
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
    ping = hub.old.ping_background(inner(1), interval=0.005)
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
    assert_unanswered(hub.old, inner(1))
    hub.name_old()
    assert "0 added, 1 changed" in reload(near)
    ready = "peer4: ready on"
    await_(lambda: near.process.output().count(ready) == 2, what="the tunnel again")
    far.reauthenticate()
    await_state(near, "peer4", "connected")
    await_reached(hub.old, inner(1))


def test_routes_that_the_kernel_made_are_put_back(lab):
    hub = MixedHub(lab)
    near = hub.server()
    hub.old_client()
    await_state(near, "peer4", "connected")
    await_reached(hub.old, inner(1))
    link = f"ipipou0_{OLD}"
    for command in (f"ip route flush dev {link}", f"ip route flush table local dev {link}"):
        hub.host.run(command)
        await_reached(hub.old, inner(1))
    near.process.await_output(f"peer4: repairing: put back the route to {inner(4)}/32 by {link}")
    near.process.await_output(f"peer4: repairing: put back the local route to {inner(1)} by {link}")


def test_a_kick_ends_its_session(lab):
    hub = MixedHub(lab)
    near, far = hub.server(), hub.old_client()
    await_state(near, "peer4", "connected")
    hub.host.run(["ipipou", "peer", "kick", "peer4", "--runtime-root", near.root])
    await_state(near, "peer4", "new")
    far.reauthenticate()
    await_state(near, "peer4", "connected")


def test_it_sends_from_its_own_address_only_whatever_the_host_has_loosened(lab):
    """`net.ipv4.conf.all.rp_filter` 2 turns every reverse path filter into a check for any route."""
    hub = MixedHub(lab)
    hub.host.run("sysctl -qw net.ipv4.conf.all.rp_filter=2")
    near, far = hub.server(), hub.old_client()
    await_state(near, "peer4", "connected")
    await_reached(hub.old, inner(1))
    answers = hub.host.capture("any", "icmp[icmptype] = icmp-echoreply")
    for source in (inner(2), inner(77), inner(4)):
        hub.old.send_fou(outer(4), PORT, outer(1), OLD, source, inner(1))
    answers.await_packets(1, condition=lambda packet: packet.dst == inner(4))
    assert {packet.dst for packet in answers.packets()} <= {inner(4), outer(4)}
    far.process.stop(), near.process.stop()


def test_nothing_is_left_of_a_hundred_sessions(lab):
    hub = MixedHub(lab)
    near = hub.server()

    def kick():
        seen = near.process.output().count("peer4: ready on")
        hub.host.run(["ipipou", "peer", "kick", "peer4", "--runtime-root", near.root])
        await_(lambda: near.process.output().count("peer4: ready on") > seen, what="another one")

    def held():
        place = pathlib.Path("/proc") / str(near.process.pid)
        return len(list((place / "fd").iterdir())), len(list((place / "task").iterdir()))

    kick()
    fds, threads = held()
    for _ in range(100):
        kick()
    # Threads that wait for the disk are kept for a while, and are few.
    await_(
        lambda: held()[0] <= fds and held()[1] <= threads + 4, what=f"{fds}, {threads}: {held()}"
    )


def test_a_change_around_a_session_does_not_interrupt_it(lab):
    """The client of old sends one packet in its life: a client that is cut off stays so."""
    hub = MixedHub(lab)
    near = hub.server()
    hub.old_client()
    await_state(near, "peer4", "connected")
    ping = hub.old.ping_background(inner(1), interval=0.005)
    ping.await_answers()
    changes = (
        {"route": "192.168.77.0/24"},
        {"route": "192.168.78.0/24", "lifetime": "90s"},
        {"lifetime": "90s"},
        {"server_address": "10.8.0.77"},
        {},
    )
    for n, fields in enumerate(changes):
        hub.name_old(**fields)
        assert "0 added, 1 changed" in reload(near)
        near.process.await_output(r"(?s)(peer4: ready on.*){%d}" % (n + 2))
        assert states(near)["peer4"] == "connected"
        routes = hub.host.run(f"ip route show dev ipipou0_{OLD}")
        for network in ("192.168.77.0/24", "192.168.78.0/24"):
            assert (network in routes) == (fields.get("route") == network), (fields, routes)
        ping.await_answers()
    ping.stop_complete()
    assert "not connected any more" not in near.process.output()
    hub.name_old(old=OLD + 5)
    reload(near)
    near.process.await_output("peer4 is not connected any more.*another port or address")
    near.process.await_output(f"peer4: ready on {OLD + 5}")
    hub.name_old(old=OLD + 5, public_key=hub.keys[3].public)
    hub.forget(3)
    hub.old.send_udp(outer(4), PORT, outer(1), OLD + 5, signed(hub.keys[4].private))
    await_state(near, "peer4", "connected")
    reload(near)
    near.process.await_output("peer4 is not connected any more.*another key or secret")


def test_another_name_does_not_interrupt_a_session(lab):
    hub = MixedHub(lab)
    hub.name_old(3, old=OLD + 1)
    near = hub.server()
    hub.old_client()
    await_state(near, "peer4", "connected")
    ping = hub.old.ping_background(inner(1), interval=0.005)
    ping.await_answers()
    own, other = (hub.peers / f"peer{i}.toml" for i in (4, 3))

    def rename(path, name):
        head, rest = path.read_text().split("]", 1)
        path.write_text(f"{head.partition('.')[0]}.{name}]{rest}")

    rename(own, "renamed")
    assert "1 added, 0 changed, 1 removed" in reload(near)
    near.process.await_output("renamed: ready on")
    await_state(near, "renamed", "connected")
    # Two peers exchange their names.
    rename(own, "peer3"), rename(other, "renamed")
    reload(near)
    near.process.await_output("peer3: ready on 10003")
    await_state(near, "peer3", "connected")
    assert states(near)["renamed"] == "new"
    ping.await_answers()
    ping.stop_complete()
    assert "not connected any more" not in near.process.output()
    hub.host.run(["ipipou", "peer", "kick", "peer3", "--runtime-root", near.root])
    near.process.await_output("peer3 is not connected any more.*it was kicked")
    await_state(near, "peer3", "new")


def test_another_name_makes_no_packet_new(lab):
    """What was recorded of a peer is worth nothing under another name, and when its name is another's."""
    hub = MixedHub(lab)
    near = hub.server()
    packet = signed(hub.keys[4].private)
    hub.old.send_udp(outer(4), PORT, outer(1), OLD, packet)
    await_state(near, "peer4", "connected")
    path = hub.peers / "peer4.toml"
    path.write_text(path.read_text().replace("peer.peer4", "peer.renamed"))
    reload(near)
    near.process.await_output("renamed: ready on")
    stranger = hub.lan.host
    stranger.send_udp(hub.lan.ADDRESS, PORT, outer(1), OLD, packet)
    near.process.await_output(rf"renamed: .*{hub.lan.ADDRESS}.*seen before")
    # So it was with memories that earlier versions kept by name.
    assert near.process.stop() == 0
    (memory,) = (near.state / "old").iterdir()
    memory.rename(memory.with_name("renamed"))
    near.start()
    near.process.await_output("renamed: ready on")
    stranger.send_udp(hub.lan.ADDRESS, PORT, outer(1), OLD, packet)
    near.process.await_output(rf"renamed: .*{hub.lan.ADDRESS}.*seen before")
    assert not memory.with_name("renamed").exists()


def test_a_disk_that_refuses_keeps_no_old_peer_out(lab):
    hub = MixedHub(lab)
    state = lab.directory / f"state-{hub.host.name}" / "ipipou0"
    state.mkdir(parents=True)
    (state / "old").touch()
    near = hub.server()
    hub.old_client()
    await_state(near, "peer4", "connected")
    await_reached(hub.old, inner(1))
    near.process.await_output("ERROR: peer4: .*a restart will forget replays")


@pytest.fixture
def hung(tmp_path):
    """A prefix with which the disk of old peers hangs while a file is there, and that file."""
    library, sign = tmp_path / "hung_disk.so", tmp_path / "hung"
    source = pathlib.Path(__file__).with_name("hung_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O", "-o", library, source], check=True)
    return ["env", f"LD_PRELOAD={library}", f"HUNG_DISK={sign}"], sign


def test_a_disk_that_hangs_stops_nobody_else(lab, hung):
    prefix, sign = hung
    hub = MixedHub(lab)
    near = hub.server(prefix=prefix)
    sign.touch()
    hub.name_old(3, old=OLD + 1)
    reload(near)
    for _ in range(10):
        hub.host.run(["ipipou", "peer", "list", "--runtime-root", near.root], timeout=2)
    assert f"peer3: ready on {OLD + 1}" not in near.process.output()
    hub.client(2).await_log("connected to")
    sign.unlink()
    near.process.await_output(f"peer3: ready on {OLD + 1}")


def test_a_kick_during_a_change_is_not_lost(lab, hung):
    prefix, sign = hung
    hub = MixedHub(lab)
    near, far = hub.server(prefix=prefix), hub.old_client()
    await_state(near, "peer4", "connected")
    sign.touch()
    far.reauthenticate()
    near.process.await_output("peer4: .*authenticated again")
    hub.name_old(route="192.168.77.0/24")
    reload(near)  # the tunnel is left in place for the next one once the disk has its memory
    hub.host.run(["ipipou", "peer", "kick", "peer4", "--runtime-root", near.root])
    sign.unlink()
    near.process.await_output("peer4: .*it was kicked")
    near.process.await_output(r"(?s)(peer4: ready on.*){2}")
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
    """The memory of each peer outlives the process, and a hello that was held back does not count as an old packet."""
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
    assert len(list((near.state / "old").glob("ID-*/memory.json"))) == 1
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


def test_servers_with_one_client_each_become_peers(lab):
    """`ipipou peer import`: the clients go on as they are, with their ports, keys, tokens and addresses."""
    lan = Lan(lab, 4)
    host, *clients = lan.hosts
    keys = {n: ipipou.Keys(host) for n in (1, 2, 3)}
    tun = ["--datapath", "tun"]
    proofs = {
        1: (f"auth-remote-pubkey-b64 {keys[1].public}\nauth-secret two words ", "two words "),
        2: (f"auth-remote-pubkey-b64 {keys[2].public}\nauth-lifetime 90", None),
        3: ("auth-token a token", None),
    }
    etc = lab.directory / "etc"
    etc.mkdir()
    old, ends = [], []
    for n, (proof, secret) in proofs.items():
        # As the first version's own files are.
        conf = etc / f"server{n}.conf"
        conf.write_text(f"# tunnel {n}\nserver\n\nn {n}\n  --fou-dev eth0\n{proof}\n")
        old.append(Tunnel(host, "--config", conf, *tun, number=n))
        own = ["--auth-token", "a token"] if n == 3 else ["--auth-key-b64", keys[n].private]
        own += ["--auth-secret", secret] if secret else []
        own += ["-b", "@eth0", "-r", f"{outer(1)}:{10000 + n}", "--keepalive", "1"]
        inside = f"172.28.0.{2 * n + 1}"
        ends.append(Tunnel(clients[n - 1], "-c", "--tunl-ip", inside, *own, *tun))
    for n in proofs:
        await_reached(clients[n - 1], f"172.28.0.{2 * n}")
    conf, files = etc / "hub0.conf", etc / "hub0.peers.d"
    files.mkdir()
    lines = ["server", f"peers {files}", "number 100", "fou-dev eth0", "auth-secret s"]
    conf.write_text("\n".join([*lines, "tunl-ip 172.28.0.254/24"]))
    near = Tunnel(host, "--config", conf, *tun, number=100, name="hub0")

    def take(*words):
        more = [*words, "-i", conf, "--runtime-root", near.root]
        return host.run(
            ["sh", "-c", f'cd {etc} && ipipou peer import server*.conf "$@"', "-", *more]
        )

    said = take("--dry-run")
    assert "old = 10001" in said and "two words" not in said and not list(files.iterdir())
    said = take()
    assert "server1: from ./server1.conf, by port 10001" in said
    assert "3 added, 0 changed, 0 removed, 0 untouched" in said
    modes = {path.name: oct(path.stat().st_mode)[-3:] for path in files.iterdir()}
    names = ["server1.toml", "server2.toml", "server3.toml", "server3.token"]
    assert modes == dict.fromkeys(names, "600")
    assert "server1: unchanged" in take()
    for tunnel in old:
        assert tunnel.process.stop() == 0
    for n in proofs:
        await_state(near, f"server{n}", "connected")
        assert peers(near)[f"server{n}"]["remote"] == f"{outer(n + 1)}:{PORT}"
        await_reached(clients[n - 1], f"172.28.0.{2 * n}")
        assert reaches(host, f"172.28.0.{2 * n + 1}")
    for end in (*ends, near):
        assert end.process.stop() == 0
