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
