"""Commands that change the files of peers: beside each other, one after the other that was killed, and in
files that are not as usual."""

import os
import pathlib
import re
import signal
import subprocess
import tempfile

import pytest

import ipipou
from hub import Hub, await_state, inner, states
from lab import await_
from lan import await_reached, reaches


class Commands:
    """Commands for a server, whose `peers` may be one file."""

    def __init__(self, lab, *lines, file=None):
        self.hub = Hub(lab, clients=1)
        self.etc = self.hub.peers.parent
        self.conf = self.hub.write_conf(*lines)
        if file:
            text = self.conf.read_text().replace(str(self.hub.peers), str(file))
            self.conf.write_text(text)
        self.root = lab.directory / "nowhere"

    def argv(self, *words):
        return ["ipipou", "peer", *words, "-i", self.conf, "--runtime-root", self.root]

    def start(self, *words):
        """The same beside others; its output is read at the end."""
        argv = self.hub.host.inside([str(word) for word in self.argv(*words)])
        pipe, both = subprocess.PIPE, subprocess.STDOUT
        return subprocess.Popen(argv, stdout=pipe, stderr=both, text=True)

    def __call__(self, *words, code=0, timeout=30):
        argv = ["timeout", str(timeout), *self.argv(*words)]
        done = self.hub.host.run(argv, check=False, timeout=timeout + 5)
        assert done.returncode == code, done
        return done.stdout + done.stderr

    def key(self):
        return ipipou.Keys(self.hub.host).public

    def old_server(self, number, *lines, name=None):
        """The file of a server with one client, whose address fits into the network of the hub."""
        path = self.etc / (name or f"server{number}.conf")
        path.parent.mkdir(exist_ok=True)
        own = ["server", "b @eth0", f"n {number}", f"tunl-peer-ip {inner(100 + number)}"]
        path.write_text("\n".join([*own, "auth-secret s", *lines]))
        return path


@pytest.mark.parametrize("files", ["directory", "file", "first"])
def test_commands_that_change_peers_at_the_same_time_do_not_meet(lab, files):
    """Each peer has an address of its own, and none of the others' changes is lost."""
    file = lab.directory / "peers.toml" if files == "file" else None
    ask = Commands(lab, file=file)
    if files == "file":
        file.write_text("# Shops.\n")
    if files == "first":
        ask.hub.forget(2)
        ask.hub.peers.rmdir()
    names = [f"shop{n}" for n in range(6)]
    keys = [ask.key() for _ in names]
    running = [ask.start("add", name, "--public-key", key) for name, key in zip(names, keys)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * 6, said
    addresses = {re.search(r"added with (\S+) \(", line)[1] for line in said}
    assert len(addresses) == 6, said
    checked = ask.hub.host.run(["ipipou", "check", ask.conf])
    assert f"{7 if files == 'directory' else 6} peers, no mistakes" in checked
    running = [ask.start("remove", name) for name in names]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * 6, said
    assert not any(path.name.startswith(".ipipou") for path in ask.etc.rglob("*"))
    if files == "file":
        assert file.exists()


@pytest.mark.parametrize("become", ["sleep infinity", "su"], ids=["sleep", "setuid"])
def test_a_lock_of_an_unprivileged_process_keeps_no_peer_out(lab, become):
    """It lets no two commands through at once either, nor counts a program of root's that it became."""
    with tempfile.TemporaryDirectory() as etc:
        files = pathlib.Path(etc) / "peers.d"
        files.mkdir()
        pathlib.Path(etc).chmod(0o755)
        ask = Commands(lab, file=files)
        says_nothing = pathlib.Path(etc) / "says-nothing"
        os.mkfifo(says_nothing)
        says_nothing.chmod(0o666)
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        locks = ["flock", "--no-fork", etc, "flock", "--no-fork", files]
        becomes = ["sh", "-c", f"echo locked; exec {become} <>{says_nothing}"]
        holder = ask.hub.host.spawn([*nobody, *locks, *becomes])
        holder.await_output("Password" if become == "su" else "locked")
        keys = [ask.key() for _ in range(6)]
        running = [ask.start("add", f"n{n}", "--public-key", key) for n, key in enumerate(keys)]
        said = [process.communicate(timeout=20)[0] for process in running]
        assert [process.returncode for process in running] == [0] * 6, said
        assert len({re.search(r"added with (\S+) \(", line)[1] for line in said}) == 6, said
        assert not [path for path in pathlib.Path(etc).rglob(".*")]
        holder.stop()


def test_a_command_that_was_killed_is_made_good_by_the_next(lab):
    """It had written the files, and the server had not taken them."""
    ask = Commands(lab)
    near = ask.hub.server(name="hub0")
    ask.root = near.root
    key = ask.key()
    ask.hub.write("anna.toml", f'[peer.anna]\npublic-key = "{key}"\naddress = "{inner(9)}"\n')
    said = ask("add", "anna", "--public-key", key)
    assert "anna: unchanged" in said and "1 added, 0 changed, 0 removed" in said
    ask.hub.client(2).await_log("connected to")
    ask.hub.forget(2)
    assert "no peer is called peer2" in ask("remove", "peer2", code=2)
    assert list(states(near)) == ["anna"]
    old = ask.old_server(1, f"auth-remote-pubkey-b64 {ask.key()}")
    offline, ask.root = ask.root, lab.directory / "nowhere"
    assert "the server is not running" in ask("import", old)
    ask.root = offline
    assert "server1" not in states(near)
    said = ask("import", old)
    assert "server1: unchanged" in said and "1 added" in said and "now end the servers" in said
    assert "server1" in states(near)
    file = ask.etc / "eva.conf"
    for said in ("eva: added", "eva: unchanged"):
        assert said in ask("add", "eva", "--client-conf", file)
    file.unlink()
    said = ask("add", "eva", "--client-conf", file, code=2)
    assert "peer eva is there already, and not as asked" in said
    assert f", which {file} does not hold" in said
    among = ask.hub.peers / "eve.toml"
    assert "the directory of the peers files: choose" in ask(
        "add", "eve", "--client-conf", among, code=2
    )
    assert not among.exists()
    # A server that does not answer has not taken them.
    near.process.send_signal(signal.SIGSTOP)
    try:
        said = ask("disable", "anna", code=1, timeout=60)
    finally:
        near.process.send_signal(signal.SIGCONT)
    assert "anna: disabled" in said and "has not taken them: `ipipou reload hub0`" in said


def test_old_servers_whose_files_have_long_names_become_peers(lab):
    ask = Commands(lab)
    name = "n" * 63 + ".conf"
    files = [
        ask.old_server(n, f"auth-remote-pubkey-b64 {ask.key()}", name=f"{n}/{name}") for n in (1, 2)
    ]
    said = ask("import", *files)
    assert f"{'n' * 63}: from" in said and f"{'n' * 61}-2: from" in said
    said = ask("import", *files)
    assert said.count(": unchanged") == 2


def test_half_of_a_token_hinders_no_other_command(lab):
    ask = Commands(lab)
    old = ask.old_server(1, "auth-token a token")
    token = ask.hub.peers / "server1.token"
    token.write_text("a to")
    ask("import", old)
    assert token.read_text() == "a token\n"
    ask("remove", "server1")
    token.write_text("another one\n")
    said = ask("import", old, code=1)
    assert f"{token}: exists already: remove it" in said and token.read_text() == "another one\n"
    assert not (ask.hub.peers / "server1.toml").exists()


def test_imported_clients_are_let_in_whatever_the_defaults_are(lab):
    file = lab.directory / "peers.toml"
    file.write_text('[defaults]\nenabled = false\nexpires = 2020-01-01\nlifetime = "90s"\n')
    ask = Commands(lab, file=file)
    old = ask.old_server(1, f"auth-remote-pubkey-b64 {ask.key()}")
    ask("import", old)
    text = file.read_text()
    assert 'expires = "never"\nenabled = true\n' in text and "isolate" not in text
    assert "server1: unchanged" in ask("import", old)
    # Who is added otherwise has the defaults, which is said.
    said = ask("add", "anna", "--public-key", ask.key())
    assert f"anna: is disabled ({file}:" in said and "and not let in" in said
    ask("remove", "anna", "server1")
    assert file.read_text().startswith("[defaults]\nenabled = false\n")


def test_a_peers_file_stays_what_it_is(lab):
    """A link to it stays one, and it keeps its owner, group and permissions."""
    real = lab.directory / "elsewhere" / "real.toml"
    real.parent.mkdir()
    real.write_text("# Shops.\n")
    file = lab.directory / "peers.toml"
    file.symlink_to("elsewhere/real.toml")
    os.chown(real, 1234, 4321)
    real.chmod(0o644)
    ask = Commands(lab, file=file)
    ask("add", "anna", "--public-key", ask.key())

    def looks():
        status = real.stat()
        return status.st_uid, status.st_gid, oct(status.st_mode)[-3:]

    assert os.readlink(file) == "elsewhere/real.toml"
    assert looks() == (1234, 4321, "644")
    # A secret is for nobody else.
    ask("import", ask.old_server(1, f"auth-remote-pubkey-b64 {ask.key()}"))
    assert looks() == (1234, 4321, "640") and "secret" in real.read_text()


def test_a_file_that_is_mounted_by_itself_is_refused_as_it_is(lab, tmp_path):
    peers = tmp_path / "peers.toml"
    peers.touch()
    commands = Commands(lab, file=peers)
    commands("add", "one", "--public-key", commands.key(), "--address", inner(7))
    before, conf = peers.read_text(), tmp_path / "two.conf"
    command = [
        "add",
        "two",
        "--address",
        inner(8),
        "--client-conf",
        conf,
        "--server-host",
        "a.example",
    ]
    argv = " ".join(str(word) for word in commands.argv(*command))
    mounted = f"mount --bind {peers} {peers} && exec {argv}"
    done = commands.hub.host.run(["unshare", "--mount", "sh", "-c", mounted], check=False)
    assert (done.returncode, peers.read_text(), conf.exists()) == (1, before, False), done
    assert "peers.toml: is mounted by itself" in done.stderr and len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path).count("peers.toml") == 1
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".ipipou")]


def test_named_pipes_are_not_read(lab):
    """Nothing waits for somebody who writes into them; a shell's own pipe is read."""
    ask = Commands(lab)
    pipe = ask.etc / "server1.conf"
    os.mkfifo(pipe)
    assert f"{pipe}: cannot be read: is a named pipe" in ask("import", pipe, code=2, timeout=5)
    token = ask.hub.peers / "server2.token"
    os.mkfifo(token)
    old = ask.old_server(2, "auth-token a token")
    assert f"{token}: exists already" in ask("import", old, code=1, timeout=5)
    words = f"exec ipipou check --config <(cat {ask.conf})"
    assert "no mistakes" in ask.hub.host.run(["bash", "-c", words])
    done = ask.hub.host.run(
        ["timeout", "5", "ipipou", "check", ask.conf, "--auth-key-file", pipe], check=False
    )
    assert done.returncode == 2 and "is a named pipe" in done.stderr


def test_a_disk_that_hangs_holds_back_no_change(lab, tmp_path):
    """A peer that may not come in any more does not, and every command is answered."""
    library, hangs = tmp_path / "slow_disk.so", tmp_path / "hangs"
    source = pathlib.Path(__file__).with_name("slow_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O", "-o", library, source], check=True)
    ask = Commands(lab)
    prefix = ["env", f"LD_PRELOAD={library}", f"SLOW_DISK_GATE={hangs}"]
    near = ask.hub.server(prefix=prefix, name="hub0")
    ask.root = near.root
    ask.hub.client(2).await_log("connected to")
    await_reached(ask.hub.clients[0], inner(1))
    hangs.touch()
    ask.hub.name(2, enabled=False)
    near.process.send_signal(signal.SIGHUP)
    await_state(near, "peer2", "disabled")
    assert not reaches(ask.hub.clients[0], inner(1))
    ask.hub.name(2)
    said = ask.hub.host.run(["timeout", "5", "ipipou", "reload", "--runtime-root", near.root])
    assert "1 changed" in said
    hangs.unlink()
    # The last of both is kept.
    kept = near.state / "peers.json"
    await_(lambda: "enabled" not in kept.read_text(), what="the last good files")
    assert near.process.stop() == 0


def test_files_of_secrets_that_no_peer_names_any_more_are_listed(lab):
    """They stay: what else needs them is not known."""
    ask = Commands(lab)
    shared = lab.directory / "shared"
    shared.write_text("s\n")
    old = [ask.old_server(n, f"auth-token tok{n}") for n in (1, 2)]
    ask("import", *old)
    for n in (3, 4):
        text = f'[peer.p{n}]\npublic-key = "{ask.key()}"\naddress = "{inner(n)}"\n'
        (ask.hub.peers / f"p{n}.toml").write_text(f'{text}secret-file = "{shared}"\n')
    said = "stays, and no peer names it: remove it if nothing else needs it"
    token = ask.hub.peers / "server1.token"
    assert f"{token}: {said}\n" in ask("remove", "server1") and token.exists()
    assert said not in ask("remove", "p3")
    assert f"{shared}: {said}\n" in ask("remove", "p4") and shared.exists()
    # What stayed does no harm.
    ask("import", old[0])
    token.unlink()
    ask("remove", "server1", code=2)


def test_a_peer_is_unchanged_only_if_all_is_as_asked(lab):
    """A shorter time that is not taken would be a revocation that somebody relies on."""
    ask = Commands(lab)
    key, file = ask.key(), ask.hub.peers / "anna.toml"
    own = ["--public-key", key, "--route", "192.168.7.0/24"]
    ask("add", "anna", *own, "--address", inner(9), "--expires", "2099-01-31")
    text = file.read_text()
    for words in ([], ["--expires", "2099-01-31"], ["--address", inner(9)]):
        assert "anna: unchanged" in ask("add", "anna", *own, *words)

    def differs(*words, name="anna"):
        before = (ask.hub.peers / f"{name}.toml").read_text()
        said = ask("add", name, *words, code=2)
        assert len(said.splitlines()) == 1, said
        assert f"peer {name} is there already, and not as asked: " in said
        assert said.endswith(": change it there, or remove it first\n")
        assert (ask.hub.peers / f"{name}.toml").read_text() == before
        return said

    assert "its `expires` is 2099-01-31, not 2027-01-31:" in differs(
        *own, "--expires", "2027-01-31"
    )
    assert f"its `address` is {inner(9)}, not {inner(8)}:" in differs(*own, "--address", inner(8))
    said = differs("--public-key", ask.key(), "--expires", "2099-02-01")
    assert f"its `public-key` is {key}, not " in said
    assert "; its `route` is 192.168.7.0/24, not none; its `expires` is 2099-01-31, not" in said
    # A time, or none; the same day as a time is the same.
    for written, shown in (
        ("2027-01-31T18:30:15+01:30", "2027-01-31T17:00:15Z"),
        ('"never"', "never"),
    ):
        file.write_text(text.replace("2099-01-31", written))
        said = differs(*own, "--expires", "2027-01-31")
        assert f"its `expires` is {shown}, not 2027-01-31:" in said
    file.write_text(text.replace("2099-01-31", "2027-02-01T01:00:00+01:00"))
    assert "anna: unchanged" in ask("add", "anna", *own, "--expires", "2027-01-31")
    # One with the old program is none that says hello.
    file.write_text(text + "old = 10003\n")
    assert "its `old` is 10003, not none" in differs(*own)


def test_the_file_of_a_client_is_unchanged_only_if_its_server_is_as_asked(lab):
    ask = Commands(lab)
    file = ask.etc / "eva.conf"
    add = ["add", "eva", "--client-conf", file]
    ask(*add, "--server-host", "192.0.2.1")
    text = file.read_text()
    for words in ([], ["--server-host", "192.0.2.1"]):
        assert "eva: unchanged" in ask(*add, *words)
    for host, shown in (("vpn.example.org", "vpn.example.org"), ("fd00::7", "[fd00::7]")):
        said = ask(*add, "--server-host", host, code=2)
        assert len(said.splitlines()) == 1, said
        assert f"`fou-remote` in {file} is 192.0.2.1:10000, not {shown}: change it there" in said
        assert file.read_text() == text
    # Somebody has put another server behind it.
    file.write_text(text.replace("192.0.2.1:10000", "[fd00::7]:10000,VPN.example.org:10000"))
    for host in ("vpn.example.org", "fd00::7"):
        assert "eva: unchanged" in ask(*add, "--server-host", host)


def test_an_imported_peer_is_unchanged_only_if_its_proof_is(lab):
    ask = Commands(lab)
    old = ask.old_server(1, "auth-token a token")
    ask("import", old)
    assert "server1: unchanged" in ask("import", old)
    token = ask.hub.peers / "server1.token"
    ask.old_server(1, "auth-token another one")
    said = ask("import", old, code=2)
    assert "nothing was written" in said and "server1-2" in said
    assert token.read_text() == "a token\n" and not (ask.hub.peers / "server1-2.token").exists()
    # What somebody has written more neatly is the same.
    ask.old_server(1, "auth-token a token")
    file = ask.hub.peers / "server1.toml"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(["[peer.server1]", "# Shop 1.", *reversed(lines[2:])]) + "\n")
    assert "server1: unchanged" in ask("import", old)


def test_a_command_says_that_a_peer_is_still_kept_out(lab):
    ask = Commands(lab)
    old = ask.old_server(1, f"auth-remote-pubkey-b64 {ask.key()}")
    ask("import", old)
    assert "server1: is disabled" not in ask("disable", "server1")
    said = ask("import", old)
    assert "server1: unchanged" in said and "server1: is disabled (" in said
    key = ask.key()
    ask("add", "anna", "--public-key", key, "--expires", "2020-01-31")
    ask("disable", "anna")
    said = ask("enable", "anna")
    assert "anna: enabled" in said and "anna: is expired (" in said
    assert "is expired" in ask("add", "anna", "--public-key", key)
