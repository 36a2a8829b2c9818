"""Under a real systemd as PID 1: run.sh KERNEL --systemd."""

import pathlib
import subprocess


def systemctl(*arguments):
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, timeout=60)


def test_systemd_is_up_and_nothing_failed():
    assert pathlib.Path("/proc/1/comm").read_text() == "systemd\n"
    state = systemctl("is-system-running", "--wait").stdout.strip()
    assert state == "running", systemctl("--failed", "--no-legend", "--plain").stdout
