"""Under a real systemd as PID 1, with the units as they are shipped: run.sh KERNEL --systemd."""

import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest

import ipipou
from gateways import await_answer
from ipipou import CLIENT, SECRET, SERVER
from lab import Host, await_

SERVER_UNIT, CLIENT_UNIT = "ipipou@server0.service", "ipipou@client1.service"
INNER_SERVER = "172.28.0.0"


def systemctl(*arguments, check=True):
    done = subprocess.run(
        ["systemctl", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert not check or done.returncode == 0, done.stderr + journal()
    return done.stdout


def journal(*arguments):
    subprocess.run(["journalctl", "--sync"], check=True)
    command = ["journalctl", "-b", "--no-pager", "-o", "cat", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def properties(unit, *names):
    """Values of a unit's properties, by name."""
    text = systemctl("show", unit, *(f"--property={name}" for name in names))
    return dict(line.split("=", 1) for line in text.splitlines())


class Machine(Host):
    """The namespace that systemd itself is in, among the hosts of the lab."""

    def __init__(self, lab):
        self.lab, self.name, self.netns = lab, "machine", f"machine-{os.getpid()}"
        subprocess.run(["ip", "netns", "attach", self.netns, "1"], check=True)
        self.sysctl("net.ipv6.conf.default.accept_dad", 0)


@pytest.fixture
def machine(lab):
    """With a server and a client to be, and a host to each of them.

    number 0: a server, to clients on its interface lan0; number 1: a client, of a server on wan0.
    """
    here, near, far = Machine(lab), lab.host("client"), lab.host("server")
    lab.hosts.insert(0, here)
    lab.link(here, "lan0", f"{SERVER}/24", near, "eth0", f"{CLIENT}/24")
    lab.link(here, "wan0", "198.51.100.2/24", far, "eth0", "198.51.100.1/24")
    here.near, here.far, here.keys = near, far, ipipou.Keys(near)
    configure(
        "server0",
        "server",
        "number 0",
        "fou-dev lan0",
        f"auth-remote-pubkey-b64 {here.keys.public}",
    )
    configure(
        "client1",
        "client",
        "number 1",
        "fou-dev wan0",
        "fou-remote 198.51.100.1:10000",
        "tunl-ip 172.28.0.1",
        f"auth-key-b64 {here.keys.private}",
        "keepalive 60",  # as in `ipipou.client`
    )
    before = here.snapshot()
    yield here
    systemctl("stop", "ipipou.target", SERVER_UNIT, CLIENT_UNIT, check=False)
    left = here.snapshot()
    here.run("ip link del lan0")
    here.run("ip link del wan0")
    assert left == before
    assert not list(pathlib.Path("/run/ipipou").glob("*"))


def configure(name, *lines):
    path = pathlib.Path(f"/etc/ipipou/{name}.conf")
    path.parent.mkdir(exist_ok=True)
    path.touch(0o600)
    path.chmod(0o600)
    path.write_text("\n".join([*lines, f"auth-secret {SECRET}", "verb 2", ""]))


def client_of(machine):
    return ipipou.client(machine.near, keys=machine.keys)


def test_systemd_is_up_and_nothing_failed():
    assert pathlib.Path("/proc/1/comm").read_text() == "systemd\n"
    state = systemctl("is-system-running", "--wait", check=False).strip()
    assert state == "running", systemctl("--failed", "--no-legend", "--plain")


def test_a_start_by_hand_leaves_services_their_directories(machine):
    """Whatever root's umask is, the user of a service goes through what is above its directories."""
    above = [pathlib.Path("/var/lib/ipipou"), pathlib.Path("/run/ipipou")]
    for directory in above:
        shutil.rmtree(directory, ignore_errors=True)
    by_hand = machine.spawn(["sh", "-c", "umask 077; exec ipipou --config server0"])
    by_hand.await_output("ready on", timeout=60)
    assert by_hand.stop() == 0
    for directory in above:
        assert oct(directory.stat().st_mode)[-3:] == "755"
    shutil.rmtree(above[1])
    systemctl("start", SERVER_UNIT)
    client_of(machine)
    await_answer(machine.near, INNER_SERVER)
    assert "Permission denied" not in journal("-u", SERVER_UNIT)
    assert list(above[0].glob("server0/memory.json"))
    assert "ipipou0" in machine.run("ipipou show server0")


def test_a_server_is_started_and_stopped(machine):
    before = machine.snapshot()
    systemctl("start", SERVER_UNIT)
    # It says that it is ready when it is: nothing is waited for.
    far = client_of(machine)
    await_answer(machine.near, INNER_SERVER)
    ipipou.reach_each_other(machine, machine.near)
    await_(
        lambda: f"{CLIENT}:10000 authenticated: tunnel up" in systemctl("status", SERVER_UNIT),
        what="status",
    )
    assert "ipipou: fast path: by lan0\n" in journal("-u", SERVER_UNIT)

    found = properties(SERVER_UNIT, "MainPID", "ActiveState", "NRestarts")
    assert (found["ActiveState"], found["NRestarts"]) == ("active", "0")
    status = pathlib.Path(f"/proc/{found['MainPID']}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["CapEff"] == fields["CapBnd"] == fields["CapAmb"] == "0000008000003000"
    assert int(fields["Uid"].split()[0]) >= 61184, "one of systemd's dynamic users"
    limits = pathlib.Path(f"/proc/{found['MainPID']}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), "no keys on the disk"
    assert pathlib.Path(f"/proc/{found['MainPID']}/mem").stat().st_uid == 0, "nor for its user"
    assert pathlib.Path("/var/lib/private/ipipou/server0/memory.json").stat().st_size
    assert "WARN" not in (log := journal("-u", SERVER_UNIT)) and "ERROR" not in log

    shown = machine.run("ipipou show server0")
    assert re.search(rf"ipipou0 +server +kernel +up +{CLIENT}:10000", shown)
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    refused = machine.run([*nobody, "ipipou", "show", "server0"], check=False)
    assert refused.returncode == 1 and "only root and the service's user" in refused.stderr

    systemctl("reload", SERVER_UNIT)
    await_(lambda: "SIGUSR1 is for clients" in journal("-u", SERVER_UNIT), what="line")

    systemctl("stop", SERVER_UNIT)
    assert machine.snapshot() == before
    assert properties(SERVER_UNIT, "Result", "ActiveState") == {
        "Result": "success",
        "ActiveState": "inactive",
    }
    assert far.process.stop() == 0


def test_a_client_is_reloaded(machine):
    near = ipipou.server(machine.far, keys=machine.keys)
    systemctl("start", CLIENT_UNIT)
    near.await_accepted(1)
    systemctl("reload", CLIENT_UNIT)
    near.await_accepted(2)
    assert machine.ping(INNER_SERVER, count=2).received == 2
    assert "ipipou1" in machine.run("ipipou show client1")


def test_a_reload_reads_the_file(machine):
    """A mistake fails it and changes nothing; what needs a restart is named."""
    near = ipipou.server(machine.far, keys=machine.keys)
    systemctl("start", CLIENT_UNIT)
    near.await_accepted(1)
    file = pathlib.Path("/etc/ipipou/client1.conf")
    good, running = file.read_text(), properties(CLIENT_UNIT, "MainPID")
    file.write_text(good + "fou-local-port 70000\n")
    reloaded = subprocess.run(
        ["systemctl", "reload", CLIENT_UNIT], capture_output=True, text=True, check=False
    )
    assert reloaded.returncode != 0 and "failed" in reloaded.stderr
    line = good.count("\n") + 1
    said = f"{file}:{line}: fou-local-port: 70000 is not a port"
    assert said in journal("-u", CLIENT_UNIT)
    # It goes on as it was, and did not authenticate: the next packet is the second.
    assert properties(CLIENT_UNIT, "MainPID", "ActiveState") == {**running, "ActiveState": "active"}
    file.write_text(good.replace("keepalive 60", "keepalive 50") + "number 1\n")
    systemctl("reload", CLIENT_UNIT)
    near.await_accepted(2)
    assert f"{file}: a restart is needed for: keepalive\n" in journal("-u", CLIENT_UNIT)
    assert machine.ping(INNER_SERVER, count=2).received == 2
    systemctl("restart", CLIENT_UNIT)
    near.await_accepted(3)
    systemctl("reload", CLIENT_UNIT)
    near.await_accepted(4)
    assert journal("-u", CLIENT_UNIT).count("a restart is needed") == 1


def test_the_target_is_all_tunnels_that_are_enabled(machine):
    before = machine.snapshot()

    def states():
        return [properties(u, "ActiveState")["ActiveState"] for u in (SERVER_UNIT, CLIENT_UNIT)]

    systemctl("enable", SERVER_UNIT, CLIENT_UNIT)
    systemctl("start", "ipipou.target")
    await_(lambda: states() == ["active", "active"], what="tunnels")
    systemctl("stop", "ipipou.target")  # which waits for itself only
    await_(lambda: states() == ["inactive", "inactive"], what="their end")
    assert machine.snapshot() == before
    # One that was started by itself ends with the target, too.
    systemctl("start", SERVER_UNIT)
    systemctl("stop", "ipipou.target")
    await_(lambda: states() == ["inactive", "inactive"], what="its end")
    systemctl("disable", SERVER_UNIT, CLIENT_UNIT)
    systemctl("start", "ipipou.target")
    assert states() == ["inactive", "inactive"]


def test_a_new_version_is_started_without_losing_a_packet(machine):
    """`systemctl kill -s KILL`: systemd starts the process again, which takes the tunnel over."""
    systemctl("start", SERVER_UNIT)
    client_of(machine)
    ping = machine.near.ping_background(INNER_SERVER, interval=0.02)
    await_(lambda: ping.answers() >= 10, what="answers")
    systemctl("kill", "-s", "KILL", SERVER_UNIT)
    await_(lambda: "took over the running tunnel" in journal("-u", SERVER_UNIT), what="new process")
    ping.await_answers(20)
    ping.stop_complete()
    assert properties(SERVER_UNIT, "NRestarts")["NRestarts"] == "1"


def test_a_replayed_packet_is_refused_after_a_restart(machine):
    """The memory outlives the process and its user's number."""
    systemctl("start", SERVER_UNIT)
    seen = machine.near.capture("eth0", "udp and dst port 10000")
    far = client_of(machine)
    await_answer(machine.near, INNER_SERVER)
    assert far.process.stop(signal.SIGTERM) == 0
    packet = seen.await_packets(1)[0]
    systemctl("restart", SERVER_UNIT)
    assert machine.tunnel("ipipou0") is None
    machine.near.send_raw(packet.raw)
    await_(lambda: "refused a packet of 73 bytes" in journal("-u", SERVER_UNIT), what="refusal")
    assert machine.tunnel("ipipou0") is None


def serve_by(datapath, machine):
    configure(
        "server0",
        "server",
        f"datapath {datapath}",
        "fou-dev lan0",
        f"auth-remote-pubkey-b64 {machine.keys.public}",
    )


@pytest.fixture
def tun():
    subprocess.run(["modprobe", "tun"], check=True)
    os.chmod("/dev/net/tun", 0o666)  # as udev does


def test_a_userspace_tunnel_runs_under_the_shipped_unit(machine, tun):
    """`datapath tun` needs a device, and no more rights."""
    before = machine.snapshot()
    serve_by("tun", machine)
    systemctl("start", SERVER_UNIT)
    client_of(machine)
    await_answer(machine.near, INNER_SERVER)
    ipipou.reach_each_other(machine, machine.near)
    assert re.search(r"ipipou0 +server +tun +up", machine.run("ipipou show server0"))
    pid = properties(SERVER_UNIT, "MainPID")["MainPID"]
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    assert "CapEff:\t0000008000003000" in status
    assert "ERROR" not in journal("-u", SERVER_UNIT)
    systemctl("stop", SERVER_UNIT)
    assert machine.snapshot() == before


def test_the_kernel_datapath_takes_over_when_configured(machine, tun):
    """What systemd keeps of a killed process is no obstacle to one with another datapath."""
    serve_by("tun", machine)
    systemctl("start", SERVER_UNIT)
    far = ipipou.client(machine.near, "--keepalive", "1", keys=machine.keys)
    await_answer(machine.near, INNER_SERVER)
    for asked, used in (("auto", "tun"), ("kernel", "kernel")):
        serve_by(asked, machine)
        ready = lambda: journal("-u", SERVER_UNIT).count("ready on")  # noqa: E731
        before = ready()
        systemctl("kill", "-s", "KILL", SERVER_UNIT)
        # What it leaves of its fast path answers pings meanwhile.
        await_(lambda: ready() > before, 30, "another process")  # noqa: B023
        await_answer(machine.near, INNER_SERVER)
        shown = machine.run("ipipou show server0")
        assert re.search(rf"ipipou0 +server +{used} +up", shown), shown
    assert far.process.stop() == 0


RESOLV_CONF = pathlib.Path("/etc/resolv.conf")


@pytest.fixture
def drop_in():
    """Puts lines into a drop-in of the client's unit."""
    path = pathlib.Path(f"/run/systemd/system/{CLIENT_UNIT}.d/dns.conf")
    path.parent.mkdir(parents=True)

    def put(*lines):
        path.write_text("\n".join(["[Service]", *lines, ""]))
        systemctl("daemon-reload")

    yield put
    path.unlink(missing_ok=True)
    path.parent.rmdir()
    systemctl("daemon-reload")


@pytest.fixture
def with_dns(machine):
    """The client's file asks for a name server; resolv.conf is nobody's."""
    RESOLV_CONF.write_text("# by hand\nnameserver 192.0.2.53\nsearch example.org")
    with open("/etc/ipipou/client1.conf", "a") as conf:
        conf.write("dns 198.51.100.53\n")
    return ipipou.server(machine.far, keys=machine.keys)


def its_servers():
    return re.findall("^nameserver (.*)$", RESOLV_CONF.read_text(), re.MULTILINE)


def lines_of_the_unit():
    """What the unit's own comment has for a drop-in."""
    lines = pathlib.Path("/etc/systemd/system/ipipou@.service").read_text().splitlines()
    start = lines.index("#     [Service]") + 1
    return [line.lstrip("# ") for line in lines[start : start + 2]]


def assert_refused(machine, before, reason):
    """Once, and the host is as it was; the lines that the explanation names."""
    resolv_conf, since = RESOLV_CONF.read_text(), journal("-u", CLIENT_UNIT)
    assert systemctl("start", CLIENT_UNIT, check=False) == ""
    said = journal("-u", CLIENT_UNIT)[len(since) :]
    found = properties(CLIENT_UNIT, "ActiveState", "NRestarts", "ExecMainStatus")
    assert found == {"ActiveState": "failed", "NRestarts": "0", "ExecMainStatus": "2"}, said
    assert machine.snapshot() == before and RESOLV_CONF.read_text() == resolv_conf
    assert f"cannot use our name servers: /etc/resolv.conf cannot be written: {reason}" in said
    assert "sent 73 bytes" not in said, "before the server was told of us"
    return re.search("put (DynamicUser=no) and (ReadWritePaths=.*) below", said).groups()


def test_name_servers_are_refused_under_the_shipped_unit(machine, with_dns, drop_in):
    """Neither the user nor the view of the files lets it write; what the explanation names does."""
    before, old = machine.snapshot(), RESOLV_CONF.read_text()
    remedy = assert_refused(machine, before, "Permission denied")
    drop_in("DynamicUser=no")
    assert assert_refused(machine, before, "Read-only file system") == remedy
    assert list(remedy) == lines_of_the_unit()
    drop_in(*remedy)
    systemctl("start", CLIENT_UNIT)
    with_dns.await_accepted(1)
    assert its_servers() == ["198.51.100.53"]
    by_dhcp = RESOLV_CONF.with_name("resolv.conf.new")
    by_dhcp.write_text("nameserver 192.0.2.99\n")
    by_dhcp.rename(RESOLV_CONF)
    await_(lambda: its_servers() == ["198.51.100.53"], what="name servers of ours in a new file")
    systemctl("stop", CLIENT_UNIT)
    assert its_servers() == ["192.0.2.99"] and old != RESOLV_CONF.read_text()


RESOLVECTL = """#!/bin/sh
# Whom systemd-resolved listens to without polkit.
[ "$(id -u)" = 0 ] || { echo "Failed to set DNS configuration: Access denied" >&2; exit 1; }
[ "$1" != dns ] || echo "nameserver $3" >/run/told
"""
RESOLVCONF = """#!/bin/sh
# openresolv's: a file that it cannot write is no failure.
[ -w /run/resolvconf ] || { echo "Cannot write to /run/resolvconf/lock" >&2; exit 1; }
{ echo "# Generated by resolvconf"; cat; } 2>/dev/null >/etc/resolv.conf
exit 0
"""


@pytest.fixture(params=["resolvectl", "resolvconf"])
def owner(request, with_dns):
    """Who has resolv.conf, played as the two of that name behave; where it shows what was said."""
    program = pathlib.Path("/usr/local/bin", request.param)
    program.write_text({"resolvectl": RESOLVECTL, "resolvconf": RESOLVCONF}[request.param])
    program.chmod(0o755)
    old = RESOLV_CONF.read_text()
    if request.param == "resolvectl":
        directory, shows = pathlib.Path("/run/systemd/resolve"), pathlib.Path("/run/told")
        RESOLV_CONF.unlink()
        RESOLV_CONF.symlink_to(directory / "stub-resolv.conf")
    else:
        directory, shows = pathlib.Path("/run/resolvconf"), RESOLV_CONF
        RESOLV_CONF.write_text("# Generated by resolvconf\nnameserver 192.0.2.53\n")
    there = directory.exists()
    directory.mkdir(exist_ok=True)
    yield shows
    program.unlink()
    if not there:
        directory.rmdir()
    RESOLV_CONF.unlink()
    RESOLV_CONF.write_text(old)


def test_the_owner_of_resolv_conf_refuses_the_shipped_unit(machine, owner, drop_in):
    before = machine.snapshot()
    assert systemctl("start", CLIENT_UNIT, check=False) == ""
    said = journal("-u", CLIENT_UNIT)
    found = properties(CLIENT_UNIT, "ActiveState", "NRestarts", "ExecMainStatus")
    assert found == {"ActiveState": "failed", "NRestarts": "0", "ExecMainStatus": "2"}, said
    assert machine.snapshot() == before
    settings = re.findall("put (.*) below \\[Service\\]", said)[-1].split(" and ")
    drop_in(*settings)
    systemctl("start", CLIENT_UNIT)
    assert "\nnameserver 198.51.100.53\n" in "\n" + owner.read_text()
    systemctl("stop", CLIENT_UNIT)
    assert "reception only permitted for main PID" not in journal("-u", CLIENT_UNIT)


def test_a_unit_without_a_right_is_not_started_again(machine, drop_in):
    drop_in("AmbientCapabilities=", "AmbientCapabilities=CAP_NET_RAW")
    assert systemctl("start", CLIENT_UNIT, check=False) == ""
    assert "not allowed without CAP_NET_ADMIN" in journal("-u", CLIENT_UNIT)
    found = properties(CLIENT_UNIT, "ActiveState", "NRestarts")
    assert found == {"ActiveState": "failed", "NRestarts": "0"}


def test_name_servers_with_a_drop_in(machine, with_dns, drop_in):
    before, inode = RESOLV_CONF.read_text(), RESOLV_CONF.stat().st_ino
    drop_in(*lines_of_the_unit())
    systemctl("start", CLIENT_UNIT)
    with_dns.await_accepted(1)
    await_(lambda: its_servers() == ["198.51.100.53"], what="name server")
    pid = properties(CLIENT_UNIT, "MainPID")["MainPID"]
    assert "CapEff:\t0000008000003000" in pathlib.Path(f"/proc/{pid}/status").read_text()
    systemctl("stop", CLIENT_UNIT)
    assert (RESOLV_CONF.read_text(), RESOLV_CONF.stat().st_ino) == (before, inode)


@pytest.mark.parametrize(
    "line, said, state",
    [
        ("number many", r"server0\.conf:\d+: number", "failed"),
        ("fou-local-ip 192.0.2.1", "192.0.2.1 is not an address of this host", "activating"),
    ],
    ids=["usage", "address"],
)
def test_a_bad_file_is_named(machine, line, said, state):
    """A mistake stays one until somebody mends it; what the host lacks is waited for."""
    before = machine.snapshot()
    configure("server0", "server", "fou-dev lan0", "auth-token x", line)
    assert systemctl("start", SERVER_UNIT, check=False) == ""
    assert re.search(said, journal("-u", SERVER_UNIT))
    found = properties(SERVER_UNIT, "ActiveState", "NRestarts")
    assert found["ActiveState"] == state
    assert state != "failed" or found["NRestarts"] == "0"
    assert machine.snapshot() == before


def test_a_file_that_is_not_there_is_named(machine):
    started = subprocess.run(
        ["systemctl", "start", "ipipou@nothing"], capture_output=True, text=True, check=False
    )
    assert started.returncode != 0 and "Assertion failed" in started.stderr
    found = properties("ipipou@nothing.service", "ActiveState", "AssertResult")
    assert found == {"ActiveState": "inactive", "AssertResult": "no"}


def test_an_interface_that_comes_late_is_waited_for(machine):
    """By hand it is an error; a service is ready, and has its tunnel when the interface is there."""
    before = machine.snapshot()
    configure(
        "server0",
        "server",
        "fou-dev late0",
        f"auth-remote-pubkey-b64 {machine.keys.public}",
    )
    by_hand = machine.run("ipipou --config server0", check=False)
    assert by_hand.returncode == 2 and "there is no interface late0" in by_hand.stderr
    systemctl("start", SERVER_UNIT)
    assert "there is no interface late0" in journal("-u", SERVER_UNIT)
    machine.lab.link(machine, "late0", "192.0.2.1/24", machine.near, "eth1", "192.0.2.2/24")
    remote = {"device": "eth1", "remote": "192.0.2.1:10000"}
    ipipou.client(machine.near, "--keepalive", "1", keys=machine.keys, **remote)
    await_answer(machine.near, INNER_SERVER)
    found = properties(SERVER_UNIT, "NRestarts", "ActiveState")
    assert found == {"NRestarts": "0", "ActiveState": "active"}
    systemctl("stop", SERVER_UNIT)
    machine.run("ip link del late0")
    assert machine.snapshot() == before


def test_the_service_is_confined():
    text = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", SERVER_UNIT],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", text)[1]
    assert float(level) < 2.5, text


HUB_UNIT = "ipipou@hub3"


@pytest.fixture
def hub(machine):
    """A server whose peers are named in files that only root can read, and one of its peers."""
    directory = pathlib.Path("/etc/ipipou/hub3.peers.d")
    directory.mkdir(mode=0o700)
    machine.own, machine.peers = ipipou.Keys(machine.near), directory
    configure(
        "hub3",
        "server",
        "number 3",
        "fou-dev lan0",
        "tunl-ip 10.8.0.1/24",
        "peers",
        f"auth-key-b64 {machine.own.private}",
    )
    name_peer(machine, "anna", machine.keys.public, 7)
    yield machine
    systemctl("stop", HUB_UNIT, check=False)
    shutil.rmtree(directory)


def name_peer(machine, name, key, last):
    file = machine.peers / f"{name}.toml"
    file.touch(0o600)
    file.write_text(f'[peer.{name}]\npublic-key = "{key}"\naddress = "10.8.0.{last}"\n')


def peer_states():
    """What `ipipou peer list` says of each peer."""
    command = ["ipipou", "peer", "list", "-i", "hub3"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[0]: line.split()[1] for line in listed.splitlines()[1:]}


def test_peers_of_files_that_only_root_can_read(hub):
    """They are read at a start and at a reload; a mistake fails the reload, and stops no start."""
    systemctl("start", HUB_UNIT)
    assert peer_states() == {"anna": "new"}
    far = ipipou.client(
        hub.near,
        *("--tunl-ip", "10.8.0.7", "--tunl-peer-ip", "10.8.0.1"),
        *("--auth-remote-pubkey-b64", hub.own.public),
        remote=f"{SERVER}:10003",
        keys=hub.keys,
    )
    far.await_log("connected to")
    assert peer_states() == {"anna": "connected"}

    name_peer(hub, "bob", ipipou.Keys(hub.near).public, 8)
    systemctl("reload", HUB_UNIT)
    assert "1 added, 0 changed, 0 removed, 1 untouched" in journal("-u", HUB_UNIT)
    assert peer_states() == {"anna": "connected", "bob": "new"}

    (hub.peers / "bob.toml").write_text('[peer.bob]\nadress = "10.8.0.8"\n')
    reloaded = subprocess.run(
        ["systemctl", "reload", HUB_UNIT], capture_output=True, text=True, check=False
    )
    assert reloaded.returncode != 0
    assert 'bob.toml:2: peer bob: unknown field "adress"' in journal("-u", HUB_UNIT)
    assert peer_states() == {"anna": "connected", "bob": "new"}

    # Yesterday's peers, and the mistake is in the log.
    mistakes = journal("-u", HUB_UNIT).count('unknown field "adress"')
    systemctl("restart", HUB_UNIT)
    assert set(peer_states()) == {"anna", "bob"}
    assert journal("-u", HUB_UNIT).count('unknown field "adress"') > mistakes
    assert "going on with the 2 peers of the last good files" in journal("-u", HUB_UNIT)
    far.reauthenticate()
    await_(lambda: peer_states()["anna"] == "connected", what="anna")
    assert properties(HUB_UNIT, "ActiveState", "NRestarts") == {
        "ActiveState": "active",
        "NRestarts": "0",
    }
    assert far.process.stop() == 0
