"""Other local processes that have a name or a port that a tunnel wants."""

import ipipou
import sys

# Runs in a host, as the user that starts it: takes abstract unix sockets, and says so.
HOLD = """
import socket, sys, time
kind, *names = sys.argv[1:]
held = []
for name in names:
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].bind("\\0" + name)
    if kind in ("listening", "answering"):
        held[-1].listen(0 if kind == "listening" else 1000)
print("held", flush=True)
time.sleep(1000)
"""


def rename(called):
    """The beginning of a program that gives its process a name."""
    return f"open('/proc/self/comm', 'w').write({called!r})\n" if called else ""


def hold(host, *names, kind="listening", prefix=(), called=None):
    """A process that has these names; `prefix` is a command that it is started by."""
    code = rename(called) + HOLD
    process = host.spawn([*prefix, sys.executable, "-c", code, kind, *names])
    process.await_output("held")
    return process


def hold_port(host, address, port, prefix=(), called=None):
    """A process of its own that has a UDP port: the test's process would have one name with it."""
    code = rename(called)
    code += f"import socket, time; s = socket.socket(socket.{family(address)}, socket.SOCK_DGRAM)\n"
    code += f"s.bind(({address!r}, {port})); print('held', flush=True); time.sleep(1000)"
    process = host.spawn([*prefix, sys.executable, "-c", code])
    process.await_output("held")
    return process


def family(address):
    return "AF_INET6" if ":" in address else "AF_INET"


def refused(host, argv, code, *words):
    """The program ends at once with this exit code and one line that has all the words, behind the
    warnings about its options; the host is as it was."""
    before = host.snapshot()
    done = host.run(argv, check=False)
    assert done.returncode == code, (done.returncode, done.stderr)
    line = ipipou.explanation(done)
    assert line.startswith("ipipou: ") and all(word in line for word in words), line
    assert host.snapshot() == before


def names_in_use(host):
    """Abstract names of ipipou's locks."""
    with host.entered(), open("/proc/thread-self/net/unix") as table:
        return sorted({word for line in table for word in line.split() if word[:8] == "@ipipou/"})
