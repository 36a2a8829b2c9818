"""The fast path beside others of the host: what they have at its interfaces, and what it leaves them when its
process is killed, stopped or refused."""

import signal

import pytest

import ipipou
import packets
from hub import Hub, MixedHub, inner
from ipipou import CLIENT, SERVER, reach_each_other
from lab import await_
from test_fast_path import BOTH, TUN, await_fast, carried, filters

pytestmark = pytest.mark.fast_path

INNER_SERVER, INNER_CLIENT = "172.28.0.0", "172.28.0.1"
FAST = [*TUN, "--fast-path", "on"]
# How long the programs take packets without their process, and some time to spare.
LEASE = 8 + 4


@pytest.fixture
def lan(lab):
    made = ipipou.Lan(lab)
    for host in lab.hosts:
        host.sysctl("net.ipv4.conf.default.accept_redirects", 1)
        host.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
    return made


def up(lan):
    lan.connect(*TUN)
    await_fast(lan.near, lan.far)
    return lan.server, lan.client


def test_a_qdisc_that_takes_no_filter_costs_the_fast_path_and_not_the_tunnel(lan):
    lan.server.run("tc qdisc add dev eth0 ingress_block 22 clsact")
    lan.connect(*TUN)
    lan.near.await_log("no fast path: cannot attach a program")
    reach_each_other(lan.server, lan.client)
    assert "cannot attach" in lan.near.show()["fast_path"]["why_not"]
    lan.near.await_quiet()
    assert lan.near.process.output().count("no fast path") == 1
    assert "repairing" not in lan.near.process.output()


def test_a_qdisc_in_its_place_sends_nothing_back(lan):
    """`ingress` takes filters for what goes out as filters for what comes in."""
    server, client = up(lan)
    server.batch("link add lan0 type bridge", "addr add 10.77.0.1/24 dev lan0", "link set lan0 up")
    client.run("ip route add 10.77.0.0/24 dev ipipou0")

    def exchanged():
        """Whether it took the place before the tunnel put its own back there."""
        server.run("tc qdisc del dev ipipou0 clsact", check=False)
        return server.run("tc qdisc add dev ipipou0 ingress", check=False).returncode == 0

    await_(exchanged, what="the other qdisc")
    lan.near.await_log("no fast path: .*queueing discipline `ingress`")
    assert filters(server) == []
    reach_each_other(server, client)
    assert client.ping("10.77.0.1", count=2).received == 2


def test_filters_of_others_come_before_it(lan):
    server, client = up(lan)
    server.batch("link add away type bridge", "link set away up")
    take = f"protocol ip u32 match ip src {CLIENT}/32 action mirred egress redirect dev away"
    server.run(f"tc filter add dev eth0 ingress {take}")
    assert client.ping(INNER_SERVER, count=2, timeout=1).received == 0


def test_a_killed_process_leaves_its_port_to_the_next_program(lan):
    server, client = up(lan)
    client.ping_background(INNER_SERVER)
    lan.near.process.send_signal(signal.SIGKILL)
    lan.near.process.wait()
    assert filters(server)[0] == "ingress"
    with server.udp_socket(SERVER, 10000, timeout=LEASE) as another:
        assert packets.ICMP in another.recv(2000)[:20]


def test_a_stopped_process_lets_nobody_in_for_long(lan):
    server, client = up(lan)
    lan.near.process.send_signal(signal.SIGSTOP)
    assert client.ping(INNER_SERVER, count=2).received == 2

    def is_over():
        return client.ping(INNER_SERVER, count=1, timeout=1).received == 0

    await_(is_over, LEASE, "end of the lease")
    lan.near.process.send_signal(signal.SIGCONT)
    before = carried(server)
    reach_each_other(server, client)
    await_(lambda: client.ping(INNER_SERVER, count=1).received, what="an answer")
    lan.near.show()  # the host is read, and the lease renewed
    before = carried(server)
    reach_each_other(server, client)
    assert carried(server) == before


def test_icmp_redirects_are_left_to_the_datapath_which_drops_them(lan):
    server, client = up(lan)
    inside = server.capture("ipipou0", "icmp")
    redirect = packets.ipv4(INNER_CLIENT, INNER_SERVER, packets.ICMP, b"\5\1\0\0" + bytes(32))
    client.send_udp(CLIENT, 10000, SERVER, 10000, redirect)
    lan.near.await_dropped(rx_redirect=1)
    reach_each_other(server, client)
    assert 5 not in {p.payload[0] for p in inside.await_packets(1)}


def test_what_a_peer_sent_is_not_forgotten_by_a_repair(lan):
    server, client = up(lan)
    reach_each_other(server, client)
    (before,) = lan.near.show()["tunnels"]
    server.run("tc qdisc del dev eth0 clsact")
    await_(lambda: filters(server) == BOTH, what="filters")
    reach_each_other(server, client)
    (after,) = lan.near.show()["tunnels"]
    assert after["rx_packets"] >= before["rx_packets"] + 4, (before, after)


def test_the_capabilities_of_the_unit_are_enough(lan):
    """Without CAP_PERFMON the kernel's verifier refuses more than it refuses root."""
    keep = {"cap_net_admin", "cap_net_raw", "cap_bpf"}
    known = lan.server.run("capsh --print").split("Bounding set =")[1].split("\n")[0].split(",")
    drop = ",".join(sorted(set(known) - keep))
    keys = ipipou.Keys(lan.server)
    prefix = ["capsh", f"--drop={drop}", "--", "-c", 'exec "$0" "$@"']
    near = ipipou.server(lan.server, *TUN, keys=keys, prefix=prefix)
    ipipou.client(lan.client, *TUN, keys=keys)
    near.await_log("tunnel up")
    await_fast(near)


@pytest.mark.parametrize("limit", ["-Sn 64", "-n 500"])
def test_what_can_be_done_without_leaves_files_to_the_rest(lab, limit):
    """A tunnel has a dozen of files open, and six more with a fast path."""
    hub, old = MixedHub(lab), range(20, 50)
    for i in old:
        hub.keys[i] = ipipou.Keys(hub.host)
        hub.name_old(i, old=11000 + i)
    near = hub.server(*FAST, prefix=["bash", "-c", f'ulimit {limit}; exec "$0" "$@"'])

    def bound():
        return len(hub.host.run("ss -lunH").splitlines())

    await_(lambda: bound() == len(old) + 2, what="a socket for each")
    near.await_quiet()
    assert "Too many open files" not in near.process.output()
    made = hub.host.run("tc filter show dev eth0 ingress").count(" handle ")
    if limit.startswith("-S"):
        assert made == len(old) + 2, "the lower limit counts no more"
    else:
        assert 0 < made < len(old)
        near.await_log(r"this process may have 500 files open \(ulimit -n\)")


def masquerades(client):
    """The tunnel's own outer address is translated at the uplink."""
    client.run("ip addr add 10.9.0.7/32 dev eth0")
    client.nft(
        """
        table ip nat {
            chain postrouting {
                type nat hook postrouting priority srcnat;
                ip saddr 10.9.0.0/24 masquerade
            }
        }
        """
    )


def test_a_host_that_translates_outer_packets_goes_on_doing_so(hosts):
    server, client = hosts
    masquerades(client)
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, keys=keys)
    proof = ["--auth-key-b64", keys.private, "--auth-secret", ipipou.SECRET, "--keepalive", "20"]
    bound = ["-b", "10.9.0.7@eth0", "-r", f"{SERVER}:10000", "--tunl-ip", INNER_CLIENT]
    far = ipipou.Tunnel(client, "-c", *TUN, *bound, *proof)
    near.await_log("tunnel up")
    far.await_quiet()
    reach_each_other(server, client)
    assert far.show()["fast_path"]["remotes"] == 0


def test_a_port_that_is_redirected_answers(hosts):
    server, client = hosts
    server.nft(
        """
        table ip nat {
            chain prerouting {
                type nat hook prerouting priority dstnat;
                udp dport 443 redirect to :10000
            }
        }
        """
    )
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, keys=keys)
    ipipou.client(client, *TUN, remote=f"{SERVER}:443", keys=keys)
    near.await_log("tunnel up")
    near.await_quiet()
    reach_each_other(server, client)
    assert near.show()["fast_path"]["remotes"] == 0


def test_policy_rules_by_port_are_followed(hosts):
    server, client = hosts
    client.run("ip rule add ipproto udp sport 10000 lookup 100")
    client.run(f"ip route add {SERVER} dev eth0 table 100")
    keys = ipipou.Keys(server)
    near = ipipou.server(server, *TUN, keys=keys)
    far = ipipou.client(client, *TUN, keys=keys)
    far.await_log("no fast path: policy rules of this host")
    near.await_log("tunnel up")
    reach_each_other(server, client)


def test_an_isolated_peer_reaches_no_other_from_its_first_packet(lab):
    hub = Hub(lab)
    hub.name(2, isolate=True)
    near = hub.server()
    ends = [hub.client(i) for i in (3, 4)]
    for end in ends:
        end.await_log("connected to")
    await_(lambda: near.show()["fast_path"]["remotes"] == 2, what="two on the fast path")
    seen = hub.clients[1].capture("ipipou0", f"src {inner(2)}")
    isolated = hub.client(2)
    isolated.await_log("connected to")
    hub.clients[0].run(f"ping -n -q -i 0.01 -c 100 -W 1 {inner(3)}", check=False)
    assert hub.clients[0].ping(inner(1), count=2).received == 2
    assert not seen.packets()
