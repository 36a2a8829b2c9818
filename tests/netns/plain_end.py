#!/usr/bin/env python3
"""The simplest other end there can be: IP packets between a TUN interface and a UDP socket.

    plain_end.py DEVICE INNER PEER LOCAL REMOTE

Addresses inside the tunnel, then outer addresses; the UDP port is 10000 on both ends. No offloads,
no authentication, a packet at a time, as the first tunnels of this kind did it.
"""

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def main():
    device, inner, peer, local, remote = sys.argv[1:]
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
    commands = f"addr add {inner} peer {peer} dev {device}\nlink set {device} up mtu 1472\n"
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    udp.bind((local, 10000))
    print("ready", flush=True)
    while True:
        for ready in select.select([tun, udp], [], [])[0]:
            if ready is udp:
                packet = udp.recv(65536)
                if packet[:1] == b"\x45":  # it knows of no authentication
                    os.write(tun, packet)
            else:
                udp.sendto(os.read(tun, 65536), (remote, 10000))


if __name__ == "__main__":
    main()
