"""What the package's maintainer scripts do to running tunnels, called as dpkg calls them."""

import pathlib
import subprocess

import pytest

import ipipou
from gateways import await_answer
from lab import await_
from test_systemd import (
    CLIENT_UNIT,
    INNER_SERVER,
    SERVER_UNIT,
    client_of,
    journal,
    machine,
    properties,
    serve_by,
    systemctl,
    tun,
)

SCRIPTS = pathlib.Path(__file__).with_name("deb")


def script(name, *arguments):
    """As dpkg runs it; what it says is for the administrator."""
    done = subprocess.run(
        ["/bin/sh", SCRIPTS / name, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def await_new_process(unit):
    """systemd counts it, and it says that it is ready."""
    ready = {"NRestarts": "1", "ActiveState": "active", "SubState": "running"}
    found = lambda: properties(unit, *ready)  # noqa: E731
    try:
        await_(lambda: found() == ready, timeout=60, what="new process")
    except AssertionError as late:
        raise AssertionError(f"{found()}\n{journal('-u', unit)}") from late


@pytest.mark.parametrize("datapath", ["kernel", "tun"])
def test_an_upgrade_hands_a_running_tunnel_over(machine, tun, datapath):
    """Another process, and no packet is lost; what did not run does not run afterwards."""
    serve_by(datapath, machine)
    systemctl("start", SERVER_UNIT)
    far = client_of(machine)
    await_answer(machine.near, INNER_SERVER)
    pid = properties(SERVER_UNIT, "MainPID")
    ping = machine.near.ping_background(INNER_SERVER, interval=0.02)
    await_(lambda: ping.answers() >= 10, what="answers")
    script("prerm", "upgrade", "0.3.1-1")
    script("postrm", "upgrade", "0.3.1-1")
    assert properties(SERVER_UNIT, "MainPID") == pid, "the new program is not there yet"
    script("postinst", "configure", "0.3.0-1")
    await_new_process(SERVER_UNIT)
    ping.await_answers(20)
    ping.stop_complete()
    assert properties(SERVER_UNIT, "MainPID") != pid
    found = properties(CLIENT_UNIT, "ActiveState", "NRestarts")
    assert found == {"ActiveState": "inactive", "NRestarts": "0"}
    assert far.process.stop() == 0


def test_both_ends_are_handed_over(machine):
    """A client, too: its server never notices."""
    server = ipipou.server(machine.far, keys=machine.keys)
    systemctl("start", CLIENT_UNIT)
    server.await_accepted(1)
    await_answer(machine.far, "172.28.0.1")
    ping = machine.far.ping_background("172.28.0.1", interval=0.02)
    await_(lambda: ping.answers() >= 10, what="answers")
    script("postinst", "configure", "0.3.0-1")
    await_new_process(CLIENT_UNIT)
    ping.await_answers(20)
    ping.stop_complete()


def test_a_tunnel_whose_file_the_new_program_refuses_goes_on_with_the_old_one(machine):
    """A new process would end at once, and nobody would look after the tunnel any more."""
    conf = pathlib.Path("/etc/ipipou/server0.conf")
    good = conf.read_text()
    systemctl("start", SERVER_UNIT)
    client_of(machine)
    await_answer(machine.near, INNER_SERVER)
    pid = properties(SERVER_UNIT, "MainPID")
    conf.write_text(f"{good}no-such-option\n")
    said = script("postinst", "configure", "0.3.0-1")
    assert "no-such-option" in said
    assert f"ipipou: {SERVER_UNIT} goes on with the old program" in said
    assert properties(SERVER_UNIT, "MainPID") == pid
    await_answer(machine.near, INNER_SERVER)
    conf.write_text(good)
    assert "goes on" not in script("postinst", "configure", "0.3.0-1")
    await_new_process(SERVER_UNIT)


def test_a_removal_stops_tunnels_and_a_purge_removes_their_memory(machine):
    before = machine.snapshot()
    systemctl("enable", SERVER_UNIT)
    systemctl("start", SERVER_UNIT)
    client_of(machine)
    await_answer(machine.near, INNER_SERVER)
    memory = pathlib.Path("/var/lib/private/ipipou")
    script("prerm", "remove")
    assert properties(SERVER_UNIT, "ActiveState") == {"ActiveState": "inactive"}
    assert machine.snapshot() == before
    script("postrm", "remove")
    assert list(memory.glob("*/memory.json")), "a replayed packet is to be refused afterwards, too"
    # A server's own key is its identity, which all its clients know.
    key = memory / "hub0/server.key"
    key.parent.mkdir()
    key.write_text("a key")
    script("postrm", "purge")
    assert [file for file in memory.rglob("*") if not file.is_dir()] == [key]
    key.unlink()
    script("postrm", "purge")
    assert not memory.exists() and not pathlib.Path("/var/lib/ipipou").exists()
    assert not list(pathlib.Path("/etc/systemd/system").glob("*.wants/ipipou@*"))
    assert pathlib.Path("/etc/ipipou/server0.conf").exists(), "it is the administrator's"


def test_leftovers_of_make_install_are_reported(machine):
    """The units of this machine start /usr/local/bin/ipipou."""
    assert "make uninstall" in script("postinst", "configure")
