"""Tests on this machine's own kernel: hosts are network namespaces, as in tests/vm."""

import os
import pathlib
import shutil
import sys

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(TOP / "tests" / "lib"))  # some files have a namesake here

pytest_plugins = ["shared"]


@pytest.fixture(scope="session")
def binary(tmp_path_factory):
    """The path of the program under test, outside of anybody's home directory."""
    built = os.environ.get("IPIPOU_BINARY", TOP / "target" / "release" / "ipipou")
    return shutil.copy(built, tmp_path_factory.mktemp("bin") / "ipipou")


@pytest.fixture(scope="session", autouse=True)
def in_path(binary):
    """`ipipou` is the program under test, also for what tests/lib/ipipou.py starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(pathlib.Path(binary).parent), prepend=os.pathsep)
        yield
