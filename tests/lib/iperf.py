"""TCP and UDP between two hosts, as iperf3 measures them."""

import json


def iperf(server, client, *options, to="172.28.0.0"):
    """What the client tells at the end: of TCP, or of UDP."""
    serves = server.spawn(["iperf3", "-s", "-1", "--forceflush"])
    serves.await_output("listening")
    done = client.run(["iperf3", "-J", "-c", to, *options], timeout=120)
    return json.loads(done)["end"]


def datagrams_arrive(server, client, to="172.28.0.0"):
    """A hundred of 1000 bytes. A host that gets no processor for a while has full queues."""
    sent = iperf(server, client, "-u", "-n", "100K", "-b", "2M", "-l", "1000", to=to)["sum"]
    assert sent["lost_packets"] <= 2 and sent["packets"] >= 100, sent
