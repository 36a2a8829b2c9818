"""`ipipou show --json` is what docs/show.schema.json says: no field is missing, and there is no other."""

import json
import socket

import jsonschema
import pytest

import ipipou
from conftest import TOP
from hub import Hub, await_state, peers, reload
from ipipou import Tunnel
from lab import await_, has_fou
from lan import Lan, outer, reaches
from many_ends import TUN, Table, inner

SCHEMA = json.loads((TOP / "docs" / "show.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def check(end):
    """Validates what an end prints, and returns it."""
    whole = ["ipipou", "show", "--json", "--runtime-root", end.root]
    shown = json.loads(end.host.run(whole))
    assert shown[0]["tunnel"] == end.directory.name
    VALIDATOR.validate(shown)
    assert [process["pid"] for process in shown] == [process["pid"] for process in named(end)]
    return shown[0]


def named(end):
    shown = json.loads(
        end.host.run(["ipipou", "show", "--json", "--runtime-root", end.root, end.dev])
    )
    VALIDATOR.validate(shown)
    return shown


def asked(end, request):
    """What the process answers to a request of its socket."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(end.directory / "request.sock"))
        stream.sendall(json.dumps({"ipipou": 1, "request": request}).encode())
        stream.shutdown(socket.SHUT_WR)
        with stream.makefile("rb") as answer:
            return json.loads(answer.read())


def objects(schema):
    if isinstance(schema, list):
        for part in schema:
            yield from objects(part)
    elif isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for part in schema.values():
            yield from objects(part)


def test_the_schema_leaves_nothing_open():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    reasons = SCHEMA["$defs"]["process"]["properties"]["dropped"]
    for one in objects(SCHEMA):
        assert one["additionalProperties"] is False, one
        # What is dropped depends on the datapath; all else is always there.
        assert one is reasons or one["required"] == list(one["properties"]), one
    lists = [
        (name, field)
        for one in objects(SCHEMA)
        for name, field in one["properties"].items()
        if "array" in field.get("type", ())
    ]
    # It is null and not an empty list: the tunnel has one peer.
    assert [name for name, field in lists if field["type"] != "array"] == ["remotes"]
    assert len(lists) > 5
    # It sees what is missing, and what is too much.
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate([{}])


def test_a_server_with_peers_and_its_clients(lab):
    hub = Hub(lab, clients=3)
    hub.name(3, note="of Eva", expires="@2099-01-31", route=["192.168.7.0/24"])
    hub.name(4, enabled=False)
    near = hub.server()
    assert check(near)["peers"]["by_state"]["new"] == 2
    two, three, four = (hub.client(i) for i in (2, 3, 4))
    for end in (two, three):
        end.await_log("connected to")
    four.await_log("does not let us in")
    assert reaches(hub.clients[0], "10.8.0.1")
    three.process.stop()
    await_state(near, "peer3", "away")
    shown = check(near)
    assert shown["peers"]["reload"]["errors"] == [] and shown["peers"]["reload"]["ok"]
    assert {p["name"]: p["state"] for p in shown["peers"]["peers"]} == {
        "peer2": "connected",
        "peer3": "away",
        "peer4": "disabled",
    }
    assert peers(near)["peer4"]["last_refusal"]["why"] == "it is disabled"
    assert shown["public_key"] == hub.keys[1].public and shown["offloads_used"]
    assert check(two)["tunnels"][0]["connection"]["connected_for"] is not None
    assert check(four)["tunnels"][0]["connection"]["why"]
    hub.write("broken.toml", "[peer.x]\nadress = 1\n")
    reload(near)
    found = check(near)["peers"]["reload"]
    assert (found["ok"], len(found["errors"])) == (False, 2), found
    text = hub.host.run(["ipipou", "show", "--runtime-root", near.root, "ipipou0"])
    assert "the files of peers had mistakes" in text and "broken.toml:2" in text
    # Programs that ask for some peers only get what the schema says of one.
    listed = ["ipipou", "peer", "list", "--json", "--runtime-root", near.root]
    of_peers = jsonschema.Draft202012Validator(
        SCHEMA | {"type": "array", "items": {"$ref": "#/$defs/peer"}}
    )
    for state, names in ((None, ["peer2", "peer3", "peer4"]), ("away", ["peer3"]), ("new", [])):
        some = json.loads(hub.host.run([*listed, *(["--state", state] if state else [])]))
        of_peers.validate(some)
        assert [peer["name"] for peer in some] == names
    # The server itself leaves the others out: ten thousand are megabytes.
    for words, names in (({"in_state": "away"}, ["peer3"]), ({"named": "peer2"}, ["peer2"])):
        answer = asked(near, {"show": words})["peers"]
        assert [peer["name"] for peer in answer["peers"]] == names
        assert answer["by_state"]["disabled"] == 1
    assert asked(near, {"show": "none"})["peers"]["peers"] == []
    (hub.peers / "broken.toml").unlink()
    reload(near)
    assert check(near)["peers"]["reload"]["ok"] is True


def test_hosts_of_a_table(lab):
    lan = Lan(lab, 2)
    nodes = {inner(i): {"host": outer(i), "port": 10000} for i in (1, 2)}
    table = Table(lab.file("hosts.json"), nodes)
    ends = [
        Tunnel(host, "-b", "@eth0", "--tunl-ip", f"{inner(i)}/24", "--hosts-file", table.path, *TUN)
        for i, host in enumerate(lan.hosts, 1)
    ]
    await_(lambda: reaches(lan.hosts[0], inner(2), timeout=0.3), what="the other host")
    shown = [check(end) for end in ends]
    assert [process["role"] for process in shown] == ["node", "node"]
    assert [len(process["tunnels"][0]["remotes"]) for process in shown] == [1, 1]


def test_a_server_that_learns(lab):
    lan = Lan(lab, 2)
    host, guest = lan.hosts
    keys = ipipou.Keys(host)
    network = ["--learn", "--tunl-ip", "10.9.0.1/24"]
    near = ipipou.server(host, *network, *TUN, keys=keys)
    inside = ["--tunl-ip", "10.9.0.2", "--tunl-peer-ip", "10.9.0.1"]
    far = ipipou.client(guest, *inside, *TUN, remote=f"{outer(1)}:10000", keys=keys)
    await_(lambda: reaches(guest, "10.9.0.1", timeout=0.3), what="the server")
    assert [entry["inner"] for entry in check(near)["learned"]] == ["10.9.0.2"]
    assert check(far)["peers"] is None


@pytest.mark.parametrize("datapath", ["tun", "kernel"])
def test_a_tunnel_with_one_peer(lab, datapath):
    if datapath == "kernel" and not has_fou():
        pytest.skip("this kernel has no FOU")
    lan = ipipou.Lan(lab).connect("--datapath", datapath)
    ipipou.reach_each_other(lan.server, lan.client)
    lan.stranger.send_udp(ipipou.STRANGER, 10000, ipipou.SERVER, 10000, b"\xff" * 73)
    lan.near.await_rejected(wrong_signature=1)
    shown = check(lan.near)
    assert shown["dropped"] and bool(shown["offloads_used"]) == (datapath == "tun")
    check(lan.far)
    # Nobody listens there any more: an ICMP error says so.
    lan.near.process.stop()
    lan.client.run(["ping", "-c1", "-W1", "172.28.0.0"], check=False)
    check(lan.far)
