"""A client whose inner addresses come from its server."""

import json

from hub import inner, inner6, peers, reload
from lab import await_
from lan import await_reached


def links(host):
    """The indexes of tunnels: one that was made again has another."""
    return [link["ifindex"] for link in json.loads(host.run("ip -j link show dev ipipou0"))]


def addresses(host):
    """What is on the tunnel, as address and length of the network."""
    (link,) = json.loads(host.run("ip -j addr show dev ipipou0"))
    of = [a for a in link["addr_info"] if a["scope"] == "global"]
    return [f"{address['local']}/{address['prefixlen']}" for address in of]


def given_and_changed(hub):
    """Host 2 gets its addresses from the server, and others after a change of the server's file."""
    near, far, client = hub.server(), hub.guest(2), hub.clients[0]
    far.await_log(f"our address inside the tunnel, from the server: {inner(2)}/24")
    own = [f"{inner(2)}/24"] + ([f"{inner6(2)}/64"] if hub.ip6 else [])
    await_(lambda: addresses(client) == own, what=f"{own}")
    # The network is on the link: the server is reached, and what is behind it, without a route.
    await_reached(client, inner(1))
    hub.client(3).await_log("connected to")
    await_reached(client, inner(3))
    if hub.ip6:
        await_reached(client, inner6(1))
    (tunnel,) = far.show()["tunnels"]
    assert (tunnel["inner"], tunnel["inner_peer"]) == (inner(2), "10.8.0.0/24")

    before = links(client)
    new = [inner(22)] + ([inner6(22)] if hub.ip6 else [])
    hub.name(2, address=new)
    assert "0 added, 1 changed" in reload(near)
    far.reauthenticate()
    far.await_log(f"our address inside the tunnel, from the server: {inner(22)}/24")
    own = [f"{inner(22)}/24"] + ([f"{inner6(22)}/64"] if hub.ip6 else [])
    await_(lambda: addresses(client) == own, what=f"{own}")
    assert links(client) == before
    await_reached(client, inner(1))
    assert peers(near)["peer2"]["addresses"] == new
    assert far.show()["repaired"] == 0
    assert far.process.stop() == 0
