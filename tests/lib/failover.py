"""A client with two servers, of which the first goes and comes back."""

import os
import time

from flood import Flood
from hub import PORT, inner, states
from lab import await_
from lan import outer


def in_use(client):
    """The server that has the client's data, of those that `show` lists."""
    (tunnel,) = client.show()["tunnels"]
    servers = tunnel["connection"]["servers"]
    (name,) = [server["name"] for server in servers if server["in_use"]]
    assert tunnel["remote"] == name
    return name


def first_goes(hub, within):
    """Host 2 is the client; host 1 is its first server, host 3 the next, which it is with after this many
    seconds. Returns the client, the next server, and a ping."""
    hub.forget(3)
    near, standby = hub.server(), hub.standby(3)
    far = hub.client(2, *hub.servers(3))
    far.await_log(f"connected to {outer(1)}")
    client = hub.clients[0]
    ping = client.ping_background(inner(1))
    ping.await_answers()
    assert in_use(far) == f"{outer(1)}:{PORT}"
    assert states(standby) == {"peer2": "new"}

    hub.host.run("ip link set eth0 down")
    gone = time.monotonic()
    assert near.process.stop() == 0  # what is killed leaves a tunnel behind on the kernel datapath
    far.await_log(f"no answer from {outer(1)}:{PORT}: asking {outer(3)}:{PORT}", timeout=30)
    far.await_log(f"connected to {outer(3)}", timeout=5)
    assert time.monotonic() - gone < within
    ping.await_answers()
    assert in_use(far) == f"{outer(3)}:{PORT}"
    assert states(standby) == {"peer2": "connected"}
    return far, standby, ping


def first_goes_and_comes_back(hub, within):
    """The same, and the first server is there again; the client is back with it after a minute."""
    far, standby, ping = first_goes(hub, within)
    hub.host.run("ip link set eth0 up")
    near = hub.server()
    back = time.monotonic()
    await_(lambda: near.show()["peers"]["hellos"]["challenged"] >= 3, 60, what="three hellos")
    assert states(near) == {"peer2": "new"}, "it is only asked whether it is there"
    assert in_use(far) == f"{outer(3)}:{PORT}"
    far.await_log(f"{outer(1)}:{PORT}, the first server, has answered for 6. s", timeout=80)
    assert time.monotonic() - back >= 60
    await_(lambda: in_use(far) == f"{outer(1)}:{PORT}", what="the first server")
    await_(lambda: states(near) == {"peer2": "connected"}, what="a client that is back")
    await_(lambda: states(standby) == {"peer2": "away"}, what="a goodbye to the other")
    ping.await_answers()
    assert far.process.stop() == 0


def flooded_by_the_first_and_let_in_by_the_next(hub):
    """The first server is gone, and somebody forges answers from its address and port."""
    hub.forget(3)
    near, _ = hub.server(), hub.standby(3)
    far = hub.client(2, *hub.servers(3))
    far.await_log(f"connected to {outer(1)}")
    hub.host.run("ip link set eth0 down")
    assert near.process.stop() == 0
    junk = lambda: b"\x81\x02" + os.urandom(126)  # of just the length of an answer
    forged, client = (outer(1), PORT), (outer(2), PORT)
    # One at a time: between many at once there would be tokens for the next server's answers.
    with Flood(hub.lan.host, forged, client, junk, 100, each=1) as flood:
        await_(lambda: flood.sent >= 100, what="flood")
        far.reauthenticate()
        far.await_log(f"connected to {outer(3)}", timeout=30)
    await_(lambda: in_use(far) == f"{outer(3)}:{PORT}", what="the next server")
