"""The commands of the manual, run as they stand there: the README's quick start, and the recipes of
docs/guide.md.

Every recipe has a scenario here, which starts every command of the recipe and shows that it does what
the heading says. A recipe without a scenario fails, and so do a scenario without a recipe and a
command that was not started.

What is replaced are placeholders: keys and addresses in the files `server0.conf` and `client0.conf`,
file names below /etc/ipipou, KEY, and the name of the web server. What is added are directories of the
test's own (`--runtime-dir` and `--memory-dir`, for `show` `--runtime-root`), and -vvv. Interfaces and
addresses are the manual's: `eth0` leads to the internet, the server is 203.0.113.1.

`--datapath auto`, the default, is the kernel's where the kernel has FOU; elsewhere it is tun. Recipes
that do not say which are run as this machine has it: the same scenarios hold for both.
"""

import contextlib
import re
import shlex

import pytest

import ipipou
from conftest import TOP
from gateways import Switch, await_answer, await_mtu, connect, state
from https_server import GOOD
from ipipou import CLIENT, SECRET, SERVER, Tunnel
from lab import await_, has_fou
from many_ends import Names, Table, await_reached, refusal

THIRD = "203.0.113.80"
NEAR_LAN, FAR_LAN = "192.168.7", "192.168.8"
SERVER_INNER, CLIENT_INNER = "172.28.0.0", "172.28.0.1"
TABLES = "https://tables.example.org"
# A recipe fewer, and a feature of the program is not in the manual any more.
RECIPES = 19


def section(page, heading):
    """The text below a heading of the second level, of a page of the manual."""
    text = (TOP / page).read_text()
    return text.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]


def blocks(text):
    """What stands in blocks, with continued lines joined."""
    found = re.findall(r"^```\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)
    return [re.sub(r"\\\n\s*", "", block) for block in found]


def recipes():
    """{heading: [command, …]}"""
    _intro, *parts = re.split(r"^### ", section("docs/guide.md", "## Recipes"), flags=re.MULTILINE)
    titled = (part.split("\n", 1) for part in parts)
    return {title: "\n".join(blocks(text)).splitlines() for title, text in titled}


COMMANDS = recipes()
SCENARIOS = {}


def shows(title):
    """For a scenario: the recipe that it is about."""

    def enter(scenario):
        SCENARIOS[title] = scenario
        return scenario

    return enter


def test_every_recipe_has_commands_and_a_scenario():
    assert len(COMMANDS) >= RECIPES and SCENARIOS.keys() == COMMANDS.keys()
    for title, commands in COMMANDS.items():
        assert commands and all(command.startswith("ipipou ") for command in commands), title


@pytest.mark.parametrize("title", COMMANDS)
def test_recipe(lab, tmp_path, title):
    page = Page(lab, tmp_path, COMMANDS[title])
    SCENARIOS[title](page)
    assert page.left == [], "commands that were not started"


def test_quick_start(lab, tmp_path):
    """The keys, the server and the client of the quick start; the pings that it promises."""
    steps = blocks(section("README.md", "## Quick start"))
    commands = [step.removeprefix("sudo ") for step in steps if step.startswith("sudo ipipou -")]
    page = Page(lab, tmp_path, commands)
    server, client = Internet(lab).pair()
    keys, secret = (block for block in steps if re.search(r">\w+\.(key|secret)$", block, re.M))
    shown = client.run(["sh", "-ec", f"cd {tmp_path}\n{keys}\n{secret}"])
    assert (tmp_path / "client.key").stat().st_mode & 0o777 == 0o600
    page.replaced |= {"PUBLIC": shown.strip()}
    page.replaced |= {name: tmp_path / name for name in ("client.key", "shared.secret")}
    near = page.start("ipipou -s", server)
    far = page.start("ipipou -c", client)
    near.await_log("tunnel up")
    ipipou.reach_each_other(server, client)
    assert page.left == []
    for end in (near, far):
        with open(f"/proc/{end.process.pid}/cmdline") as seen_by_all:
            assert page.keys_and_secrets(tmp_path).isdisjoint(seen_by_all.read().split("\0"))


# -- running what the page says ---------------------------------------------------------------


class Page:
    """Commands of the manual, and the files that they name."""

    def __init__(self, lab, directory, commands):
        self.lab, self.directory = lab, directory
        self.commands, self.left = commands, list(commands)
        self.keys = ipipou.Keys(lab.host("desk"))
        self.replaced = {
            "/etc/ipipou/": f"{directory}/",
            "@wlan0": "@eth0",
        }
        for name in ("server0", "client0"):
            text = (TOP / f"etc/ipipou/{name}.conf").read_text()
            for placeholder, value in (
                ("<the client's public key>", self.keys.public),
                ("<the client's private key>", self.keys.private),
                ("<the shared secret>", SECRET),
                ("ipipou.example.net:10000", f"{SERVER}:10000"),
            ):
                text = text.replace(placeholder, value)
            path = directory / f"{name}.conf"
            path.touch(0o640)
            path.write_text(text)
            self.replaced[f"--config {name}"] = f"--config {path}"

    def keys_and_secrets(self, directory):
        """What nobody else may read."""
        key, secret = (directory / name for name in ("client.key", "shared.secret"))
        return {key.read_text().splitlines()[0], secret.read_text().strip()}

    def words(self, start, **instead):
        """The one command that is this or begins so, as arguments without `ipipou`."""
        fitting = [command for command in self.commands if f"{command} ".startswith(f"{start} ")]
        (command,) = [start] if start in fitting else fitting
        if command in self.left:
            self.left.remove(command)
        for before, value in (self.replaced | instead).items():
            command = command.replace(before, str(value))
        program, *words = shlex.split(command)
        assert program == "ipipou"
        return words

    def start(self, start, host, prefix=(), number=0, **instead):
        """Starts the command on a host, with something else in the place of what is in it."""
        return Tunnel(host, *self.words(start, **instead), prefix=prefix, number=number)

    def start_both(self, server, client, number=0):
        """Server and client of a recipe; the tunnel is up."""
        near = self.start("ipipou --config server0", server, number=number)
        far = self.start("ipipou --config client0", client, number=number)
        near.await_log("tunnel up")
        return near, far

    def other_end(self, name, host, *options):
        """The other end of a recipe that has one command only: `server0` or `client0`."""
        return Tunnel(host, *self.replaced[f"--config {name}"].split(), *options)


class Internet(Switch):
    """The internet, and the hosts that are at it with `eth0`."""

    def at(self, name, address):
        host = self.host.lab.host(name)
        self.plug(host, "eth0", f"{address}/24")
        return host

    def pair(self):
        return self.at("server", SERVER), self.at("client", CLIENT)


def lan_behind(lab, gateway, network):
    """A host in a network of the gateway's own, which it sends everything through."""
    switch, host = Switch(lab, f"lan-{gateway.name}"), lab.host(f"in-{gateway.name}")
    switch.plug(gateway, "eth1", f"{network}.1/24")
    switch.plug(host, "eth0", f"{network}.2/24")
    host.run(f"ip route add default via {network}.1")
    return host


# -- one peer ---------------------------------------------------------------------------------


@shows("One server and one client")
def _(page):
    """With the file's keepalive, made shorter: the server hears of the client again by itself."""
    server, client = Internet(page.lab).pair()
    path = page.directory / "client0.conf"
    path.write_text(path.read_text().replace("keepalive 27", "keepalive 1"))
    near, far = page.start_both(server, client)
    ipipou.reach_each_other(server, client)
    await_(lambda: near.show()["accepted"] >= 3, what="keepalives")
    assert far.process.stop() == near.process.stop() == 0


@shows("Another tunnel on the same hosts")
def _(page):
    """Beside the first one."""
    server, client = Internet(page.lab).pair()
    page.other_end("server0", server).await_log("ready on")
    page.other_end("client0", client)
    near, _far = page.start_both(server, client, number=1)
    await_answer(client, SERVER_INNER)
    await_answer(client, "172.28.0.2")
    await_answer(server, "172.28.0.3")
    (tunnel,) = near.show()["tunnels"]
    assert (tunnel["interface"], tunnel["local"]) == ("ipipou1", f"{SERVER}:10001")


@shows("A path that takes smaller packets")
def _(page):
    server, client = Internet(page.lab).pair()
    page.start_both(server, client)
    for host, other in ((server, CLIENT_INNER), (client, SERVER_INNER)):
        await_mtu(host, 1372)
        assert host.ping(other, size=1344).received == 3  # and 28 bytes of headers
        refused = host.run(f"ping -c 1 -M do -s 1345 {other}", check=False)
        assert "message too long" in (refused.stdout + refused.stderr).lower()


@shows("Authenticate again now")
def _(page):
    server, client = Internet(page.lab).pair()
    near = page.other_end("server0", server)
    far = page.other_end("client0", client, "--keepalive", "600")
    near.await_accepted(1)
    directories = ["--runtime-dir", far.directory, "--memory-dir", far.state]
    client.run(["ipipou", *page.words("ipipou --config client0"), *directories])
    near.await_accepted(2)
    far.reauthenticate()
    near.await_accepted(3)


@shows("Packets through userspace")
def _(page):
    server, client = Internet(page.lab).pair()
    ends = page.start_both(server, client)
    ipipou.reach_each_other(server, client)
    assert [end.show()["datapath"] for end in ends] == ["tun", "tun"]
    assert server.tunnel("ipipou0")["type"] == "tun"


@shows("A peer that speaks plain IP in UDP")
def _(page):
    server, client = Internet(page.lab).pair()
    other = [TOP / "tests/netns/plain_end.py", "plain0", SERVER_INNER, CLIENT_INNER, SERVER, CLIENT]
    server.spawn(["python3", *other]).await_output("ready")
    page.start("ipipou -b @eth0", client)
    await_answer(client, SERVER_INNER)
    assert server.ping(CLIENT_INNER).received == 3


@shows("Run in a container")
def _(page):
    """With no other capability, and where /lib/modules is empty."""
    server, client = Internet(page.lab).pair()
    page.other_end("server0", server, "--datapath", "tun").await_log("ready on")
    empty = page.directory / "empty"
    empty.mkdir()
    hide = f'mount --bind {empty} /lib/modules 2>/dev/null; exec "$@"'
    confine = ["setpriv", "--bounding-set", "-all,+net_admin", "--inh-caps", "-all"]
    prefix = ["unshare", "-m", "sh", "-c", hide, "sh", *confine]
    far = page.start("ipipou --config client0", client, prefix=prefix)
    await_answer(client, SERVER_INNER)
    with open(f"/proc/{far.process.pid}/status") as status:
        (effective,) = re.findall(r"CapEff:\s+(\w+)", status.read())
    assert int(effective, 16) == 1 << 12  # CAP_NET_ADMIN
    assert far.show()["datapath"] == "tun"


@shows("IPv6 inside the tunnel")
def _(page):
    server, client = Internet(page.lab).pair()
    page.start_both(server, client)
    assert client.ping("fd00::1").received == server.ping("fd00::2").received == 3
    ipipou.reach_each_other(server, client)


@shows("IPv6 outside")
def _(page):
    internet = Internet(page.lab)
    server, client = internet.pair()
    for host, address in ((server, "2001:db8::1"), (client, "2001:db8::2")):
        host.sysctl("net.ipv6.conf.eth0.disable_ipv6", 0)
        host.run(f"ip addr add {address}/64 dev eth0 nodad")
    await_answer(client, "2001:db8::1")
    outer = server.capture("eth0", "ip6 and udp port 10000")
    near, _far = page.start_both(server, client)
    ipipou.reach_each_other(server, client)
    (tunnel,) = near.show()["tunnels"]
    assert tunnel["remote"] == "[2001:db8::2]:10000"
    # packets() reads IPv4 only: that something was caught is what counts.
    await_(lambda: outer._file.stat().st_size > 500, what="outer IPv6 packets")


@shows("Fixed addresses and no keys")
def _(page):
    """Natively by whatever this kernel has; `handmade` ends themselves are in tests/vm."""
    server, client = Internet(page.lab).pair()
    near = page.start("ipipou -s", server)
    far = page.start("ipipou -c", client)
    near.await_log("tunnel up")
    ipipou.reach_each_other(server, client)
    datapath = "kernel" if has_fou() else "tun"
    assert [end.show()["datapath"] for end in (near, far)] == [datapath] * 2
    (tunnel,) = near.show()["tunnels"]
    assert tunnel["remote"] == f"{CLIENT}:10000"


@shows("Status of the tunnels")
def _(page):
    server, client = Internet(page.lab).pair()
    near = page.other_end("server0", server, "--datapath", "tun")
    page.other_end("client0", client, "--datapath", "tun")
    near.await_log("tunnel up")
    show = lambda *words: server.run(["ipipou", *words, "--runtime-root", near.root])  # noqa: E731
    headings, line = show(*page.words("ipipou show")).splitlines()
    shown = dict(zip(re.split(r"  +", headings), re.split(r"  +", line)))
    assert (shown["INTERFACE"], shown["ROLE"], shown["DATAPATH"]) == ("ipipou0", "server", "tun")
    assert (shown["STATE"], shown["REMOTE"]) == ("up", f"{CLIENT}:10000")
    details = show(*page.words("ipipou show ipipou0"))
    assert "accepted 1, moved 0" in details and "datapath tun, offloads " in details
    assert '"datapath": "tun"' in show(*page.words("ipipou show --json"))


# -- many peers -------------------------------------------------------------------------------


def outer(i):
    return f"203.0.113.{i}"


def inner(i):
    return f"192.168.100.{i}"


def three_nodes(page):
    """Three hosts, and their table beside the other files."""
    internet = Internet(page.lab)
    Table(page.directory / "hosts.json", {inner(i): {"host": outer(i)} for i in (1, 2, 3)})
    return internet, [internet.at(f"node{i}", outer(i)) for i in (1, 2, 3)]


def start_nodes(page, hosts, **instead):
    """The recipe's command on each, with its own address in the place of the first one's."""
    for i, host in enumerate(hosts, 1):
        page.start("ipipou -b @eth0", host, **instead, **{f"{inner(1)}/24": f"{inner(i)}/24"})


def all_reach_each_other(hosts):
    for i, host in enumerate(hosts, 1):
        for other in {1, 2, 3} - {i}:
            await_reached(host, inner(other))
    assert "Destination Host Unreachable" in refusal(hosts[0], inner(9))


@shows("Many hosts from a table")
def _(page):
    _internet, hosts = three_nodes(page)
    start_nodes(page, hosts)
    all_reach_each_other(hosts)


@shows("A table from a web server")
def _(page):
    """The server's certificate is signed by an authority that nobody else knows."""
    internet, hosts = three_nodes(page)
    web = internet.at("web", outer(70))
    program = [TOP / "tests/netns/https_server.py", page.directory, outer(70)]
    served = web.spawn(["python3", *program])
    served.await_output("ready", timeout=30)
    with contextlib.ExitStack() as stack:
        for host in hosts:
            stack.enter_context(Names(host)).write(hosts=outer(70))
        start_nodes(page, hosts, **{TABLES: f"https://hosts.test:{GOOD}"})
        all_reach_each_other(hosts)
    assert len(re.findall(r"GET /hosts.json .* 200", served.output())) == len(hosts)


class HubFiles:
    """The files of a server for many clients, one of whom is anna, with the key of client0.conf."""

    def __init__(self, page):
        self.peers = page.directory / "hub0.peers.d"
        self.peers.mkdir()
        text = (TOP / "etc/ipipou/hub0.conf").read_text()
        text = re.sub("^peers$", f"peers {self.peers}", text, flags=re.MULTILINE)
        conf = page.directory / "hub0.conf"
        conf.touch(0o640)
        conf.write_text(text.replace("<the shared secret>", SECRET))
        page.replaced["--config hub0"] = f"--config {conf}"
        self.name("anna", page.keys.public, 7)

    def name(self, peer, key, i):
        example = (TOP / "etc/ipipou/peer.toml").read_text()
        named = example.replace("anna", peer).replace("<the peer's public key>", key)
        (self.peers / f"{peer}.toml").write_text(named.replace('"10.8.0.7"', f'"10.8.0.{i}"'))


@shows("A server for many clients")
def _(page):
    internet = Internet(page.lab)
    server = internet.at("server", SERVER)
    files = HubFiles(page)
    near = page.start("ipipou --config hub0", server)
    client = internet.at("client", CLIENT)
    own = near.show()["peers"]["public_key"]
    far = page.start("ipipou --config client0", client, **{"-b64 KEY": f"-b64 {own}"})
    far.await_log("connected to")
    await_answer(client, "10.8.0.1")
    here = ["--runtime-root", near.root]
    listed = server.run(["ipipou", *page.words("ipipou peer list"), *here])
    assert "anna" in listed and "connected" in listed
    files.name("bob", ipipou.Keys(server).public, 8)
    script = f'mkdir -p /etc/ipipou && mount --bind {page.directory} /etc/ipipou && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", "ipipou", *page.words("ipipou reload hub0")]
    assert "1 added, 0 changed, 0 removed, 1 untouched" in server.run([*argv, *here])


@shows("Do something when a peer comes or goes")
def _(page):
    """The loop of the page, with another command in it."""
    internet = Internet(page.lab)
    server, client = internet.pair()
    HubFiles(page)
    near = page.other_end("hub0", server)
    near.await_log("ready on")
    assert page.words("ipipou monitor --json") == ["monitor", "--json"]
    text = section("docs/guide.md", "## Recipes")
    (loop,) = re.findall(r"^```sh\n(ipipou monitor .*?)\n```$", text, re.DOTALL | re.MULTILINE)
    loop = loop.replace("monitor ", f"monitor --runtime-root {near.root} ")
    watcher = server.spawn(["sh", "-c", loop.replace("wakeonlan", "echo woken")])
    watcher.await_output("watching")
    inside = "--tunl-ip 10.8.0.7 --tunl-peer-ip 10.8.0.1".split()
    knows = ["--auth-remote-pubkey-b64", near.show()["peers"]["public_key"]]
    page.other_end("client0", client, *inside, *knows).await_log("connected to")
    watcher.await_output("woken 52:54:00:12:34:56")
    near.process.stop()
    watcher.wait()
    assert watcher.output().count("woken") == 1


@shows("Many clients that share a key")
def _(page):
    internet = Internet(page.lab)
    server = internet.at("server", SERVER)
    near = page.start("ipipou --config server0", server)
    clients = {}
    for i in (7, 8, 9):
        clients[i] = internet.at(f"client{i}", outer(i))
        page.start("ipipou --config client0", clients[i], **{"10.8.0.7": f"10.8.0.{i}"})
        await_answer(clients[i], "10.8.0.1")
    for i in clients:
        for other in {7, 8, 9} - {i}:
            await_answer(clients[i], f"10.8.0.{other}")
    learned = {one["inner"]: one["remote"] for one in near.show()["learned"]}
    assert {f"10.8.0.{i}": f"{outer(i)}:10000" for i in clients}.items() <= learned.items()


# -- gateways ---------------------------------------------------------------------------------


@shows("A network behind the server")
def _(page):
    server, client = Internet(page.lab).pair()
    behind = lan_behind(page.lab, server, NEAR_LAN)
    before = [state(host) for host in (server, client)]
    ends = page.start_both(server, client)
    await_answer(client, f"{NEAR_LAN}.2")
    assert connect(client, behind, f"{NEAR_LAN}.2") == CLIENT_INNER
    assert [end.process.stop() for end in reversed(ends)] == [0, 0]
    assert [state(host) for host in (server, client)] == before


@shows("Two networks joined by gateways")
def _(page):
    server, client = Internet(page.lab).pair()
    one = lan_behind(page.lab, server, NEAR_LAN)
    other = lan_behind(page.lab, client, FAR_LAN)
    page.start_both(server, client)
    await_answer(one, f"{FAR_LAN}.2")
    assert connect(one, other, f"{FAR_LAN}.2") == f"{NEAR_LAN}.2"
    assert connect(other, one, f"{NEAR_LAN}.2") == f"{FAR_LAN}.2"


@shows("Everything through the tunnel")
def _(page):
    """The client's uplink leads nowhere but to the server."""
    internet = Internet(page.lab)
    server, client = internet.pair()
    third = internet.at("third", THIRD)
    server.run(f"ip route add default via {THIRD}")
    third.batch("addr add 198.51.100.1/32 dev lo", "addr add 9.9.9.9/32 dev lo")
    client.run(f"ip route add default via {outer(100)}")  # where there is nobody
    with Names(client) as names:
        resolver = names.directory / "resolv.conf"
        before = state(client), resolver.read_text()
        page.other_end("server0", server, "--masquerade", "eth0")
        far = page.start("ipipou --config client0", client)
        await_answer(client, "9.9.9.9")
        mine = f"ip and not igmp and not (udp and host {SERVER} and port 10000)"
        uplink = client.capture("eth0", mine)
        assert connect(client, third, "198.51.100.1") == SERVER
        assert "nameserver 9.9.9.9\n" in resolver.read_text()
        # A neighbour stays one; it is the first that the uplink sees.
        assert connect(client, third, THIRD) == CLIENT
        assert uplink.await_packets()[0].dst == THIRD
        uplink.stop()
        assert far.process.stop() == 0
        assert (state(client), resolver.read_text()) == before


@shows("A server that masquerades")
def _(page):
    """The third host knows no way to the inner address."""
    internet = Internet(page.lab)
    server, client = internet.pair()
    third = internet.at("third", THIRD)
    before = state(server)
    near = page.start("ipipou --config server0", server)
    far = page.other_end("client0", client, "--route", f"{THIRD}/32")
    await_answer(client, THIRD)
    assert connect(client, third, THIRD) == SERVER
    assert far.process.stop() == near.process.stop() == 0
    assert state(server) == before
