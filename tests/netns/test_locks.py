"""One process for a tunnel's interface, and one for a port of an address, in each namespace."""

import pathlib
import shutil
import signal
import sys

import pytest

import holders
import ipipou
from ipipou import SERVER, await_, reach_each_other

TUN = ["--datapath", "tun"]
INTERFACE, PORT = "ipipou/interface/ipipou0", f"ipipou/port/10000/{SERVER}"
NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


@pytest.fixture
def lan(lab):
    return ipipou.Lan(lab)


def by_hand(tunnel, *more):
    """The same command, in directories of its own."""
    place = tunnel.host.lab.directory / "by-hand"
    argv = [*tunnel.argv, "--runtime-dir", place, "--memory-dir", place, *more]
    return [word for word in argv if word != "-vvv"]


def server_argv(lan, *options):
    """Another server's, that says nothing but what is wrong."""
    keys, place = ipipou.Keys(lan.server), lan.server.lab.directory / "another"
    proof = ["--auth-remote-pubkey-b64", keys.public, "--auth-secret", ipipou.SECRET]
    return ["ipipou", "-s", *options, *TUN, *proof, "--runtime-dir", place, "--memory-dir", place]


def test_a_tunnel_that_runs_as_a_service_is_not_run_by_hand_as_well(lan):
    lan.connect(*TUN)
    for end in (lan.near, lan.far):
        message = f"ipipou0 is run by another process already (ipipou, process {end.process.pid})"
        holders.refused(end.host, by_hand(end), 1, message)
    reach_each_other(lan.server, lan.client)


def test_a_second_server_on_one_port_is_refused(lan):
    lan.connect(*TUN)
    message = f"{SERVER}:10000: the UDP port is in use by ipipou, process {lan.near.process.pid}"
    second = server_argv(lan, "-n1", "-b", f"{SERVER}:10000")
    holders.refused(lan.server, second, 53, message)
    reach_each_other(lan.server, lan.client)


@pytest.mark.parametrize("address", [SERVER, "0.0.0.0", "::"])
def test_a_port_of_another_program(lan, address):
    holder = holders.hold_port(lan.server, address, 10000)
    argv = server_argv(lan, "-b", "@eth0")
    name = pathlib.Path(f"/proc/{holder.pid}/comm").read_text().strip()
    holders.refused(lan.server, argv, 53, f"in use by {name}, process {holder.pid}")


def test_names_of_foreign_processes_are_escaped(lan):
    """Another user chooses a name that moves the cursor and begins another line."""
    called = "\x1b[2Ja\nERROR: b"
    shown = r"\u{1b}[2Ja\nERROR: b"  # in the log, tracing escapes some first, as \x1b
    port = holders.hold_port(lan.server, SERVER, 10000, prefix=NOBODY, called=called)
    argv = server_argv(lan, "-b", "@eth0")
    holders.refused(lan.server, argv, 53, f"in use by {shown}, process {port.pid}")
    port.kill()
    lock = holders.hold(lan.server, INTERFACE, prefix=NOBODY, called=called)
    near = ipipou.server(lan.server, *TUN, keys=ipipou.Keys(lan.server))
    log = near.process.output()
    assert rf"[2Ja\nERROR: b, process {lock.pid} has it" in log
    assert "\x1b" not in log and "\nERROR" not in log


def test_two_servers_may_have_one_port_at_two_addresses(lan):
    """As before: who names the address may have the port of each."""
    lan.server.run("ip addr add 203.0.113.3/24 dev eth0")
    keys, ends = ipipou.Keys(lan.server), []
    for number, address in enumerate((SERVER, "203.0.113.3")):
        options = ["--fou-local-ip", address, "--fou-local-port", 7000, *TUN]
        ends.append(ipipou.server(lan.server, *options, keys=keys, number=number))
        far = {"remote": f"{address}:7000", "number": number, "peer": number, "keys": keys}
        ipipou.client(lan.client, *TUN, **far)
        ends[-1].await_log("tunnel up")
    for number in (0, 1):
        reach_each_other(lan.server, lan.client, number)


@pytest.mark.parametrize("prefix", [NOBODY, ["unshare", "-U", "-r"]], ids=["user", "namespace"])
def test_a_lock_of_an_unprivileged_process_blocks_no_start(lan, prefix):
    holder = holders.hold(lan.server, INTERFACE, PORT, prefix=prefix)
    lan.connect(*TUN)
    output = lan.near.process.output()
    for name in (INTERFACE, PORT):
        line = next(line for line in output.splitlines() if f"@{name} does not lock" in line)
        assert f"process {holder.pid} has it, and may not run a tunnel" in line
    reach_each_other(lan.server, lan.client)


def test_a_lock_holder_that_does_not_answer_blocks_no_start(lan):
    holders.hold(lan.server, INTERFACE, PORT, kind="silent", prefix=NOBODY)
    lan.connect(*TUN)
    assert "another process has it, and does not answer" in lan.near.process.output()


def test_one_of_many_simultaneous_starts_runs(lan):
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys, ready=False)
    others = [lan.server.spawn([*by_hand(near)]) for _ in range(5)]
    everybody = [near.process, *others]

    def settled():
        running = [process for process in everybody if process.running()]
        return len(running) == 1 and holders.names_in_use(lan.server) == [
            f"@{INTERFACE}",
            f"@{PORT}",
        ]

    await_(settled, timeout=60, what="one that runs")
    (winner,) = [process for process in everybody if process.running()]
    for loser in everybody:
        assert loser is winner or loser.wait() == 1
    assert winner.stop() == 0
    assert holders.names_in_use(lan.server) == []


def test_a_start_right_after_a_kill(lan):
    lan.connect(*TUN)
    for _ in range(10):
        lan.near.process.send_signal(signal.SIGKILL)
        lan.near.start()  # not even waited for
    ipipou.later_second()
    lan.far.reauthenticate()
    lan.near.await_log("tunnel up")
    reach_each_other(lan.server, lan.client)


def test_many_requests_do_not_fill_the_queue_of_a_lock(lan):
    """Each refused start is one that asked; and any user may ask."""
    lan.connect(*TUN)
    ask = f"""
import socket
for _ in range(10000):
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect("\\0{INTERFACE}")
"""
    lan.server.run([*NOBODY, sys.executable, "-c", ask], timeout=120)
    holders.refused(lan.server, by_hand(lan.near), 1, "run by another process already")


# -- default directories --------------------------------------------------------------------


@pytest.fixture
def defaults():
    """The default directories; what a test makes there is removed."""
    roots = [pathlib.Path("/run/ipipou"), pathlib.Path("/var/lib/ipipou")]
    before = {root: set(root.iterdir()) if root.exists() else None for root in roots}
    yield roots
    for root, there in before.items():
        if there is None:
            shutil.rmtree(root, ignore_errors=True)
        else:
            for made in set(root.iterdir()) - there:
                shutil.rmtree(made)


def test_two_namespaces_with_one_number(lan, defaults):
    runtime, state = defaults
    keys = ipipou.Keys(lan.server)
    proof = ["--auth-secret", ipipou.SECRET]
    argv = ["ipipou", "-vvv", "-n0", "-b", "@eth0", *TUN, *proof]
    near = lan.server.spawn([*argv, "-s", "--auth-remote-pubkey-b64", keys.public])
    near.await_output("ready on")
    far = lan.client.spawn(
        [*argv, "-r", f"{SERVER}:10000", "--tunl-ip", "172.28.0.1", "--auth-key-b64", keys.private]
    )
    near.await_output("tunnel up")
    reach_each_other(lan.server, lan.client)
    names = [f"{host.netns}@ipipou0" for host in (lan.server, lan.client)]
    for name in names:
        assert runtime.joinpath(name, "control.sock").exists()
        assert state.joinpath(name, "memory.json").exists()
        shown = lan.server.run(["ipipou", "show", name])
        assert shown.splitlines()[1].split()[0] == "ipipou0"
    assert len(lan.client.run("ipipou show ipipou0").splitlines()) > 2
    assert near.stop() == far.stop() == 0


@pytest.mark.parametrize("given", [False, True])
def test_a_namespace_without_a_name_has_its_own_directory(lan, defaults, given):
    runtime, state = defaults
    before = set(state.iterdir()) if state.exists() else set()
    script = "ip link set lo up && exec ipipou -vvv -s -b 127.0.0.1 --auth-token x " + " ".join(TUN)
    script += f" --memory-dir {lan.server.lab.directory / 'memory'}" if given else ""
    running = lan.server.spawn(["unshare", "-n", "sh", "-c", script])
    running.await_output("ready on")
    assert ("replays are not remembered" in running.output()) is not given
    assert [p.name for p in runtime.glob("namespace-*@ipipou0")]
    assert (set(state.iterdir()) if state.exists() else set()) == before
    assert running.stop() == 0
