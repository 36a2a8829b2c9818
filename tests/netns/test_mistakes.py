"""What a person is told of mistakes that each end alone cannot see."""

import ipipou
from ipipou import CLIENT, SERVER, STRANGER, Keys, Lan
from lab import await_

TUN = ["--datapath", "tun"]


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
    near[1].await_log("WARN: .*172.28.0.[01].* ipipou0|WARN: .*ipipou0.*172.28.0.[01]")


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
