#!/usr/bin/env bash
# Builds a package for Debian and Ubuntu, target/debian/ipipou_VERSION_ARCHITECTURE.deb: `make deb`. What
# is in it says Cargo.toml ([package.metadata.deb]); it can be installed where the C library is as new
# as here. lintian reads it; what it may say stands in deb/lintian-overrides, with the reason.
#
# DEBFULLNAME and DEBEMAIL are its maintainer's, as Debian's own tools have them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source-path=SCRIPTDIR/..
source tests/setup/lib.sh
tools=$PWD/target/tools
PATH=$PATH:$tools/bin
tests/setup/packages.sh build deb
if ! command -v cargo-deb >/dev/null; then
    echo "deb.sh: building cargo-deb, once" >&2
    cargo install --locked --quiet --root "$tools" cargo-deb
fi
cargo build --release --locked
binary=${CARGO_TARGET_DIR:-target}/release/ipipou

# What is made for the package.
made=target/deb
rm -rf "$made"
mkdir -p "$made/completions"
sed 's|/usr/local/bin/|/usr/bin/|' ipipou@.service >"$made/ipipou@.service"
"$binary" generate man >"$made/ipipou.8"
for shell in bash zsh fish; do
    "$binary" generate "$shell" >"$made/completions/$shell"
done
triple=$(tests/setup/rust.sh rustc --print host-tuple)
packaging/notices.sh "$triple" | gzip -9n >"$made/third-party-notices.gz"
gzip -9n <CHANGELOG.md >"$made/changelog.gz"

revision=1
version=$(sed -n '0,/^version = /s/^version = "\(.*\)"/\1/p' Cargo.toml)-$revision
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
if [[ ${DEBEMAIL:-} ]]; then
    maintainer="${DEBFULLNAME:-the ipipou authors} <$DEBEMAIL>"
fi
# Equal sources make an equal package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
export SOURCE_DATE_EPOCH
cat >"$made/changelog" <<CHANGELOG
ipipou ($version) unstable; urgency=medium

  * What is new says changelog.gz.

 -- $maintainer  $(LC_ALL=C date -R -u -d "@$SOURCE_DATE_EPOCH")
CHANGELOG

package=target/debian/ipipou_${version}_$(dpkg --print-architecture).deb
rm -f "$package"
cargo deb --quiet --no-build --locked --deb-revision "$revision" --maintainer "$maintainer" --output "$package"
lintian --allow-root --fail-on error,warning --tag-display-limit 0 "$package"
echo "deb.sh: $package, $(stat -c %s "$package") bytes" >&2
