"""What is said and done where something must be installed."""

import pytest

from conftest import NOBODY

ABSENT = "exit 1"
INSTALLED = "printf installed"


def test_installed_packages_need_no_rights(machine):
    machine.fake("dpkg-query", INSTALLED)
    machine.fake("apt-get", "")
    machine.fake("sudo", "")
    ended = machine.run("tests/setup/packages.sh", user=NOBODY)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert not machine.calls("apt-get") and not machine.calls("sudo")


@pytest.mark.parametrize("command", [["./setup"], ["make", "demo"], ["make", "build"]])
def test_neither_root_nor_sudo(machine, command):
    machine.fake("dpkg-query", ABSENT)
    machine.fake("apt-get", "")
    machine.have("make")
    line = machine.refusal(*command, user=NOBODY)
    assert "needs root" in line and "no sudo" in line and "make gcc libc6-dev" in line
    assert not machine.calls("apt-get")


def test_make_test_names_missing_packages_first(machine):
    machine.fake("dpkg-query", ABSENT)
    machine.have("make")
    line = machine.refusal("make", "test", user=NOBODY)
    assert "needs root" in line and "run this as root" in line


@pytest.mark.parametrize("command", [["./setup"], ["make", "build"]])
def test_neither_debian_nor_ubuntu(machine, command):
    machine.have("make")
    assert "Debian" in machine.refusal(*command)


@pytest.mark.parametrize("user", [None, NOBODY])
def test_package_lists_are_updated_first_and_nothing_is_removed(machine, user):
    machine.fake("dpkg-query", ABSENT)
    machine.fake("apt-get", "")
    machine.fake("sudo", '"$@"')
    assert machine.run("./setup", user=user).returncode == 0
    update, install = machine.calls("apt-get")
    assert " update" in update
    assert " install " in install and "--no-remove" in install and " make gcc " in install
    assert len(machine.calls("sudo")) == (0 if user is None else 2)


def test_a_package_in_the_way_is_removed_on_a_machine_for_tests_alone(machine):
    machine.fake("dpkg-query", ABSENT)
    refuses = 'echo "E: Packages need to be removed but remove is disabled." >&2; exit 100'
    machine.fake("apt-get", "case $* in *--no-remove*) %s ;; esac" % refuses)
    ended = machine.run("./setup")
    assert ended.returncode != 0
    assert "says what is in the way; CI=1 removes it" in ended.stderr.splitlines()[-1]
    assert machine.run("./setup", CI="true").returncode == 0
    assert "--remove" in machine.calls("apt-get")[-1]


def test_proxies_go_through_sudo(machine):
    machine.fake("dpkg-query", ABSENT)
    machine.fake("apt-get", 'echo "apt-get proxy=$http_proxy" >>%s' % machine.log)
    machine.fake("sudo", 'exec env -i PATH="$PATH" "$@"')
    assert machine.run("./setup", user=NOBODY, http_proxy="http://p:1").returncode == 0
    assert machine.calls("apt-get").count("apt-get proxy=http://p:1") == 2


def test_apt_fails(machine):
    machine.fake("dpkg-query", ABSENT)
    machine.fake("apt-get", 'echo noise; echo "E: Unable to locate package make" >&2; exit 100')
    ended = machine.run("./setup")
    assert ended.returncode != 0
    assert "could not install make gcc" in ended.stderr
    assert ended.stderr.splitlines()[-1] == "E: Unable to locate package make"


def test_unknown_group(machine):
    line = machine.refusal("tests/setup/packages.sh", "biuld")
    assert line == "packages.sh: no group 'biuld'"


def test_no_such_datapath(machine):
    machine.have("make")
    line = machine.refusal("make", "demo", "DATAPATH=tan")
    assert line == "demo.sh: DATAPATH is kernel or tun, not 'tan'"
