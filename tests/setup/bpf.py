"""Writes the instructions of the fast path, as clang compiled them, as Rust: bpf.py OBJECT > FILE."""

import struct
import sys

SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr in elf(5)
SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym
RELOCATION = struct.Struct("<QQ")  # Elf64_Rel
PROGRESS_BITS, RELOCATIONS, SYMBOLS = 1, 9, 2  # SHT_*
R_BPF_64_64 = 1
A_LINE = 5


def sections(elf):
    """All sections: name, type, contents, and which section they are about or lean on."""
    (offset,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [SECTION_HEADER.unpack_from(elf, offset + i * size) for i in range(count)]

    def name_of(header):
        start = headers[names][4] + header[0]
        return elf[start : elf.index(b"\0", start)].decode()

    return [(name_of(h), h[1], elf[h[4] : h[4] + h[5]], h[6], h[7]) for h in headers]


def symbol_names(every):
    (_, _, symbols, link, _) = next(s for s in every if s[1] == SYMBOLS)
    strings = every[link][2]
    offsets = [symbol[0] for symbol in SYMBOL.iter_unpack(symbols)]
    return [strings[at : strings.index(b"\0", at)].decode() for at in offsets]


def program(name, instructions, names):
    words = [f"0x{word:016x}" for (word,) in struct.iter_unpack("<Q", instructions)]
    lines = [", ".join(words[i : i + A_LINE]) for i in range(0, len(words), A_LINE)]
    body = "".join(f"        {line},\n" for line in lines)
    used = "".join(f'        ({at}, "{what}"),\n' for at, what in names)
    tested = "#[cfg(test)]\n" if name.endswith("_test") else ""
    return (
        f"{tested}#[rustfmt::skip]\npub const {name.upper()}: Compiled = Compiled {{\n"
        f"    instructions: &[\n{body}    ],\n    names: &[\n{used}    ],\n}};\n"
    )


every = sections(open(sys.argv[1], "rb").read())
names = symbol_names(every)
print(
    "//! The instructions of `fast_path.c`: `tests/setup/bpf.sh write` makes this file, and `make lint`"
)
print("//! compares. `names` tells at which instruction an undefined name's value goes.\n")
print("use super::program::Compiled;")
for section, kind, contents, _, _ in every:
    if kind != PROGRESS_BITS or not section.startswith("tc/"):
        if kind == PROGRESS_BITS and contents and not section.startswith("."):
            sys.exit(f"bpf.py: what is section {section} for?")
        continue
    about = [s for s in every if s[1] == RELOCATIONS and every[s[4]][0] == section]
    used = []
    for offset, info in (entry for s in about for entry in RELOCATION.iter_unpack(s[2])):
        if info & 0xFFFFFFFF != R_BPF_64_64:
            sys.exit(f"bpf.py: {section}+{offset:#x}: a relocation that program.rs does not know")
        used.append((offset // 8, names[info >> 32]))
    print()
    print(program(section.removeprefix("tc/"), contents, used), end="")
