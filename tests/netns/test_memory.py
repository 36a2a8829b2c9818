"""What a server remembers of authentication packets: on a slow disk, a full one, and after a loss."""

import base64
import json
import os
import pathlib
import subprocess
import time

import nacl.signing
import pytest

import ipipou
from first_version import signed
from ipipou import CLIENT, SECRET, SERVER, STRANGER, await_, reach_each_other
from many_ends import TUN, dropped

PORT = 10000
LEARN = ["--learn", "--tunl-ip", "10.9.0.1/16"]


@pytest.fixture
def lan(lab):
    return ipipou.Lan(lab)


def send(lan, packet, source=CLIENT, port=PORT):
    host = lan.stranger if source == STRANGER else lan.client
    host.send_udp(source, port, SERVER, PORT, packet)


# -- the disk -------------------------------------------------------------------------------


@pytest.fixture
def slow_disk(tmp_path):
    """A command that starts a program whose disk takes 20 ms to write, and the number of writes."""
    library, log = tmp_path / "slow_disk.so", tmp_path / "writes"
    source = pathlib.Path(__file__).with_name("slow_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O", "-o", library, source], check=True)
    log.touch()
    prefix = ["env", f"LD_PRELOAD={library}", f"SLOW_DISK_LOG={log}"]
    return prefix, lambda: log.stat().st_size


class Crowd:
    """Clients with one key, each with an address and a port of its own; one program sends for all.

    Few at one address: a server looks at few packets of one source."""

    def __init__(self, lan, keys, count):
        self.key = nacl.signing.SigningKey(base64.b64decode(keys.private))
        addresses = [f"203.0.113.{100 + i}" for i in range(100)]
        lan.client.batch(*(f"addr add {address}/24 dev eth0" for address in addresses))
        self.sockets = [
            lan.client.udp_socket(addresses[i % len(addresses)], 20000 + i) for i in range(count)
        ]

    def sign(self):
        while True:
            message = int(time.time()).to_bytes(5, "big") + os.urandom(4)
            packet = self.key.sign(message + SECRET.encode()).signature + message
            if packet[0] >= 0x80:
                return packet

    def authenticate(self, pause):
        for sock in self.sockets:
            sock.sendto(self.sign(), (SERVER, PORT))
            time.sleep(pause)  # the rate at which they come

    def close(self):
        for sock in self.sockets:
            sock.close()


def test_a_thousand_clients_and_a_slow_disk(lan, slow_disk):
    """None is dropped, and refreshes cost no writing of their own."""
    prefix, writes = slow_disk
    keys = ipipou.Keys(lan.server)
    options = [*LEARN, "--learn-limit", "2000", *TUN]
    near = ipipou.server(lan.server, *options, keys=keys, prefix=prefix)
    crowd = Crowd(lan, keys, 1000)
    crowd.authenticate(0.01)
    await_(lambda: near.show()["accepted"] >= 1000, what="all clients")
    assert (near.show()["accepted"], near.rejected()) == (1000, {})
    assert len(near.show()["tunnels"][0]["remotes"]) == 1000
    # Again: a keepalive of 27 seconds, or a little more often on a fast machine.
    before, since = writes(), time.monotonic()
    crowd.authenticate(0.015)
    await_(lambda: near.show()["accepted"] >= 2000, what="all once more")
    took = time.monotonic() - since
    assert (near.show()["accepted"], near.rejected()) == (2000, {})
    assert not [why for why in dropped(near) if why.startswith("control")]
    assert writes() - before <= took / 10 + 2
    crowd.close()
    # All of them are known at the next start.
    assert near.process.stop() == 0
    near.start()
    assert len(near.show()["tunnels"][0]["remotes"]) == 1000


def test_two_hundred_clients_in_the_same_second(lan):
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *LEARN, "--learn-limit", "2000", *TUN, keys=keys)
    crowd = Crowd(lan, keys, 200)
    second = int(time.time())
    packets = [signed(keys.private, seconds=second) for _ in crowd.sockets]
    for sock, packet in zip(crowd.sockets, packets, strict=True):
        sock.sendto(packet, (SERVER, PORT))
        time.sleep(0.005)
    crowd.close()
    await_(lambda: near.show()["accepted"] >= 200, what="all clients")
    assert (near.show()["accepted"], near.rejected()) == (200, {})


def test_a_tunnel_moves_although_the_disk_refuses(lan):
    """The tunnel moves all the same, and that is said."""
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    send(lan, signed(keys.private))
    near.await_log("tunnel up")
    for file in near.state.iterdir():
        file.unlink()
    near.state.rmdir()
    near.state.touch()
    packet = signed(keys.private)
    send(lan, packet, port=PORT + 1)
    near.await_log("moved from")
    near.await_log("memory.json: .*: a restart will forget replays")
    # As long as it runs it forgets nothing.
    send(lan, packet, STRANGER)
    near.await_rejected(replayed=1)


# -- losses ---------------------------------------------------------------------------------


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def bend(file):
    text = file.read_text()
    file.write_text(text.replace('"newest":1', '"newest":0', 1))
    assert text != file.read_text()


def empty(file):
    file.write_bytes(b"")


LOSSES = {"truncated": truncate, "bent": bend, "empty": empty, "removed": pathlib.Path.unlink}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES.keys())
def test_captured_packets_stay_refused_after_a_loss(lan, lose):
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    captured, held_back = (signed(keys.private, seconds=int(time.time()) - n) for n in (60, 30))
    send(lan, captured)
    near.await_accepted(1)  # a first start takes any time
    assert near.process.stop() == 0
    lose(near.state / "memory.json")
    before = lan.server.snapshot()
    for _ in range(2):  # a loss is not forgotten by the next start
        near.start()
        for packet in (captured, held_back):
            send(lan, packet, STRANGER)
        near.await_rejected(older_than_start=2)
        assert lan.server.snapshot() == before
        near.process.kill()
    near.start()
    send(lan, signed(keys.private, seconds=int(time.time()) + 2))
    near.await_log("tunnel up")


class Many:
    """A server whose memory is so large that what comes is added to it; packets of one second."""

    def __init__(self, lan):
        self.lan, self.packets = lan, []
        keys = ipipou.Keys(lan.server)
        self.near = ipipou.server(lan.server, *LEARN, *TUN, keys=keys)
        self.state, self.records = self.near.state, self.near.state / "memory.records"
        crowd = Crowd(lan, keys, 120)
        crowd.authenticate(0.01)
        self.near.await_accepted(120)
        crowd.close()
        self.sign = lambda: signed(keys.private, seconds=self.second)
        self.second = int(time.time())

    def come(self, count):
        for _ in range(count):
            self.packets.append(self.sign())
            send(self.lan, self.packets[-1], port=PORT + len(self.packets))
            self.near.await_accepted(120 + len(self.packets))

    def killed_and_started(self):
        self.near.process.kill()
        self.near.start()
        for packet in self.packets:
            send(self.lan, packet, STRANGER)


@pytest.fixture
def many(lan):
    return Many(lan)


def test_records_that_were_half_written(many):
    """A crash while a line is added: what is whole counts."""
    many.come(2)
    many.near.process.kill()
    lines = many.records.read_bytes().splitlines()
    assert len([line for line in lines if b"Accepted" in line]) >= 2, lines
    with many.records.open("ab") as file:
        file.write(lines[-1][:40])
    many.killed_and_started()
    many.near.await_rejected(replayed=2)


def test_damaged_records_are_a_loss(many):
    many.come(2)
    many.near.process.kill()
    many.records.write_text(many.records.read_text().replace("Accepted", "accepted", 1))
    many.killed_and_started()
    many.near.await_log("the records beside it are damaged")
    many.near.await_rejected(older_than_start=2)


def test_a_memory_that_is_removed_while_it_is_in_use(many):
    """What is written next is all of it, and not what is to be added to a file that is gone."""
    many.come(2)
    assert many.records.exists()
    for file in many.state.iterdir():
        file.unlink()
    many.come(1)
    many.killed_and_started()
    many.near.await_rejected(replayed=3)


@pytest.mark.parametrize("make", [pathlib.Path.mkdir, os.mkfifo], ids=["directory", "fifo"])
def test_where_nothing_can_be_added_all_is_written(many, make):
    many.come(1)
    many.records.unlink()
    make(many.records)
    many.come(2)
    many.near.process.kill()
    assert "a restart will forget" not in many.near.process.output()
    if many.records.is_dir():
        many.records.rmdir()
    many.killed_and_started()
    many.near.await_rejected(replayed=3)


def test_a_small_memory_is_written_as_a_whole(lan):
    """A version that does not read the records finds all of it, a crash or not."""
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    for count in (1, 2, 3):
        send(lan, signed(keys.private), port=PORT + count)
        near.await_accepted(count)
    near.process.kill()
    assert not (near.state / "memory.records").exists()
    remembered = json.loads((near.state / "memory.json").read_text())
    assert remembered["authenticated"][0] == f"{CLIENT}:{PORT + 3}"


def test_a_refresh_cannot_be_replayed_after_a_crash(lan):
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    send(lan, signed(keys.private))
    near.await_accepted(1)
    refresh = signed(keys.private)
    send(lan, refresh)
    near.await_accepted(2)
    near.process.kill()
    near.start()
    send(lan, refresh, STRANGER)
    near.await_rejected(older_than_start=1)
    assert near.show()["accepted"] == 0


def test_a_client_may_start_before_its_server(lan):
    """Without keepalive: it tries again until the server is there."""
    keys = ipipou.Keys(lan.server)
    far = ipipou.client(lan.client, *TUN, "--keepalive", "0", keys=keys)
    far.await_log("nothing has come back from 203.0.113.1:10000 so far")
    near = ipipou.server(lan.server, *TUN, keys=keys)
    near.await_log("tunnel up", timeout=60)
    reach_each_other(lan.server, lan.client)
    # Then it is quiet.
    sent = far.show()["sent"]
    reach_each_other(lan.server, lan.client)
    assert far.show()["sent"] <= sent + 1
