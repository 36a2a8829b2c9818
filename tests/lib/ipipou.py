"""Starting ipipou in the hosts of a lab."""

import json
import re
import signal
import time

from lab import await_

# What a process logs when the kernel told of a change, and of each thing that it puts right.
TOLD, REPAIRING = "the host changed: reading it", "repairing: "

SERVER, CLIENT, STRANGER = "203.0.113.1", "203.0.113.2", "203.0.113.66"
SECRET = "topsecret"
# The --fast-path of a scenario that says nothing of it (shared.py). `auto` is the program's own.
LANE = "auto"


class Keys:
    """A key pair, made by the program itself."""

    def __init__(self, host):
        self.private, self.public = host.run("ipipou --auth-keygen").split()


class Tunnel:
    """One running end of a tunnel, with directories of its own."""

    def __init__(self, host, *options, number=0, ready=True, name=None, prefix=()):
        """`prefix` is a command that the program is started by."""
        self.host, self.number = host, number
        self.dev = f"ipipou{number}"
        self.root = host.lab.directory / f"run-{host.name}"
        self.directory = self.root / (name or self.dev)
        self.state = host.lab.directory / f"state-{host.name}" / (name or self.dev)
        self.argv = [*prefix, "ipipou", "-vvv", f"-n{number}", "--runtime-dir", self.directory]
        self.argv += ["--memory-dir", self.state, *options]
        if LANE != "auto" and "--fast-path" not in options:
            self.argv += ["--fast-path", LANE]
        self.process = None
        self.start(ready)

    def start(self, ready=True):
        self.process = self.host.spawn(self.argv)
        if ready:
            self.process.await_output(r"ready on", timeout=30)  # the first nft loads modules
        return self

    def show(self):
        command = ["ipipou", "show", "--json", "--runtime-root", self.root, self.dev]
        return json.loads(self.host.run(command))[0]

    def tunnel(self):
        return self.host.tunnel(self.dev)

    def await_log(self, pattern, timeout=20):
        return self.process.await_output(pattern, timeout)

    def rejected(self):
        """How many packets were refused, by reason; those that none was refused for are left out."""
        return {reason: count for reason, count in self.show()["rejected"].items() if count}

    def await_accepted(self, count):
        """Waits until `count` authentication packets were accepted, and fails at more."""
        await_(lambda: self.show()["accepted"] >= count, what=f"{count} accepted")
        assert self.show()["accepted"] == count

    def await_rejected(self, **counts):
        """Waits until exactly this many packets were refused, by reason."""
        total = sum(counts.values())
        await_(lambda: sum(self.rejected().values()) >= total, what=f"{counts} refused")
        assert self.rejected() == counts

    def await_dropped(self, **counts):
        """Waits until this many packets were dropped for these reasons, and fails at more."""

        def dropped():
            shown = self.show()["dropped"]
            return {why: shown[why]["packets"] for why in counts}

        await_(lambda: all(n >= counts[why] for why, n in dropped().items()), what=f"{counts}")
        assert dropped() == counts

    def await_quiet(self):
        """Waits until no more changes are reported, and the host was read a moment ago."""
        told = None

        def quiet():
            nonlocal told
            before, told = told, self.process.output().count(TOLD)
            self.show()  # it reads the host for that
            return told == before

        await_(quiet, what="a host that does not change", interval=0.3)

    def await_told(self, change, sign=REPAIRING):
        """Makes a change and waits for the line that the process logs about it, which follows from what
        the kernel told. Returns when it has.

        The host is read every three seconds as well, and a process that was kept waiting may find the
        change so: then once more, as that is not always."""
        for _ in range(3):
            self.await_quiet()
            seen = len(self.process.output())
            change()
            what = f"{sign!r} from {self.dev} of {self.host}"
            await_(lambda: sign in self.process.output()[seen:], what=what)
            if TOLD in self.process.output()[seen:].partition(sign)[0]:
                return
        raise AssertionError(f"{what}: found by the way, and never because the kernel told of it")

    def await_local(self, address):
        """Waits until the tunnel starts at this local address."""
        await_(lambda: (self.tunnel() or {}).get("local") == address, what=f"local {address}")

    def admitted(self):
        """What nft says is let in: {"address:port": alternate local address or None}."""
        table = self.host.run(f"nft list table ip ipipou-{self.number}")
        sets = {}
        for name in ("remotes", "privates"):
            body = re.search(rf"(?:set|map) {name} {{.*?\n\t}}", table, re.DOTALL)[0]
            sets |= {
                f"{address}:{port}": alternate or None
                for address, port, alternate in re.findall(
                    r"([\d.]+) \. (\d+)(?: : ([\d.]+))?", body
                )
            }
        return sets

    def reauthenticate(self):
        """SIGUSR1."""
        self.process.send_signal(signal.SIGUSR1)


def server(host, *options, device="eth0", keys=None, number=0, **more):
    proof = ["--auth-remote-pubkey-b64", keys.public, "--auth-secret", SECRET] if keys else []
    return Tunnel(host, "-s", "-b", f"@{device}", *proof, *options, number=number, **more)


def client(host, *options, remote=None, device="eth0", keys=None, number=0, peer=0, **more):
    """`number` is the client's own, `peer` the server's, which gives port and inner address.

    With a keepalive that no test lives to see, it sends one packet and no more: without one it tries
    again until something comes back."""
    remote = remote or f"{SERVER}:{10000 + peer}"
    proof = ["--auth-key-b64", keys.private, "--auth-secret", SECRET] if keys else []
    inner = ["--tunl-ip", f"172.28.0.{2 * peer + 1}"]
    place = ["-b", f"@{device}", "-r", remote]
    if "--keepalive" not in options:
        place += ["--keepalive", "60"]
    return Tunnel(host, "-c", *place, *inner, *proof, *options, number=number, **more)


def neighbours(lab):
    """A server and a client on one network."""
    server, client = lab.host("server"), lab.host("client")
    lab.link(server, "eth0", f"{SERVER}/24", client, "eth0", f"{CLIENT}/24")
    return server, client


def reach_each_other(server, client, peer=0):
    """Pings through the tunnel, both ways."""
    near, far = f"172.28.0.{2 * peer}", f"172.28.0.{2 * peer + 1}"
    assert client.ping(near, count=2, source=far).received == 2
    assert server.ping(far, count=2, source=near).received == 2


class Lan:
    """A server and a client on one network; its switch is a host itself, the stranger."""

    def __init__(self, lab):
        self.server, self.client = lab.host("server"), lab.host("client")
        self.stranger = lab.host("stranger")
        self.stranger.batch(
            "link add br0 type bridge", f"addr add {STRANGER}/24 dev br0", "link set br0 up"
        )
        self.plug(self.server)
        self.plug(self.client)

    def plug(self, host):
        """A cable from the host's eth0 to the switch; `ip link del eth0` pulls it out.

        The card's address is always the same: nobody has to ask for it again."""
        address = {"server": SERVER, "client": CLIENT}[host.name]
        card = "02:00:00:00:00:0" + address[-1]
        port = f"to-{host.name}"
        self.stranger.batch(
            f"link add {port} master br0 type veth peer name eth0 address {card}"
            f" netns {host.netns}",
            f"link set {port} up",
        )
        host.batch(f"addr add {address}/24 dev eth0", "link set eth0 up")
        host.await_carrier("eth0")

    def connect(self, *options, prefix=()):
        """Starts both ends with the same options; the tunnel is up."""
        self.keys = Keys(self.server)
        self.near = server(self.server, *options, keys=self.keys, prefix=prefix)
        self.far = client(self.client, *options, keys=self.keys, prefix=prefix)
        self.near.await_log("tunnel up")
        return self


def later_second():
    """Returns when the clock shows another second than now.

    A server that crashed refuses packets dated by the second in which it was started again."""
    time.sleep(1.0 - time.time() % 1.0)


def explanation(done):
    """The one line that a program ended with, behind the warnings about its options."""
    (line,) = [line for line in done.stderr.splitlines() if "]: WARN: --auth-" not in line]
    return line
