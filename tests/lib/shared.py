"""A pytest plugin for both directories: hosts for their tests, and what is said of those that failed."""

import pytest

import ipipou
from lab import Lab


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
