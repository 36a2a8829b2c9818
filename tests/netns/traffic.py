"""Bulk traffic between two hosts, checked byte by byte."""

import concurrent.futures
import contextlib
import hashlib
import random
import socket

MIB = 1 << 20
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def stream(seed, length):
    """Blocks of bytes that are all different, and soon made."""
    block = bytearray(random.Random(seed).randbytes(MIB))
    for number in range(length // MIB):
        block[:8] = number.to_bytes(8, "big")
        yield bytes(block)


def send_stream(connection, seed, length):
    digest = hashlib.sha256()
    with connection:
        for block in stream(seed, length):
            digest.update(block)
            connection.sendall(block)
    return digest.digest()


def receive_stream(connection):
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(MIB))
    with connection:
        while count := connection.recv_into(buffer):
            digest.update(buffer[:count])
    return digest.digest()


def connected(source, destination, address, port):
    """Two ends of a TCP connection from one host to another."""
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(destination.socket(family(address)))
        listener.bind((address, port))
        listener.listen()
        sender = undo.enter_context(source.socket(family(address)))
        sender.settimeout(20)
        sender.connect((address, port))
        receiver, _ = listener.accept()
        receiver.settimeout(20)
        undo.pop_all()
        listener.close()
        return sender, receiver


def transfer(source, destination, address, mebibytes, flows=1):
    """Sends different streams at the same time; all arrive as they were sent."""
    with concurrent.futures.ThreadPoolExecutor(2 * flows) as threads:
        sent, received = [], []
        for flow in range(flows):
            sender, receiver = connected(source, destination, address, 5000 + flow)
            received.append(threads.submit(receive_stream, receiver))
            sent.append(threads.submit(send_stream, sender, flow, mebibytes * MIB))
        assert [r.result() for r in received] == [s.result() for s in sent]


def transfer_both_ways(hosts, mebibytes, flows=1, addresses=("172.28.0.0", "172.28.0.1")):
    """`hosts` and `addresses`: the server's, the client's."""
    server, client = hosts
    transfer(client, server, addresses[0], mebibytes, flows)
    transfer(server, client, addresses[1], mebibytes, flows)


def checksum_errors(host):
    """Packets that the host's kernel found damaged."""
    text = host.run("nstat -asz TcpInCsumErrors UdpInCsumErrors IcmpInCsumErrors TcpInErrs")
    return {line.split()[0]: int(line.split()[1]) for line in text.splitlines()[1:]}


def no_damage(hosts):
    for host in hosts:
        errors = checksum_errors(host)
        assert len(errors) == 4 and set(errors.values()) == {0}, errors


class Echo:
    """Datagrams from one host to another and back, a window of them at a time."""

    def __init__(self, client, server, address, port=7000):
        kind = family(address), socket.SOCK_DGRAM
        self.server, self.client = server.socket(*kind), client.socket(*kind)
        self.server.bind((address, port))
        self.client.connect((address, port))
        for end in (self.server, self.client):
            end.settimeout(5)
            end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 * MIB)

    def close(self):
        self.server.close()
        self.client.close()

    def window(self, datagrams):
        """All come, as they were and in their order."""
        for datagram in datagrams:
            self.client.send(datagram)
        for expected in datagrams:
            datagram, sender = self.server.recvfrom(65536)
            assert datagram == expected
            self.server.sendto(datagram, sender)
        for expected in datagrams:
            assert self.client.recv(65536) == expected


def datagrams(generator, lengths):
    return [generator.randbytes(length) for length in lengths]
