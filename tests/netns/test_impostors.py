"""A service that was taken over claims to be another one: it gets no files of peers and no secrets, and its key
is written into no file of a client."""

import json
import pathlib
import socket
import sys

import pytest

import ipipou
from hub import Hub
from ipipou import SECRET

# Listens as another user in a directory, where it says this status and has files of peers; it prints what it
# is sent.
IMPOSTOR = """
import json, os, socket, sys, threading
directory, status = sys.argv[1], sys.argv[2].encode()
listeners = []
for name in ("control.sock", "request.sock"):
    listeners.append(socket.socket(socket.AF_UNIX))
    listeners[-1].bind(f"{directory}/{name}")
    os.chown(f"{directory}/{name}", 65534, 65534)
os.chown(directory, 65534, 65534)
os.setgid(65534)
os.setuid(65534)
for listener in listeners:
    listener.listen()
def serve(listener, answer):
    while True:
        stream, _ = listener.accept()
        with stream:
            try:
                answer(stream)
            except OSError:
                pass
def asked(stream):
    parts = []
    while part := stream.recv(65536):
        parts.append(part)
    if not parts:
        return
    request = json.loads(b"".join(parts))["request"]
    if "show" in request:
        return stream.sendall(status)
    if "reload" in request:
        print("got", json.dumps(request), flush=True)
    answer = {"ipipou": 1, "ok": True, "text": "taken", "path": sys.argv[3]}
    stream.sendall(json.dumps(answer).encode())
for at in zip(listeners, (lambda stream: stream.sendall(status), asked)):
    threading.Thread(target=serve, args=at, daemon=True).start()
print("listens", flush=True)
threading.Event().wait()
"""


class Taken:
    """A hub whose process has ended, and a taken-over service that has its status, but for what it claims to be
    called on that host."""

    def __init__(self, lab, name, interface, key=True):
        self.hub = Hub(lab, clients=1)
        self.hub.name(2, secret=SECRET)
        self.conf = self.hub.write_conf(key=key)
        near = self.hub.server(name="hub0")
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(near.directory / "control.sock"))
            status = json.loads(b"".join(iter(lambda: stream.recv(65536), b"")))
        assert near.process.stop() == 0
        status["tunnels"][0]["interface"] = interface(self.hub.host)
        self.key = status["peers"]["public_key"] = ipipou.Keys(self.hub.host).public
        self.root = near.root
        directory = near.root / name
        directory.mkdir(exist_ok=True)
        argv = [sys.executable, "-c", IMPOSTOR, directory, json.dumps(status), self.hub.peers]
        self.process = self.hub.host.spawn([str(word) for word in argv])
        self.process.await_output("listens")

    def __call__(self, *words, code=0, prefix=()):
        argv = [*prefix, "ipipou", *words, "--runtime-root", self.root]
        done = self.hub.host.run(argv, check=False)
        assert done.returncode == code, done
        return done.stdout + done.stderr

    def etc(self, directory):
        """A prefix with which this directory is /etc/ipipou."""
        script = f'mkdir -p /etc/ipipou && mount --bind {directory} /etc/ipipou && exec "$@"'
        return ["unshare", "-m", "sh", "-c", script, "sh"]


@pytest.mark.parametrize("claims", ["hub0", "ipipou0"])
def test_a_claimed_name_brings_no_files(lab, claims):
    """The name of the file, or that of a process which was started by hand with it."""
    by_hand = lambda host: f"{host.netns}@ipipou0"  # noqa: E731
    taken = Taken(lab, "a", {"hub0": lambda _: "hub0", "ipipou0": by_hand}[claims])
    key = ipipou.Keys(taken.hub.host).public
    said = taken("peer", "add", "anna", "--public-key", key, "-i", taken.conf)
    assert "anna: added" in said and "the server is not running" in said
    prefix = taken.etc(taken.conf.parent)
    if claims == "hub0":
        said = taken("reload", "hub0", code=1, prefix=prefix)
        assert "no running tunnel is called hub0" in said
    assert "got" not in taken.process.output()
    # It is shown, as what it says.
    assert claims in taken("show")


def test_a_claimed_name_brings_no_key_into_the_file_of_a_client(lab):
    taken = Taken(lab, "a", lambda _: "hub0", key=False)
    file = pathlib.Path(lab.directory) / "eva.conf"
    said = taken("peer", "add", "eva", "--client-conf", file, "-i", taken.conf, code=2)
    assert "has no key yet" in said and not file.exists()
    assert taken.key not in taken("pubkey", taken.conf, code=1)


def test_a_service_of_another_user_gets_the_files_of_its_own_name(lab):
    taken = Taken(lab, "hub0", lambda _: "ipipou0")
    said = taken("reload", "hub0", prefix=taken.etc(taken.conf.parent))
    assert "taken" in said
    taken.process.await_output("got .*peer2.toml")


def test_files_that_root_reads_are_not_sent_on_to_another_user(lab):
    """The taken-over service has its name as a link to the socket of a process of root until that has said where
    its files are."""
    taken = Taken(lab, "a", lambda _: "ipipou7")
    near = taken.hub.server(name="hub0")
    (taken.root / "a" / "request.sock").rename(taken.root / "a" / "own.sock")
    (taken.root / "a" / "request.sock").symlink_to(near.directory / "request.sock")
    said = taken("reload", "a", code=2)
    assert "another user" in said
    assert near.process.stop() == 0
