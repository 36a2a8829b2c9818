"""Nothing is left behind: by an end, by many, or by a start that fails."""

import contextlib
import json
import pathlib
import shutil
import signal
import subprocess

import pytest

import ipipou
from ipipou import CLIENT, SERVER

INNER_SERVER = "172.28.0.0"
ALTERNATE_MODE = "--force-fou-local-ip-alt"
PRIVATE, PUBLIC = (
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=",
)
HOLD_QUEUE = """
import socket, struct, time
# NFQNL_CFG_CMD_BIND to queue 0, as linux/netfilter/nfnetlink_queue.h has it
nfnetlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
body = struct.pack("!BBH", 0, 0, 0) + struct.pack("=HH", 8, 1) + struct.pack("!BBH", 1, 0, 0)
nfnetlink.send(struct.pack("=IHHII", 16 + len(body), 0x302, 5, 1, 0) + body)
assert struct.unpack("=i", nfnetlink.recv(100)[16:20])[0] == 0
print("held", flush=True)
time.sleep(1000)
"""


def changed(lan, before):
    return [h.name for h in (lan.server, lan.client) if h.snapshot() != before[h.name]]


def snapshots(lan):
    return {host.name: host.snapshot() for host in (lan.server, lan.client)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("options", [(), (ALTERNATE_MODE,)], ids=["direct", "alternate"])
def test_the_end_leaves_the_host_as_it_was(lab, options, number):
    lan = ipipou.Lan(lab)
    lan.server.nft("table ip other { chain c { type filter hook input priority 0; }; }")
    before = snapshots(lan)
    lan.connect(*options)
    assert lan.client.ping(INNER_SERVER, count=1).received == 1
    assert changed(lan, before) == ["server", "client"]
    for end in (lan.near, lan.far):
        assert end.process.stop(number) == 0
        assert not end.directory.joinpath("control.sock").exists()
    assert changed(lan, before) == []


def test_a_server_without_a_client_leaves_nothing(lab):
    lan = ipipou.Lan(lab)
    before = snapshots(lan)
    near = ipipou.server(lan.server, keys=ipipou.Keys(lan.server))
    assert changed(lan, before) == ["server"]
    assert near.process.stop() == 0
    assert changed(lan, before) == []


def test_the_end_after_a_crash_leaves_nothing(lab):
    """What was made by a process that was killed is removed by the one that took it over."""
    lan = ipipou.Lan(lab)
    before = snapshots(lan)
    lan.connect(ALTERNATE_MODE)
    for end in (lan.near, lan.far):
        end.process.kill()
    assert changed(lan, before) == ["server", "client"]
    for end in (lan.near, lan.far):
        end.start()
        assert end.process.stop() == 0
    assert changed(lan, before) == []


def test_other_signals_are_ignored_with_a_line(lab):
    lan = ipipou.Lan(lab).connect()
    before = snapshots(lan)
    for end in (lan.near, lan.far):
        for number in (signal.SIGHUP, signal.SIGUSR2):
            end.process.send_signal(number)
            end.await_log(f"{number.name} means nothing to ipipou: ignored")
    lan.near.reauthenticate()
    lan.near.await_log("SIGUSR1 is for clients")
    ipipou.reach_each_other(lan.server, lan.client)
    assert changed(lan, before) == []


def test_twenty_rounds_leave_nothing(lab):
    lan = ipipou.Lan(lab)
    keys = ipipou.Keys(lan.server)
    before, sockets = snapshots(lan), [open_things(h) for h in (lan.server, lan.client)]
    near = ipipou.server(lan.server, keys=keys, ready=False)
    far = ipipou.client(lan.client, keys=keys)
    for _ in range(20):
        # Both start at once, so that what the client sent first may have been too early.
        near.await_log("ready on")
        far.reauthenticate()
        near.await_log("tunnel up")
        near.process.send_signal(signal.SIGTERM)
        assert far.process.stop() == near.process.wait() == 0
        near.start(ready=False)
        far.start()
    near.await_log("ready on")  # before that, a signal may come before there is a program
    assert near.process.stop() == far.process.stop() == 0
    assert changed(lan, before) == []
    assert [open_things(h) for h in (lan.server, lan.client)] == sockets


def open_things(host):
    """How many sockets and queues the host has, by table, and its processes."""
    names = ("netlink", "unix", "raw", "udp", "packet", "netfilter/nfnetlink_queue")
    with host.entered():
        tables = [pathlib.Path("/proc/thread-self/net", name) for name in names]
        counts = [t.read_text().count("\n") if t.exists() else 0 for t in tables]
    return counts, subprocess.check_output(["ip", "netns", "pids", host.netns]).split()


@contextlib.contextmanager
def uninstalled(program):
    """The machine is thrown away, so a program may be missing for a while."""
    place = pathlib.Path(shutil.which(program))
    away = place.rename(place.with_name(f"{program}.away"))
    try:
        yield
    finally:
        away.rename(place)


def fails(host, code, message, *argv, during=contextlib.nullcontext()):
    """The program ends at once with this exit code and one line, and has changed nothing."""
    before = host.snapshot()
    words = ["ipipou", "--runtime-dir", host.lab.directory / "none", *argv]
    with during:
        done = host.run([*words, "--memory-dir", host.lab.directory / "memory"], check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in ipipou.explanation(done)
    assert host.snapshot() == before


def options(role, device="@eth0"):
    """Those of a good tunnel; the keys are a pair."""
    common = ["-b", device, "--auth-secret", ipipou.SECRET]
    if role == "server":
        return ["-s", *common, "--auth-remote-pubkey-b64", PUBLIC]
    common += ["--auth-key-b64", PRIVATE, "-r", f"{SERVER}:10000"]
    return ["-c", *common, "--tunl-ip", "172.28.0.1"]


ROLES = pytest.mark.parametrize("role", ["server", "client"])


@ROLES
def test_failed_starts_change_nothing(lab, role):
    lan = ipipou.Lan(lab)
    host = getattr(lan, role)
    own = {"server": SERVER, "client": CLIENT}[role]
    good = options(role)
    fails(host, 2, "--fou-dev: there is no interface wan7", *options(role, "@wan7"))
    fails(host, 51, "192.0.2.1 is not an address of this host", *options(role, "192.0.2.1"))

    with host.udp_socket(own, 10000):
        fails(host, 53, "the UDP port is in use", *good)
    with host.udp_socket("0.0.0.0", 10000):
        fails(host, 53, "the UDP port is in use", *good)
    host.run(f"ip fou add port 10000 gue local {own}")
    fails(host, 53, "the UDP port is in use", *good)
    host.run(f"ip fou del port 10000 local {own}")

    for kind in ("dummy", f"ipip remote 192.0.2.9 local {own}"):
        host.run(f"ip link add ipipou0 type {kind}")
        fails(host, 52, "an interface ipipou0 exists", *good)
        host.run("ip link del ipipou0")

    # Nothing of the above was in the way of a good start.
    end = ipipou.Tunnel(host, *good)
    assert end.show()["role"] == role
    words = ["ipipou", *good, "--runtime-dir", end.directory]
    before = host.snapshot()
    done = host.run(words, check=False)
    assert done.returncode == 1 and host.snapshot() == before
    assert ipipou.explanation(done) == (
        f"ipipou: ipipou0 is run by another process already (ipipou, process {end.process.pid});"
        " see `ipipou show ipipou0`"
    )
    assert end.process.stop() == 0


def test_a_taken_queue_is_refused(lab):
    lan = ipipou.Lan(lab)
    holder = lan.server.spawn(["python3", "-c", HOLD_QUEUE])
    holder.await_output("held")
    fails(lan.server, 20, "NFQUEUE 0 is in use by another program", *options("server"))
    end = ipipou.Tunnel(lan.server, *options("server"), "-q", 1)
    assert end.process.stop() == 0


def test_a_server_without_nft_is_refused(lab):
    lan = ipipou.Lan(lab)
    fails(lan.server, 40, "`nft` cannot be run", *options("server"), during=uninstalled("nft"))


def test_without_nft_a_client_warns_and_works(lab):
    lan = ipipou.Lan(lab)
    near = ipipou.Tunnel(lan.server, *options("server"))
    before = lan.client.snapshot()
    with uninstalled("nft"):
        far = ipipou.Tunnel(lan.client, *options("client"))
    near.await_log("tunnel up")
    far.await_log("WARN: `nft` cannot be run .* Going on without rules")
    ipipou.reach_each_other(lan.server, lan.client)
    assert lan.client.run("nft list ruleset") == ""
    assert far.process.stop() == 0
    assert lan.client.snapshot() == before


# -- of the old script ----------------------------------------------------------------------


def as_the_script_made_it(host, own, remote, inner, peer):
    """A listener and a link without a label, as the Python program left them when it was killed."""
    host.batch(
        f"fou add port 10000 ipproto 4 local {own} dev eth0",
        f"link add ipipou0 type ipip local {own} remote {remote} dev eth0 ttl 64"
        " encap fou encap-sport 10000 encap-dport 10000",
        f"addr add {inner} peer {peer} dev ipipou0",
        "link set ipipou0 up",
    )
    return link_number(host)


def link_number(host):
    return json.loads(host.run("ip -j link show dev ipipou0"))[0]["ifindex"]


def test_the_tunnel_of_a_killed_script_is_adopted(lab):
    """Both ends, one after the other: the links stay, and not one ping is lost."""
    lan = ipipou.Lan(lab)
    before = snapshots(lan)
    keys = ipipou.Keys(lan.server)
    numbers = [
        as_the_script_made_it(lan.server, SERVER, CLIENT, INNER_SERVER, "172.28.0.1"),
        as_the_script_made_it(lan.client, CLIENT, SERVER, "172.28.0.1", INNER_SERVER),
    ]
    ping = lan.client.ping_background(INNER_SERVER, interval=0.05)
    ping.await_answers(5)
    # The fast path needs a queueing discipline at a link that is up, once, which may drop what waits there.
    datapath = ["--fast-path", "off"]
    near = ipipou.server(lan.server, *datapath, keys=keys)
    near.await_log("took over the running tunnel")
    ping.await_answers(20)
    far = ipipou.client(lan.client, *datapath, keys=keys)
    far.await_log("took over the running tunnel")
    near.await_accepted(1)
    ping.await_answers(40)
    ping.stop_complete()
    assert [link_number(lan.server), link_number(lan.client)] == numbers
    assert near.show()["tunnels"][0]["remote"] == f"{CLIENT}:10000"
    for end in (near, far):
        assert end.process.stop() == 0
    assert changed(lan, before) == []
