"""A host with two uplinks, the second of which only policy rules lead to."""

import ipipou
from ipipou import await_

SERVER, ROUTER = "203.0.113.1", "203.0.113.254"
FIRST, SECOND = "198.51.100.2", "192.0.2.2"
# The options that make the end with two uplinks use the second.
LOCAL_ENDS = {
    "address": ["-b", SECOND],
    "device": ["-b", "@eth1"],
    "both": ["-b", f"{SECOND}@eth1"],
}


class Uplinks:
    """`host` has eth0, where its routes lead, and eth1; the router drops what comes by the wrong
    one, and `far` is behind it."""

    def __init__(self, lab):
        self.far, self.core, self.host = lab.host("far"), lab.host("core"), lab.host("host")
        lab.link(self.far, "eth0", f"{SERVER}/24", self.core, "eth0", f"{ROUTER}/24")
        lab.link(self.host, "eth0", f"{FIRST}/24", self.core, "eth1", "198.51.100.1/24")
        lab.link(self.host, "eth1", f"{SECOND}/24", self.core, "eth2", "192.0.2.1/24")
        self.core.sysctl("net.ipv4.ip_forward", 1)
        for device in ("eth1", "eth2"):
            self.core.sysctl(f"net.ipv4.conf.{device}.rp_filter", 1)
        self.far.run(f"ip route add default via {ROUTER}")
        self.host.batch(
            "route add default via 198.51.100.1",
            "route add default via 192.0.2.1 table 200",
            f"rule add from {SECOND} lookup 200",
        )
        self.keys = ipipou.Keys(self.far)

    def server(self, *options, **more):
        return ipipou.server(self.far, *options, keys=self.keys, **more)

    def client(self, *options, **more):
        """The host's own end; `options` say by which uplink."""
        return ipipou.client(self.host, *options, keys=self.keys, device="eth1", **more)

    def authenticates_by_the_second(self, local, *options):
        """All authentication packets of a client, and of `--reauth-only`, arrive from there."""
        near = self.server(*options)
        far = self.client(*local, *options)
        near.await_log(f"{SECOND}:10000 authenticated: tunnel up")
        ipipou.reach_each_other(self.far, self.host)
        accepted = near.show()["accepted"]
        far.reauthenticate()
        await_(lambda: near.show()["accepted"] == accepted + 1, what="the second packet")
        self.host.run([*far.argv, "--reauth-only"])
        await_(lambda: near.show()["accepted"] == accepted + 2, what="the third packet")
        asked = self.host.run("ip neigh show dev eth1")
        assert SERVER not in asked, f"the kernel looked for the server on the link: {asked}"

    def replies_by_the_second(self, local, *options):
        """A server on the host with two uplinks answers by the one that it was asked by."""
        seen = self.core.capture("eth2", f"udp and src {SECOND} and dst {SERVER}")
        ipipou.Tunnel(
            self.host, "-s", *local, "--reply-on-auth-ok", *options,
            "--auth-remote-pubkey-b64", self.keys.public, "--auth-secret", ipipou.SECRET,
        ).await_log("ready on")  # fmt: skip
        ipipou.client(self.far, *options, remote=f"{SECOND}:10000", keys=self.keys)
        assert seen.await_packets(1)[0].dport == 10000
