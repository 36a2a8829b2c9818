"""Two emulated computers on one cable, and what a person types on their consoles (machines.sh)."""

import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading

CACHE = pathlib.Path(sys.argv[1])
SERVER, CLIENT, MOVED = "203.0.113.1", "203.0.113.2", "203.0.113.3"


class Machine:
    """A computer with a disk, a card on the cable, and a console."""

    def __init__(self, name, cable, card):
        self.name = name
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
        argv += ["-accel", "tcg,thread=multi", "-smp", "1", "-cpu", "max", "-m", "1G"]
        argv += ["-kernel", CACHE / "vmlinuz", "-initrd", CACHE / "initrd.img", "-serial", "stdio"]
        argv += ["-append", "root=/dev/vda console=ttyS0 quiet net.ifnames=0 norandmaps"]
        argv += ["-drive", f"file={CACHE / name}.ext4,format=raw,if=virtio"]
        argv += ["-netdev", f"socket,id=cable,fd={cable.fileno()}"]
        argv += ["-device", f"virtio-net-pci,netdev=cable,mac=52:54:00:00:00:0{card}"]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[cable.fileno()]
        )
        self._console = open(CACHE / f"{name}.console", "wb", buffering=0)
        self._said, self._read, self._commands = "", 0, 0
        self._more = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while some := self._process.stdout.read1(4096):
            self._console.write(some)
            with self._more:
                self._said += some.decode(errors="replace").replace("\r", "")
                self._more.notify_all()
        self._process.wait()
        with self._more:
            self._more.notify_all()

    def _await(self, pattern, timeout):
        """What was said up to the pattern, since the last time."""
        with self._more:
            found = self._more.wait_for(
                lambda: re.compile(pattern).search(self._said, self._read)
                or self._process.poll() is not None,
                timeout,
            )
            if not isinstance(found, re.Match):
                raise AssertionError(f"{self.name}: no {pattern!r}: {self._said[self._read:]}")
            said, self._read = self._said[self._read : found.start()], found.end()
            return said, found

    def await_login(self):
        self._await(r"root@\w+:~# ", 600)
        self.types("stty -echo; PS1= PS2=", show=False)

    def types(self, command, show=True):
        """Types a command; what it says. Fails as it does."""
        self._commands += 1
        if show:
            print(f"root@{self.name}:~# {command}", flush=True)
        line = f'{{ {command}\n}}; echo "<$?""/{self._commands}>"\n'
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        said, end = self._await(rf"<(\d+)/{self._commands}>\n", 300)
        if show:
            print(said, end="", flush=True)
        if end[1] != "0":
            raise AssertionError(f"{self.name}: {command}: {end[1]}")
        return said

    def pings(self, address):
        """Until it is answered; then each of five must be."""
        self.types(f"until ping -c 1 -W 1 {address} >/dev/null; do :; done")
        # After a first answer, ping waits for others no longer than two round trips.
        said = self.types(f"for n in 1 2 3 4 5; do ping -c 1 -W 5 {address} | grep loss; done")
        assert said.count(" 0% packet loss") == 5, said

    def reboots(self):
        self.types("(sleep 1; systemctl reboot) >/dev/null 2>&1 &")
        self.await_login()

    def ends(self):
        self._process.kill()
        self._process.wait()


def ping_both_ways(server, client):
    client.pings("172.28.0.0")
    server.pings("172.28.0.1")


def play(server, client):
    for machine in (server, client):
        machine.await_login()

    print("\n# The README's quick start: keys and a secret, and each where it belongs.")
    client.types("umask 077")
    server.types("umask 077")
    client.types("ipipou genkey >client.key")
    private = client.types("cat client.key").strip()
    public = client.types("ipipou pubkey <client.key").strip()
    client.types("head -c 24 /dev/urandom | base64 >shared.secret")
    secret = client.types("cat shared.secret").strip()
    server.types(f"echo '{secret}' >shared.secret")
    fill = "sed -i 's|^{0} .*|{0} {1}|' /etc/ipipou/{2}0.conf"
    server.types(fill.format("auth-remote-pubkey-b64", public, "server"))
    server.types(fill.format("auth-secret", secret, "server"))
    client.types(fill.format("auth-key-b64", private, "client"))
    client.types(fill.format("auth-secret", secret, "client"))
    client.types(fill.format("fou-remote", f"{SERVER}:10000", "client"))
    for machine in (server, client):
        machine.types(f"ipipou check {machine.name}0")
        machine.types(f"systemctl enable --now ipipou@{machine.name}0")
    ping_both_ways(server, client)
    said = server.types("ipipou show")
    assert re.search(r"ipipou0 +server +kernel +up +203\.0\.113\.2:10000", said), said

    print("\n# A new program at either end, without losing a packet.")
    client.types("ping -i 0.1 172.28.0.0 >pings 2>&1 & echo $! >ping.pid")
    for machine in (server, client):
        unit = f"ipipou@{machine.name}0"
        machine.types(f"old=$(systemctl show -P MainPID {unit})")
        machine.types(f"ipipou check {machine.name}0 && systemctl kill -s KILL {unit}")
        machine.types(
            f"until systemctl is-active --quiet {unit} && new=$(systemctl show -P MainPID {unit}) &&"
            " ((new && new != old)); do sleep 0.1; done"
        )
        client.types(
            "from=$(wc -l <pings); until (($(wc -l <pings) > from + 10)); do sleep 0.1; done"
        )
    client.types("kill -INT $(cat ping.pid); wait")
    said = client.types("tail -n 3 pings")
    assert " 0% packet loss" in said, said

    print("\n# The client moves.")
    client.types(f"ip addr flush dev eth0 && ip addr add {MOVED}/24 dev eth0")
    ping_both_ways(server, client)
    assert f"{MOVED}:10000" in server.types("ipipou show")

    print("\n# Restarted: the service, and the machine.")
    for machine in (server, client):
        machine.types(f"systemctl restart ipipou@{machine.name}0")
        ping_both_ways(server, client)
    client.types("systemctl reload ipipou@client0")
    for machine in (server, client):
        machine.reboots()
        ping_both_ways(server, client)
        machine.types(f"systemctl is-active ipipou@{machine.name}0")

    print("\n# The first version, in Python, at the client's end.")
    first = "python3 ipipou/tests/setup/first_version.py"
    client.types("systemctl stop ipipou@client0")
    client.types(f"{first} client {CLIENT} {SERVER} client.key shared.secret")
    ping_both_ways(server, client)
    client.types("ip link del ipipou0 && ip fou del port 10000")

    print("\n# And at the server's end.")
    server.types("systemctl stop ipipou@server0")
    server.types(f"{first} server {SERVER} {public} shared.secret & echo $! >first.pid")
    client.types("systemctl start ipipou@client0")
    server.types("wait $(cat first.pid)")
    ping_both_ways(server, client)
    client.types("ipipou show")

    print("\n# The log, as a user reads it.")
    for machine in (server, client):
        machine.types("journalctl -b -o cat -u 'ipipou@*' --no-pager | tail -n 20")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cable = socket.socketpair()
    machines = [
        Machine(name, end, card)
        for card, (name, end) in enumerate(zip(("server", "client"), cable, strict=True))
    ]
    try:
        play(*machines)
    finally:
        for machine in machines:
            machine.ends()


main()
