"""Where the Rust comes from that everything is built with."""

import pytest

from conftest import NOBODY

# As rustup 1.27 reads its arguments: an option that takes values takes all that follow.
RUSTUP = """
home=$HOME/.rustup
case "$1 $2" in
"toolchain list") ls "$home" 2>/dev/null | grep . || echo "no installed toolchains" ;;
"run --install")
    mkdir -p "$home/$3"
    printf '#!/bin/bash\\necho "cargo %s"\\n' "${3/stable/1.99.1}" >"$home/$3/cargo"
    sed s/cargo/rustc/ "$home/$3/cargo" >"$home/$3/rustc"
    chmod +x "$home/$3"/* ;;
"which --toolchain") [[ -e $home/$3/cargo ]] && echo "$home/$3/cargo" ;;
*) exit 1 ;;
esac
"""
PROXY = 'exec "$HOME/.rustup/${RUSTUP_TOOLCHAIN:?no default toolchain}/${0##*/}" "$@"'

CONFLICT = """
case "$*" in
*" -s "*) echo "Remv cargo [0.66.0]"; echo "Remv rustc [1.63.0]" ;;
*install*) exit 100 ;;
esac
"""


def apt(machine, package, version, place="/usr/bin", install="true"):
    """The distribution has this cargo; its packages are fakes that the PATH finds."""
    machine.fake("dpkg-query", "[[ $1 == -W && -e %s/installed ]]" % machine.place)
    machine.fake(
        "apt-cache",
        f"""case "$*" in
        "policy {package}") printf '{package}:\\n  Installed: (none)\\n  Candidate: {version}\\n' ;;
        "policy "*) printf 'it:\\n  Installed: (none)\\n  Candidate: (none)\\n' ;;
        esac""",
    )
    machine.fake("apt-get", install)


def found(machine, *arguments, **more):
    ended = machine.run("tests/setup/rust.sh", *arguments, "cargo", "--version", **more)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()[1]


@pytest.mark.parametrize("version", ["1.88.0", "1.96.0", "1.100.0", "1.90.0-nightly", "2.0.0"])
def test_an_installed_rust_that_is_new_enough_is_used(machine, version):
    machine.rust(version)
    machine.fake("rustup", RUSTUP)
    machine.fake("apt-get", "")
    assert found(machine) == version
    assert not machine.calls("rustup") and not machine.calls("apt-get")


def test_the_rust_of_rustup_is_found_outside_path(machine):
    machine.rust("1.96.0", machine.home / ".cargo/bin")
    machine.rust("1.63.0")
    assert found(machine) == "1.96.0"


def test_home_is_not_set(machine):
    machine.rust("1.96.0")
    assert found(machine, HOME=None) == "1.96.0"


def test_a_new_cargo_with_an_old_compiler_is_not_used(machine):
    machine.rust("1.96.0")
    machine.fake("rustc", "echo rustc 1.63.0")
    assert "Rust 1.88 or newer is needed" in machine.refusal("tests/setup/rust.sh", "true")


def test_rustup_without_a_toolchain(machine):
    machine.fake("rustup", RUSTUP)
    for name in ("cargo", "rustc"):
        machine.fake(name, PROXY)
    assert found(machine) == "1.99.1"
    assert found(machine) == "1.99.1"
    calls = machine.calls("rustup")
    assert calls.count("rustup run --install stable cargo --version") == 1
    assert not [call for call in calls if "default" in call]


def test_an_old_stable_stays_as_it_is(machine):
    """And an old cargo comes first in the PATH."""
    machine.rust("1.63.0")
    machine.fake("rustup", RUSTUP)
    machine.rust("1.80.0", machine.home / ".rustup/stable-x86_64-unknown-linux-gnu")
    assert found(machine) == "1.88"
    assert "rustup run --install 1.88 cargo --version" in machine.calls("rustup")


def test_another_toolchain_that_is_new_enough(machine):
    machine.rust("1.63.0")
    machine.fake("rustup", RUSTUP)
    machine.rust("1.80.0", machine.home / ".rustup/stable-x86_64-unknown-linux-gnu")
    machine.rust("1.97.0-nightly", machine.home / ".rustup/nightly-x86_64-unknown-linux-gnu")
    assert found(machine) == "1.97.0-nightly"
    assert not [call for call in machine.calls("rustup") if "install" in call]


def test_rustup_fails(machine):
    """No network, and rustup is Debian's, which its cargo-web would replace."""
    machine.fake("rustup", 'echo "error: could not download file" >&2; exit 1')
    apt(machine, "cargo-web", "1.96.0+dfsg1-1~deb13u1", install="echo Remv rustup")
    ended = machine.run("tests/setup/rust.sh", "true")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("rust.sh: Rust 1.88 or newer is needed")
    assert "could not download file" in ended.stderr and "apt would remove rustup" in ended.stderr


def test_the_rust_of_the_distribution_is_installed(machine):
    new = machine.path
    script = 'case "$*" in *" install -y"*) for p in cargo rustc; do ' + (
        f"printf '#!/bin/bash\\necho %s 1.96.0\\n' $p >{new}/$p; chmod +x {new}/$p; done ;; esac"
    )
    apt(machine, "cargo-web", "1.96.0+dfsg1-1~deb12u2", install=script)
    assert found(machine) == "1.96.0"
    (install,) = [call for call in machine.calls("apt-get") if "install -y" in call]
    assert "--no-remove" in install and install.endswith(" cargo-web")


def test_a_numbered_rust_of_the_distribution_is_used(machine):
    """Ubuntu's is in no PATH."""
    place = machine.place / "usr/lib/rust-1.91/bin"
    machine.rust("1.91.1", place)
    machine.rust("1.75.0")
    machine.fake("dpkg-query", f'[[ $1 == -S ]] && echo "cargo-1.91: /usr/lib/rust-1.91/bin/cargo"')
    # Nothing can be put into /usr: this is where the test has it.
    script = machine.tree / "tests/setup/rust.sh"
    script.write_text(
        script.read_text().replace(
            'use_directory "$directory"', f'use_directory "{machine.place}$directory"'
        )
    )
    assert found(machine) == "1.91.1"


def test_the_rust_of_the_distribution_is_too_old(machine):
    """Without the lists of the security suite, which are fetched before this is said."""
    apt(machine, "cargo-web", "1.85.0+dfsg3-1~deb12u3")
    line = machine.refusal("tests/setup/rust.sh", "true")
    assert "apt knows no package that new" in line and "https://rustup.rs" in line
    assert [call for call in machine.calls("apt-get") if call.endswith(" update")]


def test_rust_is_not_installed_if_packages_would_be_removed(machine):
    machine.rust("1.63.0")
    apt(machine, "cargo-web", "1.96.0+dfsg1-1~deb12u2", install=CONFLICT)
    line = machine.refusal("tests/setup/rust.sh", "true")
    assert "here is 1.63.0; apt would remove cargo rustc for its cargo-web" in line
    assert "https://rustup.rs" in line


def test_neither_root_nor_sudo(machine):
    apt(machine, "cargo-web", "1.96.0+dfsg1-1~deb12u2")
    line = machine.refusal("tests/setup/rust.sh", "true", user=NOBODY)
    assert "no sudo" in line and "https://rustup.rs" in line
    assert not [call for call in machine.calls("apt-get") if "-s " not in call]


def test_an_unknown_distribution_is_refused(machine):
    line = machine.refusal("tests/setup/rust.sh", "true")
    assert line == (
        "rust.sh: Rust 1.88 or newer is needed, here is none: "
        "install it as https://rustup.rs says, then run this again"
    )


LINT = '[[ ! -e %s/lint ]] && [[ $1 == clippy || $1 == fmt ]] && exit 1; echo "cargo 1.96.0"'


@pytest.mark.parametrize(
    "owner, packages",
    [
        ("cargo", "rust-clippy rustfmt"),
        ("cargo-web", "rust-web-clippy rustfmt-web"),
        ("cargo-1.91", "rust-1.91-clippy rustfmt-1.91"),
    ],
)
def test_lint_from_the_distribution(machine, owner, packages):
    machine.rust("1.96.0")
    machine.fake("cargo", LINT % machine.place)
    machine.fake("dpkg-query", f"echo {owner}: $2")
    machine.fake("apt-get", f"touch {machine.place}/lint")
    assert found(machine, "--lint") == "1.96.0"
    assert machine.calls("apt-get")[-1].endswith(packages)
    assert found(machine, "--lint") == "1.96.0"


def test_lint_from_rustup(machine):
    machine.rust("1.96.0")
    machine.fake("cargo", LINT % machine.place)
    machine.fake("rustup", f"touch {machine.place}/lint")
    assert found(machine, "--lint") == "1.96.0"
    assert machine.calls("rustup") == ["rustup component add clippy rustfmt"]


def test_missing_lint_tools_are_reported(machine):
    machine.rust("1.96.0")
    machine.fake("cargo", LINT % machine.place)
    line = machine.refusal("tests/setup/rust.sh", "--lint", "true")
    assert "has no clippy and no rustfmt" in line
