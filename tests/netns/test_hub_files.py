"""The files of a server's peers (--peers), and the commands about them: what a change, a mistake and a first
start do."""

import json
import re

import pytest

import ipipou
from hub import PORT, Hub, await_state, inner, inner6, peers, reload, states
from ipipou import SECRET, Tunnel
from lab import await_
from lan import await_reached, outer, reaches

HEADINGS = ["PEER", "STATE", "REMOTE", "ADDRESS", "SEEN", "RTT", "RX", "TX"]


def at(i, port=PORT):
    return f"{outer(i)}:{port}"


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
    # A disabled peer hears it, and only after it has shown that it is there.
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


def test_a_command_takes_no_peers_away_that_are_elsewhere(lab):
    """The file was edited since the start of the server, or what it names is not mounted."""
    hub = Hub(lab, clients=1)
    near = hub.server(name="hub0")
    hub.client(2).await_log("connected to")
    conf, key = hub.write_conf(), ipipou.Keys(hub.host).public

    def refused(*words):
        argv = ["ipipou", "peer", *words, "-i", conf, "--runtime-root", near.root]
        done = hub.host.run(argv, check=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
        assert states(near) == {"peer2": "connected"}
        return done.stderr

    right, elsewhere = conf.read_text(), hub.peers.parent / "other.d"
    conf.write_text(right.replace(str(hub.peers), str(elsewhere)))
    said = refused("add", "anna", "--public-key", key)
    assert f"runs with the peers in {hub.peers}, and its file says {elsewhere}" in said
    assert not elsewhere.exists()
    conf.write_text(right)
    away = hub.peers.rename(elsewhere)
    assert "runs with 1 peers of it" in refused("add", "anna", "--public-key", key)
    assert "runs with 1 peers of it" in refused("remove", "peer2")
    assert not hub.peers.exists()
    away.rename(hub.peers)
    argv = ["ipipou", "peer", "add", "anna", "--public-key", key, "-i", conf]
    assert "1 added, 0 changed, 0 removed, 1 untouched" in hub.host.run(
        [*argv, "--runtime-root", near.root]
    )


def etc_of(hub):
    """A directory with the server's file, and what starts a command for which it is /etc/ipipou."""
    etc = hub.peers.parent / "etc"
    etc.mkdir()
    (etc / "hub0.conf").write_text(hub.write_conf().read_text())
    script = f'mkdir -p /etc/ipipou && mount --bind {etc} /etc/ipipou && exec "$@"'
    return etc, ["unshare", "-m", "sh", "-c", script, "sh"]


def test_a_file_with_a_mistake_may_be_the_one_that_is_meant(lab):
    hub = Hub(lab, clients=1)
    etc, prefix = etc_of(hub)
    argv = [*prefix, "ipipou", "peer", "disable", "peer2"]
    argv += ["--runtime-root", hub.peers.parent / "nowhere"]
    (etc / "client0.conf").write_text("remote PLACEHOLDER\n")  # it names no peers
    (etc / "hub1.conf").write_text("serverr\n  --peers=/nowhere\n")
    refused = hub.host.run(argv, check=False)
    assert refused.returncode == 2 and "hub1.conf:1: " in refused.stderr, refused
    assert "client0" not in refused.stderr
    assert "which server is meant? give its file, -i NAME" in refused.stderr
    (etc / "hub1.conf").unlink()
    assert "peer2: disabled" in hub.host.run(argv)


def test_a_tunnel_that_was_started_by_hand_has_the_name_of_its_file(lab):
    """Its directory is called after its interface."""
    hub = Hub(lab, clients=1)
    etc, prefix = etc_of(hub)
    near = Tunnel(hub.host, "--config", "hub0", *hub.datapath, prefix=prefix)
    assert near.directory.name == "ipipou0"
    hub.client(2).await_log("connected to")

    def say(*words, code=0):
        argv = [*prefix, "ipipou", *words, "--runtime-root", near.root]
        done = hub.host.run(argv, check=False)
        assert done.returncode == code, done
        return done.stdout + done.stderr

    assert "ipipou0" in say("show", "hub0")
    assert "connected" in say("peer", "list", "-i", "hub0")
    assert "connected" in say("peer", "show", "peer2", "-i", "hub0")
    assert "its session is over" in say("peer", "kick", "peer2", "-i", "hub0")
    assert "1 untouched" in say("reload", "hub0")
    assert "this is a server" in say("ping", "-i", "hub0", code=2)
    watched = [*prefix, "ipipou", "monitor", "-i", "hub0", "--runtime-root", near.root]
    watcher = hub.host.spawn(watched)
    watcher.await_output("watching")
    watcher.stop()
    # Nobody else is called so.
    other = (etc / "hub0.conf").read_text() + "\ntunl-dev hub7\n"
    (etc / "hub1.conf").write_text(other)
    assert "no running tunnel is called hub1" in say("show", "hub1", code=1)
    (etc / "hub1.conf").write_text("serverr\n")
    said = say("show", "hub1", code=1)
    assert "hub1.conf:1: " in said and "no running tunnel is called hub1" in said


@pytest.mark.parametrize("by", ["service", "hand"])
def test_a_reload_tells_every_mistake_in_the_file(lab, by):
    """As the check does, whoever runs the server; it goes on with what it has."""
    hub = Hub(lab, clients=1)
    etc, prefix = etc_of(hub)
    near = hub.server(name={"service": "hub0", "hand": "ipipou0"}[by])
    hub.client(2).await_log("connected to")
    good = (etc / "hub0.conf").read_text()
    hub.name(2, note="another")
    for text, named in (
        ("serverr\nfou-local-port 77777\n" + good, ["hub0.conf:1: ", "hub0.conf:2: "]),
        (good.replace("fou-dev eth0\n", ""), ["our end of the tunnel is missing"]),
        (good.replace("auth-secret", "auth-secret-file /nowhere/"), ["/nowhere/"]),
    ):
        (etc / "hub0.conf").write_text(text)
        told = {}
        for command in ("check", "reload"):
            argv = [*prefix, "ipipou", command, "hub0"]
            argv += ["--runtime-root", near.root] if command == "reload" else []
            done = hub.host.run(argv, check=False)
            told[command] = done.returncode, done.stderr
        assert told["reload"] == told["check"] and told["check"][0] == 2, told
        assert all(words in told["reload"][1] for words in named), told
    (etc / "hub0.conf").write_text(good)
    done = hub.host.run([*prefix, "ipipou", "reload", "hub0", "--runtime-root", near.root])
    assert "1 changed" in done


def test_a_check_by_root_names_what_a_service_cannot_read(lab):
    """The service of a file runs as a user of its own; systemd hands over the file alone."""
    hub = Hub(lab, clients=1)
    etc, prefix = etc_of(hub)
    etc.chmod(0o755)
    conf, key = etc / "hub0.conf", etc / "key"
    lines = conf.read_text().splitlines()
    conf.write_text("\n".join([*lines[:4], "auth-key-file /etc/ipipou/key", *lines[5:]]))
    key.write_text(hub.keys[1].private)
    key.chmod(0o600)
    check = [*prefix, "ipipou", "check"]
    why = (
        "warning: /etc/ipipou/key: the service ipipou@hub0 has a user of its own and cannot read it:"
        " put it into /etc/ipipou/hub0.conf as `auth-key-b64`, which systemd hands over\n"
    )
    assert hub.host.run([*check, "hub0"]).count(why) == 1
    assert "the service" not in hub.host.run([*check, "/etc/ipipou/hub0.conf"])  # no service's name
    conf.write_text("\n".join(lines))
    assert "the service" not in hub.host.run([*check, "hub0"])


def test_a_relative_path_of_peers_is_refused_where_no_server_tells_what_it_is(lab):
    """The command may be typed in any directory."""
    hub = Hub(lab, clients=1)
    etc, prefix = etc_of(hub)
    conf = etc / "hub0.conf"
    conf.write_text(conf.read_text().replace(str(hub.peers), "peers.d"))
    script = f'cd {hub.peers.parent} && exec "$@"'
    argv = [*prefix, "sh", "-c", script, "sh", "ipipou", "peer", "disable", "peer2", "-i", "hub0"]
    before = sorted(path.name for path in hub.peers.parent.iterdir())
    done = hub.host.run([*argv, "--runtime-root", hub.peers.parent / "nowhere"], check=False)
    assert done.returncode == 2 and "`peers peers.d`: that is in the directory where" in done.stderr
    assert sorted(path.name for path in hub.peers.parent.iterdir()) == before


def test_a_service_has_not_the_name_of_another_file_with_its_interface(lab):
    """Two files may have the same interface, of which one runs at a time, or each in its network namespace."""
    hub = Hub(lab, clients=1)
    etc, prefix = etc_of(hub)
    near = hub.server(name="hub1")  # a service of root's
    for name in ("hub0", "hub1", "ipipou0"):
        argv = [*prefix, "ipipou", "show", name, "--runtime-root", near.root]
        done = hub.host.run(argv, check=False)
        if name == "hub0":
            assert done.returncode == 1 and "no running tunnel is called hub0" in done.stderr, done
        else:
            assert done.returncode == 0 and "ipipou0" in done.stdout, done


def test_peers_are_added_disabled_and_removed_by_commands(lab):
    """The files are changed, what else is in them stays, and the running server takes them at once."""
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
