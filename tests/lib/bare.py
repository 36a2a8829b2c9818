"""A cable between two hosts whose packets have no link header: a TUN interface at each end."""

import contextlib
import errno
import fcntl
import os
import select
import struct
import threading

# linux/if_tun.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LONGEST = 65536


class BareCable:
    """Its ends have the same name; `seen` are the packets on it, as bytes."""

    def __init__(self, ends, name):
        self.seen = []
        self.ends = []
        for host, address in ends:
            with host.entered():
                end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
            self.ends.append(end)
            host.batch(f"addr add {address}/24 dev {name}", f"link set {name} up")
        self.over, self.stopped = os.pipe()
        self.thread = threading.Thread(target=self._carry)
        self.thread.start()

    def put(self, end, packet):
        """A packet that comes out at an end, which may have no room for it: then it is lost."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.ends[end], packet)

    def _carry(self):
        while True:
            ready, _, _ = select.select([*self.ends, self.over], [], [])
            if self.over in ready:
                return
            for end in ready:
                try:
                    packet = os.read(end, LONGEST)
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno == errno.EBADFD:
                        return  # its host is gone
                    raise
                self.seen.append(packet)
                self.put(1 - self.ends.index(end), packet)

    def close(self):
        os.close(self.stopped)
        self.thread.join()
        for end in [*self.ends, self.over]:
            os.close(end)


@contextlib.contextmanager
def bare_cable(*ends, name="wire0"):
    """`ends`: a host and its address, twice."""
    cable = BareCable(ends, name)
    try:
        yield cable
    finally:
        cable.close()
