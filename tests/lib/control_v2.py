"""Control protocol v2 as a client speaks it, with PyNaCl and the standard library: another program than
the one under test.

A hello has 128 bytes: signature (64), seconds (5), salt (4), version 2, kind, flags, the first bytes of
the client's key and of the server's (8 each), cookie (16), four bytes for a TLV, MAC (16). An answer has
kind, version 2, flags (2), the MAC of the hello that it answers (16), a cookie (16), TLVs, MAC (16).
"""

import base64
import hashlib
import hmac
import os
import struct
import time

from nacl.bindings import (
    crypto_scalarmult,
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_ed25519_sk_to_curve25519,
)
from nacl.signing import SigningKey

HELLO, BYE = 1, 2
CHALLENGE, ACCEPT, REFUSE = 0x81, 0x82, 0x83
LENGTH = 128


def _hkdf(material, info, length):
    key = hmac.new(bytes(64), material, hashlib.sha512).digest()
    out = part = b""
    while len(out) < length:
        part = hmac.new(key, part + info + bytes([len(out) // 64 + 1]), hashlib.sha512).digest()
        out += part
    return out[:length]


def _mac(key, data):
    return hmac.new(key, data, hashlib.sha512).digest()[:16]


class Client:
    """One client of a server. Keys are in base64, as the program under test prints them."""

    def __init__(self, private, server_public, secret):
        self.key = SigningKey(base64.b64decode(private))
        self.public, self.server = bytes(self.key.verify_key), base64.b64decode(server_public)
        self.secret = secret.encode()
        pair = crypto_scalarmult(
            crypto_sign_ed25519_sk_to_curve25519(bytes(self.key) + self.public),
            crypto_sign_ed25519_pk_to_curve25519(self.server),
        )
        keys = _hkdf(pair + self.secret, b"ipipou 2" + self.public + self.server, 64)
        self.to_server, self.to_client = keys[:32], keys[32:]
        self.cookie = None

    @property
    def public_text(self):
        return base64.b64encode(self.public).decode()

    def hello(self, kind=HELLO, flags=0, signed=True):
        """The next hello, with the cookie of the last answer."""
        cookie = self.cookie or os.urandom(16)
        while True:
            message = struct.pack(">Q", int(time.time()))[3:] + os.urandom(4)
            message += (
                bytes([2, kind, flags]) + self.public[:8] + self.server[:8] + cookie + bytes(4)
            )
            message += _mac(self.to_server, message)
            if signed:
                signature = self.key.sign(message + self.secret).signature
            else:
                signature = bytes([0x90]) + os.urandom(63)
            if signature[0] >= 0x90:
                self.tag = message[-16:]
                return signature + message

    def hear(self, answer):
        """Takes an answer to the last hello; its kind, or None if it is none."""
        if len(answer) < 52 or not hmac.compare_digest(
            answer[-16:], _mac(self.to_client, answer[:-16])
        ):
            return None
        if answer[4:20] != self.tag:
            return None
        self.cookie = answer[20:36]
        return answer[0]
