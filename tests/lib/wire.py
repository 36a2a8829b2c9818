"""A cable that carries bytes, as a real one does: over a veth a packet keeps what the sender's kernel knows of it,
such as that it was put in a tunnel."""

import fcntl
import os
import select
import struct
import threading

TUNSETIFF, IFF_TAP, IFF_NAPI, IFF_NO_PI = 0x400454CA, 0x0002, 0x0010, 0x1000  # linux/if_tun.h
# Packets come one by one, and GRO waits so many nanoseconds for more.
PATIENCE = 20_000_000


def _card(host, dev, address):
    with host.entered():
        card = os.open("/dev/net/tun", os.O_RDWR)
        kind = IFF_TAP | IFF_NO_PI | IFF_NAPI
        fcntl.ioctl(card, TUNSETIFF, struct.pack("16sH22x", dev.encode(), kind))
    host.batch(f"addr add {address} dev {dev}", f"link set {dev} up")
    host.run(["sh", "-c", f"echo {PATIENCE} > /sys/class/net/{dev}/gro_flush_timeout"])
    return card


class Wire:
    """Between two hosts; an address is with its prefix length."""

    def __init__(self, a, dev_a, address_a, b, dev_b, address_b):
        self.cards = [_card(a, dev_a, address_a), _card(b, dev_b, address_b)]
        self.end, self.ended = os.pipe()
        self.carrier = threading.Thread(target=self._carry)
        self.carrier.start()

    def _carry(self):
        others = dict(zip(self.cards, reversed(self.cards)))
        while True:
            ready, _, _ = select.select([*self.cards, self.end], [], [])
            if self.end in ready:
                return
            for card in ready:
                try:
                    os.write(others[card], os.read(card, 1 << 16))
                except OSError:
                    pass  # the other end is down

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.ended)
        self.carrier.join()
        for descriptor in (*self.cards, self.end):
            os.close(descriptor)
