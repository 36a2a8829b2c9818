"""The socket for requests: who waits for something long keeps nobody else from being answered, and nothing that
passes ends it."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import ipipou
import pytest
from hub import Hub
from lab import await_

# What nobody may have to wait for longer.
PROMPT = 3


def timed(host, *argv, check=True, timeout=30):
    """Runs a command; what came of it, and how many seconds it took."""
    begin = time.monotonic()
    done = host.run(["ipipou", *argv], check=False, timeout=timeout)
    took = time.monotonic() - begin
    assert not check or done.returncode == 0, done
    return done, took


def descriptors(pid):
    return [int(name) for name in os.listdir(f"/proc/{pid}/fd")]


def test_pings_beside_each_other_hold_nobody_up(lab):
    hub = Hub(lab, clients=1)
    far = hub.client(2)  # its server is silent: each ping takes as long as one can
    client, root = hub.clients[0], ["--runtime-root", far.root]
    far.await_log("no answer from")
    begin = time.monotonic()
    askers = [client.spawn(["ipipou", "ping", "-c1", *root]) for _ in range(100)]
    time.sleep(2)
    for words in (["show"], ["reload"], ["show", "--json"], ["reload"]):
        _, took = timed(client, *words, *root)
        assert took < PROMPT, (words, took)
    # Those that ask for the same have the same answer.
    assert [asker.wait(30) for asker in askers] == [1] * len(askers)
    assert time.monotonic() - begin < 15
    assert all("no answer from" in asker.output() for asker in askers)


def test_no_hello_is_sent_for_a_caller_that_has_gone(lab):
    hub = Hub(lab, clients=2)
    hub.forget(3)
    near, standby = hub.server(), hub.standby(3)
    far = hub.client(2, *hub.servers(3))
    far.await_log("connected to")
    client = hub.clients[0]
    standby.process.kill()
    gone = ["ipipou", "ping", "-c1", "--runtime-root", far.root]
    askers = [client.spawn([*gone, f"10.0.0.{i % 2 * 2 + 1}"]) for i in range(40)]
    time.sleep(1.5)
    for asker in askers:
        asker.kill()
    _, took = timed(client, "ping", "-c1", "--runtime-root", far.root)
    assert took < 5, took


def test_a_socket_outlives_a_failed_accept(lab):
    hub = Hub(lab, clients=1)
    near = hub.server()
    pid, root = near.process.pid, ["--runtime-root", near.root]
    full = f"--nofile={max(descriptors(pid)) + 1}:4096"
    subprocess.run(["prlimit", "--pid", str(pid), full], check=True)
    filled = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for number, one in enumerate(filled):
        # The first may take a number that is free below the limit.
        name = "request.sock" if number % 2 else "control.sock"
        one.connect(str(near.directory / name))
    near.await_log("Too many open files", timeout=5)
    time.sleep(2)
    subprocess.run(["prlimit", "--pid", str(pid), "--nofile=1024:4096"], check=True)
    for one in filled:
        one.close()
    await_(
        lambda: timed(hub.host, "peer", "kick", "peer2", *root, check=False)[0].returncode == 0,
        what="an answer",
    )
    assert "its session is over" in timed(hub.host, "peer", "kick", "peer2", *root)[0].stdout
    assert near.process.output().count("Too many open files") <= 4


@pytest.fixture
def slow_files(tmp_path):
    """A prefix with which a process cannot keep good files of peers, and the file that makes it so."""
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    library, source = tmp_path / "slow_disk.so", pathlib.Path(__file__).with_name("slow_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return [
        "env",
        f"LD_PRELOAD={library}",
        f"SLOW_DISK_GATE={tmp_path / 'gate'}",
    ], tmp_path / "gate"


def test_reloads_are_answered_in_order_and_hold_nobody_up_while_the_disk_hangs(lab, slow_files):
    prefix, gate = slow_files
    hub = Hub(lab, clients=2)
    near = hub.server(prefix=prefix)
    root = ["--runtime-root", near.root]
    gate.touch()  # from now on the disk does not answer
    for i in 2, 3, 2:
        hub.name(i, note=f"changed, as {i} of {time.monotonic()}")
        done, took = timed(hub.host, "reload", *root)
        assert "1 changed" in done.stdout and took < PROMPT, (done, took)
        for words in (["peer", "kick", f"peer{i}"], ["show"], ["peer", "list"]):
            _, took = timed(hub.host, *words, *root)
            assert took < PROMPT, (words, took)
    gate.unlink()


def test_a_process_that_stands_still_is_waited_for_a_limited_time(lab):
    hub = Hub(lab, clients=1)
    near = hub.server()
    root = ["--runtime-root", near.root]
    waiting = []
    near.process.send_signal(signal.SIGSTOP)
    try:
        # More than fit into the queue of a socket.
        for _ in range(5000):
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            waiting.append(one)
            try:
                one.connect(str(near.directory / "request.sock"))
            except BlockingIOError:
                break
        done, took = timed(hub.host, "show", *root, "ipipou0", check=False)
        assert took < 15 and done.returncode == 1, (took, done)
    finally:
        near.process.send_signal(signal.SIGCONT)
        for one in waiting:
            one.close()


def test_a_process_that_stands_still_hides_no_other(lab):
    hub = Hub(lab, clients=0)
    near = hub.server()
    other = ipipou.server(hub.host, "--auth-token", "x", number=1)
    root = ["--runtime-root", near.root]
    near.process.send_signal(signal.SIGSTOP)
    try:
        for words in (["show", "ipipou1"], ["reload", "ipipou1"]):
            _, took = timed(hub.host, *words, *root)
            assert took < PROMPT, (words, took)
        # It is said that it is missing.
        done, took = timed(hub.host, "show", "--json", *root, check=False)
        assert took < 15 and done.returncode == 1
        assert [it["interface"] for it in json.loads(done.stdout)] == ["ipipou1"]
        assert "ipipou0/control.sock: timed out" in done.stderr, done.stderr
    finally:
        near.process.send_signal(signal.SIGCONT)
    assert other.process.stop() == 0


def test_processes_that_stand_still_hide_no_peers_of_another(lab):
    hub = Hub(lab, clients=1)
    near = hub.server()
    silent = [ipipou.server(hub.host, "--auth-token", "x", number=n) for n in (1, 2)]
    root = ["--runtime-root", near.root]
    for other in silent:
        other.process.send_signal(signal.SIGSTOP)
    try:
        done, took = timed(hub.host, "peer", "list", "--json", *root, check=False)
        assert done.returncode == 1 and "peer2" in done.stdout and took < 15, (took, done)
        # A line for each of them.
        lines = done.stderr.splitlines()
        assert ["ipipou1/" in lines[0], "ipipou2/" in lines[1]] == [True, True], lines
        done, _ = timed(hub.host, "peer", "show", "peer3", *root, check=False)
        assert done.returncode == 1 and "no peer is called peer3" in done.stderr, done
        # What changes something does not guess.
        done, _ = timed(hub.host, "peer", "kick", "peer2", *root, check=False)
        assert done.returncode == 1 and "which tunnel is meant?" in done.stderr, done
    finally:
        for other in silent:
            other.process.send_signal(signal.SIGCONT)
    assert [other.process.stop() for other in silent] == [0, 0]
