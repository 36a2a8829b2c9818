"""What nobody but root can read of a process that holds keys."""

import os
import pathlib
import pwd
import re

import ipipou
from ipipou import Keys

# As a service runs: a user without rights, who has what the tunnel needs. The log is a journal's, and
# the device is everybody's, as udev makes it.
SERVICE = """mknod -m 666 "$0" c 10 200 && mount --bind "$0" /dev/net/tun || exit
JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec "$@"
"""
AS_NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
AS_NOBODY += ["--inh-caps=+net_admin", "--ambient-caps=+net_admin"]


def open_to_nobody(lab, binary):
    """The program, and a directory to write in."""
    for directory in (*pathlib.Path(binary).parents[:3], *lab.directory.parents[:2], lab.directory):
        if directory != pathlib.Path("/tmp"):
            directory.chmod(0o711)
    for kind in ("run", "state"):
        directory = lab.directory / f"{kind}-server"
        directory.mkdir()
        os.chown(directory, pwd.getpwnam("nobody").pw_uid, -1)


def test_process_memory_is_readable_by_root_only(lab, binary):
    """`/proc/PID` belongs to root when no core dump may be made (task_dump_owner in the kernel)."""
    server, client = ipipou.neighbours(lab)
    open_to_nobody(lab, binary)
    keys = Keys(server)
    service = ["unshare", "-m", "sh", "-c", SERVICE, lab.directory / "tun", *AS_NOBODY]
    near = ipipou.server(server, "--datapath", "tun", keys=keys, prefix=service)
    place = pathlib.Path(f"/proc/{near.process.pid}")
    uids = re.search(r"^Uid:\s+(\d+)", (place / "status").read_text(), re.MULTILINE)
    assert int(uids[1]) == pwd.getpwnam("nobody").pw_uid
    owners = {(place / name).stat().st_uid for name in ("mem", "environ", "fd", "maps")}
    assert owners == {0}
    # The process still sees its own: what its standard error is.
    near.await_log(r"(?m)^<6>.*ready on")
    ipipou.client(client, "--datapath", "tun", keys=keys)
    near.await_log("tunnel up")
    ipipou.reach_each_other(server, client)
