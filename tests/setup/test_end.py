"""`make test` that ends early leaves nothing running: neither by itself nor on Ctrl-C."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

# A part that was started and goes on: with a child of its own, and deaf to all that can be unheard.
STUBBORN = """#!/bin/bash
trap '' INT TERM
sleep 1000 &
echo $$ $! >{running}.part && mv {running}.part {running}
sleep 1000
"""


@pytest.fixture
def tests(machine):
    """The tree, whose parts are done at once, but for machines, which never are."""
    running = machine.place / "running"
    for name in ("make", "rmdir", "ps", "timeout"):
        machine.have(name)
    machine.fake("dpkg-query", "printf installed")
    machine.rust("1.96.0")
    prepare = machine.tree / "tests/vm/prepare.sh"
    prepare.write_text(STUBBORN.format(running=running))
    (machine.tree / "tests/setup/bare.sh").write_text("#!/bin/bash\nexit 77\n")
    machine.running = running
    yield machine
    if running.exists():
        for pid in left(machine):
            os.kill(int(pid), signal.SIGKILL)


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come"
        time.sleep(0.05)


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def left(tests):
    return [pid for pid in tests.running.read_text().split() if alive(pid)]


def test_a_failed_step_leaves_nothing_running(tests):
    tests.fake(
        "cargo",
        f"""[[ $1 == --version ]] && echo "cargo 1.96.0" && exit
        while [[ ! -e {tests.running} ]]; do sleep 0.05; done
        echo "error: could not compile"
        exit 101""",
    )
    ended = tests.run("make", "test")
    assert ended.returncode != 0
    assert not left(tests)
    lines = ended.stdout.splitlines()
    assert lines[-1] == "make test: FAILED; the logs are in target/test"
    assert any(line.startswith("build") and "FAILED" in line for line in lines)
    assert not any(line.startswith("machines") for line in lines)


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_nothing_running(tests, way):
    """A terminal's Ctrl-C and its end reach all that is in its foreground; `kill` only make."""
    tests.fake("cargo", '[[ $1 == --version ]] && echo "cargo 1.96.0" && exit\nexec sleep 1000')
    process = subprocess.Popen(
        # As from a terminal: a shell that runs the tests in the background has these two ignored, and
        # a shell cannot take that back.
        ["env", "--default-signal=INT,HUP", "make", "test"],
        cwd=tests.tree,
        env=tests.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    wait_for(tests.running.exists)
    if way == signal.SIGTERM:
        process.send_signal(way)
    else:
        os.killpg(process.pid, way)
    process.communicate(timeout=400)  # three signals, each with its time, on a busy machine
    assert process.returncode != 0
    assert not left(tests)
