#!/usr/bin/env python3
"""What a server costs whose peers are named in files: see benches/scale.sh.

    peers.py [--peers 10000] [--seconds 60] [--rounds 5] [--only start,memory,reload,speed]

The clients are simulated, at one address, a port for each; for the speed one more is real. All run on the
userspace datapath, in namespaces of this machine.
"""

import argparse
import base64
import contextlib
import json
import pathlib
import resource
import select
import signal
import statistics
import sys
import tempfile
import time

import nacl.signing

TOP = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "tests" / "lib"))

import lab as laboratory  # noqa: E402
from control_v2 import Client  # noqa: E402
from hub import PORT, Hub, inner  # noqa: E402
from ipipou import SECRET, Tunnel  # noqa: E402
from lan import await_reached, outer  # noqa: E402

READY = {1_000: 0.2, 10_000: 1.0}  # seconds from the start
CONFIGURED, CONNECTED = 1.5, 3.0  # KiB of each peer
HELD = 5.0  # ms that a reload may hold up a hello more than without it
SPEED = 0.95  # of that with one peer
CROWD = 1_000  # connected peers beside the one whose speed counts
KEEPALIVE = 27
SEED = bytes(range(32))


def as_services_run(start):
    """Without the log of a test, which has a line for each packet."""

    def started(tunnel, ready=True):
        tunnel.argv = ["-v" if word == "-vvv" else word for word in tunnel.argv]
        return start(tunnel, ready)

    return started


Tunnel.start = as_services_run(Tunnel.start)


def public(number):
    """A key that only its number tells apart."""
    key = nacl.signing.SigningKey(number.to_bytes(4, "big") + SEED[4:])
    return base64.b64encode(bytes(key.verify_key)).decode(), base64.b64encode(bytes(key)).decode()


def crowd(count, note=""):
    """A file that names a number of peers; the last one has the note."""
    lines = ["[defaults]", 'lifetime = "10m"']
    for number in range(count):
        address = f"10.8.{1 + number // 250}.{1 + number % 250}"
        lines += [f"[peer.p{number}]", f'public-key = "{public(number)[0]}"']
        lines += [f'address = "{address}"']
    return "\n".join([*lines, f'note = "{note}"' if count else "", ""])


class Fleet:
    """Simulated clients."""

    def __init__(self, hub, host, address, count):
        self.players, self.poll = {}, select.epoll()
        for number in range(count):
            socket = host.udp_socket(address, 20_000 + number, timeout=0)
            player = Client(public(number)[1], hub.keys[1].public, SECRET)
            self.players[socket.fileno()] = (player, socket)
            self.poll.register(socket, select.EPOLLIN)

    def say(self, fd, **how):
        player, socket = self.players[fd]
        socket.sendto(player.hello(**how), (outer(1), PORT))

    def answers(self, timeout=0):
        """What came, as the client and the kind of the answer."""
        for fd, _ in self.poll.poll(timeout):
            player, socket = self.players[fd]
            with contextlib.suppress(BlockingIOError):
                yield fd, player.hear(socket.recv(2048))

    def connect(self, rate=500):
        """All of them say hello, each again after two seconds without an answer."""
        left, due = set(self.players), {fd: n / rate for n, fd in enumerate(self.players)}
        begin = time.monotonic()
        while left:
            now = time.monotonic() - begin
            for fd in [fd for fd in left if due[fd] <= now]:
                self.say(fd)
                due[fd] = now + 2
            for fd, kind in self.answers(0.01):
                if kind == 0x81:
                    self.say(fd)
                elif kind == 0x82:
                    left.discard(fd)
            assert now < 600, f"{len(left)} are not in"

    def keepalives(self, seconds):
        """Each says hello once within a time; how many were answered by an accept."""
        begin, accepted, order = time.monotonic(), 0, list(self.players)
        pause, said = KEEPALIVE / len(order), 0
        while (now := time.monotonic() - begin) < seconds:
            while said * pause < now:
                self.say(order[said % len(order)], signed=False)
                said += 1
            accepted += sum(kind == 0x82 for _, kind in self.answers(0.005))
        return accepted

    def round_trips(self, until):
        """Milliseconds of one client's keepalives, one after the other, until `until()`."""
        fd, times = next(iter(self.players)), []
        while not until(times):
            begin = time.monotonic()
            self.say(fd, signed=False)
            while not any(one == fd and kind == 0x82 for one, kind in self.answers(1)):
                assert time.monotonic() - begin < 5, "no answer"
            times.append(1000 * (time.monotonic() - begin))
        return times


@contextlib.contextmanager
def hub_of(count, clients=1):
    with tempfile.TemporaryDirectory() as directory, laboratory.Lab(directory) as lab:
        hub = Hub(lab, clients=clients, prefix=16)
        if count:
            hub.write("crowd.toml", crowd(count))
        yield hub


def start(hub):
    """A server that is ready, and how long that took."""
    begin = time.monotonic()
    near = hub.server(ready=False)
    laboratory.await_(lambda: "ready on" in near.process.output(), 60, "ready", 0.002)
    return near, time.monotonic() - begin


def starts(options):
    for count in sorted({min(count, options.peers) for count in READY}):
        times = []
        for _ in range(3):
            with hub_of(count) as hub:
                times.append(start(hub)[1])
        took, most = statistics.median(times), READY.get(count, READY[10_000])
        yield f"{count} peers: ready after {took:.3f} s", took <= most


def memory(options):
    with hub_of(0) as hub:
        none = laboratory.resident(start(hub)[0].process.pid)
    with hub_of(options.peers) as hub:
        near, _ = start(hub)
        pid = near.process.pid
        configured = laboratory.resident(pid)
        each = (configured - none) / options.peers
        yield f"{each:.2f} KiB of each peer that is not connected", each <= CONFIGURED
        fleet = Fleet(hub, hub.clients[0], outer(2), options.peers)
        fleet.connect()
        each = (laboratory.resident(pid) - none) / options.peers
        yield f"{each:.2f} KiB of each peer that is connected", each <= CONNECTED
        io = pathlib.Path(f"/proc/{pid}/io")
        written = lambda: int(io.read_text().split("write_bytes: ")[1].split()[0])  # noqa: E731
        before, cpu = written(), laboratory.processor_time(pid)
        accepted = fleet.keepalives(options.seconds)
        bytes_of_disk = written() - before
        share = (laboratory.processor_time(pid) - cpu) / 1e9 / options.seconds
        assert accepted > 0.9 * options.peers * options.seconds / KEEPALIVE, accepted
        said = f"{bytes_of_disk} bytes to the disk in {options.seconds} s of {accepted} keepalives"
        yield f"{said}, {share:.2%} of a processor", bytes_of_disk == 0


def reloads(options):
    """Between a change of the files and the line that says it, nothing is held up."""
    with hub_of(options.peers) as hub:
        near, _ = start(hub)
        fleet = Fleet(hub, hub.clients[0], outer(2), 1)
        fleet.connect()
        idle = fleet.round_trips(lambda times: len(times) >= 3000)
        held = []
        for number in range(5):
            hub.write("crowd.toml", crowd(options.peers, f"change {number}"))
            seen = len(near.process.output())
            near.process.send_signal(signal.SIGHUP)
            said = lambda _: "1 changed" in near.process.output()[seen:]  # noqa: E731
            held.append(max(fleet.round_trips(said)))
        more = statistics.median(held) - statistics.quantiles(idle, n=100)[98]
        said = f"a hello waits {statistics.median(held):.2f} ms at most during a reload"
        yield f"{said}, {more:.2f} ms more than else", more <= HELD


def speed(pair, seconds):
    """Bits per second of TCP, and packets per second of UDP that arrive."""
    hub, client = pair
    loads = {"TCP": ["-O", "1"], "UDP": ["-u", "-l", "200", "-b", "0", "-w", "208K"]}
    figures = {}
    for what, load in loads.items():
        argv = ["iperf3", "-J", "-c", inner(1), "-t", seconds, *load]
        end = json.loads(client.run(argv, timeout=seconds + 30))["end"]
        if what == "TCP":
            figures[what] = end["sum_received"]["bits_per_second"]
        else:
            end = end["sum"]
            figures[what] = (end["packets"] - end["lost_packets"]) / end["seconds"]
    return figures


def speeds(options):
    """Both servers run all the time, so that a round compares what is measured at the same time."""
    with contextlib.ExitStack() as stack:
        pairs = {}
        for crowded in (False, True):
            count = min(CROWD, options.peers) if crowded else 0
            hub = stack.enter_context(hub_of(count, clients=2 if crowded else 1))
            hub.server()
            if crowded:
                hub.fleet = Fleet(hub, hub.clients[1], outer(3), count)
                hub.fleet.connect()
            hub.client(2).await_log("connected to")
            await_reached(hub.clients[0], inner(1))
            hub.host.spawn(["iperf3", "-s", "--forceflush"]).await_output("listening")
            pairs[crowded] = hub, hub.clients[0]
        ratios = {"TCP": [], "UDP": []}
        for number in range(options.rounds):
            order = [False, True] if number % 2 else [True, False]
            found = {crowded: speed(pairs[crowded], 5) for crowded in order}
            for what, of in ratios.items():
                of.append(found[True][what] / found[False][what])
        for what, of in ratios.items():
            ratio = statistics.median(of)
            said = f"{what} with {CROWD} connected peers is {ratio:.2f} of that with one"
            yield said, ratio >= SPEED


PARTS = {"start": starts, "memory": memory, "reload": reloads, "speed": speeds}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (options.peers + 1000, options.peers + 1000))
    missed, found = False, []
    for part in options.only.split(","):
        for said, met in PARTS[part](options):
            missed |= not met
            found.append(said)
            print(f"{'ok' if met else 'MISSED'}: {said}", flush=True)
    places = pathlib.Path("target/bench")
    places.mkdir(parents=True, exist_ok=True)
    (places / "peers.json").write_text(json.dumps(found, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
