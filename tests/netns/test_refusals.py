"""What the program says, and leaves alone, where it cannot make a tunnel."""

import contextlib
import pathlib
import socket
import subprocess

import pytest

import ipipou

HAS_FOU = subprocess.run(["modprobe", "-q", "-n", "-a", "fou", "ipip"], check=False).returncode == 0
without_fou = pytest.mark.skipif(HAS_FOU, reason="this kernel has FOU: nothing is refused")

KEY = "A" * 43 + "="
SERVER = ["-s", "-n0", "-b", "@eth0", "--auth-token", "token"]
CLIENT = ["-c", "-n0", "-b", "@eth0", "-r", "203.0.113.2:10000", "--tunl-ip", "172.28.0.1"]


class Machine:
    """A host with one cable, and the program to run on it."""

    def __init__(self, lab, binary):
        self.host, self.binary, self.directory = lab.host("machine"), binary, lab.directory
        other = lab.host("other")
        for host in (self.host, other):  # or addresses come when they like
            host.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        lab.link(self.host, "eth0", "203.0.113.1/24", other, "eth0", "203.0.113.2/24")

    def run(self, *options, prefix=()):
        places = ["--runtime-dir", self.directory / "run", "--memory-dir", self.directory / "state"]
        command = [*prefix, self.binary, *options, *places]
        return self.host.run(command, check=False, timeout=20)

    def state(self):
        show = ["link", "addr", "route show table all", "rule"]
        lines = [self.host.run(f"ip {what}") for what in show]
        return "".join([*lines, self.host.run("nft list ruleset")])


@pytest.fixture
def machine(lab, binary):
    return Machine(lab, binary)


def refused(machine, *options, code, names, **how):
    """The program ends with this exit code and one clear line, and has changed nothing."""
    before = machine.state()
    done = machine.run(*options, **how)
    message = [line for line in done.stderr.splitlines() if line.startswith("ipipou: ")]
    assert (done.returncode, len(message)) == (code, 1), done
    assert all(name in message[0] for name in names), message
    assert "panicked" not in done.stderr
    assert machine.state() == before


@without_fou
@pytest.mark.parametrize("options", [SERVER, CLIENT], ids=["server", "client"])
def test_kernel_without_fou(machine, options):
    refused(machine, *options, "--datapath", "kernel", code=10, names=["fou"])


@without_fou
def test_falls_back_to_userspace(machine):
    """--datapath auto, which is the default: it says why, in one line."""
    tunnel = ipipou.Tunnel(machine.host, *SERVER)
    tunnel.await_log("ready on")
    reasons = [line for line in tunnel.process.output().splitlines() if "userspace" in line]
    assert len(reasons) == 1 and "no module fou" in reasons[0]
    assert tunnel.show()["datapath"] == "tun"


# -- the userspace datapath -----------------------------------------------------------------

TUN = ["--datapath", "tun"]
ENDS = pytest.mark.parametrize("options", [SERVER, CLIENT], ids=["server", "client"])

# `sh -c` with what follows as its arguments; mounts are seen by nobody else.
NO_DEVICE = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
ROOTS_DEVICE = [*NO_DEVICE[:4]]
ROOTS_DEVICE += ['mount -t tmpfs none /dev/net && mknod -m 600 /dev/net/tun c 10 200 && exec "$@"']
ROOTS_DEVICE += ["sh"]


def only(capability):
    """Root's files, and one capability."""
    return ["setpriv", f"--bounding-set=-all,+{capability}", "--inh-caps=-all"]


@ENDS
def test_no_tun_device(machine, options):
    names = ["/dev/net/tun", "modprobe tun", "container"]
    refused(machine, *options, *TUN, code=52, names=names, prefix=NO_DEVICE)


@ENDS
def test_tun_device_is_forbidden(machine, options):
    reachable(machine.binary)
    prefix = [*ROOTS_DEVICE, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    prefix += ["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin"]
    refused(machine, *options, *TUN, code=52, names=["/dev/net/tun", "root"], prefix=prefix)


@ENDS
@pytest.mark.parametrize("kind", ["veth", "tun", "ipipou"])
def test_name_is_taken(machine, options, kind):
    """By anything: a TUN interface of another program too. One of our own is named by its
    process: it has the interface's lock."""
    code, names = 52, ["ipipou0", "--tunl-dev"]
    with contextlib.ExitStack() as undo:
        if kind == "veth":
            machine.host.run("ip link add ipipou0 type veth peer name other0")
        elif kind == "tun":
            machine.host.run("ip tuntap add dev ipipou0 mode tun")
        else:
            other = ipipou.Tunnel(machine.host, *CLIENT, *TUN, "--fou-local-port", "10009")
            undo.callback(other.process.stop)
            code, names = 1, ["ipipou0", f"process {other.process.pid}"]
        refused(machine, *options, *TUN, code=code, names=names)
        if kind == "ipipou":
            assert other.process.running()


@ENDS
def test_port_is_taken(machine, options):
    with machine.host.udp_socket("203.0.113.1", 10000):
        refused(machine, *options, *TUN, code=53, names=["203.0.113.1:10000", "in use"])
    with machine.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as anywhere:
        anywhere.bind(("0.0.0.0", 10000))
        refused(machine, *options, *TUN, code=53, names=["203.0.113.1:10000", "in use"])


@ENDS
@pytest.mark.parametrize("place", ["203.0.113.9", "203.0.113.9:10000@eth0", "[2001:db8::9]:10000"])
def test_address_is_not_ours(machine, options, place):
    if place.startswith("["):
        options = [option.replace("203.0.113.2", "[2001:db8::2]") for option in options]
    place = ["-b", place]
    names = ["2001:db8::9" if "[" in place[1] else "203.0.113.9", "not an address of this host"]
    refused(machine, *options, *place, *TUN, code=51, names=names)


def test_a_running_tunnel_is_not_started_twice(machine):
    tunnel = ipipou.Tunnel(machine.host, *SERVER, *TUN)
    before = machine.state()
    again = ["--runtime-dir", tunnel.directory, "--memory-dir", tunnel.state]
    done = machine.host.run([machine.binary, *SERVER, *TUN, *again], check=False)
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("ipipou: ")]
    assert done.returncode == 1 and "another process" in message
    assert tunnel.process.running() and machine.state() == before
    assert tunnel.process.stop() == 0


def test_one_capability_is_enough(lab):
    """CAP_NET_ADMIN, with which the kernel's datapath could not even start."""
    server, client = ipipou.neighbours(lab)
    keys = ipipou.Keys(server)
    how = dict(keys=keys, prefix=only("net_admin"))
    near = ipipou.server(server, *TUN, **how)
    far = ipipou.client(client, *TUN, **how)
    near.await_log("tunnel up")
    ipipou.reach_each_other(server, client)
    for end in (near, far):
        status = pathlib.Path("/proc", str(end.process.pid), "status").read_text()
        sets = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith("Cap"))
        assert int(sets["CapEff"], 16) == int(sets["CapBnd"], 16) == 1 << 12
    far.reauthenticate()
    near.await_accepted(2)
    client.batch("addr del 203.0.113.2/24 dev eth0", "addr add 203.0.113.3/24 dev eth0")
    near.await_log("moved from")
    ipipou.reach_each_other(server, client)
    assert near.process.stop() == far.process.stop() == 0
    assert near.host.run("ip link show ipipou0", check=False).returncode


@pytest.mark.parametrize("capability", ["net_raw", "sys_admin"])
def test_another_capability_is_not_enough(machine, capability):
    prefix = only(capability)
    refused(machine, *SERVER, *TUN, code=1, names=["CAP_NET_ADMIN"], prefix=prefix)


# -- whatever carries the packets -----------------------------------------------------------


def reachable(binary):
    """pytest's directories are its user's alone."""
    for path in (pathlib.Path(binary), *pathlib.Path(binary).parents[:2]):
        path.chmod(0o755)


@pytest.mark.parametrize("options", [SERVER, CLIENT], ids=["server", "client"])
def test_a_user_without_capabilities_is_refused(machine, options):
    """A user without capabilities."""
    reachable(machine.binary)
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
    refused(machine, *options, code=1, names=["CAP_NET_ADMIN", "root"], prefix=prefix)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["-s", "-b", "@nosuch0", "--auth-token", "x"], ["nosuch0"]),
        (["-s", "-b", "@eth0:0", "--auth-token", "x"], ["--fou-local"]),
        (["-c", "-b", "@eth0", "--tunl-ip", "172.28.0.1", "-r", "203.0.113.2"], ["--fou-remote"]),
        (["-s", "-b", "@eth0", "--auth-remote-pubkey-b64", "AAAA"], ["--auth-remote-pubkey-b64"]),
        (["--config", "./nosuch.conf"], ["nosuch.conf"]),
    ],
    ids=["device", "port", "remote", "key", "file"],
)
def test_usage_errors_are_refused(machine, options, names):
    refused(machine, *options, code=2, names=names)
