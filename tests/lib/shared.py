"""A pytest plugin for both directories: hosts for their tests, and what is said of those that failed."""

import pytest

import ipipou
from lab import Lab

BOTH = ["auto", "off"]


def pytest_addoption(parser):
    parser.addoption(
        "--lanes",
        type=lambda text: text.split(","),
        help="with which --fast-path all scenarios run, as auto,off (default: those that are marked "
        "`both_lanes` with auto and with off, the others with auto); `one`: the marked with auto, the "
        "others with off",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "both_lanes: carries data; runs with a fast path and without one"
    )
    config.addinivalue_line("markers", "fast_path: is about it, and never runs without one")


def pytest_generate_tests(metafunc):
    marked = metafunc.definition.get_closest_marker("both_lanes")
    if metafunc.definition.get_closest_marker("fast_path"):
        return
    lanes = metafunc.config.option.lanes or (BOTH if marked else None)
    if lanes == ["one"]:
        lanes = ["auto" if marked else "off"]
    if lanes and "lab" in metafunc.fixturenames:
        metafunc.parametrize("lane", lanes, indirect=True)


@pytest.fixture(autouse=True)
def lane(request, monkeypatch):
    """The --fast-path of what a scenario starts without saying so itself."""
    monkeypatch.setattr(ipipou, "LANE", getattr(request, "param", "auto"))


@pytest.fixture
def lab(tmp_path):
    with Lab(tmp_path) as made:
        yield made


@pytest.fixture
def hosts(lab):
    """A server and a client on one network."""
    return ipipou.neighbours(lab)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """What the processes of a failed test printed."""
    report = (yield).get_result()
    if report.failed and "lab" in getattr(item, "funcargs", {}):
        for title, text in item.funcargs["lab"].logs():
            report.sections.append((title, text))


def pytest_terminal_summary(terminalreporter):
    """What the first try of a test said that `make test` gave a second one (pytest-rerunfailures)."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.write_sep("_", f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
        for title, text in report.sections:
            terminalreporter.write_sep("-", title)
            terminalreporter.write_line(text)
