"""What the shells propose, by the files that `make install` writes, in a host of their own.

Its `/etc` and `/usr/local` are this machine's with the installed tree over them, so that every
shell finds its file by itself; its `/run` is empty but for tunnels that run there. No shell reads
the files of a user. One that is missing is a failure.
"""

import fcntl
import os
import re
import select
import shutil
import struct
import subprocess
import termios
import time

import pytest

from conftest import TOP
from ipipou import Keys

MOUNTS = """set -e
mount -t tmpfs none /run
for place in etc usr/local; do
    mount -t overlay overlay -o "lowerdir=$0/$place:/$place" "/$place"
done
mkdir -p /run/ipipou/leftover
echo ready
exec sleep infinity
"""
# All proposals are put into the line (M-*), which printf then prints; no terminal's list to read.
BASH = """PS1='READY '
PROMPT_COMMAND='echo at prompt'
. /usr/share/bash-completion/bash_completion
"""
ZSH = """PS1='READY '
precmd() { echo at prompt }
setopt no_prompt_sp no_prompt_cr no_beep
bindkey -e
autoload -Uz compinit && compinit -u -D
zle -C all complete-word _generic
bindkey '\\e*' all
zstyle ':completion:all:*' completer _all_matches _complete
zstyle ':completion:all:*' insert true
"""


class Place:
    """A host with the program installed, two running tunnels, and files in its directory."""

    def __init__(self, lab, binary):
        self.host = lab.host("place")
        self.host.batch(
            "link add eth0 type bridge",
            "addr add 203.0.113.1/24 dev eth0",
            "link set eth0 up",
            "link add odd$(id) type bridge",
        )
        self.root = self._install(lab.directory, binary)
        self.home = lab.directory / "home"
        self.work = lab.directory / "work"
        for directory in (self.home, self.work):
            directory.mkdir()
        for name in ("client.key", "server0.conf", "eth1", "two words"):
            (self.work / name).touch()
        self.holder = self.host.spawn(["unshare", "-m", "sh", "-c", MOUNTS, self.root])
        self.holder.await_output("ready")
        keys = Keys(self.host)
        for number in (0, 1):
            argv = ["ipipou", "-s", f"-n{number}", "-b", "@eth0", "--datapath", "tun", "-v"]
            argv += ["--auth-remote-pubkey-b64", keys.public, "--auth-secret", "topsecret"]
            argv += ["--memory-dir", lab.directory / f"memory{number}"]
            argv += ["--runtime-dir", f"/run/ipipou/ipipou{number}"]
            self.host.spawn(self.inside(argv)).await_output("ready on")

    def _install(self, directory, binary):
        root = directory / "root"
        release = directory / "target" / "release"
        release.mkdir(parents=True)
        shutil.copy(binary, release / "ipipou")
        argv = ["make", "-s", "-C", TOP, "install", f"DESTDIR={root}"]
        subprocess.run(argv, check=True, env=os.environ | {"CARGO_TARGET_DIR": release.parent})
        return root

    def inside(self, argv):
        there = ["nsenter", "-m", "-t", self.holder.pid, f"--wd={self.work}"]
        clean = {"PATH": os.environ["PATH"], "HOME": self.home, "TERM": "dumb", "LC_ALL": "C.UTF-8"}
        clean |= {"ZDOTDIR": self.home, "INPUTRC": "/dev/null"}
        return [*there, "env", "-i", *(f"{name}={value}" for name, value in clean.items()), *argv]


class Terminal:
    """A shell at a prompt."""

    def __init__(self, place, argv):
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 50, 4000, 0, 0))
        argv = place.host.inside([str(word) for word in place.inside(["setsid", "-c", *argv])])
        self._process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self._await_prompt()

    def _await_prompt(self, timeout=60):
        """What was printed before it. The prompt alone is printed more than once."""
        text, deadline = "", time.monotonic() + timeout
        while not re.search(r"at prompt\r\n.*READY ", text, re.DOTALL):
            left = max(0, deadline - time.monotonic())
            ready, _, _ = select.select([self._master], [], [], left)
            assert ready, f"no prompt after {text!r}"
            text += os.read(self._master, 65536).decode(errors="replace")
        return text

    def completed(self, line):
        """The words of the line with all proposals in it."""
        os.write(self._master, f"{line}\x1b*\x01printf '<%s>\\n' \r".encode())
        return re.findall(r"^<(.*)>\r$", self._await_prompt(), re.MULTILINE)

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._master)


class Fish:
    """Fish prints what it proposes by itself; each is the whole last word."""

    def __init__(self, place):
        self._place = place

    def completed(self, line):
        argv = ["fish", "-c", "complete -C $argv[1]", line]
        said = self._place.host.run(self._place.inside(argv), timeout=120)
        proposed = [text.split("\t")[0] for text in said.splitlines()]
        return [*line.split(" ")[:-1], *proposed]

    def close(self):
        pass


@pytest.fixture
def place(lab, binary):
    return Place(lab, binary)


@pytest.fixture(params=["bash", "zsh", "fish"])
def shell(request, place):
    (place.home / "bashrc").write_text(BASH)
    (place.home / ".zshrc").write_text(ZSH)
    bash = ["bash", "--noprofile", "--rcfile", place.home / "bashrc", "-i"]
    zsh = ["zsh", "-o", "no_global_rcs", "-i"]
    opened = {
        "bash": lambda: Terminal(place, bash),
        "zsh": lambda: Terminal(place, zsh),
        "fish": lambda: Fish(place),
    }[request.param]()
    yield opened
    opened.close()


def proposed(shell, line):
    """What stands in the place of the last word's last part, behind `=`, `@` and `-b`."""
    given = line.split(" ")
    words = shell.completed(line)
    assert words[: len(given) - 1] == given[:-1], words
    return {
        re.sub(r"^(-b|--[a-z-]+=)?([^@]*@)?(?=[^-])", "", word) for word in words[len(given) - 1 :]
    }


COMMANDS = {"show", "check", "reload", "ping", "monitor", "genkey", "pubkey", "peer", "generate"}
CONFS = {path.stem for path in (TOP / "etc/ipipou").glob("*.conf")}
DEVICES = {"eth0", "lo", "odd$(id)"}  # a server has no tunnel before a client comes


def test_names(shell):
    running = {"ipipou0", "ipipou1"}
    assert {"server0", "client0"} <= CONFS
    servers = {name for name in CONFS if name.startswith("server")}
    for line, names in {
        "ipipou --config ": CONFS,
        "ipipou --config=": CONFS,
        "ipipou --config server": servers,
        "ipipou --config=server": servers,
        "ipipou -v --config server0 --config server": servers,
        "ipipou check ": CONFS,
        "ipipou check server": servers,
        "ipipou show ": running,
        "ipipou show --json ": running,
        "ipipou reload ": running,
        "ipipou show ipipou": running,
        "ipipou -b @": DEVICES,
        "ipipou -b ": DEVICES,
        "ipipou -b@e": {"eth0"},
        "ipipou -s -b 203.0.113.1:10000@e": {"eth0"},
        "ipipou --fou-local @o": {"odd$(id)"},
        "ipipou --fou-local=@l": {"lo"},
        "ipipou --fou-dev ": DEVICES,
        "ipipou --fou-dev=e": {"eth0"},
        "ipipou -s --masquerade e": {"eth0"},
        "ipipou -s --masquerade=e": {"eth0"},
        "ipipou --tunl-dev e": {"eth0"},
    }.items():
        assert proposed(shell, line) == names, line
    # Its value may be left out: a command may follow as well.
    assert proposed(shell, "ipipou -s --masquerade ") - COMMANDS == DEVICES
    assert "--json" in shell.completed("ipipou show --js")
    assert "--hosts-url-interval" in shell.completed("ipipou --hosts-u")


def test_files(shell):
    """Files where an option wants one, also as --config ./FILE, and only there."""
    for option in ("--auth-key-file", "--auth-secret-file", "--auth-token-file", "--hosts-file"):
        assert proposed(shell, f"ipipou {option} cl") == {"client.key"}, option
        assert proposed(shell, f"ipipou {option}=cl") == {"client.key"}, option
    assert proposed(shell, "ipipou --config ./s") == {"./server0.conf"}
    assert proposed(shell, "ipipou check ./s") == {"./server0.conf"}
    for line in ("ipipou --fou-dev eth1", "ipipou --masquerade eth1", "ipipou show two"):
        assert proposed(shell, line) <= {line.split(" ")[-1]}, line
    for line in (
        "ipipou --config client.",
        "ipipou show cl",
        "ipipou check client.",
        "ipipou -b @tw",
    ):
        assert not any("client.key" in word or " " in word for word in shell.completed(line)), line
