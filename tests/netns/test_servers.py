"""A client with several servers (-r A,B): it asks the next when one does not answer or refuses, and goes
back to the first."""

import re
import time

import ipipou
from failover import (
    first_goes_and_comes_back,
    flooded_by_the_first_and_let_in_by_the_next,
    in_use,
)
from given import addresses
from hub import PORT, Hub, inner, reload, states
from ipipou import Tunnel
from lab import await_
from lan import await_reached, outer


def test_a_client_goes_to_the_next_server_and_back_to_the_first(lab):
    # Data without an answer for 5 s, of which the counters tell every 3 s, and three hellos.
    first_goes_and_comes_back(Hub(lab, clients=2), within=5 + 3 + 3 + 3)


def test_a_server_that_refuses_is_followed_by_the_next_at_once(lab):
    hub = Hub(lab, clients=2)
    hub.forget(3)
    standby = hub.standby(3)
    hub.name(2, enabled=False)
    near = hub.server()
    far = hub.client(2, *hub.servers(3))
    far.await_log(f"{outer(1)}:{PORT} does not let us in: asking {outer(3)}:{PORT}", timeout=3)
    far.await_log(f"connected to {outer(3)}", timeout=3)
    await_reached(hub.clients[0], inner(1))
    assert in_use(far) == f"{outer(3)}:{PORT}"
    assert (states(near), states(standby)) == ({"peer2": "disabled"}, {"peer2": "connected"})
    text = hub.clients[0].run(["ipipou", "show", "--runtime-root", far.root, "ipipou0"])
    assert f"servers: {outer(1)}:{PORT}, {outer(3)}:{PORT} (in use)" in text


def ping(host, end, *words, code=0):
    argv = ["ipipou", "ping", *words, "--runtime-root", end.root]
    done = host.run(argv, check=False)
    assert done.returncode == code, done
    return done.stdout, done.stderr


def test_a_client_is_asked_whether_its_servers_are_there(lab):
    hub = Hub(lab, clients=2)
    hub.forget(3)
    near, standby = hub.server(), hub.standby(3)
    far = hub.client(2, *hub.servers(3))
    far.await_log("connected to")
    client, first, other = hub.clients[0], f"{outer(1)}:{PORT}", f"{outer(3)}:{PORT}"
    begin = time.monotonic()
    lines = ping(client, far)[0].splitlines()
    assert len(lines) == 3 and time.monotonic() - begin >= 2
    for line in lines:
        assert re.fullmatch(rf"answer from {first}: time \d+\.\d ms, seen as 10.0.0.2:{PORT}", line)
    # The other one is asked too, and moves nothing.
    for host in (outer(3), other):
        said, _ = ping(client, far, "-c1", host)
        assert re.fullmatch(rf"answer from {other}: time \d+\.\d ms\n", said), said
    assert states(standby) == {"peer2": "new"} and in_use(far) == first
    _, said = ping(client, far, "a.example", code=2)
    assert f"no server is called a.example; -r has {first}, {other}" in said
    # Those who ask at the same time share a hello, and there is one a second at most.
    hellos = near.show()["peers"]["hellos"]
    begin, before = time.monotonic(), hellos["refreshed"] + hellos["challenged"]
    argv = ["ipipou", "ping", "-c1", "--runtime-root", far.root]
    askers = [client.spawn(argv) for _ in range(20)]
    assert [asker.wait() for asker in askers] == [0] * len(askers)
    seconds = 1 + time.monotonic() - begin
    hellos = near.show()["peers"]["hellos"]
    assert hellos["refreshed"] + hellos["challenged"] <= before + 2 * (1 + seconds)
    assert seconds < 8, seconds

    said, error = ping(hub.host, near, code=2)
    assert "this is a server" in error and "ipipou peer list" in error, error
    standby.process.kill()
    said, error = ping(client, far, "-c1", "-i", "ipipou0", outer(3), code=1)
    assert said == f"no answer from {other}\n" and error == f"ipipou: no answer from {other}\n"
    hub.name(2, enabled=False)
    reload(near)
    said, _ = ping(client, far, "-c1", outer(1), code=1)
    assert said.startswith(f"answer from {first}: it does not let us in: we are disabled there")


def test_a_client_starts_where_only_the_last_server_is_there(lab):
    hub = Hub(lab, clients=3)
    hub.forget(3)
    hub.forget(4)
    hub.standby(4)
    far = hub.client(2, *hub.servers(3, 4))
    far.await_log(f"connected to {outer(4)}", timeout=10)
    await_reached(hub.clients[0], inner(1))


def connected_to_first_of_two(lab):
    hub = Hub(lab, clients=2)
    hub.forget(3)
    near, standby = hub.server(), hub.standby(3)
    far = hub.client(2, *hub.servers(3))
    far.await_log(f"connected to {outer(1)}")
    return hub, near, far


def test_pings_in_an_outage_do_not_keep_a_client_from_its_next_server(lab):
    hub, near, far = connected_to_first_of_two(lab)
    client = hub.clients[0]
    hub.host.run("ip link set eth0 down")
    begin = time.monotonic()
    near.process.stop()
    # Each asks once and waits for two seconds.
    asker = client.spawn(["ipipou", "ping", "-c30", "--runtime-root", far.root])
    far.await_log(f"connected to {outer(3)}", timeout=20)
    assert time.monotonic() - begin < 8
    assert in_use(far) == f"{outer(3)}:{PORT}"
    asker.stop()


def test_hellos_that_a_rule_of_the_host_refuses_do_not_keep_it_from_the_next_server(lab):
    hub, _, far = connected_to_first_of_two(lab)
    client = hub.clients[0]
    client.nft(
        f"""
        table ip mine {{
            chain out {{
                type filter hook output priority 0;
                ip daddr {outer(1)} udp dport {PORT} drop
            }}
        }}"""
    )
    far.reauthenticate()
    far.await_log(f"no answer from {outer(1)}:{PORT}: asking {outer(3)}:{PORT}", timeout=8)
    far.await_log(f"connected to {outer(3)}", timeout=3)
    await_reached(client, inner(1))


def test_another_inner_address_of_the_next_server_is_not_an_error(lab):
    hub = Hub(lab, clients=2)
    hub.forget(3)
    near = hub.server()
    files = hub.peers.parent / "others.d"
    files.mkdir()
    named = f'[peer.guest]\npublic-key = "{hub.keys[2].public}"\naddress = "10.9.0.7"\n'
    (files / "guest.toml").write_text(named)
    own = ["-s", "-b", "@eth0", "--tunl-ip", "10.9.0.1/24", "--peers", files, *hub.datapath]
    own += ["--auth-key-b64", hub.keys[3].private, "--auth-secret", ipipou.SECRET]
    Tunnel(hub.clients[1], *own)
    client, far = hub.clients[0], hub.guest(2, *hub.servers(3))
    far.await_log(f"our address inside the tunnel, from the server: {inner(2)}/24")
    await_reached(client, inner(1))
    hub.host.run("ip link set eth0 down")
    near.process.stop()
    far.reauthenticate()
    far.await_log("our address inside the tunnel, from the server: 10.9.0.7/24", timeout=15)
    await_(lambda: addresses(client) == ["10.9.0.7/24"], what="the other address alone")
    await_reached(client, "10.9.0.1")
    assert "ERROR" not in far.process.output(), far.process.output()


def test_answers_forged_from_one_server_cost_another_none(lab):
    flooded_by_the_first_and_let_in_by_the_next(Hub(lab, clients=2))
