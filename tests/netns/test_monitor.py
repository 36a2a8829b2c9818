"""`ipipou monitor`: what happens to a tunnel, a line each, for hooks."""

import json
import re
import signal
import socket
import subprocess
import threading
import time

from control_v2 import Client
from hub import PORT, Hub, hellos, reload
from ipipou import SECRET
from lab import await_
from lan import outer


def at(i, port=PORT):
    return f"{outer(i)}:{port}"


class Watcher:
    """One `ipipou monitor --json`, which is known to follow."""

    def __init__(self, end, *options):
        command = ["ipipou", "monitor", *options, "--runtime-root", end.root, "-i", end.dev]
        self.process = end.host.spawn(command)
        self.process.await_output("watching")

    def lines(self):
        """Its lines so far, but for what it says on standard error."""
        lines = self.process.output().splitlines()
        return [line for line in lines if line and not line.startswith("ipipou: ")]

    def events(self):
        return [json.loads(line) for line in self.lines()]

    def await_event(self, kind, **fields):
        """The first event like this; all are of the first version."""

        def found():
            for event in self.events():
                assert event["schema"] == 1 and event["tunnel"] == "ipipou0"
                if event["event"] == kind and fields.items() <= event.items():
                    return event

        await_(found, what=f"{kind} {fields} in {self.process.output()}")
        return found()


def test_a_server_tells_of_its_peers(lab):
    hub = Hub(lab, clients=2)
    near = hub.server()
    all_of_it, of_one = Watcher(near, "--json"), Watcher(near, "--json", "--peer", "peer3")
    text = Watcher(near)
    two, three = hub.client(2), hub.client(3)
    up = all_of_it.await_event("peer-up", peer="peer2")
    assert (up["remote"], up["from"], up["why"], up["missed"]) == (at(2), None, None, None)
    two.process.kill()
    two = hub.client(2, "--fou-local-port", 10007)
    moved = all_of_it.await_event("peer-moved", peer="peer2")
    assert (moved["remote"], moved["from"]) == (at(2, 10007), at(2))
    two.process.stop()
    down = all_of_it.await_event("peer-down", peer="peer2")
    assert down["why"] == "it said goodbye"
    three.await_log("connected to")
    hub.name(3, enabled=False)
    reload(near)
    changed = all_of_it.await_event("reloaded")
    assert changed["why"] == "0 added, 1 changed, 0 removed, 1 untouched"
    three.reauthenticate()
    refused = all_of_it.await_event("refused", peer="peer3")
    assert (refused["remote"], refused["why"]) == (at(3), "it is disabled")
    hub.write("broken.toml", "[peer.x]\nadress = 1\n")
    reload(near)
    assert "broken.toml:1: peer x" in all_of_it.await_event("reload-failed")["why"]
    hub.host.run("ip link set ipipou0 down")
    assert all_of_it.await_event("repaired")["why"] == "set ipipou0 up"
    # Who asks for one peer gets no more.
    of_one.await_event("refused")
    kinds = [event["event"] for event in of_one.events()]
    assert kinds[:3] == ["peer-up", "peer-down", "refused"], kinds
    assert {event["peer"] for event in of_one.events()} == {"peer3"}
    assert any(
        line.endswith(f"ipipou0 peer-moved peer2 at {at(2, 10007)} from {at(2)}")
        for line in text.lines()
    ), text.lines()
    for watcher, number in ((all_of_it, signal.SIGINT), (text, signal.SIGTERM)):
        watcher.process.send_signal(number)
        assert watcher.process.wait() == 0
    near.process.stop()
    assert of_one.process.wait() == 1
    assert "the tunnel's process has ended" in of_one.process.output()


def test_two_hosts_with_one_key_are_an_event(lab):
    hub = Hub(lab, clients=2)
    hub.forget(3)
    hub.keys[3] = hub.keys[2]
    near = hub.server()
    watcher = Watcher(near, "--json", "--peer", "peer2")
    one = hub.client(2)
    watcher.await_event("peer-up", remote=at(2))
    other = hub.client(3)
    watcher.await_event("peer-moved", remote=at(3))
    one.reauthenticate()
    watcher.await_event("peer-moved", remote=at(2))
    other.reauthenticate()
    rivals = watcher.await_event("rivals", peer="peer2")
    assert (rivals["remote"], rivals["from"]) == (at(2), at(3))
    assert rivals["why"] == "two hosts have its key"
    near.await_log(f"{at(2)} and {at(3)} take the tunnel of peer2 from each other")


def test_a_client_tells_of_its_server(lab):
    hub = Hub(lab, clients=1)
    far = hub.client(2)
    watcher = Watcher(far, "--json")
    said = watcher.await_event("not-connected", remote=at(1))
    assert "no answer from" in said["why"]
    near = hub.server()
    far.reauthenticate()
    watcher.await_event("connected", remote=at(1))
    hub.name(2, enabled=False)
    reload(near)
    far.reauthenticate()
    is_disabled = lambda e: "we are disabled there" in (e["why"] or "")  # noqa: E731
    await_(lambda: any(map(is_disabled, watcher.events())), what="why it is not let in")
    kinds = [event["event"] for event in watcher.events()]
    assert kinds[0] == kinds[-1] == "not-connected" and "connected" in kinds


def test_a_slow_reader_is_let_go_and_holds_nobody_up(lab):
    hub = Hub(lab, clients=1)
    hub.name(2, enabled=False)
    near = hub.server()
    slow, quick = Watcher(near, "--json"), Watcher(near, "--json")
    slow.process.send_signal(signal.SIGSTOP)
    # A peer that is disabled is refused as often as it comes.
    player = Client(hub.keys[2].private, hub.keys[1].public, SECRET)
    socket = hub.clients[0].udp_socket(outer(2), PORT, timeout=5)
    socket.sendto(player.hello(), (outer(1), PORT))
    assert player.hear(socket.recv(2048)) == 0x81
    hello, times = player.hello(), 4000
    for sent in range(1, times + 1):
        socket.sendto(hello, (outer(1), PORT))
        socket.recv(2048)
        if sent % 200 == 0:  # even the quick one may get no processor for a while
            await_(lambda: len(quick.lines()) >= sent, what="them for the quick one")  # noqa: B023
    assert hellos(near)["refused"] == len(quick.lines()) == times
    slow.process.send_signal(signal.SIGCONT)
    assert slow.process.wait() == 1
    *before, last = slow.events()
    assert last["event"] == "missed" and 0 < last["missed"] < times
    assert len(before) + last["missed"] <= times
    assert {event["event"] for event in before} == {"refused"}
    assert "events were missed" in slow.process.output()


def test_there_are_a_few_readers_at_most(lab):
    hub = Hub(lab, clients=0)
    near = hub.server()
    readers = [Watcher(near) for _ in range(8)]
    command = ["ipipou", "monitor", "--runtime-root", near.root]
    done = hub.host.run(command, check=False)
    assert done.returncode == 1 and "8 others watch this tunnel already" in done.stderr
    # One that goes makes room, although nothing happens that it could hear of.
    readers[0].process.stop()
    again = ["timeout", "--signal=INT", "1", *command]
    await_(lambda: hub.host.run(again, check=False).returncode == 124, what="room for another one")


class Silent:
    """A process that answers nothing but what it is: the status of another one."""

    def __init__(self, lab, status):
        self.root = lab.directory / "run-silent"
        (self.root / "silent0").mkdir(parents=True)
        self.status = json.dumps(status).encode()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.root / "silent0" / "request.sock"))
        self.listener.listen()
        self.asked, self.answer = [], b""
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            stream, _ = self.listener.accept()
            request = b"".join(iter(lambda: stream.recv(65536), b""))
            if b'"monitor"' in request:
                stream.sendall(self.answer)
                self.asked.append(stream)
            else:
                stream.sendall(self.status)
                stream.close()


def test_a_monitor_that_hears_nothing_can_be_ended(lab):
    hub = Hub(lab, clients=0)
    near = hub.server()
    silent = Silent(lab, near.show())
    command = ["ipipou", "monitor", "--runtime-root", silent.root]
    for count, number in enumerate((signal.SIGINT, signal.SIGTERM), start=1):
        watcher = hub.host.spawn(command)
        await_(lambda: len(silent.asked) == count, what="its question")
        time.sleep(0.2)
        watcher.send_signal(number)
        assert watcher.wait(5) == 0
    # A terminal that goes takes it along, as it does any other program.
    watcher = hub.host.spawn(command)
    await_(lambda: len(silent.asked) == 3, what="its question")
    watcher.send_signal(signal.SIGHUP)
    assert watcher.wait(5) == -signal.SIGHUP
    watcher = hub.host.spawn(command)
    await_(lambda: len(silent.asked) == 4, what="its question")
    for stream in silent.asked:
        stream.close()
    assert watcher.wait(5) == 1
    assert "the tunnel's process has ended" in watcher.output()


def test_a_monitor_ends_with_its_reader(lab):
    hub = Hub(lab, clients=0)
    near = hub.server()
    silent = Silent(lab, near.show())
    for end in (silent.root, near.root):
        argv = hub.host.inside(["ipipou", "monitor", "--runtime-root", end])
        watcher = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        watcher.stdout.close()
        try:
            assert watcher.wait(5) == 0
        finally:
            watcher.kill()


def test_what_a_process_says_does_not_control_the_terminal(lab):
    hub = Hub(lab, clients=0)
    near = hub.server()
    silent = Silent(lab, near.show())
    why = "a\u009b2Jb\u007f\u0085\u202ec"
    event = {"schema": 1, "at": 1, "tunnel": "t\u009b", "event": "refused", "peer": None}
    event |= {"remote": None, "from": None, "why": why, "missed": None}
    said = {"ipipou": 1, "ok": True, "text": "", "path": None}
    lines = [json.dumps(said), json.dumps(event, ensure_ascii=False), ""]
    silent.answer = "\n".join(lines).encode()
    for words in ([], ["--json"]):
        watcher = hub.host.spawn(["ipipou", "monitor", *words, "--runtime-root", silent.root])
        watcher.await_output("refused")
        assert not re.search(r"[\x7f-\x9f\u202e]", watcher.output()), ascii(watcher.output())
        if words:
            shown = [line for line in watcher.output().splitlines() if line.startswith("{")]
            assert json.loads(shown[0])["why"] == why
