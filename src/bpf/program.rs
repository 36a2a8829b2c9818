//! The two programs: where the compiled instructions have a name, it gets its value, and the kernel
//! loads the result.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::call::{self, LoadError};
use super::maps::Maps;

/// A compiled program.
pub struct Compiled {
    pub instructions: &'static [u64],
    /// The names that it uses, each with the number of the instruction that has its value.
    pub names: &'static [(usize, &'static str)],
}

/// The same for all packets; a program with others takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Constants {
    pub outer: Ipv4Addr,
    pub port: u16,
    /// Firewall mark of outer packets; 0 is none.
    pub mark: u32,
    pub time_to_live: u8,
    /// The bits of the UDP checksum of received packets that leave these to the datapath.
    pub left_to_socket: u16,
}

/// `BPF_LD | BPF_DW | BPF_IMM` in linux/bpf.h: two instructions, whose last four bytes each are one
/// half of the value.
const LOAD_VALUE: u64 = 0x18;
/// `BPF_PSEUDO_MAP_FD`, as the source register of the first: the value is the descriptor of a map.
const MAP_FD: u64 = 1 << 12;
const VALUE_SHIFT: u32 = 32;

/// A program in the kernel.
pub struct Program {
    pub fd: OwnedFd,
    /// The number by which filters name it.
    pub id: u32,
}

impl Program {
    /// Loads a program with its maps and constants.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn load(
        name: &'static str,
        compiled: &Compiled,
        maps: &Maps,
        constants: &Constants,
    ) -> Result<Self, LoadError> {
        let mut instructions = compiled.instructions.to_vec();
        for (at, name) in compiled.names {
            // A name that is not known stays zero: a map of that number is refused, and a test knows all.
            let (kind, value) = value(name, maps, constants).unwrap_or_default();
            if let Some(instruction) = instructions.get_mut(*at)
                && *instruction & 0xff == LOAD_VALUE
            {
                *instruction |= kind | u64::from(value) << VALUE_SHIFT;
            }
        }
        let fd = call::load_program(name, &instructions)?;
        let id = call::program_id(fd.as_fd());
        let id = id.map_err(|source| LoadError::Unnumbered { name, source })?;
        Ok(Program { fd, id })
    }
}

/// What is put where this name is undefined: bits of the instruction, and its value.
fn value(name: &str, maps: &Maps, constants: &Constants) -> Option<(u64, u32)> {
    let map = |map: BorrowedFd<'_>| Some((MAP_FD, map.as_raw_fd().cast_unsigned()));
    match name {
        "peers" => map(maps.peers.as_fd()),
        "remotes" => map(maps.remotes.as_fd()),
        "counts" => map(maps.counts.as_fd()),
        "lease" => map(maps.lease.as_fd()),
        // Numbers in network byte order, as they are in memory.
        "outer_address" => Some((0, u32::from_ne_bytes(constants.outer.octets()))),
        "port" => Some((0, u16::from_ne_bytes(constants.port.to_be_bytes()).into())),
        "mark" => Some((0, constants.mark)),
        "time_to_live" => Some((0, constants.time_to_live.into())),
        "left_to_socket" => Some((0, constants.left_to_socket.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::compiled::{EGRESS, INGRESS, INGRESS_BARE};

    #[test]
    fn every_name_stands_at_an_instruction_that_loads_a_value() {
        let known = [
            "peers",
            "remotes",
            "counts",
            "lease",
            "outer_address",
            "port",
            "mark",
            "time_to_live",
            "left_to_socket",
        ];
        for compiled in [EGRESS, INGRESS, INGRESS_BARE] {
            assert!(!compiled.names.is_empty());
            for (at, name) in compiled.names {
                assert!(known.contains(name), "{name}");
                let [low, high] = [compiled.instructions[*at], compiled.instructions[at + 1]];
                assert_eq!((low & !0xf00, high), (super::LOAD_VALUE, 0), "{name}");
            }
        }
    }

    /// For a process without CAP_PERFMON: as fast_path.c says of its keys.
    #[test]
    fn no_word_of_the_stack_is_written_in_parts() {
        /// Classes of instructions, and those that write into memory: `BPF_ST` and `BPF_STX`.
        const CLASS: u64 = 7;
        const STORES: [u64; 2] = [2, 3];
        /// `BPF_DW`, `BPF_W` and so on.
        const SIZE: u64 = 0x18;
        /// The register that has the end of the stack, below which are words of eight bytes.
        const STACK: u64 = 10;
        for (program, compiled) in
            [("egress", EGRESS), ("ingress", INGRESS), ("ingress_bare", INGRESS_BARE)]
        {
            let mut written = BTreeMap::new();
            let mut it = compiled.instructions.iter();
            while let Some(instruction) = it.next() {
                if instruction & 0xff == super::LOAD_VALUE {
                    // The second half of a value is no instruction.
                    it.next();
                } else if STORES.contains(&(instruction & CLASS)) && instruction >> 8 & 0xf == STACK
                {
                    let [_, _, low, high, ..] = instruction.to_le_bytes();
                    let at = i16::from_le_bytes([low, high]);
                    let part = (at, instruction & SIZE);
                    let first = *written.entry(at.div_euclid(8)).or_insert(part);
                    assert_eq!(first, part, "{program}: two parts of one word");
                }
            }
            assert!(!written.is_empty());
        }
    }
}
