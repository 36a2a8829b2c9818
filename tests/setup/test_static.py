"""Where `make static` gets Rust's standard library for musl."""

import pytest


@pytest.fixture
def static(machine):
    """A compiler without it, of the distribution's package of this name; "": of none."""

    def run(package):
        machine.rust("1.96.0")
        machine.have("make")
        for tool in ("ar", "gcc", "musl-gcc", "apt-get"):
            machine.fake(tool, "")
        machine.fake(
            "dpkg-query",
            f"""case "$*" in
            "-S "*) [[ "{package}" ]] && echo "{package}: $2" ;;
            "-W rust-"*) exit 1 ;;
            *) printf installed ;;
            esac""",
        )
        return machine

    return run


@pytest.mark.parametrize(
    ("package", "sources"),
    [("rustc", "rust-src"), ("rustc-web", "rust-web-src"), ("rustc-1.89", "rust-1.89-src")],
)
def test_a_compiler_of_the_distribution_makes_it_of_its_own_sources(static, package, sources):
    machine = static(package)
    machine.run("make", "static")
    install = machine.calls("apt-get")[-1]
    assert install.endswith(f" {package} {sources}") and "--no-remove" in install
    build = [line for line in machine.calls("cargo") if line.startswith("cargo build")]
    assert len(build) == 1 and "-Zbuild-std=std,panic_abort" in build[0]


def test_a_compiler_of_rustup_downloads_it(static, machine):
    static("")
    library = machine.place / "rustlib"
    library.mkdir()
    machine.fake("rustc", f'[[ $1 == --print ]] && echo {library} || echo "rustc 1.96.0"')
    machine.fake("rustup", f"touch {library}/libstd-0123.rlib")
    machine.run("make", "static")
    assert not machine.calls("apt-get")
    build = [line for line in machine.calls("cargo") if line.startswith("cargo build")]
    assert len(build) == 1 and "-Z" not in build[0]


def test_another_compiler(static):
    line = static("").refusal("make", "static")
    assert line.startswith("static.sh: ") and line.endswith(
        "install Rust as https://rustup.rs says"
    )
