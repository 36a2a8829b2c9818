"""A client with several servers (-r A,B): it asks the next when one does not answer or refuses, and goes
back to the first."""

from failover import first_goes_and_comes_back, in_use
from hub import PORT, Hub, inner, states
from lan import await_reached, outer


def test_a_client_goes_to_the_next_server_and_back_to_the_first(lab):
    first_goes_and_comes_back(Hub(lab, clients=2))


def test_a_server_that_refuses_is_followed_by_the_next_at_once(lab):
    hub = Hub(lab, clients=2)
    hub.forget(3)
    standby = hub.standby(3)
    hub.name(2, enabled=False)
    near = hub.server()
    far = hub.client(2, *hub.servers(3))
    far.await_log(f"{outer(1)}:{PORT} does not let us in: asking {outer(3)}:{PORT}", timeout=3)
    far.await_log(f"connected to {outer(3)}", timeout=3)
    await_reached(hub.clients[0], inner(1))
    assert in_use(far) == f"{outer(3)}:{PORT}"
    assert (states(near), states(standby)) == ({"peer2": "disabled"}, {"peer2": "connected"})
    text = hub.clients[0].run(["ipipou", "show", "--runtime-root", far.root, "ipipou0"])
    assert f"servers: {outer(1)}:{PORT}, {outer(3)}:{PORT} (in use)" in text


def test_a_client_starts_where_only_the_last_server_is_there(lab):
    hub = Hub(lab, clients=3)
    hub.forget(3)
    hub.forget(4)
    hub.standby(4)
    far = hub.client(2, *hub.servers(3, 4))
    far.await_log(f"connected to {outer(4)}", timeout=10)
    await_reached(hub.clients[0], inner(1))
