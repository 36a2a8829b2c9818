"""What a network card does with segments, switched on and off (SIOCETHTOOL, linux/ethtool.h)."""

import ctypes
import fcntl
import socket
import struct

SIOCETHTOOL = 0x8946
GSTRINGS, GSSET_INFO, SFEATURES = 0x1B, 0x37, 0x3B
FEATURES, NAME = 4, 32  # ETH_SS_FEATURES, ETH_GSTRING_LEN

RECEIVE = {"rx-gro"}


def is_segmentation(name):
    """TCP's, UDP's, and that of what is in tunnels."""
    return name.startswith("tx-") and name.endswith("-segmentation")


def _call(any_socket, dev, request):
    buffer = ctypes.create_string_buffer(request, len(request))
    interface = struct.pack("16sP", dev.encode(), ctypes.addressof(buffer))
    fcntl.ioctl(any_socket, SIOCETHTOOL, interface)
    return buffer.raw


def _names(any_socket, dev):
    info = _call(any_socket, dev, struct.pack("=IIQI", GSSET_INFO, 0, 1 << FEATURES, 0))
    count = struct.unpack_from("=I", info, 16)[0]
    strings = _call(
        any_socket, dev, struct.pack("=III", GSTRINGS, FEATURES, count) + bytes(NAME * count)
    )
    found = (strings[12 + NAME * i : 12 + NAME * (i + 1)] for i in range(count))
    return [name.split(b"\0", 1)[0].decode() for name in found]


def segmented_on_the_way(host, dev, segmented=True):
    """As with an ordinary card: segments leave one by one, and are put together where they arrive. Or, as
    a veth is made, superpackets pass as they are."""
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        names = _names(any_socket, dev)
        blocks = [[0, 0] for _ in range(-(-len(names) // 32))]
        for number, name in enumerate(names):
            if is_segmentation(name) or name in RECEIVE:
                blocks[number // 32][0] |= 1 << number % 32
                blocks[number // 32][1] |= ((name in RECEIVE) == segmented) << number % 32
        request = struct.pack("=II", SFEATURES, len(blocks))
        _call(any_socket, dev, request + b"".join(struct.pack("=II", *b) for b in blocks))
