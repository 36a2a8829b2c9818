#!/usr/bin/env python3
"""Userspace tunnels against each other, at this machine's own speed: see benches/native.sh.

Two hosts (network namespaces) and one cable. In every round each contestant, in shuffled order, is
started on fresh hosts, measured and ended: never are there two. A figure of the table is the median
of the rounds, ± half their range; a ratio is the median of the ratios within the rounds.

The cable passes large packets as they are. "Segmented on the way" is TCP over one that does not: the
sender's card segments nothing (TSO, USO and tunnels off), the receiver's puts together (GRO), as
ordinary cards do.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "tests" / "lib"))

import contestants  # noqa: E402
import lab as laboratory  # noqa: E402
import offloads  # noqa: E402
import plot  # noqa: E402
from contestants import IPIPOU, PLAIN, VETH, Unavailable  # noqa: E402

TCP, SEGMENTED, IDLE = "tcp Gbit/s", "segmented Gbit/s", "idle ms"
BEST = "the best other"
# Of whom, what, and how much at least.
TARGETS = [
    (IPIPOU, TCP, VETH, 0.80),
    (IPIPOU, TCP, PLAIN, 1.3),
    (IPIPOU, TCP, BEST, 7.0),
    (IPIPOU, SEGMENTED, VETH, 0.80),
    (IPIPOU, SEGMENTED, PLAIN, 0.98),
    (PLAIN, TCP, VETH, 0.50),
]
IDLE_TARGET = 1.6  # round trips of the cable's, at most
PAYLOAD = 1200  # bytes of a UDP packet
PACED = 20_000  # packets per second of the moderate rate
CONGESTION = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
MEMORY_GROWTH = 0.10, 1024  # a fraction, KiB: more than either is a leak


# -- one contestant on fresh hosts --------------------------------------------------------------


@contextlib.contextmanager
def started(contestant, segmented=False):
    with tempfile.TemporaryDirectory() as directory, laboratory.Lab(directory) as lab:
        pair = contestants.Pair(lab.host("server"), lab.host("client"))
        addresses = [f"{outer}/24" for _, outer, *_ in pair.sides()]
        lab.link(pair.server, "eth0", addresses[0], pair.client, "eth0", addresses[1])
        if segmented:
            for host in (pair.server, pair.client):
                offloads.segmented_on_the_way(host, "eth0")
        try:
            contestant.start(pair)
            answered = lambda: pair.client.ping(pair.near, count=1).received  # noqa: E731
            laboratory.await_(answered, 15, f"answer to a ping through {contestant.name}")
            yield pair
        finally:
            pair.end()


def iperf_server(pair, port=5201):
    # Its first line comes when it listens.
    server = pair.server.spawn(["iperf3", "-s", "-p", port, "--forceflush"])
    server.await_output("listening")


def iperf(pair, seconds, *options):
    argv = ["iperf3", "-J", "-c", pair.near, "-t", seconds, *options]

    def ended():
        said = json.loads(pair.client.run(argv, check=False, timeout=seconds + 30).stdout)
        # "Busy" is the last load, whose end may still be on its way.
        return None if "busy" in said.get("error", "") else said

    said = laboratory.await_(ended, what="iperf3 server that is free", interval=0.2)
    if "error" in said:
        raise AssertionError(f"iperf3: {said['error']}")
    return said["end"]


def udp(pair, seconds, rate):
    """Packets per second that arrive, and the share that does not."""
    # The receiver's buffer is all that waits for it: as large as stock settings allow.
    load = ["-u", "-l", PAYLOAD, "-b", rate, "-w", "208K"]
    end = iperf(pair, seconds, *load)["sum"]
    received = end["packets"] - end["lost_packets"]
    return received / end["seconds"], end["lost_packets"] / max(1, end["packets"])


def round_trips(ping):
    """Milliseconds."""
    return statistics.median(float(time) for time in re.findall(r"time=([\d.]+)", ping.output()))


def idle_round_trip(pair):
    ping = pair.client.spawn(["ping", "-n", "-i", "0.01", "-c", "50", pair.near])
    ping.wait(timeout=30)
    return round_trips(ping)


def tcp(pair, seconds, congestion):
    """Bits per second of one flow, and the round trip at the same time."""
    ping = pair.client.ping_background(pair.near, interval=0.01)
    end = iperf(pair, seconds, "-C", congestion, "-O", 1)  # without the first second, slow start
    ping.stop()
    return end["sum_received"]["bits_per_second"], round_trips(ping)


def memory_in_use(pair):
    """KiB of each end."""
    return [laboratory.resident(end.pid) for end in pair.ends]


def measure(contestant, seconds, congestion):
    with started(contestant) as pair:
        iperf_server(pair)
        figures = {IDLE: idle_round_trip(pair)}
        figures[TCP], figures["loaded ms"] = tcp(pair, seconds, congestion)
        figures[TCP] /= 1e9
        flood, lost = udp(pair, seconds, "0")
        figures |= {"udp kpps": flood / 1e3, "udp lost": lost}
        figures["paced lost"] = udp(pair, seconds, str(PACED * PAYLOAD * 8))[1]
        if pair.ends:
            figures["memory MiB"] = max(memory_in_use(pair)) / 1024
    with started(contestant, segmented=True) as pair:
        iperf_server(pair)
        figures[SEGMENTED] = tcp(pair, seconds, congestion)[0] / 1e9
    return figures


def memory(contestant, seconds):
    """KiB of both ends: idle, and every so often while TCP and UDP run."""
    with started(contestant) as pair:
        samples = {"idle": memory_in_use(pair), "loaded": []}
        flows, paced = [], ["-u", "-l", PAYLOAD, "-b", PACED * PAYLOAD * 8]
        for port, load in ((5201, ["-C", CONGESTION]), (5202, paced)):
            iperf_server(pair, port)
            argv = ["iperf3", "-c", pair.near, "-p", port, "-t", seconds, *load]
            flows.append(pair.client.spawn(argv))
        step = max(1, seconds // 30)
        for _ in range(seconds // step - 1):
            time.sleep(step)
            samples["loaded"].append(memory_in_use(pair))
        for flow in flows:
            if flow.wait(timeout=30):
                raise AssertionError(f"iperf3: {flow.output()}")
        return samples


# -- all of them --------------------------------------------------------------------------------


def compare(chosen, options):
    """[{name: figures}], one per round; and {name: why not} of those that have no figures."""
    rounds, failed, order = [], {}, random.Random(options.seed)
    for number in range(1, options.rounds + 1):
        rounds.append({})
        for contestant in order.sample(chosen, len(chosen)):
            try:
                figures = measure(contestant, options.seconds, options.congestion)
            except (AssertionError, OSError, ValueError, subprocess.SubprocessError) as error:
                reason = f"round {number}: {error}"[:300]
                print(f"{contestant.name}: {reason}", file=sys.stderr, flush=True)
                failed.setdefault(contestant.name, reason)
                continue
            rounds[-1][contestant.name] = figures
            said = ", ".join(f"{what} {figure:.3g}" for what, figure in figures.items())
            print(f"round {number}: {contestant.name}: {said}", file=sys.stderr, flush=True)
    return rounds, failed


def column(rounds, name, what):
    return [by_name[name][what] for by_name in rounds if what in by_name.get(name, {})]


def median(rounds, name, what):
    figures = column(rounds, name, what)
    return statistics.median(figures) if figures else None


def ratio(rounds, mine, theirs, what=TCP):
    """The median of the ratios within a round, or None."""
    both = [by_name for by_name in rounds if mine in by_name and theirs in by_name]
    ratios = [by_name[mine][what] / by_name[theirs][what] for by_name in both]
    return statistics.median(ratios) if ratios else None


def best_other(rounds, names):
    speeds = {name: median(rounds, name, TCP) for name in names}
    ours = VETH, IPIPOU, PLAIN
    others = {n: s for n, s in speeds.items() if n not in ours and s is not None}
    return max(others, key=others.get) if others else None


def judge(rounds, names, samples):
    """[(ok, sentence)] for every target; an ok of None was not measured."""
    best = best_other(rounds, names)
    verdicts = []
    for who, what, other, target in TARGETS:
        found = ratio(rounds, who, best if other == BEST else other, what)
        other = f"{other} ({best})" if other == BEST and best else other
        said = f"{who}, {what} of {other}, at least {target:.2f}"
        if found is None:
            verdicts.append((None, said))
        else:
            verdicts.append((found >= target, f"{said}: {found:.2f}"))
    found = ratio(rounds, IPIPOU, VETH, IDLE)
    said = f"{IPIPOU}, {IDLE} of {VETH}, at most {IDLE_TARGET:.2f}"
    if found is None:
        verdicts.append((None, said))
    else:
        verdicts.append((found <= IDLE_TARGET, f"{said}: {found:.2f}"))
    if samples is None:
        return [*verdicts, (None, "ipipou, memory flat under load")]
    fraction, amount = MEMORY_GROWTH
    for index, end in enumerate(("server", "client")):
        idle, first, last = (
            samples["idle"][index],
            samples["loaded"][0][index],
            samples["loaded"][-1][index],
        )
        flat = last - first <= min(first * fraction, amount)
        said = f"{idle} KiB idle, {first} when the load began, {last} at its end"
        verdicts.append((flat, f"ipipou, memory of the {end}, flat: {said}"))
    return verdicts


# -- the report -----------------------------------------------------------------------------------


def cell(rounds, name, what, form, scale=1):
    figures = [figure * scale for figure in column(rounds, name, what)]
    if not figures:
        return "–"
    spread = (max(figures) - min(figures)) / 2
    value = form.format(statistics.median(figures))
    return (
        f"{value} ±{form.format(spread)}"
        if what.startswith(("tcp", "segmented", "udp k"))
        else value
    )


def table(rounds, names, why_not):
    yield (
        "| | TCP Gbit/s | of veth | segmented on the way | of veth | UDP kpps, flood | lost |"
        f" lost at {PACED // 1000} kpps | RTT idle, ms | RTT under TCP, ms | memory, MiB |"
    )
    yield "|---|" + "--:|" * 10
    for name, version in names.items():
        title = f"{name} {version}".strip()
        if not column(rounds, name, TCP):
            yield f"| {title} | not measured: {why_not[name]} |" + " |" * 9
            continue
        shares = [ratio(rounds, name, VETH, what) for what in (TCP, SEGMENTED)]
        of_cable, of_segmenting = ("–" if share is None else f"{share:.3f}" for share in shares)
        cells = [
            cell(rounds, name, TCP, "{:.2f}"),
            of_cable,
            cell(rounds, name, SEGMENTED, "{:.2f}"),
            of_segmenting,
            cell(rounds, name, "udp kpps", "{:.0f}"),
            cell(rounds, name, "udp lost", "{:.0f} %", 100),
            cell(rounds, name, "paced lost", "{:.2f} %", 100),
            cell(rounds, name, IDLE, "{:.3f}"),
            cell(rounds, name, "loaded ms", "{:.2f}"),
            cell(rounds, name, "memory MiB", "{:.1f}"),
        ]
        yield f"| {title} | " + " | ".join(cells) + " |"
    for name, reason in why_not.items():
        if column(rounds, name, TCP):
            yield f"\n{name} failed in a round that does not count: {reason}"


def machine(congestion):
    text = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"(?m)^model name\s*: (.*)", text)
    return {
        "kernel": platform.release(),
        "cpu": model[1] if model else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "iperf3": contestants.first_line("iperf3", "--version", pattern=r"\d[\d.]+"),
        "congestion control": congestion,
        "load average before": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main():
    known = {contestant.name: contestant for contestant in contestants.ALL}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each load")
    parser.add_argument("--memory-seconds", type=int, default=300)
    parser.add_argument("--congestion", default=CONGESTION, help="of TCP; this machine's own")
    parser.add_argument("--quick", action="store_true", help="one short round: does it work?")
    parser.add_argument("--only", default=",".join(known), help=", ".join(known))
    parser.add_argument("--seed", type=int, default=1, help="of the order in the rounds")
    parser.add_argument("--svg", type=pathlib.Path, default="target/bench/native.svg")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.memory_seconds = 1, 2, 10
    for name in options.only.split(","):
        if name not in known:
            parser.error(f"--only {name}: there are {', '.join(known)}")

    here, names, why_not, chosen = machine(options.congestion), {}, {}, []
    for name in options.only.split(","):
        names[name] = ""
        try:
            names[name] = known[name].version()
            chosen.append(known[name])
        except Unavailable as error:
            why_not[name] = str(error)
            print(f"{name}: SKIPPED: {error}", file=sys.stderr, flush=True)
    if here["load average before"] > 0.5:
        print("Other programs are running: figures will be too low.", file=sys.stderr, flush=True)
    rounds, failed = compare(chosen, options)
    why_not |= failed
    samples = None
    if known[IPIPOU] in chosen and options.memory_seconds:
        samples = memory(known[IPIPOU], max(3, options.memory_seconds))

    rows = [
        f"Linux {here['kernel']}, {here['cpu']}, {here['cpus']} CPUs for both hosts and all"
        f" programs. Median of {len(rounds)} interleaved rounds of {options.seconds} s, ± half the"
        f" range. TCP: one flow, {options.congestion}. UDP: packets of {PAYLOAD} bytes. iperf3"
        f" {here['iperf3']}.",
        "",
        *table(rounds, names, why_not),
    ]
    verdicts = judge(rounds, names, samples) if IPIPOU in names else []
    result = here | {
        "options": {k: str(v) for k, v in vars(options).items()},
        "versions": names,
        "not measured": why_not,
        "rounds": rounds,
        "memory KiB": samples,
        "targets": [{"met": ok, "what": sentence} for ok, sentence in verdicts],
    }
    places = pathlib.Path("target/bench")
    places.mkdir(parents=True, exist_ok=True)
    (places / "native.json").write_text(json.dumps(result, indent=1) + "\n")
    (places / "native.md").write_text("\n".join(rows) + "\n")
    medians = {
        what: {name: median(rounds, name, what) for name in names} for what in (TCP, "udp kpps")
    }
    options.svg.parent.mkdir(parents=True, exist_ok=True)
    options.svg.write_text(plot.chart(medians, here))
    print("\n".join(rows), end="\n\n")
    for ok, sentence in verdicts:
        print(f"{ {True: 'ok', False: 'MISSED', None: 'NOT MEASURED'}[ok]}: {sentence}")
    return 0 if all(ok for ok, _ in verdicts) and not failed.keys() & {VETH, IPIPOU} else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the laboratory removes its hosts
    sys.exit(main())
