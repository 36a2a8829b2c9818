"""`make install` and `make uninstall`, into a directory of their own."""

import os
import re
import shutil
import subprocess

import pytest

from conftest import NOBODY


@pytest.fixture
def make(machine, binary):
    release = machine.tree / "target/release"
    release.mkdir(parents=True)
    shutil.copy(binary, release / "ipipou")
    for tool in ("make", "test"):
        machine.have(tool)

    def run(target, **variables):
        variables.setdefault("DESTDIR", machine.place / "dest")
        ended = machine.run("make", target, *(f"{k}={v}" for k, v in variables.items()))
        assert ended.returncode == 0, ended.stderr
        assert not machine.calls("systemctl"), "these units are not those of this machine"
        return variables["DESTDIR"]

    return run


def files(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir())


@pytest.mark.parametrize("prefix", ["/usr/local", "/usr"])
def test_the_program_is_on_everybodys_path(make, prefix):
    root = make("install", PREFIX=prefix)
    program, link = root / f"{prefix[1:]}/bin/ipipou", root / f"{prefix[1:]}/sbin/ipipou"
    assert (
        program.is_file() and not program.is_symlink() and program.stat().st_mode & 0o777 == 0o755
    )
    assert link.is_symlink() and link.resolve() == program.resolve()
    assert "ipipou" in subprocess.check_output([link, "--version"], text=True)


@pytest.mark.parametrize("prefix", ["/usr/local", "/usr"])
def test_the_unit_starts_it_from_where_it_is(make, prefix):
    root = make("install", PREFIX=prefix)
    unit = (root / f"{prefix[1:]}/lib/systemd/system/ipipou@.service").read_text()
    (place,) = re.findall(r"^ExecStart=(\S+)", unit, re.MULTILINE)
    assert place == f"{prefix}/bin/ipipou"
    assert os.access(root / place[1:], os.X_OK)


def test_an_older_binary_does_not_win(make, machine):
    """0.3.0 was installed to sbin, where root's PATH looks first."""
    old = machine.place / "dest/usr/local/sbin/ipipou"
    old.parent.mkdir(parents=True)
    old.write_text("#!/bin/sh\necho 0.3.0\n")
    make("install")
    make("install")
    assert old.is_symlink() and os.readlink(old) == "../bin/ipipou"


def test_where_sbin_is_bin(make, machine):
    """As on Arch and Fedora: the link would replace the program by itself."""
    prefix = machine.place / "dest/usr"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "sbin").symlink_to("bin")
    make("install", PREFIX="/usr")
    assert (prefix / "bin/ipipou").is_file() and not (prefix / "bin/ipipou").is_symlink()
    make("uninstall", PREFIX="/usr")
    assert not (prefix / "bin/ipipou").exists()


def test_uninstall_leaves_the_configuration(make):
    root = make("install")
    kept = root / "etc/ipipou/server0.conf"
    kept.write_text("mine\n")
    make("install")
    assert kept.read_text() == "mine\n"
    configuration = [name for name in files(root) if name.startswith("etc/ipipou/")]
    assert len(configuration) > 1
    make("uninstall")
    assert files(root) == configuration


# A place of its own where systemd says that it runs.
BOOTED = 'mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec "$@"'
SYSTEMCTL = """
case "$*" in
*list-units*) echo "ipipou@server0.service loaded active running ipipou tunnel server0" ;;
*list-unit-files*) printf "%s\\n" "ipipou@.service static -" "ipipou@client0.service enabled enabled" ;;
esac
"""


@pytest.fixture
def booted(machine):
    """Runs a command where systemd runs, and has one tunnel; its standard error."""
    machine.fake("systemctl", SYSTEMCTL)
    for tool in ("unshare", "mount"):
        machine.have(tool)

    def run(*command):
        ended = machine.run("unshare", "--mount", "sh", "-ec", BOOTED, "sh", *command)
        assert ended.returncode == 0, ended.stderr
        return ended.stderr

    return run


def test_systemd_is_told_and_what_goes_on_is_named(make, machine, booted):
    prefix = machine.place / "usr"
    places = (f"PREFIX={prefix}", f"CONF={machine.place}/etc/ipipou")
    make("install")
    booted("make", "install", *places)
    assert machine.calls("systemctl") == ["systemctl daemon-reload"]
    said = booted("make", "uninstall", *places)
    assert not (prefix / "bin/ipipou").exists()
    assert machine.calls("systemctl")[-1] == "systemctl daemon-reload"
    assert "ipipou@server0.service runs, and goes on with the removed program" in said
    assert "ipipou@client0.service is still enabled" in said
    assert "ipipou@.service" not in said


def test_what_stays_is_named(machine):
    machine.have("make")
    machine.have("test")
    ended = machine.run("make", "uninstall", f"DESTDIR={machine.place}/dest")
    assert "/etc/ipipou" in ended.stdout and "/var/lib/ipipou" in ended.stdout


@pytest.mark.parametrize("good", [True, False])
def test_the_package_hands_over_what_the_new_program_understands(machine, booted, good):
    machine.fake("ipipou", "" if good else "echo 'server0.conf: a mistake'; exit 2")
    said = booted("sh", "packaging/deb/postinst", "configure", "0.3.0-1")
    assert machine.calls("ipipou") == ["ipipou check server0"]
    killed = "systemctl kill --signal=KILL ipipou@server0.service" in machine.calls("systemctl")
    assert killed == good
    assert ("ipipou@server0.service goes on with the old program" in said) != good
    assert ("a mistake" in said) != good


@pytest.mark.parametrize("target", ["install", "uninstall"])
def test_a_directory_of_another_user_is_refused(make, machine, target):
    root = make("install")
    before = files(root)
    line = machine.refusal("make", target, f"DESTDIR={root}", user=NOBODY)
    assert line.startswith(
        f"{target}: {root}/usr/local/bin is not yours to write to: 'sudo make {target}'"
    )
    assert files(root) == before


def test_nothing_was_built(machine):
    for tool in ("make", "test"):
        machine.have(tool)
    line = machine.refusal("make", "install", f"DESTDIR={machine.place}/dest")
    assert line == "install: no target/release/ipipou: run 'make build' first"
    assert not (machine.place / "dest").exists()
