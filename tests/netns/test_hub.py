"""A server whose peers are named in files (--peers): who is let in, by which inner addresses, and what a
change of the files disturbs."""

import base64
import contextlib
import ipaddress
import json
import os
import re
import signal
import time

import nacl.signing
import pytest

import ipipou
from control_v2 import Client
from given import addresses, given_and_changed
from hub import (
    LIFETIME,
    PORT,
    Hub,
    await_state,
    hellos,
    inner,
    inner6,
    peers,
    reload,
    states,
)
from ipipou import SECRET, Tunnel
from lab import await_
from lan import await_dropped, await_reached, no_answer, outer, reaches

pytestmark = pytest.mark.both_lanes


HEADINGS = ["PEER", "STATE", "REMOTE", "ADDRESS", "SEEN", "RTT", "RX", "TX"]


def at(i, port=PORT):
    return f"{outer(i)}:{port}"


def test_peers_reach_the_server_and_each_other(lab):
    hub = Hub(lab, ip6=True)
    hub.host.sysctl("net.ipv6.conf.all.forwarding", 1)  # the program sees to IPv4 only
    before = [host.snapshot() for host in hub.lan.hosts]
    near, ends = hub.connect()
    for i, host in enumerate(hub.clients, 2):
        for other in {1, 2, 3, 4} - {i}:
            assert reaches(host, inner(other), count=2)
            assert reaches(host, inner6(other), count=2)
        assert reaches(hub.host, inner(i)) and reaches(hub.host, inner6(i))
    assert {name: peer["remote"] for name, peer in peers(near).items()} == {
        "peer2": at(2),
        "peer3": at(3),
        "peer4": at(4),
    }
    assert set(states(near).values()) == {"connected"}
    shown = near.show()["peers"]
    assert shown["by_state"] == {"connected": 3, "away": 0, "new": 0, "expired": 0, "disabled": 0}
    assert shown["public_key"] == hub.keys[1].public
    # Each said hello twice: without a cookie, and with it.
    assert hellos(near) == {"challenged": 3, "admitted": 3}
    (tunnel,) = ends[0].show()["tunnels"]
    assert (tunnel["connected"], tunnel["connection"]["seen_as"]) == (True, at(2))
    assert tunnel["connection"]["inner"] == [f"{inner(2)}/24", f"{inner6(2)}/64"]
    text = hub.host.run(["ipipou", "show", "--runtime-root", near.root, "ipipou0"])
    assert "peers: 3 connected" in text and f"peer2  connected  {at(2)}" in text
    assert [end.process.stop() for end in ends] == [0] * 3
    await_(lambda: set(states(near).values()) == {"away"}, what="three who said goodbye")
    assert near.process.stop() == 0
    assert [host.snapshot() for host in hub.lan.hosts] == before


@pytest.mark.parametrize("of_all", [0, 1])
def test_peers_who_reach_each_other_are_told_of_no_shorter_way(lab, of_all):
    """The kernel would, for packets that leave by the interface that they came in by."""
    hub = Hub(lab, clients=2)
    hub.host.sysctl("net.ipv4.conf.all.send_redirects", of_all)
    near, ends = hub.connect()
    said = hub.host.capture("ipipou0", "icmp[icmptype] = icmp-redirect")
    await_reached(hub.clients[0], inner(3))
    for _ in range(3):
        assert hub.clients[0].ping(inner(3), count=1).received == 1
    heard = [end.show()["dropped"]["rx_redirect"]["packets"] for end in ends]
    assert heard == [0, 0]
    kept = near.show()["dropped"]["tx_redirect"]["packets"]
    assert kept == len(said.packets()) and bool(kept) == bool(of_all)


def test_a_client_moves_and_says_goodbye(lab):
    hub = Hub(lab, clients=2)
    near, (one, _) = hub.connect()
    one.process.kill()
    (client, _) = hub.clients
    moved = hub.client(2, "--fou-local-port", 10007)
    moved.await_log("connected to")
    near.await_log(f"peer2 moved from {at(2)} to {at(2, 10007)}")
    await_reached(client, inner(1))
    assert peers(near)["peer2"]["remote"] == at(2, 10007)
    assert moved.process.stop() == 0
    near.await_log("peer2 is not connected any more.*: it said goodbye")
    assert states(near) == {"peer2": "away", "peer3": "connected"}
    no_answer(hub.host, inner(2))


def test_traffic_is_counted_for_each_peer(lab):
    """Inner packets and their bytes, while it is connected, wherever it goes meanwhile."""
    hub = Hub(lab, clients=2)
    near, (one, _) = hub.connect()

    def counted(name="peer2"):
        peer = peers(near)[name]
        return [peer[f"{way}_{what}"] for way in ("rx", "tx") for what in ("packets", "bytes")]

    assert counted() == counted("peer3") == [0, 0, 0, 0]
    assert reaches(hub.clients[0], inner(1), count=3)
    each = 20 + 8 + 56  # of ping(8)
    assert counted() == [3, 3 * each, 3, 3 * each]
    assert counted("peer3") == [0, 0, 0, 0]
    # What goes from one to the other is counted for both; the host's redirects are not sent.
    assert reaches(hub.clients[0], inner(3), count=2)
    for name, packets in (("peer2", 5), ("peer3", 2)):
        assert counted(name) == [packets, packets * each] * 2
    # What is not let in is not counted.
    hub.clients[0].send_fou(outer(2), PORT, outer(1), PORT, inner(3), inner(1))
    await_dropped(near, rx_wrong_source=1)
    one.process.kill()
    moved = hub.client(2, "--fou-local-port", 10007)
    near.await_log("peer2 moved from")
    await_reached(hub.clients[0], inner(1))
    packets, size, *_ = counted()
    assert packets > 5 and size == packets * each
    moved.process.stop()
    await_state(near, "peer2", "away")
    assert counted() == [None] * 4


def test_a_goodbye_is_said_until_it_is_heard(lab):
    hub = Hub(lab, clients=2)
    near, (one, other) = hub.connect()
    hub.host.nft(
        "table ip loss { chain lost { type filter hook prerouting priority -400;"
        f" ip saddr {outer(2)} udp dport {PORT} counter drop\n}}\n}}"
    )
    one.process.send_signal(signal.SIGTERM)
    await_(lambda: "packets 1 " in hub.host.run("nft list table ip loss"), what="a lost goodbye")
    hub.host.run("nft delete table ip loss")
    assert one.process.wait() == 0
    near.await_log("peer2 is not connected any more.*: it said goodbye")
    # Without a server it takes less than a second.
    near.process.kill()
    begin = time.monotonic()
    assert other.process.stop() == 0
    assert time.monotonic() - begin < 2


def test_a_client_has_the_address_that_the_server_gives_it(lab):
    given_and_changed(Hub(lab, clients=2, ip6=True))


def test_a_client_without_a_server_has_no_address_until_it_answers(lab):
    hub = Hub(lab, clients=1)
    far = hub.guest(2)
    far.await_log("no address inside the tunnel yet: waiting for the server to give one")
    assert addresses(hub.clients[0]) == [] and "10.8" not in hub.clients[0].run("ip route")
    (tunnel,) = far.show()["tunnels"]
    assert (tunnel["inner"], tunnel["inner_peer"]) == ("-", "-")
    near = hub.server()
    far.await_log("connected to", timeout=40)
    await_reached(hub.clients[0], inner(1))
    assert near.process.stop() == 0 and far.process.stop() == 0
    # The next start has it before anybody answers.
    far = hub.guest(2)
    assert addresses(hub.clients[0]) == [f"{inner(2)}/24"]


def test_a_peer_sends_from_its_own_addresses_only(lab):
    hub = Hub(lab, clients=2)
    hub.name(2, route=["192.168.7.0/24"])
    near, _ = hub.connect()
    seen = hub.host.capture("ipipou0", "icmp")
    one = hub.clients[0]

    def send(source, host=one, i=2):
        host.send_fou(outer(i), PORT, outer(1), PORT, source, inner(1))

    for source in (inner(2), "192.168.7.9"):
        send(source)
        seen.await_packets(1, condition=lambda p: p.src == source)
    for source in (inner(3), inner(1), "192.168.8.1"):
        send(source)
    await_dropped(near, rx_wrong_source=3)
    # Nor may a stranger, whatever its source.
    hub.lan.host.send_fou(hub.lan.ADDRESS, PORT, outer(1), PORT, inner(2), inner(1))
    await_dropped(near, rx_wrong_source=3, rx_stranger=1)


def test_networks_behind_a_peer_are_routed_while_it_is_connected(lab):
    hub = Hub(lab, clients=1)
    hub.name(2, route=["192.168.7.0/24"])
    behind = hub.clients[0]
    behind.run("ip addr add 192.168.7.1/32 dev lo")
    near, (far,) = hub.connect()
    await_(lambda: "192.168.7.0/24" in hub.host.run("ip route show proto 105"), what="route")
    await_reached(hub.host, "192.168.7.1")
    assert far.process.stop() == 0
    await_(lambda: "192.168.7.0/24" not in hub.host.run("ip route"), what="route that is gone")


def test_a_change_of_the_files_disturbs_nobody_else(lab):
    """All pings of a bystander are answered while another peer is added, changed and removed."""
    hub = Hub(lab, clients=3)
    hub.forget(4)
    near = hub.server()
    bystander, other = hub.client(2), hub.client(3)
    for end in (bystander, other):
        end.await_log("connected to")
    ping = hub.clients[0].ping_background(inner(1), interval=0.02)
    ping.await_answers()
    hub.name(4)
    assert "1 added, 0 changed, 0 removed, 2 untouched" in reload(near)
    late = hub.client(4)
    late.await_log("connected to")
    hub.name(3, address=[inner(33)])
    assert "0 added, 1 changed, 0 removed, 2 untouched" in reload(near)
    await_(lambda: peers(near)["peer3"]["addresses"] == [inner(33)], what="another address")
    assert peers(near)["peer3"]["remote"] == at(3), "the session goes on"
    hub.name(3, enabled=False)
    said = reload(near)
    assert "0 added, 1 changed, 0 removed, 2 untouched" in said and "it is disabled" in said
    hub.forget(4)
    assert "0 added, 0 changed, 1 removed, 2 untouched" in reload(near)
    assert states(near) == {"peer2": "connected", "peer3": "disabled"}
    ping.stop_complete()
    # Who is disabled is told so, and only after it has shown that it is there.
    other.reauthenticate()
    other.await_log("does not let us in: we are disabled there")
    (tunnel,) = other.show()["tunnels"]
    assert tunnel["connected"] is False and "disabled" in tunnel["connection"]["why"]
    assert peers(near)["peer3"]["last_refusal"]["why"] == "it is disabled"


def test_a_mistake_in_the_files_changes_nothing(lab):
    hub = Hub(lab, clients=2)
    near, ends = hub.connect()
    hub.name(3, address=[inner(2)])
    hub.write("broken.toml", "[peer.x]\nadress = 1\n")
    said = reload(near)
    assert "everything stays as it was" in said
    assert "peer3" in said and "broken.toml:2" in said, said
    assert set(states(near).values()) == {"connected"}
    assert reaches(hub.clients[0], inner(1)) and reaches(hub.clients[1], inner(1))
    assert near.process.stop() == 0
    # A start says the same, and goes on with the last good files.
    again = hub.server()
    said = again.process.output()
    assert "broken.toml:2" in said and "going on with the 2 peers of the last good files" in said
    for end in ends:
        end.reauthenticate()
    await_(lambda: set(states(again).values()) == {"connected"}, what="both peers")


def test_a_first_start_with_a_mistake_changes_nothing(lab):
    hub = Hub(lab, clients=1)
    hub.write("broken.toml", "[peer.x]\nadress = 1\n")
    before = hub.host.snapshot()
    near = hub.server(ready=False)
    assert near.process.wait() == 2
    assert "broken.toml:2" in near.process.output()
    assert hub.host.snapshot() == before


def test_commands_about_peers(lab):
    """`ipipou reload` and `ipipou peer`, as an operator types them."""
    hub = Hub(lab, clients=2)
    hub.name(3, note="behind CGNAT; Eva", expires="@2027-01-31")
    near, _ = hub.connect()

    def say(*words, code=0):
        argv = ["ipipou", *words, "--runtime-root", near.root]
        done = hub.host.run(argv, check=False)
        assert done.returncode == code, done
        return done.stdout + done.stderr

    listed = say("peer", "list").splitlines()
    assert listed[0].split() == HEADINGS
    assert [line.split()[:4] for line in listed[1:]] == [
        ["peer2", "connected", at(2), inner(2)],
        ["peer3", "connected", at(3), inner(3)],
    ]
    assert max(map(len, listed)) <= 100
    assert say("peer", "list", "--state", "away").split() == listed[0].split()
    assert "is not one of" in say("peer", "list", "--state", "gone", code=2)
    shown = say("peer", "show", "peer3")
    for words in ("peer3: connected", f"remote {at(3)}", "note behind CGNAT; Eva", "peer3.toml:1"):
        assert words in shown, shown
    (one,) = json.loads(say("peer", "show", "peer2", "--json"))
    assert (one["name"], one["remote"], one["expires"]) == ("peer2", at(2), None)
    (other,) = json.loads(say("peer", "show", "peer3", "--json"))
    assert other["expires"] == 1801440000  # 2027-02-01 0:00 UTC
    assert "no peer is called" in say("peer", "show", "peer4", code=1)
    assert "no peer is called" in say("peer", "kick", "peer4", code=2)

    assert "its session is over" in say("peer", "kick", "peer2")
    near.await_log("peer2 is not connected any more.*: it was kicked")
    await_reached(
        hub.clients[0], inner(1)
    )  # it may come back, and data without an answer brings it

    hub.name(2, isolate=True)
    assert say("reload").strip() == ("ipipou0: 0 added, 1 changed, 0 removed, 1 untouched")
    hub.write("broken.toml", "[peer.x]\nadress = 1\n")
    said = say("reload", "ipipou0", code=2)
    assert "broken.toml:2" in said and len(said.splitlines()) == 2
    assert states(near) == {"peer2": "connected", "peer3": "connected"}


def test_a_client_says_that_nobody_answers(lab):
    hub = Hub(lab, clients=1)
    far = hub.client(2)
    far.await_log("not connected: no answer from")
    (tunnel,) = far.show()["tunnels"]
    assert tunnel["connected"] is False and "no answer" in tunnel["connection"]["why"]
    hub.server()
    far.await_log("connected to", timeout=40)
    await_reached(hub.clients[0], inner(1))


def test_a_server_that_was_killed_has_its_clients_back(lab):
    """A client whose packets are not answered says hello by itself."""
    hub = Hub(lab, clients=2)
    near, _ = hub.connect()
    near.process.kill()
    near = hub.server()
    for host in hub.clients:
        await_reached(host, inner(1))
    assert set(states(near).values()) == {"connected"}


def test_a_recorded_hello_moves_nobody(lab):
    """Neither from the client's address, nor from another one, nor after a restart of the server."""
    hub = Hub(lab, clients=1)
    recorded = hub.host.capture("eth0", f"udp and dst port {PORT} and src host {outer(2)}")
    near, (far,) = hub.connect()
    packets = recorded.await_packets(2)
    hello = [packet.payload for packet in packets]
    assert [len(payload) for payload in hello] == [128, 128]

    def replay():
        for payload in hello:
            hub.lan.host.send_udp(hub.lan.ADDRESS, PORT, outer(1), PORT, payload)
            hub.lan.host.send_udp(outer(2), PORT, outer(1), PORT, payload)

    challenged = hellos(near)["challenged"]
    replay()
    await_(lambda: hellos(near)["challenged"] == challenged + 4, what="four challenges")
    assert peers(near)["peer2"]["remote"] == at(2)
    assert hellos(near)["admitted"] == 1
    far.process.send_signal(signal.SIGKILL)
    near.process.kill()
    near = hub.server()
    replay()
    await_(lambda: hellos(near) == {"challenged": 4}, what="four challenges")
    assert states(near) == {"peer2": "new"}


@pytest.mark.parametrize("isolated", [2, 3])
def test_an_isolated_peer_reaches_the_server_alone(lab, isolated):
    hub = Hub(lab, clients=3)
    hub.name(isolated, isolate=True)
    near, _ = hub.connect()
    two, three, four = hub.clients
    assert reaches(two, inner(1)) and reaches(three, inner(1))
    for one, other in ((two, inner(3)), (three, inner(2))):
        no_answer(one, other)
    other = two if isolated == 3 else three
    assert reaches(other, inner(4)) and reaches(four, inner(1))
    assert near.show()["dropped"]["tx_isolated"]["packets"] > 0


def test_an_older_server_takes_hellos_as_authentication_packets(lab):
    """It never answers them; the client says so, and its data tells whether it is connected."""
    server, client = ipipou.neighbours(lab)
    keys = ipipou.Keys(server)
    near = ipipou.server(server, "--datapath", "tun", keys=keys)
    knows = ["--auth-remote-pubkey-b64", ipipou.Keys(server).public]
    far = ipipou.client(client, "--datapath", "tun", *knows, keys=keys)
    near.await_log("tunnel up")
    ipipou.reach_each_other(server, client)
    far.await_log("never answers: give --protocol 1")
    await_(lambda: far.show()["tunnels"][0]["connected"], what="a client that hears data")
    assert far.process.stop() == 0
    sent = server.capture("eth0", "udp and dst port 10000")
    far = ipipou.client(client, "--datapath", "tun", *knows, "--protocol", "1", keys=keys)
    (packet, *_) = sent.await_packets(1)
    assert len(packet.payload) == 73


def test_peers_are_added_disabled_and_removed_by_commands(lab):
    """The files are changed, what is in them besides stays, and the running server takes them at once."""
    hub = Hub(lab, clients=2)
    hub.forget(3)
    kept = "# Shops.\n[peer.old]   # Eva knows\n"
    key = ipipou.Keys(hub.host).public
    hub.write("shops.toml", f'{kept}public-key = "{key}"\naddress = "10.8.0.3"\n# the end\n')
    near = hub.server(name="hub0")
    hub.client(2).await_log("connected to")
    conf = hub.write_conf()

    def peer(*words, code=0):
        argv = ["ipipou", "peer", *words, "-i", conf, "--runtime-root", near.root]
        done = hub.host.run(argv, check=False)
        assert done.returncode == code, done
        return done.stdout + done.stderr

    # 1 is the server's, 2 and 3 are taken.
    said = peer("add", "anna", "--public-key", hub.keys[3].public, "--expires", "2099-01-31")
    assert "anna: added with 10.8.0.4 (" in said
    assert "1 added, 0 changed, 0 removed, 2 untouched" in said
    assert oct((hub.peers / "anna.toml").stat().st_mode)[-3:] == "600"
    assert peers(near)["anna"]["addresses"] == [inner(4)]
    assert "anna: unchanged" in peer("add", "anna", "--public-key", hub.keys[3].public)
    text = (hub.peers / "anna.toml").read_text()
    assert "expires = 2099-01-31" in text
    assert "is there already" in peer("add", "anna", "--public-key", key, code=2)
    # What would be a mistake is not written.
    said = peer("add", "bob", "--public-key", key, "--address", inner(2), code=2)
    assert len(said.splitlines()) == 2 and "peer bob and peer old" in said, said
    assert not (hub.peers / "bob.toml").exists()
    far = hub.client(3, "--tunl-ip", inner(4))
    far.await_log("connected to")

    said = peer("disable", "anna", "old")
    assert "anna: disabled" in said and "0 added, 2 changed" in said
    assert states(near) == {"peer2": "connected", "anna": "disabled", "old": "disabled"}
    assert (hub.peers / "shops.toml").read_text().startswith(kept)
    assert "anna: unchanged" in peer("disable", "anna")
    assert "no peer is called eve" in peer("enable", "eve", code=2)
    assert "anna: enabled" in peer("enable", "anna")
    far.reauthenticate()
    await_state(near, "anna", "connected")
    assert "0 added, 0 changed, 2 removed, 1 untouched" in peer("remove", "anna", "old")
    assert states(near) == {"peer2": "connected"}
    assert [path.name for path in hub.peers.iterdir()] == ["peer2.toml"]
    # With a file that its client is started with.
    file = hub.peers.parent / "eva.conf"
    said = peer("add", "eva", "--client-conf", file, "--server-host", outer(1))
    assert "eva: added with 10.8.0.3" in said and f"file is {file}" in said
    assert oct(file.stat().st_mode)[-3:] == "600"
    assert "exists" in peer("add", "eve", "--client-conf", file, code=1)
    assert not (hub.peers / "eve.toml").exists()
    assert far.process.stop() == 0
    alone = Tunnel(hub.clients[1], "--config", file, *hub.datapath)
    alone.await_log("connected to")
    await_reached(hub.clients[1], inner(1))
    near.process.stop()
    said = peer("add", "anna", "--public-key", hub.keys[3].public)
    assert "the server is not running" in said


def test_a_server_makes_its_key_at_its_first_start(lab):
    hub = Hub(lab, clients=1)
    conf = hub.write_conf(key=False)

    def say(*words, code=0):
        done = hub.host.run(["ipipou", *words, *root], check=False)
        assert done.returncode == code, done
        return done.stdout + done.stderr

    def start(ready=True):
        return Tunnel(hub.host, "--config", conf, *hub.datapath, name="hub0", ready=ready)

    root = ["--runtime-root", lab.directory / "nowhere"]
    file = hub.peers.parent / "eva.conf"
    add = ["peer", "add", "eva", "--client-conf", file, "--server-host", outer(1), "-i", conf]
    assert "has no key yet" in say(*add, code=2) and not file.exists()
    assert "has no key yet" in say("pubkey", conf, code=1)
    near = start()
    public = near.show()["peers"]["public_key"]
    log = near.process.output()
    assert f"public key of this server: {public}" in log and "server.key: this server's key" in log
    kept = near.state / "server.key"
    assert oct(kept.stat().st_mode)[-3:] == "600"
    root = ["--runtime-root", near.root]
    assert say("pubkey", conf).strip() == public
    assert "eva: added" in say(*add)
    far = Tunnel(hub.clients[0], "--config", file, *hub.datapath)
    far.await_log("connected to")
    # Ever after.
    near.process.kill()
    near = start()
    assert near.show()["peers"]["public_key"] == public
    assert near.process.stop() == 0
    # Never another one in silence.
    text = kept.read_text()
    for bad, words in (("", "is damaged"), (text[:50], "is damaged")):
        kept.write_text(bad)
        near = start(ready=False)
        assert near.process.wait() == 2
        assert re.search(f"ipipou: .*server.key: {words}", near.process.output())
        assert kept.read_text() == bad
    kept.write_text(text)
    kept.chmod(0o644)
    near = start(ready=False)
    assert near.process.wait() == 2
    assert "server.key: other users can read this key" in near.process.output()
    kept.chmod(0o600)
    moved = kept.rename(kept.with_suffix(".moved"))
    kept.symlink_to(moved)
    near = start(ready=False)
    assert near.process.wait() == 2 and "is a symbolic link" in near.process.output()


def test_old_servers_that_cannot_be_moved_leave_everything_as_it_was(lab):
    """Everything that hinders all of them is said at once, with file and line."""
    hub = Hub(lab, clients=1)
    conf = hub.write_conf("number 100")
    before = sorted(hub.peers.iterdir())
    old = hub.peers.parent / "old"
    old.mkdir()
    for number, lines in enumerate((["auth-token x"], ["auth-by-remote-ip", "r 192.0.2.1"]), 1):
        lines = ["server", "b @eth0", f"number {number}", *lines]
        (old / f"server{number}.conf").write_text("\n".join(lines))
    # As a shell makes it from server*.conf.
    argv = ["sh", "-c", f"cd {old} && exec ipipou peer import server*.conf -i {conf}"]
    done = hub.host.run(argv, check=False)
    assert done.returncode == 2
    said = done.stderr.replace("ipipou: ./", "").splitlines()
    assert [line.split(": ")[0] for line in said] == [
        "server1.conf:3",
        "server2.conf:4",
        "server2.conf",
        "server2.conf:3",
    ]
    assert "the client has 172.28.0.3 inside the tunnel, which no host of 10.8.0.0/24" in said[0]
    assert sorted(hub.peers.iterdir()) == before


def test_secrets_in_files_that_everybody_reads_cause_a_warning(lab):
    hub = Hub(lab, clients=2)
    hub.name(2, secret=SECRET)
    secret = hub.peers / "secret"
    secret.write_text(SECRET)
    hub.name(3, secret_file=str(secret))
    for path in (hub.peers / "peer2.toml", secret):
        path.chmod(0o644)
    hub.peers.chmod(0o755)
    near = hub.server()
    what = f"{hub.peers}/peer2.toml, {secret} hold secrets and every user can read them: chmod o-r "
    assert near.process.output().count(what) == 1
    said = hub.host.run(["ipipou", "reload", "--runtime-root", near.root])
    assert said.startswith(f"warning: {what}") and "2 untouched" in said
    for path in (hub.peers / "peer2.toml", secret):
        path.chmod(0o640)
    assert "warning" not in hub.host.run(["ipipou", "reload", "--runtime-root", near.root])


def test_new_peers_have_addresses_from_the_pool(lab):
    hub = Hub(lab, clients=1)
    conf = hub.write_conf("pool 10.8.0.64/30,fd08::5:0/112", f"ip6 {inner6(1)}/64")

    def add(name, *words, code=0):
        key = ipipou.Keys(hub.host).public
        argv = ["ipipou", "peer", "add", name, "--public-key", key, "-i", conf, *words]
        done = hub.host.run(argv, check=False)
        assert done.returncode == code, done
        return done.stdout + done.stderr

    assert "one: added with 10.8.0.65, fd08::5:1 (" in add("one")
    assert "own: added with 10.8.0.9 (" in add("own", "--address", "10.8.0.9")
    assert "two: added with 10.8.0.66, fd08::5:2 (" in add("two", "--address", "auto")
    said = add("three", code=2)
    assert said.startswith("ipipou: 10.8.0.64/30 has no free address: ") and said.count("\n") == 1
    assert not (hub.peers / "three.toml").exists()
    assert "stands alone" in add("four", "--address", "auto", "--address", "10.8.0.9", code=2)
    hub.write_conf("pool 10.9.0.0/24")
    said = add("five", code=2)
    assert f"{conf}:7: pool: 10.9.0.0/24 is not within the server's network 10.8.0.0/24" in said


class Crowd:
    """Peers that a test plays, at one address: behind one NAT, each has a port of its own."""

    def __init__(self, hub, host, address, count):
        self.address = address
        self.players, lines = {}, []
        for number in range(count):
            key = base64.b64encode(os.urandom(32)).decode()
            player = Client(key, hub.keys[1].public, SECRET)
            inside = f"10.8.1.{number}" if number else "10.8.1.250"
            lines += [f"[peer.played{number}]", f'public-key = "{player.public_text}"']
            lines += [f'address = "{inside}"', f'lifetime = "{LIFETIME}"', ""]
            socket = host.udp_socket(address, 20000 + number, timeout=0)
            self.players[number] = (player, socket, inside)
        hub.write("crowd.toml", "\n".join(lines))

    def come_back(self, within):
        """All of them say hello, each again after a second without an answer; how long that takes."""
        begin = time.monotonic()
        said = dict.fromkeys(self.players, float("-inf"))
        left = dict(self.players)
        while left:
            now = time.monotonic()
            assert now - begin < within, f"{len(left)} are not back after {within} s"
            for number, (player, socket, _) in list(left.items()):
                if now - said[number] >= 1:
                    player.cookie = None  # the server was started again
                    socket.sendto(player.hello(), (outer(1), PORT))
                    said[number] = now
                with contextlib.suppress(BlockingIOError):
                    match player.hear(socket.recv(2048)):
                        case 0x81:
                            socket.sendto(player.hello(), (outer(1), PORT))
                            said[number] = now
                        case 0x82:
                            del left[number]
        return time.monotonic() - begin


def test_two_hundred_peers_behind_one_address_are_back_soon_after_a_restart(lab):
    hub = Hub(lab, clients=3, prefix=16)
    crowd = Crowd(hub, hub.clients[0], outer(2), 197)
    near, _ = hub.connect()
    crowd.come_back(within=8)
    assert set(states(near).values()) == {"connected"}
    near.process.kill()
    near = hub.server()
    crowd.come_back(within=8)
    # The three that are real say hello when their data is not answered.
    for host in hub.clients:
        await_reached(host, inner(1))
    assert len(states(near)) == 200 and set(states(near).values()) == {"connected"}
    # Each is where it is.
    for _, socket, inside in crowd.players.values():
        hub.host.run(["ping", "-c1", "-W0.01", inside], check=False)
        socket.settimeout(5)
        packet = socket.recv(2048)
        assert (packet[0] >> 4, packet[16:20]) == (4, ipaddress.ip_address(inside).packed)


def test_hellos_are_answered_while_many_peers_are_checked(lab):
    hub = Hub(lab, clients=1, prefix=16)
    crowd = Crowd(hub, hub.clients[0], outer(2), 1)
    near = hub.server()
    crowd.come_back(within=8)
    ((player, socket, _),) = crowd.players.values()
    socket.settimeout(5)
    lines = []
    for number in range(3000):
        key = base64.b64encode(bytes(nacl.signing.SigningKey(os.urandom(32)).verify_key)).decode()
        lines += [f"[peer.many{number}]", f'public-key = "{key}"']
        lines += [f'address = "10.8.{2 + number // 250}.{1 + number % 250}"', ""]
    hub.write("many.toml", "\n".join(lines))
    near.process.send_signal(signal.SIGHUP)
    answered = 0
    while "3000 added, 0 changed, 0 removed, 2 untouched" not in near.process.output():
        socket.sendto(player.hello(signed=False), (outer(1), PORT))
        assert player.hear(socket.recv(2048)) == 0x82
        answered += 1
    assert answered >= 2, "not only once they were checked"
