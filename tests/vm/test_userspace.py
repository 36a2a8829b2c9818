"""Tunnels whose one end is this process (--datapath tun), and the other the kernel's."""

import hashlib
import json
import os
import re
import subprocess
import threading

import pytest

import ipipou
import offloads
from gateways import INNER, TOKEN, Border, await_answer
from first_version import handmade_tunnel, send, signed, verify
from ipipou import CLIENT, SERVER, STRANGER, await_, reach_each_other
from wire import Wire

INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
MOVED = "203.0.113.9"
BULK = 1 << 20
MTU = 1500 - 28
TUN = "--datapath", "tun"


@pytest.fixture(scope="module", autouse=True)
def tun():
    """/dev/net/tun: nothing here makes it before it is asked for, as udev does."""
    subprocess.run(["modprobe", "tun"], check=True)


def kind(host):
    """What the tunnel's interface is, as `ip` says."""
    return json.loads(host.run("ip -j -d link show dev ipipou0"))[0]["linkinfo"]["info_kind"]


def interfaces(host):
    return [link["ifname"] for link in json.loads(host.run("ip -j link"))]


def transfer(sender, receiver, address):
    """Sends random bytes over TCP; they arrive as they were."""
    data = os.urandom(BULK)

    def feed():
        with sender.socket() as out:
            out.settimeout(20)
            out.connect((address, 5001))
            out.sendall(data)

    with receiver.socket() as listener:
        listener.bind((address, 5001))
        listener.listen()
        listener.settimeout(20)
        feeding = threading.Thread(target=feed)
        feeding.start()
        arrived, (accepted, _) = hashlib.sha256(), listener.accept()
        with accepted:
            accepted.settimeout(20)
            while part := accepted.recv(1 << 16):
                arrived.update(part)
        feeding.join()
    assert arrived.digest() == hashlib.sha256(data).digest()


def carry(server, client):
    """Small packets, the largest, and many, both ways."""
    reach_each_other(server, client)
    for here, there in ((client, INNER_SERVER), (server, INNER_CLIENT)):
        assert here.ping(there, count=2, size=MTU - 28).received == 2
    transfer(client, server, INNER_SERVER)
    transfer(server, client, INNER_CLIENT)


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_userspace_end_talks_to_a_kernel_end(hosts, role):
    """The other is the kernel's; the client moves, and both leave nothing."""
    server, client = hosts
    keys = ipipou.Keys(server)
    before = server.snapshot(), interfaces(client)
    ends = {
        name: TUN if name == role else ("--datapath", "kernel") for name in ("server", "client")
    }
    near = ipipou.server(server, *ends["server"], keys=keys)
    far = ipipou.client(client, *ends["client"], keys=keys)
    near.await_log("tunnel up")
    expected = {"server": ("tun", "ipip"), "client": ("ipip", "tun")}[role]
    assert (kind(server), kind(client)) == expected
    for end, name in zip((near, far), expected):
        assert end.show()["datapath"] == {"tun": "tun", "ipip": "kernel"}[name]
    carry(server, client)

    ping = client.ping_background(INNER_SERVER)
    await_(lambda: ping.answers() > 0, what="answer")
    client.batch(f"addr del {CLIENT}/24 dev eth0", f"addr add {MOVED}/24 dev eth0")
    near.await_log(f"moved from {CLIENT}:10000 to {MOVED}:10000")
    ping.await_answers(5)
    reach_each_other(server, client)
    assert near.show()["moved"] == 1

    assert near.process.stop() == far.process.stop() == 0
    assert (server.snapshot(), interfaces(client)) == before


def datagrams(host):
    """How many its sockets were given; what was merged counts as one."""
    return int(host.run("nstat -asz UdpInDatagrams").split()[-2])


def test_where_segments_come_one_by_one_a_kernel_ends_data_passes_the_process(hosts):
    """It has no UDP checksums, so nothing of it is merged for the process's socket."""
    server, client = hosts
    for host in hosts:
        offloads.segmented_on_the_way(host, "eth0")
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, "--fast-path", "auto", keys=keys)
    ipipou.client(client, "--datapath", "kernel", "--fast-path", "off", keys=keys)
    near.await_log("tunnel up")
    near.await_log("fast path: by eth0, only what comes without UDP checksums")
    await_(lambda: near.show()["fast_path"]["remotes"], what="a remote on the fast path")
    before = datagrams(server)
    transfer(client, server, INNER_SERVER)
    transfer(server, client, INNER_CLIENT)
    assert datagrams(server) - before < BULK // MTU // 10


@pytest.mark.parametrize("option, is_merged", [("--no-encap-csum", False), ("--encap-csum", True)])
def test_a_kernel_ends_data_is_merged_for_the_process_if_it_has_checksums(lab, option, is_merged):
    """Which is what an end without CAP_BPF can be helped with."""
    server, client = lab.host("server"), lab.host("client")
    with Wire(server, "eth0", f"{SERVER}/24", client, "eth0", f"{CLIENT}/24"):
        keys = ipipou.Keys(server)
        near = ipipou.server(server, *TUN, "--fast-path", "off", keys=keys)
        kernel = ["--datapath", "kernel", "--fast-path", "off", option]
        ipipou.client(client, *kernel, keys=keys)
        near.await_log("tunnel up")
        before = datagrams(server)
        transfer(client, server, INNER_SERVER)
        assert (datagrams(server) - before < BULK // MTU // 4) == is_merged


def test_old_client(hosts):
    """A link made by hand, and packets of the first version, good ones and bad ones."""
    server, client = hosts
    keys, others = ipipou.Keys(server), ipipou.Keys(server)
    near = ipipou.server(server, *TUN, "--reply-on-auth-ok", keys=keys)
    handmade_tunnel(client, CLIENT, SERVER, INNER_CLIENT, INNER_SERVER)
    replies = client.capture("eth0", f"udp and src host {SERVER}")
    send(client, signed(others.private))
    send(client, signed(keys.private, secret="another"))
    near.await_rejected(wrong_signature=2)
    assert near.tunnel() is None
    good = signed(keys.private, first=range(0x40, 0x50))
    send(client, good)
    near.await_log("tunnel up")
    assert replies.await_packets(1)[0].payload == good[::-1]
    carry(server, client)
    send(client, good, source=STRANGER)
    near.await_rejected(wrong_signature=2, replayed=1)
    for nibble in (4, 6, 0, 15):  # once it is known, too
        send(client, signed(keys.private, first=range(nibble << 4, nibble + 1 << 4)))
    near.await_accepted(5)
    assert near.show()["tunnels"][0]["remote"] == f"{CLIENT}:10000"
    reach_each_other(server, client)


def test_old_server(hosts):
    """It checks our packet with PyNaCl, and has a link made by hand."""
    server, client = hosts
    keys = ipipou.Keys(server)
    seen = server.capture("eth0", "udp dst port 10000")
    far = ipipou.client(client, *TUN, keys=keys)
    (packet,) = seen.await_packets(1)
    verify(keys.public, packet.payload)
    assert (packet.src, packet.sport, packet.dst) == (CLIENT, 10000, SERVER)
    handmade_tunnel(server, SERVER, CLIENT, INNER_SERVER, INNER_CLIENT)
    carry(server, client)
    far.reauthenticate()
    again = seen.await_packets(2, condition=lambda p: len(p.payload) == 73)[1]
    verify(keys.public, again.payload)
    assert again.payload != packet.payload


def test_auto_prefers_the_kernel_datapath(hosts):
    """And where it cannot, the line that says so is no warning."""
    server, client = hosts
    keys = ipipou.Keys(server)
    near = ipipou.server(server, keys=keys)
    assert near.show()["datapath"] == "kernel" and "userspace" not in near.process.output()
    assert near.process.stop() == 0

    near = ipipou.server(server, "--ip6", "fd00::1/64", keys=keys)
    far = ipipou.client(client, "--ip6", "fd00::2/64", keys=keys)
    near.await_log(r"INFO: userspace datapath \(tun\): the kernel's carries IPv4 only \(--ip6\)")
    near.await_log("tunnel up")
    reach_each_other(server, client)
    assert client.ping("fd00::1").received == 3
    shown = server.run(f"ipipou show --runtime-root {near.root}")
    assert re.search(r"(?m)^ipipou0 +server +tun +up ", shown), shown
    assert far.show()["datapath"] == "tun" and kind(client) == "tun"


def test_gateway_takes_large_packets_of_a_kernel_apart(lab):
    """Over a cable that passes them as they are, as between the containers of one host."""
    border = Border(lab, back=[INNER])
    border.near = ipipou.server(border.server, *TOKEN, *TUN, "--forward")
    border.far = ipipou.client(
        border.client, *TOKEN, "--datapath", "kernel", "--route", border.NETWORK
    )
    await_answer(border.client, border.THIRD)
    transfer(border.client, border.third, border.THIRD)
    transfer(border.third, border.client, INNER_CLIENT)
    border.stop()
