"""The configuration of a tunnel is edited while its process is dead: the next start gives back what the former one
put on the host, which it does not have itself."""

import signal

import pytest

import ipipou
from gateways import INNER_SERVER, Internet, await_answer, connect, rules, state
from ipipou import SERVER
from lab import await_

TABLES = "nft list tables"
# Each with what stands in the former one's place.
EDITS = {
    "number": {"-n0": "-n7"},
    "number-of-the-same-port": {"-n0": "-n7", "@eth0": ":10000@eth0"},
    "interface": {"-n0": "-n0", "ipipou0": "vpn0"},
    "all": {"-n0": "-n7", "ipipou0": "vpn0", "@eth0": ":10055@eth0"},
}


@pytest.fixture
def internet(lab):
    return Internet(lab)


def edit(end, changes):
    """The next start has the options as they are after these changes."""
    end.argv = [changes.get(word, word) for word in map(str, end.argv)]
    end.argv += ["--tunl-dev", changes.get("ipipou0", "ipipou0")]


@pytest.mark.parametrize("what", EDITS)
def test_what_a_full_tunnel_was_is_given_back(internet, what):
    client = internet.client
    before = state(client)
    internet.serve()
    far = internet.connect("--masquerade", "eth0")
    await_answer(client, Internet.THIRD)
    await_(lambda: "ipipou-0-gateway" in client.run(TABLES), what="rules of a gateway")
    whole = rules(client)
    assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
    edit(far, EDITS[what])
    far.start()
    await_answer(client, Internet.THIRD)
    assert connect(client, internet.third, Internet.THIRD) == SERVER
    number = EDITS[what]["-n0"][2:]
    table = hex(0x69700000 + int(number))
    await_(lambda: len(rules(client)) == len(whole), what=f"the rules {whole}, of {table} alone")
    assert str(int(table, 16)) in rules(client)[-1]
    assert f"table ip ipipou-{number}-gateway" in client.run(TABLES)
    assert number == "0" or "ipipou-0" not in client.run(TABLES)
    assert far.process.stop() == 0
    assert state(client) == before


def test_what_another_tunnel_has_now_stays(internet):
    """Its number and its interface were given to another one while it was dead."""
    client = internet.client
    before = state(client)
    for number in (0, 1):
        internet.serve(number=number)
    dead = internet.connect(name="dead")
    await_answer(client, Internet.THIRD)
    dead.process.stop(signal.SIGKILL)
    other = internet.connect(name="other")
    await_answer(client, Internet.THIRD)
    edit(dead, {"-n0": "-n1", "ipipou0": "vpn0", f"{SERVER}:10000": f"{SERVER}:10001"})
    dead.argv = [word.replace("172.28.0.1", "172.28.0.3") for word in dead.argv]
    dead.start()
    await_answer(client, "172.28.0.2")
    await_answer(client, INNER_SERVER)
    other.await_quiet()
    assert other.show()["repaired"] == 0
    assert other.process.stop() == 0
    await_answer(client, Internet.THIRD)
    assert dead.process.stop() == 0
    assert state(client) == before


def test_full_tunnels_that_stop_together_leave_nothing(internet):
    """Each has the rules that they share from the other, or leaves them to it."""
    client = internet.client
    before = state(client)
    numbers = range(4)
    servers = [internet.serve(number=number) for number in numbers]
    ends = [internet.connect(number=number, peer=number) for number in numbers]
    for _ in range(4):
        for near in servers:
            near.await_log("tunnel up")
        await_(lambda: len(rules(client)) == 2 + len(ends), what="a rule of each")
        for end in ends:
            end.process.send_signal(signal.SIGTERM)
        assert [end.process.wait() for end in ends] == [0] * len(ends)
        assert rules(client) == []
        for end in ends:
            end.start()
    for end in ends:
        assert end.process.stop() == 0
    assert state(client) == before
