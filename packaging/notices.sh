#!/usr/bin/env bash
# Prints the licences of all that is linked into the program for a target: of its crates, Rust's standard
# library, and the FILEs: notices.sh TARGET [FILE...]. Equal texts are printed once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C

# shellcheck source-path=SCRIPTDIR/..
source tests/setup/lib.sh
triple=$1
shift
fail() {
    echo "notices.sh: $*" >&2
    exit 1
}
declare -A texts=() owners=()
order=()
text() { # OWNER FILE
    local sum
    sum=$(sha256sum <"$2")
    [[ ${texts[$sum]:-} ]] || order+=("$sum")
    texts[$sum]=$2
    owners[$sum]+="${owners[$sum]:+, }$1"
}

# The standard library's, of rustup (there it is a page of the web) or of the distribution.
standard_library() {
    local page
    page=$(tests/setup/rust.sh rustc --print sysroot)/share/doc/rust/COPYRIGHT-library.html
    if [[ -e $page ]]; then
        sed -e 's/<[^>]*>//g' -e 's/&lt;/</g; s/&gt;/>/g; s/&quot;/"/g; s/&amp;/\&/g' "$page" |
            sed 's/[[:space:]]*$//' | cat -s
    else
        cat "/usr/share/doc/$(package_of_rustc)/copyright"
    fi
}

crates=$(cargo tree --quiet --locked --target "$triple" --edges normal,no-proc-macro \
    --prefix none --no-dedupe --format '{p} {l}' | grep -v '^ipipou ' | sort -u)
manifests=$(cargo metadata --quiet --locked --format-version 1 --filter-platform "$triple" |
    grep -oE '"manifest_path":"[^"]+' | cut -d '"' -f 4)
echo "ipipou contains Rust's standard library and these crates:"
echo
while read -r name version licence; do
    crate="$name ${version#v}"
    echo "$crate: $licence"
    manifest=$(grep -F -m 1 "/${crate/ /-}/Cargo.toml" <<<"$manifests") || fail "no sources of $crate"
    found=
    while read -r file; do
        text "$crate" "$file"
        found=1
    done < <(find "${manifest%/*}" -type f -size +0 ! -name '*.rs' \( -iname 'licen[cs]e*' \
        -o -iname unlicense -o -iname 'copying*' -o -iname 'copyright*' -o -iname 'notice*' \) | sort)
    if [[ ! $found ]]; then
        # The one text that is the same for all authors; other crates bring it.
        [[ $licence == *Apache-2.0* ]] || fail "no text of $licence in $crate"
        echo "    without a text; of its licences this is Apache-2.0, by:" \
            "$(tr -d '\n' <"$manifest" | grep -oE 'authors = \[[^]]*' | cut -d '[' -f 2)"
    fi
done <<<"$crates"
for sum in "${order[@]}"; do
    printf '\n===== %s\n\n' "${owners[$sum]}"
    cat "${texts[$sum]}"
done
printf "\n===== Rust's standard library\n\n"
standard_library
for file in "$@"; do
    printf '\n===== %s\n\n' "$file"
    cat "$file"
done
