#!/usr/bin/env python3
"""What a tunnel at rest costs on a host with thousands of other interfaces and a full routing table,
where every figure has a target: see benches/scale.sh.

    scale.py [--links 4000] [--routes 1000000] [--seconds 30] [--peers 10000] [--only KIND]

One end at a time, alone on such a host: a server, a client that leads everything into the tunnel, and
one that besides forwards by every interface. Processor time is what the kernel counts for the process
while nothing happens, and while other programs' routes change.

Then a server with thousands of peers in its files: how long an operator waits for a list of them, and how
long nobody else is answered meanwhile.
"""

import argparse
import base64
import json
import pathlib
import re
import statistics
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "tests" / "lib"))

import nacl.signing  # noqa: E402

import ipipou  # noqa: E402
import lab as laboratory  # noqa: E402

# KiB. A gateway knows of every interface how it was before.
MEMORY = {"server": 8 * 1024, "client": 8 * 1024, "gateway": 16 * 1024}
IDLE, CHANGING = 0.001, 0.01  # of a processor
RATE = 200  # routes that change per second
TUN = ("--datapath", "tun")
FULL = ("--route", "10.77.0.0/16", "--default-route")
# Seconds until `ipipou show` and `ipipou peer list` have printed all, and for which nothing else is done.
ANSWER, HELD_UP = 0.3, 0.005
ASKED = 20  # times
COMMANDS = {
    "show": (),
    "show NAME": ("ipipou0",),
    "show --json": ("--json",),
    "peer list": (),
    "peer list --state connected": ("--state", "connected"),
    "peer show NAME": ("p77",),
}
KINDS = {"server": (), "client": FULL, "gateway": (*FULL, "--forward", "--masquerade")}


def share(pid, seconds):
    """Of a processor, for so long."""
    begin, before = time.monotonic_ns(), laboratory.processor_time(pid)
    time.sleep(seconds)
    return (laboratory.processor_time(pid) - before) / (time.monotonic_ns() - begin)


def fill(host, links, routes):
    """Interfaces and routes that have nothing to do with the tunnel."""
    lines = [f"link add other{i} type veth peer name peer{i}" for i in range(links // 2)]
    lines += [f"link set other{i} up" for i in range(links // 2)]
    lines += [
        f"route add {11 + (i >> 24)}.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}/32"
        f" via {ipipou.STRANGER}"
        for i in range(routes)
    ]
    host.run("ip -batch -", input="\n".join([*lines, ""]), timeout=1800)


def changing(host, seconds):
    """Other routes come and go: a process that ends by itself."""
    pause = 1 / 10
    each = range(int(RATE * pause / 2))
    turn = "".join(
        f"route {verb} 10.99.0.{i}/32 via {ipipou.STRANGER}\n"
        for verb in ("add", "del")
        for i in each
    )
    file = host.lab.file("changes")
    file.write_text(turn)
    loop = f"while :; do ip -batch {file}; sleep {pause}; done"
    return host.spawn(["timeout", str(seconds + 2), "sh", "-c", loop])


def measure(kind, options):
    """Figures of one end; the other one is on a host with nothing."""
    with tempfile.TemporaryDirectory() as directory, laboratory.Lab(directory) as lab:
        lan = ipipou.Lan(lab)
        keys = ipipou.Keys(lan.server)
        host = lan.server if kind == "server" else lan.client
        fill(host, options.links, options.routes)
        near = ipipou.server(lan.server, *TUN, keys=keys)
        far = ipipou.client(lan.client, *TUN, *KINDS[kind], keys=keys)
        near.await_log("tunnel up")
        pid = (near if kind == "server" else far).process.pid
        time.sleep(5)  # what a start does is over
        figures = {"idle": share(pid, options.seconds)}
        changes = changing(host, options.seconds)
        figures["changing"] = share(pid, options.seconds)
        assert changes.wait(timeout=60) == 124  # timeout(1)
        figures["KiB"] = laboratory.resident(pid)
        return figures


def many_peers(count, path):
    """A file that names a number of peers."""
    lines = []
    for i in range(2, count + 2):
        key = nacl.signing.SigningKey(i.to_bytes(32, "big")).verify_key
        lines += [
            f"[peer.p{i}]",
            f'public-key = "{base64.b64encode(bytes(key)).decode()}"',
            f'address = "10.8.{i >> 8}.{i & 255}"',
        ]
    path.write_text("\n".join(lines))


def measure_lists(count):
    """Seconds of each command, and those in which the server does nothing else, worst of all."""
    with tempfile.TemporaryDirectory() as directory, laboratory.Lab(directory) as lab:
        host = ipipou.Lan(lab).server
        path = lab.file("peers", ".toml")
        many_peers(count, path)
        own = ["-s", "-b", "@eth0", "--tunl-ip", "10.8.0.1/16", "--peers", path, *TUN]
        own += ["--auth-key-b64", ipipou.Keys(host).private, "--auth-secret", ipipou.SECRET]
        near = ipipou.Tunnel(host, *own)
        found = {}
        for command, options in COMMANDS.items():
            words = command.split()[: 2 if command.startswith("peer") else 1]
            argv = ["ipipou", *words, *options, "--runtime-root", near.root]
            times = []
            for _ in range(ASKED):
                begin = time.monotonic()
                host.run(argv)
                times.append(time.monotonic() - begin)
            found[command] = statistics.median(times)
        taken = re.findall(r"the status was taken in (\d+) µs", near.process.output())
        assert len(taken) >= ASKED * len(COMMANDS), near.process.output()
        found["held up"] = max(map(int, taken)) / 1e6
        return found


def judge_lists(count):
    """Prints the figures. Returns them, and whether a target was missed."""
    found, missed = measure_lists(count), False
    for what, seconds in found.items():
        met = seconds <= (HELD_UP if what == "held up" else ANSWER)
        missed |= not met
        said = f"{seconds * 1000:.1f} ms"
        print(f"{'ok' if met else 'MISSED'}: {count} peers: {what}: {said}", flush=True)
    return found, missed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", type=int, default=4000)
    parser.add_argument("--routes", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--only", choices=[*KINDS, "peers"])
    options = parser.parse_args()
    missed = False
    found = {}
    for kind in KINDS:
        if options.only not in (None, kind):
            continue
        found[kind] = figures = measure(kind, options)
        for what, target, form in (
            ("idle", IDLE, "{:.4%} of a processor at rest"),
            ("changing", CHANGING, f"{{:.3%}} while {RATE} routes a second change"),
            ("KiB", MEMORY[kind], "{} KiB resident"),
        ):
            met = figures[what] <= target
            missed |= not met
            said = form.format(figures[what])
            print(f"{'ok' if met else 'MISSED'}: {kind}: {said}", flush=True)
    if options.only in (None, "peers"):
        found["peers"], missed_one = judge_lists(options.peers)
        missed |= missed_one
    places = pathlib.Path("target/bench")
    places.mkdir(parents=True, exist_ok=True)
    (places / "scale.json").write_text(json.dumps(found, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
