"""What a server remembers of authentication packets: on a slow disk, a full one, and after a loss."""

import base64
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


def test_a_disk_that_refuses(lan):
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
def test_a_loss_does_not_make_captured_packets_good(lan, lose):
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


def came_and_moved(lan, keys, near):
    """A client whose move is in the records and not yet in the file; returns its packets."""
    packets = []
    for port in (PORT, PORT + 1):
        packets.append(signed(keys.private))
        send(lan, packets[-1], port=port)
        near.await_accepted(len(packets))
    near.process.kill()
    records = near.state / "memory.records"
    assert records.read_text().count("Accepted") == 2, records.read_text()
    return packets, records


def test_records_that_were_half_written(lan):
    """A crash while a line is added: what is whole counts."""
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    packets, records = came_and_moved(lan, keys, near)
    with records.open("ab") as file:
        file.write(records.read_bytes().splitlines()[-1][:40])
    near.start()
    for packet in packets:
        send(lan, packet, port=PORT + 1)
    near.await_rejected(replayed=2)


def test_damaged_records_are_a_loss(lan):
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    packets, records = came_and_moved(lan, keys, near)
    records.write_text(records.read_text().replace("Accepted", "accepted", 1))
    near.start()
    near.await_log("the records beside it are damaged")
    for packet in packets:
        send(lan, packet, STRANGER)
    near.await_rejected(older_than_start=2)


def test_a_crash_does_not_make_a_refresh_good_once_more(lan):
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


def test_a_client_that_is_there_before_its_server(lan):
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
