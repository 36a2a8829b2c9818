"""A full tunnel on a host with containers: the main case of tests/netns, on both datapaths."""

import signal
import subprocess

import pytest

from gateways import Container, Door, Internet, await_answer, connect, state, strict
from ipipou import SERVER

FROM_OUTSIDE = Internet.OUTSIDE[0], 8000


@pytest.mark.parametrize("datapath", ["kernel", "tun"])
def test_a_published_port_answers(lab, datapath):
    """Connections from before the tunnel and new ones, after a kill too; what the container itself
    begins takes the tunnel."""
    if datapath == "tun":
        subprocess.run(["modprobe", "tun"], check=True)
    internet = Internet(lab)
    client, third = internet.client, internet.third
    internet.forward(8000)
    container = Container(lab, client)
    container.publish(8000)
    strict(client, "eth0", "docker0")
    before = state(client)
    with Door(container.host, 80) as door:
        first = door.enter(third, *FROM_OUTSIDE)
        internet.serve()
        far = internet.connect("--datapath", datapath)
        assert far.show()["datapath"] == datapath
        for _ in range(2):
            await_answer(client, Internet.THIRD)
            assert door.answers(*first) and door.answers(*door.enter(third, *FROM_OUTSIDE))
            assert connect(container.host, third, Internet.THIRD) == SERVER
            assert far.process.stop(signal.SIGKILL) == -signal.SIGKILL
            far.start()
        await_answer(client, Internet.THIRD)
        assert far.process.stop() == 0
        assert door.answers(*first) and door.answers(*door.enter(third, *FROM_OUTSIDE))
    assert state(client) == before
