"""Kernels that refuse what makes the userspace datapath fast, some of them only once it is used: all
goes on without it, and one line says so. What they refuse is played by refuse.c."""

import contextlib
import pathlib
import random
import shutil
import subprocess

import pytest

import ipipou
from ipipou import reach_each_other
from many_ends import dropped, warnings
from test_integrity import TUN
from traffic import Echo, datagrams, no_damage, transfer_both_ways

SOURCE = pathlib.Path(__file__).with_name("refuse.c")
ALL = "tun tso uso, udp gso gro"
ONE_BY_ONE = "they are written one by one"
NO_OFFLOADS = "the kernel knows no offloads of TUN interfaces"
ONE_QUEUE = "TUN interfaces of one queue only"
SENT_ONE_BY_ONE = "they are sent one by one"
LINES = ONE_BY_ONE, NO_OFFLOADS, ONE_QUEUE, SENT_ONE_BY_ONE


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory):
    library = tmp_path_factory.mktemp("refuse") / "refuse.so"
    compiler = shutil.which("cc")
    subprocess.run(
        [compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"],
        check=True,
    )
    return library


@pytest.fixture
def connect(hosts, preloaded):
    """A tunnel between two hosts whose kernels refuse some things."""

    def connected(refused, *options):
        prefix = ["env", f"LD_PRELOAD={preloaded}", f"REFUSE={refused}"]
        options = ["--fast-path", "off", *options]  # the packets have to pass the process
        near = ipipou.server(hosts[0], *TUN, *options, prefix=prefix)
        far = ipipou.client(hosts[1], *TUN, *options, prefix=prefix)
        near.await_log("tunnel up")
        return near, far

    return connected


def said(end):
    """What is done without, by its lines."""
    return [line for warning in warnings(end) for line in LINES if line in warning]


def all_gets_through(hosts, ends):
    reach_each_other(*hosts)
    transfer_both_ways(hosts, 8, flows=2)
    generator = random.Random(4)
    with contextlib.closing(Echo(hosts[1], hosts[0], "172.28.0.0")) as echo:
        for _ in range(20):
            echo.window(datagrams(generator, [1200] * 30 + [5000, 33]))
    no_damage(hosts)
    for end in ends:
        assert dropped(end) == {}


@pytest.mark.parametrize(
    "refused, line, offloads",
    [
        ("write", ONE_BY_ONE, "tun, udp gso gro"),
        ("write,partial", ONE_BY_ONE, "tun, udp gso gro"),
        ("header", NO_OFFLOADS, "tun, udp gso gro"),
        ("header,exclusive", NO_OFFLOADS, "tun, udp gso gro"),
        ("segment-eio", SENT_ONE_BY_ONE, "tun tso uso, udp gro"),
        ("segment-einval", SENT_ONE_BY_ONE, "tun tso uso, udp gro"),
        ("segment-emsgsize", SENT_ONE_BY_ONE, "tun tso uso, udp gro"),
        ("segment-no", SENT_ONE_BY_ONE, "tun tso uso, udp gro"),
        ("partial", ONE_BY_ONE, "tun, udp gso gro"),
        ("offload", None, "tun, udp gso gro"),
        ("length", None, ALL),
        ("receive", None, "tun tso uso, udp gso"),
    ],
)
def test_the_tunnel_works_without_the_refused_feature(hosts, connect, refused, line, offloads):
    ends = connect(refused)
    all_gets_through(hosts, ends)
    for end in ends:
        assert end.show()["offloads"] == offloads
        assert said(end) == ([line] if line else [])


def test_the_tunnel_works_with_one_queue_if_several_are_refused(hosts, connect):
    ends = connect("queues", "--tun-queues", "3")
    all_gets_through(hosts, ends)
    for end in ends:
        assert end.show()["offloads"] == ALL
        assert said(end) == [ONE_QUEUE]


def test_a_foreign_interface_is_left_alone_on_old_kernels(hosts, preloaded):
    """Where a new interface cannot be asked for, one that is there is still left alone."""
    server, _ = hosts
    prefix = ["env", f"LD_PRELOAD={preloaded}", "REFUSE=header,exclusive"]
    options = ["--auth-by-remote-ip", "--auth-by-remote-port", "-r", f"{ipipou.CLIENT}:10000"]
    near = ipipou.server(server, "--datapath", "tun", *options, prefix=prefix)
    server.run("ip tuntap add dev ipipou0 mode tun")
    before = server.snapshot()
    hosts[1].send_udp(ipipou.CLIENT, 10000, ipipou.SERVER, 10000, b"hello")
    near.await_log("another program has an interface of that name")
    assert server.snapshot() == before
