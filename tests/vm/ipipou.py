"""Starting ipipou in the hosts of a lab."""

import json

SERVER, CLIENT, STRANGER = "203.0.113.1", "203.0.113.2", "203.0.113.66"
SECRET = "topsecret"


class Keys:
    """A key pair, made by the program itself."""

    def __init__(self, host):
        self.private, self.public = host.run("ipipou --auth-keygen").split()


class Tunnel:
    """One running end of a tunnel, with directories of its own."""

    def __init__(self, host, *options, number=0, ready=True, name=None):
        self.host, self.number = host, number
        self.dev = f"ipipou{number}"
        self.root = host.lab.directory / f"run-{host.name}"
        self.directory = self.root / (name or self.dev)
        self.state = host.lab.directory / f"state-{host.name}" / (name or self.dev)
        self.argv = ["ipipou", "-vvv", f"-n{number}", "--runtime-dir", self.directory]
        self.argv += ["--state-dir", self.state, *options]
        self.process = None
        self.start(ready)

    def start(self, ready=True):
        self.process = self.host.spawn(self.argv)
        if ready:
            self.process.await_output(r"ready on")
        return self

    def show(self):
        command = ["ipipou", "show", "--json", "--runtime-root", self.root, self.dev]
        return json.loads(self.host.run(command))[0]

    def tunnel(self):
        return self.host.tunnel(self.dev)

    def await_log(self, pattern, timeout=10):
        return self.process.await_output(pattern, timeout)


def server(host, *options, device="eth0", keys=None, number=0, **more):
    proof = ["--auth-remote-pubkey-b64", keys.public, "--auth-secret", SECRET] if keys else []
    return Tunnel(host, "-s", "-b", f"@{device}", *proof, *options, number=number, **more)


def client(host, *options, remote=None, device="eth0", keys=None, number=0, peer=0, **more):
    """`number` is the client's own, `peer` the server's, which gives port and inner address."""
    remote = remote or f"{SERVER}:{10000 + peer}"
    proof = ["--auth-key-b64", keys.private, "--auth-secret", SECRET] if keys else []
    inner = ["--tunl-ip", f"172.28.0.{2 * peer + 1}"]
    place = ["-b", f"@{device}", "-r", remote]
    return Tunnel(host, "-c", *place, *inner, *proof, *options, number=number, **more)
