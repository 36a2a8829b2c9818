"""A table of hosts from a web server, which may be bad, gone, or somebody else."""

import pathlib
import re
import shutil
import sys

import pytest

from lab import await_
from many_ends import (
    Lan,
    Names,
    Table,
    await_reached,
    hurry,
    inner,
    node,
    outer,
    reaches,
    remotes,
    warnings,
)

SERVER = pathlib.Path(__file__).with_name("https_server.py")
AT = Lan.ADDRESS
GOOD = f"https://{AT}:4430/hosts.json"
BOTH = {inner(i): {"host": outer(i)} for i in (1, 2)}
STAYS = "the last good table of hosts stays"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """What the server serves, and its certificates, which are made once."""
    return tmp_path_factory.mktemp("web")


class Web:
    """Two nodes, and the web server with their table."""

    def __init__(self, lab, directory):
        self.directory = directory
        self.authority = ["--ca-file", directory / "ca.pem"]
        self.lan = Lan(lab, 4)
        self.first, self.second, *_ = self.lan.hosts
        self.table = Table(directory / "hosts.json", BOTH)
        self.start()

    def start(self):
        command = [sys.executable, SERVER, self.directory, AT]
        self.server = self.lan.host.spawn(command)
        self.server.await_output("ready", timeout=30)

    def far(self):
        """The second node reads a file: nothing is wrong with its table."""
        file = Table(self.directory / "far.json", BOTH)
        return node(self.second, 2, "--hosts-file", file.path)

    def near(self, url=GOOD, *options, i=1, **more):
        return node(self.lan.hosts[i - 1], i, "--hosts-url", url, *options, **more)


@pytest.fixture
def web(lab, directory):
    return Web(lab, directory)


def at(port, path="/hosts.json", scheme="https"):
    return f"{scheme}://{AT}:{port}{path}"


# -- whose table it is ----------------------------------------------------------------------


def test_tables_of_good_servers_are_used(web):
    """By address and by name, under authorities of a file and of a directory, and redirected."""
    certificates = web.directory / "authorities"
    certificates.mkdir()
    shutil.copy(web.directory / "ca.pem", certificates)
    (certificates / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nnothing\n")
    web.far()
    with Names(web.first) as names:
        names.write(hosts=AT)
        for url, authority in (
            (GOOD, web.authority),
            (GOOD, ["--ca-path", certificates]),
            ("https://hosts.test:4430/hosts.json?token=secret", web.authority),
            (at(4430, "/moved"), web.authority),
        ):
            near = web.near(url, *authority)
            assert reaches(web.first, inner(2))
            assert not warnings(near) and "secret" not in near.process.output()
            assert near.process.stop() == 0
        near = web.near(at(8080, scheme="http"))
        near.await_log(f"{at(8080, scheme='http')}: anybody on the way can change it: use https")
        assert reaches(web.first, inner(2))
        assert near.process.stop() == 0


ANOTHER_NAME = "the server's certificate is for another name: not for "
UNKNOWN_AUTHORITY = (
    "the server's certificate is signed by an unknown authority: give its authority with --ca-file"
)
REFUSED = {
    at(4431): ANOTHER_NAME,
    at(4432): "the server's certificate has expired (or our clock is wrong)",
    at(4433): "the server's certificate is not valid yet (or our clock is wrong)",
    at(4434): UNKNOWN_AUTHORITY,
    at(4435): "the server's certificate is one of an authority: give the server one with",
    "https://elsewhere.test:4430/hosts.json": ANOTHER_NAME,
    "https://nowhere.test:4430/hosts.json": "failed to lookup address information",
    at(4430, "/loop"): "more than 5 redirects",
    at(4430, "/to-http"): f"the server leads to {at(8080, scheme='http')}, which is not https",
    at(4430, "/none"): "the server answered 404 Not Found",
    at(4430, "/huge"): "it has more than 1048576 bytes",
    at(4430, "/endless"): "it has more than 1048576 bytes",
    at(4430, "/short"): "the server ended the connection too early",
    at(4436): "Connection refused",
    at(8080): "TLS: received corrupt message",
    at(4430, scheme="http"): "",  # it ends the connection one way or another
}


def test_faults_of_bad_servers_are_reported(web):
    """A mistake is reported in one line, and the tunnel starts without nodes."""
    with Names(web.first) as names:
        names.write(elsewhere=AT)
        for url, message in REFUSED.items():
            # An authority is for HTTPS only.
            near = web.near(url, *(web.authority if url.startswith("https:") else ()))
            (line, *_) = [line for line in warnings(near) if "cannot fetch" in line]
            told = f"cannot fetch {re.escape(url)}: {re.escape(message)}.*; starting without nodes$"
            assert re.search(told, line), (url, line)
            assert remotes(near) == {} and not list(near.state.glob("hosts*"))
            assert near.process.stop() == 0


def test_mistakes_of_bad_tables_are_reported(web):
    """A table with a mistake is named by its place, as that of a file is."""
    for path, message in (
        ("/garbage", ":2:14: expected `:`"),
        ("/page", ":1:1: expected value"),
    ):
        near = web.near(at(4430, path), *web.authority)
        (line,) = warnings(near)
        assert line.endswith(f"{at(4430, path)}{message}; starting without nodes")
        assert near.process.stop() == 0


def test_authorities_that_cannot_be_read_end_the_program(web):
    before = web.first.snapshot()
    empty = web.directory / "empty"
    empty.mkdir()
    for option, path, why in (
        ("--ca-file", web.directory / "none.pem", "No such file"),
        ("--ca-file", web.table.path, "it holds no PEM certificate"),
        ("--ca-path", empty, "no file in it holds a PEM certificate"),
    ):
        own = ["-b", "@eth0", "--tunl-ip", "10.7.0.1/24", "--hosts-url", GOOD, option, path]
        checked = web.first.run(["ipipou", "check", *own], check=False)
        assert checked.returncode == 2 and why in checked.stderr, checked
        near = web.near(GOOD, option, path, ready=False)
        assert near.process.wait() == 2
        (line,) = [x for x in near.process.output().splitlines() if x.startswith("ipipou: ")]
        assert f"no certificate authorities from {path}: " in line and why in line
        assert web.first.snapshot() == before


# -- a server that changes ------------------------------------------------------------------


def test_bad_updates_and_an_absent_server_change_nothing(web):
    """The last good table stays, each trouble is reported once, and outlives a restart."""
    web.far()
    near = web.near(GOOD, *web.authority)
    assert reaches(web.first, inner(2))
    before, state = remotes(near), web.first.snapshot()
    steady = web.first.ping_background(inner(2), interval=0.05)
    told = []

    def tell(message):
        told.append(message)
        for _ in range(3):
            asked = web.server.output().count("GET") if web.server.running() else None
            hurry(near)
            if asked is not None:
                await_(lambda: web.server.output().count("GET") > asked, what="a fetch")
            await_(lambda: len(warnings(near)) >= len(told), what=message)
        assert re.search(f"{re.escape(GOOD)}:.*{message}.*; {STAYS}$", warnings(near)[-1])
        assert len(warnings(near)) == len(told)

    web.table.write_text('{"nodes": {')
    tell("1:11: EOF")
    web.table.write_text('{"nodes": {"10.0.0.1": {"host": "a"}, "10.0.0.1": {"host": "b"}}}')
    tell('1: node "10.0.0.1" is there twice')
    web.server.stop()
    tell("Connection refused")
    assert remotes(near) == before and web.first.snapshot() == state
    steady.stop_complete()

    # A restart without the server.
    assert near.process.stop() == 0
    near.start()
    (line,) = warnings(near)
    assert line.endswith("; starting with the table that was fetched last")
    assert remotes(near) == before and reaches(web.first, inner(2))

    # The server is back, with another table.
    web.table.write(BOTH | {inner(3): {"host": outer(3)}})
    web.start()
    near.reauthenticate()
    near.await_log("the table of hosts can be read again")
    await_(lambda: f"{outer(3)}:10000" in remotes(near), what="the new table")
    assert reaches(web.first, inner(2)) and len(warnings(near)) == 1

    # A spoilt copy is reported, and not used.
    assert near.process.kill() != 0 and web.server.stop() is not None
    (near.state / "hosts.json").write_text("{}")
    near.start()
    assert [line.split("WARN: ")[1] for line in warnings(near)][0] == (
        f"{near.state}/hosts.json:1:2: missing field `nodes`"
    )
    assert remotes(near) == {}


def test_a_failed_fetch_is_tried_again_within_ten_seconds(web):
    """What failed is tried again after 10 s, and what is good as often as one asks for."""
    web.server.stop()
    near = web.near(GOOD, *web.authority)
    (line,) = warnings(near)
    assert line.endswith("; starting without nodes")
    with Names(web.second) as names:
        names.write(a=outer(1))
        file = web.directory / "named.json"
        Table(file, {inner(1): {"host": "a.test"}, inner(3): {"host": "late.test"}})
        web.start()
        slow = web.near(at(4430, "/slow"), *web.authority, i=4, ready=False)
        polling = web.near(GOOD, *web.authority, "--hosts-url-interval", "10", i=3)
        far = node(web.second, 2, "--hosts-file", file)
        far.await_log("cannot look up late.test")
        web.table.write(BOTH | {inner(4): {"host": outer(4)}})
        names.write(a=outer(1), late=outer(3))
        await_(lambda: list(remotes(polling)).count(f"{outer(4)}:10000"), 13, "polled table")
        far.await_log("late.test can be looked up again", timeout=5)
        near.await_log("the table of hosts can be read again", timeout=5)
        await_reached(web.first, inner(2))
        slow.await_log("no complete answer within 10 s; starting without nodes", timeout=5)
    assert len(warnings(near)) == 1
