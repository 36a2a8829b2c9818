"""Thousands of peers that come, move and go: the others lose nothing, and nobody is let in who went."""

import json
import pathlib
import re
import socket
import struct
import threading

import pytest

import ipipou
import packets
from control_v2 import ACCEPT, Client
from hub import Hub, reload
from hub import inner as member
from lab import await_
from many_ends import Lan, Table, dropped, hurry, inner, node, outer

pytestmark = pytest.mark.fast_path

FAST = ["--fast-path", "on"]
PORT = 10000
MANY = 10_000
# So many members of a hub come and move, each once: the next move of the same one would have to wait.
CROWD, GONE = 60, 9999
SO_NO_CHECK = 11  # asm-generic/socket.h


def without_checksums(host, address, port):
    """A UDP socket whose packets take the fast path of a host that has checked none for them."""
    bound = host.udp_socket(address, port)
    bound.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    return bound


def come(guest, bound):
    """The server lets a client in."""
    for _ in range(3):
        bound.sendto(guest.hello(), (outer(1), PORT))
        if guest.hear(bound.recv(2000)) == ACCEPT:
            return
    raise AssertionError("not let in")


class Sender:
    """Sends inner packets of an address from several ports, as fast as a test looks at them; each has the next
    number, the same from all ports."""

    def __init__(self, host, source, destination, ports):
        self.sockets = {port: without_checksums(host, outer(3), port) for port in ports}
        self.addresses = source, destination
        self.count = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.send, daemon=True)
        self.thread.start()

    def send(self):
        while not self.ended.wait(0.002):
            for port, bound in self.sockets.items():
                mark = struct.pack("!HI", port, self.count)
                bound.sendto(
                    packets.inner_icmp_echo(*self.addresses, payload=mark), (outer(1), PORT)
                )
            self.count += 1

    def stop(self):
        self.ended.set()
        self.thread.join()
        for bound in self.sockets.values():
            bound.close()


def let_in(seen):
    """The numbers of what came in, by port."""
    came = {}
    for packet in seen.packets():
        port, number = struct.unpack("!HI", packet.payload[8:14])
        came.setdefault(port, []).append(number)
    return came


def on_it(near):
    """How many remotes are on the fast path; None while the process is busy with thousands."""
    command = ["ipipou", "show", "--json", "--runtime-root", near.root, near.dev]
    done = near.host.run(command, check=False)
    return json.loads(done.stdout)[0]["fast_path"]["remotes"] if done.returncode == 0 else None


def entries(pid):
    """For how many entries there is room in the largest map of a process."""
    found = [path.read_text() for path in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir()]
    return max(int(room) for text in found for room in re.findall(r"max_entries:\s+(\d+)", text))


def test_thousands_are_added_moved_and_removed_under_traffic(lab, tmp_path):
    lan = Lan(lab, 3)
    others = {inner(i): {"host": outer(i)} for i in (1, 2)}
    table = Table(tmp_path / "hosts.json", others)
    near, far = (node(lan.hosts[i - 1], i, "--hosts-file", table.path, *FAST) for i in (1, 2))
    await_(lambda: on_it(near) == 1, what="the bystander on the fast path")

    def many(net, port):
        """All of them in this outer network, and host 3."""
        rows = {inner(3): {"host": outer(3), "port": port}}
        for n in range(MANY):
            end = f"{n // 250}.{n % 250 + 1}"
            rows[f"10.200.{end}"] = {"host": f"10.{net}.{end}"}
        return others | rows

    def change(rows, expected):
        table.write(rows)
        hurry(near)
        await_(lambda: on_it(near) == expected, 60, f"{expected} on the fast path", interval=0.3)

    by_datapath = lan.hosts[0].capture("ipipou0", f"dst {inner(2)}")
    ping = lan.hosts[1].ping_background(inner(1), 0.002)
    seen = lan.hosts[0].capture("ipipou0", f"src {inner(3)}")
    sender = Sender(lan.hosts[2], inner(3), inner(1), [PORT, PORT + 1])
    change(many(1, PORT), MANY + 2)
    seen.await_packets(1)
    made = near.process.output().count("install the fast path")
    table.write(many(2, PORT + 1))
    hurry(near)
    await_(lambda: near.process.output().count("install the fast path") > made, 60, "a move")
    await_(lambda: on_it(near) == MANY + 2, 60, "all on the fast path", interval=0.3)
    moved = sender.count
    await_(lambda: PORT + 1 in let_in(seen), what="packets of the new remote")
    change(others, 1)
    went = sender.count
    await_(lambda: sender.count > went + 100, what="packets of nobody")
    sender.stop()
    ping.stop_complete()
    came = let_in(seen)
    assert max(came[PORT]) <= moved and max(came[PORT + 1]) <= went
    assert min(came[PORT + 1]) > max(came[PORT])
    # What the program at the interface takes is not seen there.
    assert len(by_datapath.packets()) < ping.answers() / 10, "the bystander stays on the fast path"
    (tunnel,) = near.show()["tunnels"]
    of_guest = sum(map(len, came.values()))
    assert tunnel["rx_packets"] >= ping.answers() + of_guest, "all are counted"
    # They do not keep the room that thousands had.
    assert entries(near.process.pid) < MANY
    assert far.process.running()


def test_members_of_a_hub_come_move_and_go_under_traffic(lab):
    hub = Hub(lab, clients=2)
    guests = {}
    for n in range(20, 20 + CROWD):
        hub.keys[n] = ipipou.Keys(hub.host)
        hub.name(n)
        guests[n] = Client(hub.keys[n].private, hub.keys[1].public, ipipou.SECRET)
    near = hub.server(*FAST)
    hub.client(2).await_log("connected to")
    await_(lambda: on_it(near) == 1, what="the bystander on the fast path")
    by_datapath = hub.host.capture("ipipou0", f"dst {member(2)}")
    ping = hub.clients[0].ping_background(member(1), 0.002)
    seen = hub.host.capture("ipipou0", f"dst {member(1)} and not src {member(2)}")
    former = {}
    for move in range(2):
        for n, guest in guests.items():
            bound = without_checksums(hub.clients[1], outer(3), 20_000 + 1000 * move + n)
            come(guest, bound)
            for at, number in ((bound, 1000 * move + n), (former.get(n), GONE)):
                if at:
                    mark = struct.pack("!HI", n, number)
                    echo = packets.inner_icmp_echo(member(n), member(1), payload=mark)
                    at.sendto(echo, (outer(1), PORT))
            former[n] = bound
        await_(lambda: on_it(near) == 1 + CROWD, what="all on the fast path")
    for n in guests:
        hub.forget(n)
    reload(near)
    assert on_it(near) == 1
    for n, bound in former.items():
        echo = packets.inner_icmp_echo(member(n), member(1), payload=struct.pack("!HI", n, GONE))
        bound.sendto(echo, (outer(1), PORT))
    await_(lambda: dropped(near)["rx_stranger"] >= 2 * CROWD, what="data of nobody")
    ping.stop_complete()
    assert let_in(seen) == {n: [n, 1000 + n] for n in guests}
    # What the program at the interface takes is not seen there.
    assert not by_datapath.packets(), "the bystander stays on the fast path"
