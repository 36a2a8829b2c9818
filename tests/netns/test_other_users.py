"""The userspace datapath on a host with other users: they get none of its packets."""

import signal
import socket
import sys

import pytest

import ipipou
import packets
from ipipou import CLIENT, SERVER, reach_each_other
from test_refusals import only, reachable

TUN = ["--datapath", "tun"]
MOVED = "203.0.113.7"
PORT = 10000

# Another user, with a device for TUN interfaces as udev makes it.
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
EVERYBODYS_DEVICE = ["unshare", "-m", "sh", "-c"]
EVERYBODYS_DEVICE += [
    'mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec "$@"'
]
EVERYBODYS_DEVICE += ["sh", *NOBODY]

# Tries to attach a queue to an interface that there is, or in many threads until it has one.
THIEF = """
import fcntl, os, signal, struct, sys, threading
TUNSETIFF, TUNGETIFF, TUN, NO_PI, VNET_HDR, MULTI_QUEUE = 0x400454CA, 0x800454D2, 1, 0x1000, 0x4000, 0x100
request = struct.pack("16sH22x", sys.argv[1].encode(), TUN | NO_PI | VNET_HDR | MULTI_QUEUE)
got = []
def attach():
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(file, TUNSETIFF, request)
        got.append(file)
    except OSError as error:
        os.close(file)
        return error
def lurk():
    while not got:
        attach()
if sys.argv[2] == "once":
    print("refused:", attach() or "no", flush=True)
else:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    for _ in range(3):
        threading.Thread(target=lurk, daemon=True).start()
    print("lurks", flush=True)
    signal.sigwait([signal.SIGUSR1])
    alive = 0
    for file in list(got):
        try:
            fcntl.ioctl(file, TUNGETIFF, bytearray(40))
            alive += 1
        except OSError:
            pass
    print("queues:", len(got), "alive:", alive, flush=True)
"""


@pytest.mark.parametrize("queues", [1, 2])
def test_other_users_cannot_attach_a_queue(lab, binary, queues):
    """Not even for one who waits for the interface to be made."""
    server, client = ipipou.neighbours(lab)
    thief = [*EVERYBODYS_DEVICE, sys.executable, "-c", THIEF, "ipipou0"]
    near_options = [*TUN, "--auth-token", "x", "--tun-queues", queues]
    lurking = server.spawn([*thief, "always"])
    lurking.await_output("lurks")
    near = ipipou.server(server, *near_options)
    far = ipipou.client(client, *TUN, "--auth-token", "x", "--keepalive", "1")
    near.await_log("DEBUG: add 172.28.0.0 peer")  # a thief's queue has it made once more
    near.await_log("tunnel up")
    far.await_log("add 172.28.0.1 peer")
    assert client.ping("172.28.0.0", count=3).received == 3
    lurking.send_signal(signal.SIGUSR1)
    lurking.await_output(r"alive: 0\b")
    assert "refused: [Errno" in server.run([*thief, "once"])
    reach_each_other(server, client)
    assert near.process.stop() == far.process.stop() == 0


def test_the_service_user_cannot_attach_a_queue(lab, binary):
    """It runs as a user that is not root, and others of that very user attach nothing either."""
    server, client = ipipou.neighbours(lab)
    reachable(binary)
    service = [*EVERYBODYS_DEVICE[: -len(NOBODY)], *NOBODY[:4]]
    service += ["--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin"]
    service += ["--ambient-caps=-all,+net_admin"]
    for path in (lab.directory, *lab.directory.parents[:2]):
        path.chmod(0o777)
    near = ipipou.server(server, *TUN, "--auth-token", "x", "--tun-queues", "2", prefix=service)
    ipipou.client(client, *TUN, "--auth-token", "x")
    near.await_log("tunnel up")
    thief = [*EVERYBODYS_DEVICE, sys.executable, "-c", THIEF, "ipipou0", "once"]
    assert "refused: [Errno" in server.run(thief)
    reach_each_other(server, client)


# Binds an address and port that it lets others share, and says what it receives.
LISTENER = """
import socket, sys
thief = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
thief.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND
thief.bind((sys.argv[1], int(sys.argv[2])))
if len(sys.argv) > 3:
    thief.connect((sys.argv[3], int(sys.argv[2])))
print("listens", flush=True)
while True:
    print("got", len(thief.recv(2000)), flush=True)
"""


@pytest.mark.parametrize("connected", [False, True])
def test_the_port_at_a_new_address_is_not_shared(lab, connected):
    """Another user was there first: the tunnel waits, says so, and moves when the port is free."""
    server, client = ipipou.neighbours(lab)
    client.run(f"ip addr add {MOVED}/24 dev eth0")
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, keys=keys)
    far = ipipou.client(client, *TUN, keys=keys)
    near.await_log("tunnel up")
    reach_each_other(server, client)
    to = [SERVER] if connected else []
    thief = client.spawn([*NOBODY, sys.executable, "-c", LISTENER, MOVED, PORT, *to])
    thief.await_output("listens")
    client.run(f"ip addr del {CLIENT}/24 dev eth0")
    if MOVED not in client.run("ip addr show dev eth0"):  # it was a secondary one
        client.run(f"ip addr add {MOVED}/24 dev eth0")
    far.await_log(f"cannot open UDP socket {MOVED}:{PORT}.*in use")
    server.send_udp(SERVER, PORT, MOVED, PORT, packets.inner_icmp_echo("172.28.0.0", "172.28.0.1"))
    thief.await_output("got")  # that one was his
    table = client.run(["ss", "-Hlun", f"src {MOVED} and sport = {PORT}"])
    assert table.count(MOVED) <= 1
    thief.kill()
    near.await_log(rf"moved from {CLIENT}:{PORT} to {MOVED}:{PORT}")
    reach_each_other(server, client)


def test_the_port_is_not_shared_on_a_new_interface(lab):
    """The device that the socket is bound to is made again: no other user gets in between."""
    server, client = ipipou.neighbours(lab)
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, keys=keys)
    ipipou.client(client, *TUN, "--keepalive", "1", keys=keys)
    near.await_log("tunnel up")
    server.run("ip link del eth0")
    near.await_log("waiting for")
    lab.link(server, "eth0", f"{SERVER}/24", client, "eth0", f"{CLIENT}/24")
    accepted = near.show()["accepted"]
    ipipou.await_(lambda: near.show()["accepted"] > accepted, what="a keepalive")
    reach_each_other(server, client)
    with server.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError):
            other.bind((SERVER, PORT))


def test_one_capability_is_enough(lab):
    """What guards the interface needs no more than CAP_NET_ADMIN."""
    server, client = ipipou.neighbours(lab)
    near = ipipou.server(server, *TUN, "--auth-token", "x", prefix=only("net_admin"))
    ipipou.client(client, *TUN, "--auth-token", "x")
    near.await_log("tunnel up")
    reach_each_other(server, client)
