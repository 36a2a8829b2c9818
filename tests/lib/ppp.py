"""A serial line between two hosts with the kernel's ppp, without a daemon: neither end negotiates."""

import contextlib
import fcntl
import os
import pty
import struct
import threading
import tty

# linux/ppp-ioctl.h, asm-generic/ioctls.h, linux/tty.h, linux/ppp_defs.h
NEW_UNIT, ATTACH, CHANNEL, CONNECT = 0xC004743E, 0x40047438, 0x80047437, 0x4004743A
NETWORK_MODE, PPP_IP, PASS = 0x4008744B, 0x21, 0
TIOCSETD, N_PPP = 0x5423, 3
# ppp_generic.c
MAJOR = 108


def _number(file, request, value=0):
    return struct.unpack("i", fcntl.ioctl(file, request, struct.pack("i", value)))[0]


def _end(host):
    """The other side of a terminal that is the line of a new interface, and what keeps that there."""
    with host.entered():
        line, terminal = pty.openpty()
        for side in (line, terminal):
            tty.setraw(side)
        _number(terminal, TIOCSETD, N_PPP)
        channel, unit = (os.open("/dev/ppp", os.O_RDWR) for _ in range(2))
        _number(channel, ATTACH, _number(terminal, CHANNEL))
        _number(channel, CONNECT, _number(unit, NEW_UNIT, -1))
        fcntl.ioctl(unit, NETWORK_MODE, struct.pack("ii", PPP_IP, PASS))
    return line, (terminal, channel, unit)


def _carry(source, destination):
    with contextlib.suppress(OSError):  # the other end is closed
        while data := os.read(source, 65536):
            while data:
                data = data[os.write(destination, data) :]


@contextlib.contextmanager
def serial_line(hosts):
    """Each host has an interface ppp0, which is down."""
    if not os.path.exists("/dev/ppp"):
        os.mknod("/dev/ppp", 0o020600, os.makedev(MAJOR, 0))
    (first, kept), (second, kept_too) = map(_end, hosts)
    threads = [
        threading.Thread(target=_carry, args=ends, daemon=True)
        for ends in ((first, second), (second, first))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for file in (*kept, *kept_too):
            os.close(file)
        for thread in threads:
            thread.join(timeout=1)
        os.close(first)
        os.close(second)
