"""One process for a port of an address; a FOU listener that is not this tunnel's is left alone (the
kernel's datapath)."""

import pytest

import holders
import ipipou
from ipipou import SERVER, reach_each_other

OTHER = "203.0.113.3"


@pytest.fixture
def lan(lab):
    return ipipou.Lan(lab)


def listeners(host):
    return host.run("ip fou show").splitlines()


def server_argv(lan, *options):
    keys, place = ipipou.Keys(lan.server), lan.server.lab.directory / "another"
    proof = ["--auth-remote-pubkey-b64", keys.public, "--auth-secret", ipipou.SECRET]
    return ["ipipou", "-s", *options, *proof, "--runtime-dir", place, "--memory-dir", place]


def test_a_second_server_on_one_port_is_refused(lan):
    lan.connect()
    ping = lan.client.ping_background("172.28.0.0")
    ping.await_answers()
    message = f"{SERVER}:10000: the UDP port is in use by ipipou, process {lan.near.process.pid}"
    for local in (":10000@eth0", f"{SERVER}:10000"):
        holders.refused(lan.server, server_argv(lan, "-n1", "-b", local), 53, message)
    assert ping.stop_complete().lost <= 1  # the last may be under way


def test_two_servers_may_have_one_port_at_two_addresses(lan):
    lan.server.run(f"ip addr add {OTHER}/24 dev eth0")
    keys, ends = ipipou.Keys(lan.server), []
    for number, address in enumerate((SERVER, OTHER)):
        options = ["--fou-local-ip", address, "--fou-local-port", 7000]
        ends.append(ipipou.server(lan.server, *options, keys=keys, number=number))
        far = {"remote": f"{address}:7000", "number": number, "peer": number, "keys": keys}
        ipipou.client(lan.client, **far)
        ends[-1].await_log("tunnel up")
    for number in (0, 1):
        reach_each_other(lan.server, lan.client, number)
    # The first one's listener is not the second's to take over, nor to remove.
    for end in reversed(ends):
        end.process.kill()
        end.start()
    for number in (0, 1):
        reach_each_other(lan.server, lan.client, number)
    assert ends[1].process.stop() == 0
    reach_each_other(lan.server, lan.client)


@pytest.mark.parametrize("local", [f"local {SERVER}", f"local {SERVER} dev eth0", ""])
def test_a_foreign_listener_is_left_alone(lan, local):
    lan.server.run(f"ip fou add port 10000 ipproto 4 {local}")
    before = listeners(lan.server)
    message = "the UDP port is in use by another program or FOU listener"
    holders.refused(lan.server, server_argv(lan, "-b", "@eth0"), 53, message)
    # At another address it is in nobody's way, and stays.
    lan.server.run(f"ip addr add {OTHER}/24 dev eth0")
    if local:
        near = ipipou.Tunnel(lan.server, "-s", "-b", OTHER, *server_argv(lan)[2:6])
        assert near.process.stop() == 0
    assert listeners(lan.server) == before


@pytest.mark.parametrize("flushed", [False, True])
def test_the_listener_of_a_killed_process_is_adopted(lan, flushed):
    """Without a client there is no link; the rules may be gone as well."""
    before = lan.server.snapshot()
    near = ipipou.server(lan.server, keys=ipipou.Keys(lan.server))
    near.process.kill()
    assert listeners(lan.server)
    if flushed:
        lan.server.run("nft flush ruleset")
    near.start()
    assert near.process.stop() == 0
    assert lan.server.snapshot() == before
    assert not list(near.state.glob("listener"))


def test_a_server_waits_for_an_address_whose_port_is_taken(lan):
    lan.connect()
    lan.server.batch("link add other0 type veth peer name other1", "link set other0 up")
    keys = ipipou.Keys(lan.server)
    options = ["--fou-local-port", 10000]
    second = ipipou.server(lan.server, *options, keys=keys, number=1, device="other0", ready=False)
    second.await_log("other0 has no address for this tunnel")
    lan.server.batch(f"addr add {SERVER}/32 dev other0")
    second.await_log(f"the UDP port of {SERVER}:10000 is in use by ipipou, process")
    reach_each_other(lan.server, lan.client)
    assert lan.near.process.stop() == 0
    second.await_log(f"install rules ipipou-1 for {SERVER}:10000")
