"""The name servers of a client while its tunnel is up.

A process in a namespace sees /etc/netns/NAME/resolv.conf in the place of /etc/resolv.conf
(ip-netns(8)), and so does the program under test."""

import contextlib
import os
import pathlib
import signal

import pytest

import ipipou
from gateways import TOKEN, Internet, await_answer
from lab import await_

THEIRS = b"# by hand\nsearch example.org\nnameserver 192.0.2.1\n\noptions timeout:1 attempts:1"
OURS = (
    "# ipipou: name servers of ipipou0, until its tunnel ends\n"
    "nameserver 192.0.2.53\nnameserver 2001:db8::53\n"
    "search example.org\noptions timeout:1 attempts:1\n"
)
DHCP = b"nameserver 192.0.2.99\n"


class ResolvConf:
    """A host's resolv.conf, in a file of its own."""

    def __init__(self, host):
        self.host = host
        self.path = pathlib.Path("/etc/netns", host.netns, "resolv.conf")
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(THEIRS)
        self.path.chmod(0o640)
        self._before = self._identity()

    def _identity(self):
        status = os.stat(self.path)
        return status.st_ino, status.st_mode, status.st_uid

    def text(self):
        """What programs in the host read."""
        return self.host.run("cat /etc/resolv.conf")

    def is_as_before(self):
        return self.path.read_bytes() == THEIRS and self._identity() == self._before

    def remove(self):
        self.path.unlink()
        self.path.parent.rmdir()
        with contextlib.suppress(OSError):  # others have theirs
            self.path.parent.parent.rmdir()


@pytest.fixture
def resolv_conf(lab):
    """Of the client that is the last host made."""
    made = []

    def make(host):
        made.append(ResolvConf(host))
        return made[-1]

    yield make
    for one in made:
        one.remove()


@pytest.fixture
def client(lab):
    """A client; its tunnel is up without a server."""
    return ipipou.neighbours(lab)[1]


def connect(client):
    servers = ("--dns", "192.0.2.53", "--dns", "2001:db8::53")
    return ipipou.client(client, *TOKEN, "--route", "192.0.2.0/24", *servers)


def keep_locked(client):
    """As a user without privileges who can read the file."""
    locker = ["setpriv", "--reuid=65534", "--regid=0", "--clear-groups", "--bounding-set=-all"]
    locker += ["flock", "--no-fork", "--shared", "/etc/resolv.conf"]
    process = client.spawn([*locker, "sh", "-c", "echo locked; exec sleep infinity"])
    process.await_output("locked")
    return process


def test_programs_resolve_names_through_the_tunnel(lab, resolv_conf):
    internet = Internet(lab)
    resolv_conf(internet.client)
    internet.serve()
    far = internet.connect("--dns", Internet.THIRD)
    await_answer(internet.client, Internet.THIRD)
    with internet.third.udp_socket(Internet.THIRD, 53) as name_server:
        internet.client.spawn(["getent", "ahostsv4", "some-name.example.org"])
        question, asker = name_server.recvfrom(1500)
    assert b"some-name\x07example\x03org" in question
    assert asker[0] == ipipou.SERVER  # masqueraded: it came out of the tunnel
    assert far.process.stop() == 0


def test_the_file_is_restored_byte_for_byte(client, resolv_conf):
    file = resolv_conf(client)
    far = connect(client)
    assert file.text() == OURS
    assert far.process.stop() == 0
    assert file.is_as_before()


def test_a_crash_and_a_restart(client, resolv_conf):
    file = resolv_conf(client)
    far = connect(client)
    assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
    assert file.text() == OURS
    far.start()
    assert file.text() == OURS
    assert far.process.stop() == 0
    assert file.is_as_before()


def test_a_user_who_locks_the_file_blocks_no_start_after_a_crash(client, resolv_conf):
    """Any user can lock what he can read: it keeps no tunnel from starting."""
    file = resolv_conf(client)
    far = connect(client)
    assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
    keep_locked(client)
    far.start()
    assert file.text() == OURS
    assert far.process.stop() == 0
    assert file.is_as_before()


def test_a_start_without_name_servers_restores_the_file_after_a_crash(client, resolv_conf):
    file = resolv_conf(client)
    far = connect(client)
    assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
    far.argv = far.argv[: far.argv.index("--dns")]
    far.start()
    assert file.is_as_before()
    assert far.process.stop() == 0
    assert file.is_as_before()


def test_what_cannot_be_read_is_not_put_back(client):
    """A state file that cannot be read tells nothing about the name servers."""
    far = ipipou.client(client, *TOKEN)
    assert far.process.stop() == 0
    unreadable = far.state / "resolv.conf.before"
    unreadable.mkdir(parents=True)
    far.start()
    far.await_log(
        "cannot see whose name servers the host uses: .*resolv.conf.before: Is a directory"
    )
    assert far.show()["repaired"] == 0
    assert far.process.stop() == 0
    assert "restore the name servers" not in far.process.output()


def test_a_change_while_the_tunnel_is_up_is_restored_at_the_end(client, resolv_conf):
    """As a DHCP client does when its lease is renewed."""
    file = resolv_conf(client)
    far = connect(client)
    file.path.write_bytes(DHCP)
    await_(lambda: file.text() == OURS.split("search")[0], what="our name servers")
    assert far.show()["repaired"] > 0
    assert far.process.stop() == 0
    assert file.path.read_bytes() == DHCP


@pytest.mark.parametrize("crash", [False, True], ids=["end", "crash"])
def test_the_last_change_by_another_program_stays(client, resolv_conf, crash):
    file = resolv_conf(client)
    far = connect(client)
    if crash:
        far.process.stop(signal.SIGKILL)
        file.path.write_bytes(DHCP)
        far.argv = far.argv[: far.argv.index("--dns")]
        far.start()
    else:
        # It mostly does not see the change before its end; when it does, the end is the same.
        far.process.send_signal(signal.SIGSTOP)
        file.path.write_bytes(DHCP)
        far.process.send_signal(signal.SIGTERM)
        far.process.send_signal(signal.SIGCONT)
    if crash:
        far.await_log("resolv.conf was changed by somebody else")
    assert (far.process.stop() if crash else far.process.wait()) == 0
    assert file.path.read_bytes() == DHCP


@pytest.mark.parametrize("how", ["", "locked", "elsewhere", "both", "both, for a while"])
def test_two_tunnels_do_not_share_the_file(client, resolv_conf, how, tmp_path):
    """Nor when a user keeps it locked whom it does not belong to, nor when another container has it in another
    directory, nor both: the first tunnel could not lock the file then, and perhaps the second can.
    """
    file = resolv_conf(client)
    locker = None if how in ("", "elsewhere") else keep_locked(client)
    far = connect(client)
    if "while" in how:
        locker.stop()
    prefix = []
    if how not in ("", "locked"):
        inside = tmp_path / "resolv.conf"
        inside.touch()
        script = f"mount --bind /etc/resolv.conf {inside} && mount --rbind {tmp_path} /etc"
        prefix = ["unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh"]
    options = {"number": 1, "peer": 1, "prefix": prefix, "ready": False}
    other = ipipou.client(client, *TOKEN, "--dns", "192.0.2.7", **options)
    assert other.process.wait() == 54
    message = other.process.output().splitlines()[-1]
    assert message.startswith("ipipou: ") and "another tunnel" in message, message
    assert file.text() == OURS
    assert far.process.stop() == 0
    assert file.is_as_before()


def test_the_name_servers_of_a_tunnel_that_runs_stay(client, resolv_conf):
    """Two that found no lock do not write over each other's in turn."""
    file = resolv_conf(client)
    far = connect(client)
    other = ipipou.client(client, *TOKEN, number=1, peer=1)
    theirs = OURS.replace("ipipou0", "ipipou1", 1)
    file.path.write_text(theirs)
    far.await_log("cannot use our name servers: .* has the name servers of another tunnel")
    assert file.text() == theirs
    assert other.process.stop() == 0
    await_(lambda: file.text() == OURS, what="our name servers")
    assert far.process.stop() == 0
    assert file.text() == theirs


def test_a_file_that_cannot_be_written(client, resolv_conf):
    file = resolv_conf(client)
    read_only = ["unshare", "--mount", "sh", "-c"]
    read_only += ['mount -o remount,bind,ro /etc/resolv.conf && exec "$0" "$@"']
    far = ipipou.client(client, *TOKEN, "--dns", "192.0.2.7", prefix=read_only, ready=False)
    assert far.process.wait() == 54
    message = far.process.output().splitlines()[-1]
    assert message.startswith("ipipou: ") and "/etc/resolv.conf" in message, message
    assert "--dns" in message
    assert file.is_as_before()


def test_a_file_that_cannot_be_written_any_more_is_an_error_once(client, resolv_conf):
    """It is tried every second, and for as long as the tunnel is up."""
    file = resolv_conf(client)
    far = connect(client)

    def become(how):
        pid = far.process.pid
        client.run(
            ["nsenter", "-t", pid, "-m", "mount", "-o", f"remount,bind,{how}", "/etc/resolv.conf"]
        )

    said, tried = "ERROR: cannot use our name servers", "DEBUG: use our name servers"
    for times in (1, 2):
        become("ro")
        before = far.process.output().count(tried)
        file.path.write_bytes(DHCP)
        await_(lambda: far.process.output().count(tried) >= before + 3, what="three tries")
        assert far.process.output().count(said) == times
        become("rw")
        far.await_log(f"(?s)(use our name servers: this works now.*){{{times}}}")
        assert file.text().startswith(OURS[:50])
    assert far.process.stop() == 0


RECORD = "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org\n"

# Each writes what it makes of its records, first those with the name of a tunnel.
DEBIAN = """#!/bin/sh -e
cd /run/resolvconf/interface
case $1 in -a) cat >"$2" ;; -d) rm -f "$2" ;; *) exit 99 ;; esac
echo "$@" >>/run/asked
cat $(ls | grep '^tun') $(ls | grep -v '^tun') >../resolv.conf.new
mv ../resolv.conf.new ../resolv.conf
"""
OPENRESOLV = """#!/bin/sh -e
cd /run/resolvconf/interfaces
case $1 in
    -a) cat >"$2"; case $* in *-x*) echo "$2" >../exclusive ;; esac ;;
    -d) rm -f "$2" ../exclusive ;;
    *) exit 1 ;;
esac
echo "$@" >>/run/asked
{ echo "# Generated by resolvconf"; cat $(cat ../exclusive 2>/dev/null || ls); } >/etc/resolv.conf
"""


class Resolvconf:
    """A host whose resolv.conf is made by `resolvconf`, played as the two of that name behave; its /etc
    and /run are its own."""

    UPLINK = "nameserver 192.0.2.1\nsearch example.org\n"

    def __init__(self, host, kind, directory):
        self.host, self.kind = host, kind
        program = directory / "resolvconf"
        program.write_text({"debian": DEBIAN, "openresolv": OPENRESOLV}[kind])
        program.chmod(0o755)
        self.record = {
            "debian": "/run/resolvconf/interface/tun.ipipou0",
            "openresolv": "/run/resolvconf/interfaces/ipipou0",
        }[kind]
        setup = f"""
            mount -t tmpfs tmpfs /run
            mkdir -p {pathlib.Path(self.record).parent} /run/upper /run/work
            mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work /etc
            rm -rf /etc/resolv.conf /etc/resolvconf
            if [ {kind} = debian ]; then
                mkdir /etc/resolvconf
                printf 'lo\\ntun*\\neth*\\n' >/etc/resolvconf/interface-order
                ln -s /run/resolvconf/resolv.conf /etc/resolv.conf
            fi
            printf '{self.UPLINK}' | {program} -a eth0.dhcp
            rm /run/asked
            echo ready
            exec sleep infinity"""
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", setup]
        self._holder = host.spawn(argv)
        self._holder.await_output("ready")
        # `ip netns exec` becomes unshare, and unshare the shell.
        enter = ["nsenter", "--mount", "--target", str(self._holder.pid)]
        self.prefix = (*enter, "env", f"PATH={directory}:{os.environ['PATH']}")

    def run(self, *argv):
        return self.host.run([*self.prefix, *argv])

    def text(self):
        return self.run("cat", "/etc/resolv.conf")

    def servers(self):
        return [line.split()[1] for line in self.text().splitlines() if line.startswith("names")]

    def asked(self):
        return self.run("cat", "/run/asked").splitlines()

    def connect(self):
        servers = ("--dns", "192.0.2.53", "--dns", "2001:db8::53")
        return ipipou.client(self.host, *TOKEN, *servers, prefix=self.prefix)


@pytest.fixture(params=["debian", "openresolv"])
def resolvconf(client, tmp_path, request):
    return Resolvconf(client, request.param, tmp_path)


def test_resolvconf_is_used_where_it_manages_the_file(resolvconf):
    """It makes the file; a program that asks for something else in the meantime gets that at the end."""
    name = pathlib.Path(resolvconf.record).name
    before = resolvconf.text()
    far = resolvconf.connect()
    assert resolvconf.asked() == [f"-a {name} -m 0 -x"]
    assert resolvconf.run("cat", resolvconf.record) == RECORD
    ours = ["192.0.2.53", "2001:db8::53"]
    assert resolvconf.servers() == ours + ["192.0.2.1"] * (resolvconf.kind == "debian")
    # A DHCP client renews its lease.
    resolvconf.run("sh", "-c", "echo nameserver 192.0.2.99 | resolvconf -a eth0.dhcp")
    assert resolvconf.servers()[:2] == ours and far.show()["repaired"] == 0
    assert far.process.stop() == 0
    assert resolvconf.asked()[-1] == f"-d {name} -f"
    assert resolvconf.servers() == ["192.0.2.99"]
    resolvconf.run("sh", "-c", f"printf '{Resolvconf.UPLINK}' | resolvconf -a eth0.dhcp")
    assert resolvconf.text() == before


def test_resolvconf_after_a_crash(resolvconf):
    before = resolvconf.text()
    far = resolvconf.connect()
    assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
    far.start()
    assert resolvconf.servers()[0] == "192.0.2.53"
    assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
    far.argv = far.argv[: far.argv.index("--dns")]
    far.start()
    assert resolvconf.text() == before
    assert far.process.stop() == 0
    assert resolvconf.text() == before


def test_a_removed_resolvconf_record_is_repaired(resolvconf):
    far = resolvconf.connect()
    resolvconf.run("resolvconf", "-d", pathlib.Path(resolvconf.record).name)
    await_(lambda: resolvconf.servers()[:1] == ["192.0.2.53"], what="our name servers")
    assert far.process.stop() == 0
    assert resolvconf.servers() == ["192.0.2.1"]


def test_a_failing_resolvconf_is_an_error(resolvconf):
    before = resolvconf.text()
    program = resolvconf.run("sh", "-c", "command -v resolvconf").strip()
    pathlib.Path(program).write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    far = ipipou.client(
        *(resolvconf.host, *TOKEN, "--dns", "192.0.2.53"), prefix=resolvconf.prefix, ready=False
    )
    assert far.process.wait() == 54
    message = next(line for line in far.process.output().splitlines() if "ipipou: " in line)
    assert "resolvconf" in message and "it is broken" in message, message
    assert resolvconf.text() == before


HANGS = """#!/bin/sh
case $1 in
    {what}) {first}; echo $$ >>/run/hangs; sleep infinity ;;
    *) exec {program} "$@" ;;
esac
"""


def hang(resolvconf, what, first):
    """From now on, resolvconf hangs when it is asked for this, after it has done something else first."""
    program = pathlib.Path(resolvconf.run("sh", "-c", "command -v resolvconf").strip())
    as_before = program.parent / "as_before"
    program.rename(as_before)
    program.write_text(HANGS.format(what=what, first=first, program=as_before))
    program.chmod(0o755)
    return lambda: as_before.rename(program)


def test_a_resolvconf_that_hangs_holds_the_tunnel_up_for_a_moment_only(resolvconf):
    """A hook of it may wait for something that does not come, after the record is written."""
    far = resolvconf.connect()
    hang(resolvconf, "-a", f"cat >{resolvconf.record}")
    resolvconf.run("rm", resolvconf.record)
    said = "cannot use our name servers: `resolvconf` did not end within 20 seconds"
    far.await_log(said, timeout=60)
    (hung,) = resolvconf.run("cat", "/run/hangs").split()
    assert not pathlib.Path("/proc", hung).exists()
    assert far.show()["interface"] == "ipipou0"
    # It is not asked again at once for a repair, and it is at the end.
    assert far.process.stop() == 0
    assert resolvconf.run("cat", "/run/hangs").split() == [hung]
    assert resolvconf.servers() == ["192.0.2.1"]
    resolvconf.run("test", "!", "-e", resolvconf.record)


@pytest.mark.parametrize(
    "first, said",
    [(":", "did not end within 20 seconds"), ("kill -9 $$", "it ended by signal: 9")],
    ids=["hangs", "is killed"],
)
def test_what_resolvconf_did_not_take_back_is_taken_back_later(resolvconf, first, said):
    """At the start after a crash, which does not wait for it, and at the end."""
    before = resolvconf.text()
    far = resolvconf.connect()
    assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
    far.argv = far.argv[: far.argv.index("--dns")]
    mend = hang(resolvconf, "-d", first)
    far.start()
    assert said in far.process.output()
    assert resolvconf.servers()[0] == "192.0.2.53"
    mend()
    assert far.process.stop() == 0
    assert resolvconf.text() == before
