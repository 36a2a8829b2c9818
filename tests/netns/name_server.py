"""A name server that is played: it answers for the names it knows, and is silent about all others."""

import ipaddress
import socket
import struct
import threading

from many_ends import Names

A, AAAA = 1, 28


class NameServer(Names):
    """The only name server that a host's programs know, and what it was asked for.

    A name that it does not know is asked for in vain, as one whose own server is away."""

    def __init__(self, host, **addresses):
        """The name `a.test` is given as `a`, with one address or a list of them."""
        super().__init__(host)
        self.addresses = {}
        self.asked = []
        self.tell(**addresses)
        self._socket = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(0.1)
        self._socket.bind(("127.0.0.1", 53))
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def tell(self, **addresses):
        """From now on it knows these names."""
        for name, known in addresses.items():
            self.addresses[f"{name}.test"] = [known] if isinstance(known, str) else known

    def __enter__(self):
        self._thread.start()
        return super().__enter__()

    def __exit__(self, *exception):
        self._ending.set()
        self._thread.join()
        self._socket.close()
        super().__exit__(*exception)

    def _serve(self):
        while not self._ending.is_set():
            try:
                query, sender = self._socket.recvfrom(4096)
            except TimeoutError:
                continue
            name, end = _name(query)
            self.asked.append(name)
            if name in self.addresses:
                self._socket.sendto(_answer(query, end, self.addresses[name]), sender)


def _name(query):
    """The name that is asked for, and where it ends (RFC 1035)."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode().lower())
        at += 1 + length
    return ".".join(labels), at + 1


def _answer(query, end, addresses):
    (kind,) = struct.unpack_from("!H", query, end)
    known = [ipaddress.ip_address(address).packed for address in addresses]
    fitting = [data for data in known if len(data) == {A: 4, AAAA: 16}.get(kind)]
    header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(fitting), 0, 0)
    record = lambda data: struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(data)) + data  # noqa: E731
    return header + query[12 : end + 4] + b"".join(map(record, fitting))
