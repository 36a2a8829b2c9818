"""What the log says about mistakes that each end alone cannot see."""

import pytest

import ipipou
from ipipou import CLIENT, SERVER, STRANGER, Keys, Lan
from lab import await_

TUN = ["--datapath", "tun"]
SERVER6, CLIENT6 = "2001:db8::1", "2001:db8::2"


def test_two_hosts_with_one_key_are_named(lab):
    """Each takes the tunnel from the other, whenever it authenticates."""
    lan, keys = Lan(lab), None
    keys = Keys(lan.server)
    near = ipipou.server(lan.server, *TUN, keys=keys)
    one = ipipou.client(lan.client, *TUN, keys=keys)
    near.await_log("tunnel up")
    other = ipipou.client(lan.stranger, *TUN, device="br0", keys=keys)
    near.await_accepted(2)
    assert "two hosts" not in near.process.output()
    for count, end in ((3, one), (4, other)):
        end.reauthenticate()
        near.await_accepted(count)
    near.await_log(
        f"WARN: {CLIENT}:10000 and {STRANGER}:10000 take the tunnel from each other: two hosts"
    )
    one.reauthenticate()
    near.await_accepted(5)
    assert near.process.output().count("two hosts have one key") == 1


def test_two_tunnels_with_the_same_inner_addresses(lab):
    """The second server as a copy of the first, with the addresses of the first."""
    lan = Lan(lab)
    one, other = Keys(lan.server), Keys(lan.server)
    near = [ipipou.server(lan.server, *TUN, keys=one)]
    same = ["--tunl-ip", "172.28.0.0"]
    near.append(ipipou.server(lan.server, *TUN, *same, keys=other, number=1))
    ipipou.client(lan.client, *TUN, keys=one)
    near[0].await_log("tunnel up")
    address = ["--tunl-ip", "172.28.0.1"]
    place = ["-c", "-b", "@br0", "-r", f"{SERVER}:10001", *address]
    proof = ["--auth-key-b64", other.private, "--auth-secret", ipipou.SECRET]
    ipipou.Tunnel(lan.stranger, *place, *TUN, *proof)
    near[1].await_log("tunnel up")
    near[1].await_log("WARN: the routes of this host lead to ipipou0 with packets for 172.28.0.1,")


def test_a_client_knows_whether_its_server_is_there(lab):
    """As far as the old protocol tells: no word comes back, data does."""
    server, client = ipipou.neighbours(lab)
    keys = Keys(server)
    far = ipipou.client(client, *TUN, keys=keys)
    (tunnel,) = far.show()["tunnels"]
    assert (tunnel["up"], tunnel["connected"], tunnel["last_data"]) == (True, False, None)
    assert tunnel["last_sent"] and tunnel["last_accepted"] is None
    assert tunnel["last_authentication"] == tunnel["last_sent"]
    text = client.run(["ipipou", "show", "--runtime-root", far.root])
    assert "not connected" in text and "nothing has come back" in text, text
    assert max(map(len, text.splitlines())) <= 100

    near = ipipou.server(server, *TUN, keys=keys)
    far.reauthenticate()
    near.await_log("tunnel up")
    ipipou.reach_each_other(server, client)
    await_(lambda: far.show()["tunnels"][0]["connected"], what="connected")
    text = client.run(["ipipou", "show", "--runtime-root", far.root])
    assert " connected " in text and "nothing" not in text, text
    (served,) = near.show()["tunnels"]
    assert served["connected"] is None and served["last_sent"] is None
    assert served["last_accepted"] == served["last_authentication"]
    wide = client.run(["ipipou", "show", "--wide", "--runtime-root", far.root])
    assert f" {CLIENT}:10000 " in wide and " 172.28.0.1 > 172.28.0.0 " in wide

    assert near.process.stop() == 0
    client.spawn(["ping", "-i", "0.5", "172.28.0.0"])
    await_(lambda: far.show()["tunnels"][0]["unanswered"], 60, what="unanswered")
    assert far.show()["tunnels"][0]["connected"] is False
    text = client.run(["ipipou", "show", "--runtime-root", far.root])
    assert "not connected" in text and "none come back" in text, text


def test_a_reply_counts_as_contact(lab):
    """A server that answers is there, though no data has come yet."""
    server, client = ipipou.neighbours(lab)
    keys = Keys(server)
    near = ipipou.server(server, *TUN, "--reply-on-auth-ok", keys=keys)
    far = ipipou.client(client, *TUN, keys=keys)
    near.await_log("tunnel up")
    await_(lambda: far.show()["tunnels"][0]["connected"], what="connected")
    (tunnel,) = far.show()["tunnels"]
    assert (tunnel["last_data"], tunnel["rx_packets"]) == (None, 0)
    assert tunnel["last_reply"] >= tunnel["last_sent"]
    shown = client.run(["ipipou", "show", "ipipou0", "--runtime-root", far.root])
    assert " connected " in shown and "nothing" not in shown, shown
    assert "last reply received: " in shown and "last data received" not in shown, shown
    # Nor is it tried again: without the reply that is said after seven seconds.
    await_(lambda: far.show()["uptime"] > 10, what="second")
    assert "nothing has come back" not in far.process.output()


def reject(server, kind):
    """Its packets to the tunnel's port are refused so, as a firewall on the way would do it."""
    rule = f"udp dport 10000 reject with icmp type {kind}"
    hook = "type filter hook input priority -200"
    server.nft(f"table ip f {{\nchain c {{\n{hook}\n{rule}\n}}\n}}")


@pytest.mark.parametrize(
    "kind, what",
    [
        (None, "port unreachable"),
        ("host-unreachable", "host unreachable"),
        ("admin-prohibited", "prohibited"),
    ],
)
def test_icmp_errors_about_the_server_are_reported(lab, kind, what):
    server, client = ipipou.neighbours(lab)
    if kind is not None:
        reject(server, kind)
    keys = Keys(server)
    far = ipipou.client(client, *TUN, keys=keys)
    told = lambda: far.show()["tunnels"][0]["unreachable"]  # noqa: E731
    await_(lambda: told() is not None, what="the error")
    assert (told()["what"], told()["by"]) == (what, SERVER)
    assert told()["at"] >= far.show()["tunnels"][0]["last_sent"] - 10
    shown = client.run(["ipipou", "show", "--runtime-root", far.root])
    assert " not connected " in shown and f"ipipou0: {what}, says {SERVER}, " in shown, shown
    assert max(map(len, shown.splitlines())) <= 100


def test_icmpv6_errors_about_the_server_are_reported(lab):
    server, client = ipipou.neighbours(lab)
    for host, address in ((server, SERVER6), (client, CLIENT6)):
        host.run(f"ip addr add {address}/64 dev eth0 nodad")
    place = ["-c", "-b", f"[{CLIENT6}]@eth0", "-r", f"[{SERVER6}]:10000", "--tunl-ip", "172.28.0.1"]
    far = ipipou.Tunnel(client, *place, *TUN, "--auth-token", "x")
    told = lambda: far.show()["tunnels"][0]["unreachable"]  # noqa: E731
    await_(lambda: told() is not None, what="the error")
    assert (told()["what"], told()["by"]) == ("port unreachable", SERVER6)


def test_a_forged_icmp_error_is_only_shown(lab):
    """It quotes our packets, address and port right, while all goes well."""
    server, client = ipipou.neighbours(lab)
    keys = Keys(server)
    near = ipipou.server(server, *TUN, keys=keys)
    far = ipipou.client(client, *TUN, "--keepalive", "1", keys=keys)
    near.await_log("tunnel up")
    ipipou.reach_each_other(server, client)
    await_(lambda: far.show()["tunnels"][0]["connected"], what="connected")
    # From now on nothing comes back, and that is not a reason to call it lost.
    reject(server, "port-unreachable")
    await_(lambda: far.show()["tunnels"][0]["unreachable"], what="the error")
    (tunnel,) = far.show()["tunnels"]
    assert (tunnel["connected"], tunnel["unanswered"]) == (True, None)
    shown = client.run(["ipipou", "show", "--runtime-root", far.root])
    assert " connected " in shown and f"ipipou0: port unreachable, says {SERVER}, " in shown, shown
    # Data takes it away.
    server.run("nft delete table ip f")
    assert client.ping("172.28.0.0", count=5).received == 5
    await_(lambda: far.show()["tunnels"][0]["unreachable"] is None, what="good news")
    assert near.show()["moved"] == 0
