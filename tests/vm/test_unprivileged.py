"""Another user with two capabilities is enough, and all that others may see is nothing."""

import os
import pathlib
import pwd
import re
import stat

import pytest

import ipipou
from gateways import await_answer
from lab import await_
from test_fast_path import await_fast, carried

NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
BOTH = "+net_admin,+net_raw"


def capable(capabilities):
    """The command that runs another as nobody with just these capabilities."""
    sets = [f"--{name}={capabilities}" for name in ("inh-caps", "ambient-caps")]
    return [*NOBODY, *sets, f"--bounding-set=-all,{capabilities}"]


def capabilities_of_the_unit():
    unit = pathlib.Path("/etc/systemd/system/ipipou@.service").read_text(encoding="utf-8")
    names = re.search("^AmbientCapabilities=(.+)$", unit, re.MULTILINE)[1].split()
    return ",".join("+" + name.removeprefix("CAP_").lower() for name in names)


@pytest.fixture
def lan(lab):
    """With directories that nobody can use."""
    for directory in (lab.directory, *lab.directory.parents[:2]):
        directory.chmod(0o711)
    user = pwd.getpwnam("nobody")
    for host in ("server", "client"):
        for kind in ("run", "state"):
            directory = lab.directory / f"{kind}-{host}"
            directory.mkdir()
            os.chown(directory, user.pw_uid, user.pw_gid)
    return ipipou.Lan(lab)


@pytest.mark.parametrize(
    "options", [(), ("--force-fou-local-ip-alt",)], ids=["direct", "alternate"]
)
def test_two_capabilities_are_enough(lan, options):
    before = lan.server.snapshot()
    lan.connect(*options, prefix=capable(BOTH))
    with open(f"/proc/{lan.near.process.pid}/status", encoding="ascii") as status:
        fields = dict(line.split(":\t", 1) for line in status)
    assert fields["CapEff"] == fields["CapBnd"] == "0000000000003000\n"
    assert fields["Uid"].split()[0] == str(pwd.getpwnam("nobody").pw_uid)
    ipipou.reach_each_other(lan.server, lan.client)
    lan.server.run("ip link del ipipou0")
    lan.server.run("nft flush ruleset")
    await_(lambda: "ipipou" in lan.server.run("nft list tables"), what="rules")
    await_answer(lan.client, "172.28.0.0")
    for end in (lan.near, lan.far):
        output = end.process.output()
        assert "ERROR" not in output
        # The keys of a test stand on the command line.
        fine = re.compile("WARN: (repairing|.*every user of this host can read a command line)")
        assert "WARN" not in fine.sub("", output)
        assert end.state.joinpath("memory.json").stat().st_size
        assert end.process.stop() == 0
    assert lan.server.snapshot() == before


@pytest.mark.each_kernel
@pytest.mark.fast_path
def test_with_the_capabilities_of_the_unit_there_is_a_fast_path(lan):
    """Without CAP_PERFMON a verifier refuses more than it refuses root, and every kernel's something else.
    The tunnel in the tunnel loads the program for uplinks without a link header."""
    prefix = capable(capabilities_of_the_unit())
    lan.connect(prefix=prefix)
    await_fast(lan.near, lan.far)
    before = carried(lan.server), carried(lan.client)
    ipipou.reach_each_other(lan.server, lan.client)
    assert (carried(lan.server), carried(lan.client)) == before
    within = ipipou.server(lan.server, device="ipipou0", number=1, keys=lan.keys, prefix=prefix)
    within.await_log("fast path: by ipipou0")


@pytest.mark.parametrize(
    "prefix, missing",
    [
        (NOBODY, "CAP_NET_ADMIN"),
        (capable("+net_raw"), "CAP_NET_ADMIN"),
        (capable("+net_admin"), "CAP_NET_RAW"),
    ],
    ids=["none", "raw", "admin"],
)
@pytest.mark.parametrize("role", ["-s", "-c"])
def test_a_missing_capability_is_named(lan, prefix, missing, role):
    argv = [
        *prefix,
        "ipipou",
        role,
        "-b",
        "@eth0",
        "-r",
        "203.0.113.9:1",
        "--tunl-ip",
        "172.28.0.1",
    ]
    before = lan.server.snapshot()
    done = lan.server.run([*argv, "--runtime-dir", "/tmp/none", "--auth-token", "x"], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    lines = [line for line in done.stderr.splitlines() if "WARN" not in line]
    assert lines == [
        f"ipipou: not allowed without {missing}: run as root, or as the service ipipou@.service"
    ]
    assert lan.server.snapshot() == before


def test_the_status_is_for_root_and_the_user(lan):
    """The directory keeps others out; and the socket alone does."""
    near = ipipou.server(lan.server, keys=ipipou.Keys(lan.server))
    control = near.directory / "control.sock"
    assert stat.filemode(near.directory.stat().st_mode) == "drwx------"
    assert stat.filemode(control.stat().st_mode) == "srw-------"
    show = ["ipipou", "show", "--runtime-root", near.root]
    assert "ipipou0" in lan.server.run(show)
    for directory in (near.directory, near.root):
        done = lan.server.run([*NOBODY, *show], check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("ipipou: ") and done.stderr.count("\n") == 1
        assert "only root and the service's user may see it" in done.stderr
        directory.chmod(0o711 if directory == near.root else 0o755)
    control.chmod(0o666)
    assert "ipipou0" in lan.server.run([*NOBODY, *show, "--json"], check=False).stdout


def test_the_service_user_sees_its_status(lan):
    near = ipipou.server(lan.server, keys=ipipou.Keys(lan.server), prefix=capable(BOTH))
    show = ["ipipou", "show", "--runtime-root", near.root]
    assert "ipipou0" in lan.server.run([*NOBODY, *show])
    assert "ipipou0" in lan.server.run(show)
