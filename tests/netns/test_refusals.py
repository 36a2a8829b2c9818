"""What the program says, and leaves alone, where it cannot make a tunnel."""

import pathlib
import subprocess

import pytest

import lab as laboratory

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
        up = lambda: " state UP " in self.host.run("ip link show eth0")  # noqa: E731
        laboratory.await_(up, what="carrier")

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
    complaint = [line for line in done.stderr.splitlines() if line.startswith("ipipou: ")]
    assert (done.returncode, len(complaint)) == (code, 1), done
    assert all(name in complaint[0] for name in names), complaint
    assert "panicked" not in done.stderr
    assert machine.state() == before


@without_fou
@pytest.mark.parametrize("options", [SERVER, CLIENT], ids=["server", "client"])
def test_kernel_without_fou(machine, options):
    refused(machine, *options, code=10, names=["fou"])


@pytest.mark.parametrize("options", [SERVER, CLIENT], ids=["server", "client"])
def test_nobody(machine, options):
    """A user without capabilities."""
    for path in (pathlib.Path(machine.binary), *pathlib.Path(machine.binary).parents[:2]):
        path.chmod(0o755)  # pytest's directories are its user's alone
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
def test_usage(machine, options, names):
    refused(machine, *options, code=2, names=names)
