"""What is so in every machine."""

import pathlib
import socket

import pytest

import lab as laboratory

pytest_plugins = ["shared"]

SYSTEMD = pathlib.Path("/proc/1/comm").read_text() == "systemd\n"
SO_TIMESTAMP = 29  # asm-generic/socket.h


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "each_kernel: what the kernel does for a tunnel; runs on each kernel also without FULL=1",
    )


def pytest_ignore_collect(collection_path):
    """test_systemd*.py run where systemd is PID 1 (run.sh --systemd), the others elsewhere."""
    name = collection_path.name
    return name.startswith("test_") and name.startswith("test_systemd") != SYSTEMD or None


@pytest.fixture(scope="session", autouse=True)
def modules():
    laboratory.preload_modules()


@pytest.fixture(scope="session", autouse=True)
def timestamps():
    """Of every ping and tcpdump the first turns them on for the whole kernel, and the last off: it
    patches its code while it runs, which QEMU's emulation of two processors sometimes does not
    survive (`Oops: int3` in netif_rx_internal). So they stay on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        yield
