"""Interfaces and routes that have nothing to do with the tunnel."""

import ipipou


def add_what_is_not_ours(host, links, routes):
    lines = [f"link add other{i} type bridge" for i in range(links)]
    lines += [f"addr add 10.{200 + i // 250}.{i % 250}.1/32 dev other{i}" for i in range(links)]
    lines += [
        f"route add 11.{i // 65536}.{i // 256 % 256}.{i % 256}/32 via {ipipou.STRANGER}"
        for i in range(routes)
    ]
    host.run("ip -batch -", input="\n".join([*lines, ""]), timeout=300)
