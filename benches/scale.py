#!/usr/bin/env python3
"""What a tunnel at rest costs on a host with thousands of other interfaces and a full routing table,
where every figure has a target: see benches/scale.sh.

    scale.py [--links 4000] [--routes 1000000] [--seconds 30]

One end at a time, alone on such a host: a server, a client that leads everything into the tunnel, and
one that besides forwards by every interface. Processor time is what the kernel counts for the process
while nothing happens, and while other programs' routes change.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "tests" / "lib"))

import ipipou  # noqa: E402
import lab as laboratory  # noqa: E402

# KiB. A gateway knows of every interface how it was before.
MEMORY = {"server": 8 * 1024, "client": 8 * 1024, "gateway": 16 * 1024}
IDLE, CHANGING = 0.001, 0.01  # of a processor
RATE = 200  # routes that change per second
TUN = ("--datapath", "tun")
FULL = ("--route", "10.77.0.0/16", "--default-route")
KINDS = {"server": (), "client": FULL, "gateway": (*FULL, "--forward", "--masquerade")}


def share(pid, seconds):
    """Of a processor, for so long."""
    begin, before = time.monotonic_ns(), laboratory.processor_time(pid)
    time.sleep(seconds)
    return (laboratory.processor_time(pid) - before) / (time.monotonic_ns() - begin)


def fill(host, links, routes):
    """Interfaces and routes that are nobody's business."""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", type=int, default=4000)
    parser.add_argument("--routes", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    missed = False
    found = {}
    for kind in KINDS:
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
    places = pathlib.Path("target/bench")
    places.mkdir(parents=True, exist_ok=True)
    (places / "scale.json").write_text(json.dumps(found, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
