"""A machine of fakes: a copy of this tree, and a PATH with nothing on it but what a test puts there."""

import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]
NOBODY = 65534
# What every Debian has, and nothing that is to be installed.
ESSENTIAL = """awk basename bash cat chmod cp cut date dirname echo env expand flock grep head id install ln
    ls mkdir mktemp mv nice nproc printf readlink rm sed setsid sh sha256sum sleep sort tail tee touch
    tr true uname xargs""".split()


class Machine:
    def __init__(self, place):
        self.place = place
        self.tree = place / "tree"
        self.path = place / "bin"
        self.home = place / "home"
        self.log = place / "log"
        for directory in (self.tree, self.path, self.home):
            directory.mkdir()
        for name in ("setup", "Makefile", "Cargo.toml", "examples", "packaging", "tests", "etc"):
            source = TOP / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, self.tree / name)
        for unit in ("ipipou@.service", "ipipou.target"):
            shutil.copy(TOP / unit, self.tree)
        for name in ESSENTIAL:
            self.have(name)
        self.log.touch()
        for directory in (place, self.home, self.log):
            directory.chmod(0o777)

    def have(self, name):
        (self.path / name).symlink_to(shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin"))

    def fake(self, name, script, path=None):
        """A program; what it was called with goes to the log."""
        place = (path or self.path) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_text(f'#!/bin/bash\necho "{name} $*" >>{self.log}\n{script}\n')
        place.chmod(0o755)

    def rust(self, version, path=None):
        for name in ("cargo", "rustc"):
            self.fake(name, f'echo "{name} {version} (0123 2026-01-01)"', path)

    def calls(self, name):
        return [line for line in self.log.read_text().splitlines() if line.split()[0] == name]

    def environment(self, **more):
        return {"PATH": str(self.path), "HOME": str(self.home), **more}

    def run(self, *command, user=None, **more):
        return subprocess.run(
            command,
            cwd=self.tree,
            env={k: v for k, v in self.environment(**more).items() if v is not None},
            user=user,
            extra_groups=None if user is None else [],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def refusal(self, *command, **more):
        """The one line that a command fails with."""
        ended = self.run(*command, **more)
        assert ended.returncode != 0, ended.stdout
        lines = (ended.stdout + ended.stderr).splitlines()
        lines = [line for line in lines if not line.startswith("make: ***")]
        assert len(lines) == 1, lines
        return lines[0]


@pytest.fixture
def machine():
    # Not pytest's own directory, which nobody else may look into.
    place = pathlib.Path(tempfile.mkdtemp(prefix="ipipou-setup-"))
    try:
        yield Machine(place)
    finally:
        shutil.rmtree(place)


@pytest.fixture
def binary():
    return pathlib.Path(os.environ["IPIPOU_BINARY"])
