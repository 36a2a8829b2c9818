"""A killed process of the userspace datapath, and the next one that goes on without losing a packet.

The service manager is simulated: it keeps the open files that it is sent, and starts the next process
with them, as systemd does (sd_notify(3), sd_listen_fds(3))."""

import array
import json
import os
import pathlib
import resource
import select
import signal
import socket
import struct
import sys
import threading

import pytest

import holders
import ipipou
import packets
from hub import Hub, MixedHub, await_state, inner, states
from ipipou import CLIENT, SERVER
from lab import await_
from lan import await_reached, outer
from names import names_of

# Run in place of the program: takes copies of the manager's open files, and becomes the program.
# pidfd_getfd(2) is system call 438 everywhere.
START = """
import ctypes, json, os, sys
manager, path, kept, *argv = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
pidfd = os.pidfd_open(int(manager))
names = []
copies = [(name, libc.syscall(438, pidfd, file, 0)) for name, file in json.loads(kept)]
high = [(name, os.dup2(copy, 100 + i)) for i, (name, copy) in enumerate(copies)]
for number, (name, copy) in enumerate(high, start=3):
    os.dup2(copy, number)
    names.append(name)
os.environ["NOTIFY_SOCKET"] = path
if names:
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(names))
    os.environ["LISTEN_FDNAMES"] = ":".join(names)
for file in range(3 + len(names), 200):
    try:
        os.close(file)
    except OSError:
        pass
os.execvp(argv[0], argv)
"""


class Manager:
    """Keeps open files by name, and is what a program is started through. A file that says that it failed is thrown
    out at once, unless it was sent with FDPOLL=0 (sd_pid_notify_with_fds(3))."""

    def __init__(self, directory):
        self.path = pathlib.Path(directory) / "notify.sock"
        self.kept = []
        self._polled = set()
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self):
        while True:
            if self._socket.fileno() not in self._drop_failed(timeout=None):
                continue
            message, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_LEN(16 * 4))
            if message == b"end":
                return
            files = array.array("i")
            for _, _, data in ancillary:
                files.frombytes(data)
            words = dict(word.split("=", 1) for word in message.decode().splitlines())
            with self._lock:
                if "FDSTOREREMOVE" in words:
                    self._drop(lambda name, _: name == words["FDNAME"])
                elif "FDSTORE" in words:
                    self.kept += [(words["FDNAME"], file) for file in files]
                    self._polled |= set(files if words.get("FDPOLL") != "0" else [])

    def _drop(self, which):
        dropped = {file for name, file in self.kept if which(name, file)}
        self.kept = [kept for kept in self.kept if kept[1] not in dropped]
        self._polled -= dropped
        for file in dropped:
            os.close(file)

    def _drop_failed(self, timeout):
        """Waits until a file fails or the program says something; the files that can be read, too."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        with self._lock:
            for file in self._polled:
                poll.register(file, 0)
        ready = dict(poll.poll(timeout))
        failed = {file for file, what in ready.items() if what & (select.POLLERR | select.POLLHUP)}
        with self._lock:
            self._drop(lambda _, file: file in failed & self._polled)
        return ready

    def names(self):
        return sorted(name for name, _ in self.kept)

    def prefix(self):
        """What a command line begins with, so that the program is handed all that is kept."""
        self._drop_failed(timeout=0)
        return [sys.executable, "-c", START, os.getpid(), self.path, json.dumps(self.kept)]

    def close(self):
        self._socket.sendto(b"end", str(self.path))
        self._thread.join()
        self._socket.close()
        for _, file in self.kept:
            os.close(file)


@pytest.fixture
def manager(tmp_path):
    made = Manager(tmp_path)
    yield made
    made.close()


def behind_nat(lab):
    """A server, and a client whose packets come from a port that a router chose."""
    server, client, router = lab.host("server"), lab.host("client"), lab.host("router")
    lab.link(server, "eth0", f"{SERVER}/24", router, "eth0", "203.0.113.254/24")
    lab.link(router, "eth1", "192.168.1.1/24", client, "eth0", "192.168.1.2/24")
    client.run("ip route add default via 192.168.1.1")
    lab.nat(router, "eth0", 20000, 20999)
    return server, client


@pytest.mark.parametrize("place", [ipipou.neighbours, behind_nat])
@pytest.mark.parametrize("queues", [1, 2])
def test_no_packet_is_lost_by_a_restart(lab, manager, place, queues):
    """The server is killed and started again under a running ping; the client notices nothing."""
    server, client = place(lab)
    keys = ipipou.Keys(server)
    more = ["--tun-queues", queues]
    near = ipipou.server(server, *more, keys=keys, prefix=manager.prefix())
    far = ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    await_(lambda: manager.names() == ["tun"] * queues + ["udp"], what="kept files")
    before = server.snapshot(ifindex=True)
    ping = client.ping_background("172.28.0.0", interval=0.02)
    await_(lambda: ping.answers() > 5, what="answers")

    near.process.kill()
    assert server.snapshot(ifindex=True) == before  # the interface stays, with all that is on it
    again = ipipou.server(server, *more, keys=keys, prefix=manager.prefix())
    remote = r"203\.0\.113\.254:20\d{3}" if place is behind_nat else f"{CLIENT}:10000"
    again.await_log(f"took over the running tunnel to {remote}")
    ping.await_answers(20)
    ping.stop_complete()

    # The client said nothing in the meantime, and the interface was not made again.
    assert again.show()["accepted"] == 0
    assert far.show()["sent"] == 1
    assert server.snapshot(ifindex=True) == before

    assert again.process.stop(signal.SIGTERM) == 0
    await_(lambda: not manager.names(), what="nothing kept")
    assert "ipipou0" not in server.run("ip link")


def test_a_client_goes_on_before_it_knows_where_its_server_is(lab, manager):
    """It leads everything into the tunnel, and is killed while nobody tells what its server's name stands for."""
    server, client = ipipou.neighbours(lab)
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    more = {"remote": "server.example:10000", "keys": keys}
    with names_of(client) as names:
        names.write_text(f"{SERVER} server.example\n")
        far = ipipou.client(client, "--default-route", prefix=manager.prefix(), **more)
        near.await_log("tunnel up")
        await_(lambda: "udp" in manager.names(), what="kept files")
        await_(lambda: "ipipou0" in client.run("ip route get 192.0.2.77"), what="the default route")
        before = client.run("ip rule"), client.run("ip -br addr show ipipou0")
        ping = client.ping_background("172.28.0.0", interval=0.02)
        ping.await_answers()
        names.write_text("")
        far.process.kill()
        again = ipipou.client(client, "--default-route", prefix=manager.prefix(), **more)
        again.await_log(f"took over the running tunnel to {SERVER}:10000")
        ping.await_answers(20)
        ping.stop_complete()
        assert (client.run("ip rule"), client.run("ip -br addr show ipipou0")) == before


@pytest.mark.parametrize("fast_path", ["auto", "off"])
def test_a_server_for_many_goes_on_with_its_sessions(lab, manager, fast_path):
    """It is killed twice under running pings. Its clients say nothing meanwhile, and notice nothing; who was kicked
    before has to say hello."""
    hub = Hub(lab)
    options = ["--fast-path", fast_path]
    near = hub.server(*options, prefix=manager.prefix())
    ends = [hub.client(i) for i in (2, 3, 4)]
    for end in ends:
        end.await_log("connected to")
    await_(lambda: manager.names() == ["sessions", "tun", "udp"], what="kept files")
    hub.host.run(["ipipou", "peer", "kick", "peer4", "--runtime-root", near.root])
    await_state(near, "peer4", "away")
    pings = [client.ping_background(inner(1), interval=0.02) for client in hub.clients[:2]]
    for _ in range(2):
        for ping in pings:
            await_(lambda: ping.answers() > 5, what="answers")
        near.process.kill()
        near = hub.server(*options, prefix=manager.prefix())
        near.await_log(f"took over the running tunnel to {outer(2)}:10000")
        near.await_log(f"took over the running tunnel to {outer(3)}:10000")
        for ping in pings:
            ping.await_answers(20)
        assert near.show()["accepted"] == 0
        assert states(near) == {"peer2": "connected", "peer3": "connected", "peer4": "new"}
        assert manager.names() == ["sessions", "tun", "udp"]
    for ping in pings:
        ping.stop_complete()
    assert [end.show()["sent"] for end in ends[:2]] == [2, 2]
    ends[2].reauthenticate()
    await_state(near, "peer4", "connected")
    assert near.process.stop(signal.SIGTERM) == 0
    await_(lambda: not manager.names(), what="nothing kept")


def say_port_unreachable(host, near):
    """An ICMP error about a packet from host 1 to client 2. When it is there, this returns."""
    datagram = packets.udp(outer(1), 10000, outer(2), 10000, b"")
    quoted = packets.ipv4(outer(1), outer(2), packets.UDP, datagram)
    message = struct.pack("!BBHI", 3, 3, 0, 0) + quoted
    message = message[:2] + packets.checksum(message).to_bytes(2, "big") + message[4:]
    before = unreachable_seen(near)
    host.send_raw(packets.ipv4(outer(2), outer(1), packets.ICMP, message))
    await_(lambda: unreachable_seen(near) > before, what="the ICMP error")


def unreachable_seen(host):
    """How many ICMP errors of this kind its kernel has had (`InDestUnreachs`)."""
    names, counts = (
        line.split() for line in host.run("cat /proc/net/snmp").splitlines() if "Icmp:" in line
    )
    return int(dict(zip(names, counts))["InDestUnreachs"])


def test_icmp_errors_do_not_take_away_what_is_kept(lab, manager):
    """Anybody can send one. The socket says that it failed, until somebody reads the error."""
    hub = Hub(lab)
    near = hub.server(prefix=manager.prefix())
    end = hub.client(2)
    end.await_log("connected to")
    await_(lambda: manager.names() == ["sessions", "tun", "udp"], what="kept files")
    ping = hub.clients[0].ping_background(inner(1), interval=0.02)
    say_port_unreachable(hub.clients[1], hub.host)
    near.process.kill()
    say_port_unreachable(hub.clients[1], hub.host)
    near = hub.server(prefix=manager.prefix())
    near.await_log(f"took over the running tunnel to {outer(2)}:10000")
    ping.await_answers(20)
    ping.stop_complete()
    assert near.show()["accepted"] == 0


def test_stored_descriptors_of_another_tunnel_are_not_used(lab, manager):
    """With another port and interface everything is made again, and the old interface is removed."""
    server, client = ipipou.neighbours(lab)
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys, prefix=manager.prefix())
    ipipou.client(client, keys=keys)
    near.await_log("tunnel up")
    await_(lambda: manager.names() == ["tun", "udp"], what="kept files")
    near.process.kill()

    again = ipipou.server(server, number=5, keys=keys, prefix=manager.prefix())
    again.await_log("cannot use what an earlier process left")
    await_(lambda: manager.names() == ["udp"], what="the new socket")
    await_(lambda: "ipipou0" not in server.run("ip link"), what="the end of the old interface")
    ipipou.client(client, keys=keys, number=5, peer=5)
    again.await_log("tunnel up")
    assert client.ping("172.28.0.10").received == 3


def test_a_list_that_could_not_be_written_is_written_again_as_a_whole(lab, manager):
    """Nothing can be written while the second client comes, the log neither. The first one says nothing after
    that."""
    hub = Hub(lab)
    prefix = ["env", "--ignore-signal=XFSZ"]
    near = hub.server(prefix=[*prefix, *manager.prefix()])
    hub.client(2).await_log("connected to")
    await_(lambda: manager.names() == ["sessions", "tun", "udp"], what="kept files")
    pid, size = near.process.pid, resource.RLIMIT_FSIZE
    unlimited = resource.prlimit(pid, size, (100, resource.RLIM_INFINITY))
    hub.client(3).await_log("connected to")
    await_(lambda: manager.names() == ["tun", "udp"], what="the end of the list")
    resource.prlimit(pid, size, unlimited)
    hub.host.run("ip addr add 192.0.2.1 dev lo")  # the host is read again
    await_(lambda: manager.names() == ["sessions", "tun", "udp"], what="the list")
    near.process.kill()
    near = hub.server(prefix=manager.prefix())
    near.await_log(f"took over the running tunnel to {outer(2)}:10000")
    near.await_log(f"took over the running tunnel to {outer(3)}:10000")


def test_a_tunnel_that_is_no_server_for_many_keeps_no_sessions_of_one(lab, manager):
    """Otherwise a server for many would find them much later."""
    hub = Hub(lab)
    near = hub.server(prefix=manager.prefix())
    hub.client(2).await_log("connected to")
    await_(lambda: manager.names() == ["sessions", "tun", "udp"], what="kept files")
    near.process.kill()
    near = ipipou.server(hub.host, keys=hub.keys[2], prefix=manager.prefix())
    near.await_log("took over the interface and the socket")
    await_(lambda: manager.names() == ["tun", "udp"], what="the end of the list")


def test_what_was_kept_outlives_a_try_that_failed(lab, manager):
    """A peer with the old program: its interface exists once, and is there for the next try."""
    hub = MixedHub(lab)
    near = hub.server(prefix=manager.prefix())
    hub.old_client()
    await_state(near, "peer4", "connected")
    ping = hub.old.ping_background(inner(1))
    ping.await_answers()
    near.process.kill()
    holder = holders.hold(hub.host, f"ipipou/interface/ipipou0_{MixedHub.OLD}", kind="answering")
    near = hub.server(prefix=manager.prefix())
    near.process.await_output("ERROR: peer4: .*trying again")
    holder.kill()
    near.process.await_output("peer4: took over the running tunnel to")
    ping.await_answers()
    ping.stop_complete()
    assert states(near)["peer4"] == "connected"


def test_ports_that_were_exchanged_meanwhile_are_nobodys_session(lab, manager):
    """Each of two old clients sends to the port that is the other one's now."""
    hub, old = MixedHub(lab), MixedHub.OLD
    hub.name_old(3, old=old + 1)
    near = hub.server(prefix=manager.prefix())
    _, third = hub.old_client(), hub.old_client(i=3, port=old + 1)
    for peer in ("peer4", "peer3"):
        await_state(near, peer, "connected")
    await_(lambda: len(manager.names()) == 7, what="kept files")
    near.process.kill()
    hub.name_old(4, old=old + 1), hub.name_old(3, old=old)
    near = hub.server(prefix=manager.prefix())
    near.process.await_output(f"peer4: ready on {old + 1}")
    near.process.await_output(f"peer3: ready on {old}")
    assert states(near) == {"peer2": "new", "peer3": "new", "peer4": "new"}
    near.await_quiet()
    assert "choose other" not in near.process.output()
    third.process.stop()
    hub.old_client(i=3, port=old)
    await_state(near, "peer3", "connected")
    await_reached(hub.clients[1], inner(1))
