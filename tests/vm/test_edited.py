"""The configuration of a tunnel is edited while its process is dead, and what it had in the kernel goes on: the next
start gives back what the former one has, and is kept out by none of it."""

import re
import signal

import pytest

import ipipou
from gateways import rules, routes
from ipipou import CLIENT
from lab import await_

# Each with what stands in the former one's place.
EDITS = {
    "number": {"-n0": "-n7"},
    "number-of-the-same-port": {"-n0": "-n7", "@eth0": ":10000@eth0"},
    "interface": {"ipipou0": "vpn0"},
    "to-an-address": {"@eth0": CLIENT},
    "from-an-address": {CLIENT: "@eth0"},
    "number-and-to-an-address": {"-n0": "-n7", "@eth0": f"{CLIENT}:10000"},
}


@pytest.mark.parametrize("what", EDITS)
def test_what_a_full_tunnel_was_is_given_back(lab, what):
    changes = EDITS[what]
    lan = ipipou.Lan(lab)
    before = lan.client.snapshot()
    keys = ipipou.Keys(lan.server)
    near = ipipou.server(lan.server, keys=keys)
    options = ["--default-route", "--force-fou-local-ip-alt", "--tunl-dev", "ipipou0"]
    far = ipipou.client(lan.client, *options, keys=keys)
    if CLIENT in changes:
        assert far.process.stop() == 0
        far.argv[far.argv.index("@eth0")] = CLIENT
        far.start()
    near.await_log("tunnel up")
    ipipou.reach_each_other(lan.server, lan.client)
    assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
    far.argv = [changes.get(word, word) for word in map(str, far.argv)]
    far.start()
    far.reauthenticate()
    await_(lambda: lan.client.ping("172.28.0.0", count=1).received, what="an answer")
    number = changes.get("-n0", "-n0")[2:]
    table = str(0x69700000 + int(number))
    own = {CLIENT, f"172.29.0.{number}"}  # the uplink's, and the alternate one

    def left_alone():
        return re.findall(r"\tfrom ([0-9.]+) lookup main", "\n".join(rules(lan.client)))

    def are_of_one_tunnel():
        return set(left_alone()) == own and len(rules(lan.client)) == 2 + len(own)

    await_(are_of_one_tunnel, what="the rules of one tunnel")
    assert table in rules(lan.client)[-1] and routes(lan.client) == {"default": table}
    tables = lan.client.run("nft list tables").split()
    assert {name for name in tables if name.startswith("ipipou-")} == {f"ipipou-{number}"}
    assert len(lan.client.run("ip fou show").splitlines()) == 2  # one for the alternate address
    assert lan.client.run("ip -4 addr show dev lo").count("172.29.") == 1
    assert lan.client.run("ip -o link show type ipip").count("fou") <= 1
    assert far.process.stop() == 0
    assert lan.client.snapshot() == before


def test_the_unreachable_network_of_before_is_given_back(lab):
    """A node that the kernel carries has one; in userspace the interface itself answers."""
    lan = ipipou.Lan(lab)
    table = lab.directory / "hosts.json"
    table.write_text(f'{{"nodes": {{"192.168.100.2": {{"host": "{CLIENT}"}}}}}}')
    lan.server.run("modprobe tun")
    before = lan.server.snapshot()
    place = ["-b", "@eth0", "--tunl-ip", "192.168.100.1/24", "--hosts-file", table]
    end = ipipou.Tunnel(lan.server, *place, "--datapath", "kernel")

    def unreachable():
        lines = lan.server.run("ip route").splitlines()
        return [line.split()[1] for line in lines if "unreachable" in line]

    assert unreachable() == ["192.168.100.0/24"]
    for network, datapath in (("10.77.0", "kernel"), ("10.78.0", "tun")):
        assert end.process.stop(signal.SIGKILL) == -signal.SIGKILL
        end.argv[end.argv.index("--tunl-ip") + 1] = f"{network}.1/24"
        end.argv[-1] = datapath
        end.start()
        assert unreachable() == ([f"{network}.0/24"] if datapath == "kernel" else [])
    assert end.process.stop() == 0
    assert lan.server.snapshot() == before
