"""How many remotes a table may have in the kernel's datapath."""

import subprocess

import holders
from lab import await_
from test_host import forged, quote
from test_nodes import Nodes, inner, links, outer


def many(count):
    """A table of so many remotes that nobody has, and the two first nodes."""
    others = [f"198.18.{i // 250}.{i % 250 + 1}" for i in range(count - 1)]
    table = {f"{address}": address for address in others}
    return {inner(1): outer(1), inner(2): outer(2), **table}


def test_more_remotes_than_the_kernel_carries_are_refused(lab):
    nodes = Nodes(lab, 1)
    nodes.write(many(1024))
    host = nodes.hosts[1]
    argv = ["ipipou", "-b", "@eth0", "--tunl-ip", f"{inner(1)}/24", "--datapath", "kernel"]
    argv += ["--hosts-file", nodes.table, "--runtime-dir", lab.directory / "none"]
    argv += ["--memory-dir", lab.directory / "none"]
    words = "--datapath kernel: the table of hosts has 1025 remotes", "carries 1024 at most"
    holders.refused(host, argv, 2, *words)


def test_forged_icmp_changes_no_path(lab):
    """The kernel knows of each remote what an ICMP error about it has to quote."""
    nodes = Nodes(lab, 1, 2)
    nodes.write(many(104))
    host, sender = nodes.hosts[1], nodes.hosts[2]
    host.run("ip route add 198.18.0.0/15 dev eth0")
    nodes.start("--datapath", "kernel")
    nodes.everybody()
    end, remotes = nodes.ends[1], sorted(remote for remote, _ in links(host))
    assert len(remotes) == 104
    remotes = remotes[:2] + remotes[-2:]
    for number, remote in enumerate(remotes, 1):
        sender.send_raw(forged(outer(9), outer(1), quote(outer(1), remote), 600))
        end.await_dropped(icmp_error=number)
        assert "mtu" not in host.run(f"ip route get {remote}"), number
    for remote in remotes:
        sender.send_raw(forged(outer(9), outer(1), quote(outer(1), remote), 1300))
        await_(lambda: "mtu 1300" in host.run(f"ip route get {remote}"), what="the router's word")
    nodes.everybody()


def test_many_are_carried_by_userspace(lab):
    subprocess.run(["modprobe", "tun"], check=True)
    nodes = Nodes(lab, 1, 2)
    nodes.write(many(512))
    nodes.start()
    nodes.ends[1].await_log(
        r"userspace datapath \(tun\): the table of hosts has 513 remotes, and the kernel's is chosen"
        " for 512 at most"
    )
    assert nodes.ends[1].show()["datapath"] == "tun"
    nodes.everybody()


def test_a_table_that_grows_too_large_is_not_used(lab):
    nodes = Nodes(lab, 1, 2)
    few = {inner(n): outer(n) for n in (1, 2)}
    nodes.write(few)
    nodes.start("--datapath", "kernel")
    nodes.everybody()
    before = links(nodes.hosts[1])
    nodes.write(many(1024))
    end = nodes.ends[1]
    end.await_log("1025 remotes, and the kernel's datapath carries 1024 at most")
    nodes.write(many(1025))
    end.await_log("1026 remotes, and the kernel's datapath carries 1024 at most")
    assert links(nodes.hosts[1]) == before
    assert end.process.output().count("carries 1024 at most") == 2
    nodes.everybody()
    nodes.write({**few, inner(3): outer(3)})
    await_(lambda: len(links(nodes.hosts[1])) == 2, what="a second link")
    nodes.everybody()
