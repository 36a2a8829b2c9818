"""An end of a tunnel as the first version of ipipou, in Python, makes it: as root, with PyNaCl and `ip`.

first_version.py client LOCAL REMOTE KEY_FILE SECRET_FILE       sends a packet that is signed
first_version.py server LOCAL PUBLIC_KEY SECRET_FILE            waits for one that is
"""

import base64
import os
import pathlib
import socket
import subprocess
import sys
import time

import nacl.signing

PORT = 10000


def ip(words):
    subprocess.run(["ip", *words.split()], check=True)


def make_tunnel(local, remote, port, inner_local, inner_remote):
    subprocess.run(["modprobe", "-a", "fou", "ipip"], check=True)
    ip(f"fou add port {PORT} ipproto 4")
    encap = f"encap fou encap-sport {PORT} encap-dport {port}"
    ip(f"link add ipipou0 type ipip local {local} remote {remote} {encap}")
    ip(f"addr add {inner_local} peer {inner_remote} dev ipipou0")
    ip("link set ipipou0 up")


def read_secret(name):
    return pathlib.Path(name).read_bytes().rstrip(b"\n")


def client(local, remote, key_file, secret_file):
    seed = base64.b64decode(pathlib.Path(key_file).read_text().split()[0])
    message = int(time.time()).to_bytes(5, "big") + os.urandom(4)
    signature = nacl.signing.SigningKey(seed).sign(message + read_secret(secret_file)).signature
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((local, PORT))
        sender.sendto(signature + message, (remote, PORT))
    make_tunnel(local, remote, PORT, "172.28.0.1", "172.28.0.0")


def server(local, public, secret_file):
    key, secret = nacl.signing.VerifyKey(base64.b64decode(public)), read_secret(secret_file)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((local, PORT))
        while True:
            packet, (remote, port) = receiver.recvfrom(2000)
            signature, message = packet[:64], packet[64:]
            if abs(int.from_bytes(message[:5], "big") - time.time()) <= 60:
                key.verify(message + secret, signature)
                break
    make_tunnel(local, remote, port, "172.28.0.0", "172.28.0.1")


{"client": client, "server": server}[sys.argv[1]](*sys.argv[2:])
