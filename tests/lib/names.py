"""Names that the programs of a host look up."""

import contextlib
import pathlib
import shutil


@contextlib.contextmanager
def names_of(host):
    """The file that the host's programs see as /etc/hosts (ip-netns(8))."""
    pathlib.Path("/etc/hosts").touch()
    parent = pathlib.Path("/etc/netns")
    is_new = not parent.exists()
    directory = parent / host.netns
    directory.mkdir(parents=True)
    (directory / "hosts").touch()
    try:
        yield directory / "hosts"
    finally:
        shutil.rmtree(directory)
        if is_new:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                parent.rmdir()
