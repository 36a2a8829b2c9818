"""A pytest plugin for both directories: hosts for their tests, and what is said of those that failed."""

import pytest

import ipipou
from lab import Lab

# `make test` gives a test that failed a second try (pytest-rerunfailures): several emulated machines
# on two processors stand still now and then, longer than any wait that is worth the name. What the
# first try said is shown, and more than so many of them are a failure.
SECOND_TRIES = 2


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


def _second_tries(config):
    return config.pluginmanager.get_plugin("terminalreporter").getreports("rerun")


def pytest_sessionfinish(session):
    if len(_second_tries(session.config)) > SECOND_TRIES:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    for report in _second_tries(config):
        terminalreporter.write_sep("_", f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
        for title, text in report.sections:
            terminalreporter.write_sep("-", title)
            terminalreporter.write_line(text)
