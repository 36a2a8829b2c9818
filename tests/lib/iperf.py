"""TCP and UDP between two hosts, as iperf3 measures them."""

import json


def iperf(server, client, *options, to="172.28.0.0"):
    """What the client tells at the end: of TCP, or of UDP."""
    serves = server.spawn(["iperf3", "-s", "-1", "--forceflush"])
    serves.await_output("listening")
    done = client.run(["iperf3", "-J", "-c", to, *options], timeout=120)
    return json.loads(done)["end"]
