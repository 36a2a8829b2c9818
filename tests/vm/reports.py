"""What pytest says of tests that failed; both directories' conftest.py take the hooks from here."""

import pytest

# `make test` gives a test that failed a second try (pytest-rerunfailures): several emulated machines
# on two processors stand still now and then, longer than any wait that is worth the name. What the
# first try said is shown, and more than so many of them are a failure.
SECOND_TRIES = 2


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
