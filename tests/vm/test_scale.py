"""What the kernel's datapath spends on a look at the host does not grow with what is not the tunnel's."""

import pytest

import ipipou
import lab as laboratory
from foreign import add_what_is_not_ours
from ipipou import await_, reach_each_other


def spent_by(end, times=10):
    """Processor time of one reading; the host is read for each answer."""
    before = laboratory.processor_time(end.process.pid)
    for _ in range(times):
        end.show()
    return (laboratory.processor_time(end.process.pid) - before) / times


@pytest.mark.parametrize("side", ["server", "client"])
def test_foreign_links_and_routes_do_not_slow_a_reading(lab, side):
    lan = ipipou.Lan(lab).connect()
    host, end = {"server": (lan.server, lan.near), "client": (lan.client, lan.far)}[side]
    end.await_quiet()
    alone = min(spent_by(end) for _ in range(3))
    add_what_is_not_ours(host, links=150, routes=2_000)
    # Until what came as events is read, there is more. All links would be tens of times as much.
    await_(lambda: spent_by(end) < alone * 2, what=f"readings in {alone} ns")
    reach_each_other(lan.server, lan.client)
