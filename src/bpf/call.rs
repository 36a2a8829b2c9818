//! The system call bpf(2): each command that is needed, with its part of `union bpf_attr` (linux/bpf.h).
//!
//! The kernel takes what is shorter than its own union for one that ends in zeros
//! (`bpf_check_uarg_tail_zero`), so later fields are left out.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAP_CREATE: i64 = 0;
const MAP_UPDATE_ELEM: i64 = 2;
const MAP_DELETE_ELEM: i64 = 3;
const PROG_LOAD: i64 = 5;
const OBJ_GET_INFO_BY_FD: i64 = 15;
const MAP_LOOKUP_BATCH: i64 = 24;

const PROG_TYPE_SCHED_CLS: u32 = 3;
/// All functions that the programs call are free for any licence; the kernel wants to be told one.
const LICENSE: &CStr = c"Dual MIT/GPL";
/// Room for what the verifier says; its last lines tell why.
const LOG: usize = 64 * 1024;

/// What a map is, and how much room it has.
#[derive(Debug, Clone, Copy)]
pub struct MapSpec {
    pub name: &'static str,
    pub kind: MapKind,
    /// Bytes.
    pub key: u32,
    /// Bytes.
    pub value: u32,
    pub entries: u32,
}

/// `enum bpf_map_type`.
#[derive(Debug, Clone, Copy)]
pub enum MapKind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
    /// A trie, whose key begins with the length of the prefix in bits.
    LpmTrie = 11,
}

/// `BPF_F_NO_PREALLOC`: memory is taken with the entries. A trie knows no other way.
const NO_PREALLOC: u32 = 1;

/// Calls bpf(2).
///
/// # Safety
/// `attr` has the layout of the command's part of the union, without padding, and what it points to
/// lives.
unsafe fn bpf<T>(command: i64, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the caller's; the length is that of the structure.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    match i32::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Calls bpf(2) for a new file descriptor; the kernel sets close-on-exec.
///
/// # Safety
/// As of [`bpf`]; and the command returns a file descriptor.
unsafe fn open<T>(command: i64, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's, and nobody else has the new descriptor.
    unsafe { bpf(command, attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    // The last byte stays zero.
    name.iter_mut().zip(text.bytes().take(15)).for_each(|(to, from)| *to = from);
    name
}

fn pointer<T: ?Sized>(to: &T) -> u64 {
    (to as *const T).cast::<u8>() as u64
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Makes a map.
///
/// # Errors
/// `PermissionDenied` without CAP_BPF.
pub fn create_map(spec: &MapSpec) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        kind: u32,
        key: u32,
        value: u32,
        entries: u32,
        flags: u32,
        inner: u32,
        numa_node: u32,
        name: [u8; 16],
    }
    let flags = match spec.kind {
        MapKind::Hash | MapKind::LpmTrie => NO_PREALLOC,
        MapKind::Array | MapKind::PerCpuArray => 0,
    };
    let mut attr = Attr {
        kind: spec.kind as u32,
        key: spec.key,
        value: spec.value,
        entries: spec.entries,
        flags,
        inner: 0,
        numa_node: 0,
        name: name(spec.name),
    };
    // SAFETY: the layout is that of `BPF_MAP_CREATE`.
    unsafe { open(MAP_CREATE, &mut attr) }
}

#[repr(C)]
struct Element {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Reads the first `count` values of an array; of one per processor those of all possible processors, each
/// a multiple of 8 bytes.
///
/// # Errors
/// `InvalidInput` where the kernel has no such command for this kind of map (before 5.13).
///
/// # Safety
/// The keys of the map have four bytes, and `values` has room for `count` of its values.
pub unsafe fn look_up_first(
    map: BorrowedFd<'_>,
    count: usize,
    values: &mut [u8],
) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        from: u64,
        next: u64,
        keys: u64,
        values: u64,
        count: u32,
        map: u32,
        element_flags: u64,
        flags: u64,
    }
    let (mut next, mut keys) = (0u32, vec![0u32; count]);
    let mut attr = Attr {
        from: 0,
        next: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        map: number(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the layout is that of `BPF_MAP_LOOKUP_BATCH`, and the lengths are the caller's.
    match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
        // There were no more.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}

/// Puts a value in the place of another, or adds it.
///
/// # Errors
/// `E2BIG` or `ENOSPC` where the map is full.
///
/// # Safety
/// Key and value are as long as those of the map.
pub unsafe fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let (key, value) = (pointer(key), pointer(value));
    let mut attr = Element { map: number(map), zero: 0, key, value, flags: 0 };
    // SAFETY: the layout is that of `BPF_MAP_*_ELEM`, and the lengths are the caller's.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Removes a key with its value.
///
/// # Errors
/// `NotFound`.
///
/// # Safety
/// As of [`update`].
pub unsafe fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = Element { map: number(map), zero: 0, key: pointer(key), value: 0, flags: 0 };
    // SAFETY: as above.
    unsafe { bpf(MAP_DELETE_ELEM, &mut attr) }.map(drop)
}

/// Why a program was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the kernel refuses the program {name}: {source}{verdict}")]
    Refused {
        name: &'static str,
        #[source]
        source: io::Error,
        /// What the verifier said last, after a colon; empty where it said nothing.
        verdict: String,
    },
    #[error("the kernel tells no number of the program {name}: {source}")]
    Unnumbered {
        name: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Loads a program of `SCHED_CLS`.
///
/// # Errors
/// What the kernel said, and the last words of its verifier.
pub fn load_program(text: &'static str, instructions: &[u64]) -> Result<OwnedFd, LoadError> {
    let load = |log: &mut [u8]| {
        #[repr(C)]
        struct Attr {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel_version: u32,
            flags: u32,
            name: [u8; 16],
        }
        let mut attr = Attr {
            kind: PROG_TYPE_SCHED_CLS,
            count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
            instructions: pointer(instructions),
            license: LICENSE.as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: u32::try_from(log.len()).unwrap_or(0),
            log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            kernel_version: 0,
            flags: 0,
            name: name(text),
        };
        // SAFETY: the layout is that of `BPF_PROG_LOAD`; an instruction has eight bytes.
        unsafe { open(PROG_LOAD, &mut attr) }
    };
    load(&mut []).map_err(|source| {
        // Once more, for its reasons.
        let mut log = vec![0; LOG];
        let _ = load(&mut log);
        LoadError::Refused { name: text, source, verdict: verdict(&log) }
    })
}

/// The line of a verifier's log that says why: the last but for its statistics.
fn verdict(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log).unwrap_or_default().to_string_lossy();
    let mut lines = text.lines().rev().map(str::trim);
    let last = lines.find(|line| !line.is_empty() && !line.starts_with("processed "));
    last.map(|line| format!(": {line}")).unwrap_or_default()
}

/// The number by which the kernel lists a program, in filters among others.
///
/// # Errors
/// When it refuses to tell.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    /// The beginning of `struct bpf_prog_info`.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
    }
    #[repr(C)]
    struct Attr {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = Info::default();
    let length = u32::try_from(size_of::<Info>()).unwrap_or(0);
    let at = std::ptr::from_mut(&mut info) as u64;
    let mut attr = Attr { fd: number(program), length, info: at };
    // SAFETY: the layout is that of `BPF_OBJ_GET_INFO_BY_FD`; the kernel writes `length` bytes at most.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info.id)
}

/// What a program did with a packet.
#[cfg(test)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// What it returned: `TC_ACT_*` of linux/pkt_cls.h.
    pub verdict: u32,
    pub packet: Vec<u8>,
    pub mark: u32,
    /// Of one run.
    pub nanoseconds: u32,
}

/// Lets a program run on a frame (`BPF_PROG_TEST_RUN`), `repeat` times. A `__sk_buff` goes in and comes
/// out; `mark` is what the frame has.
#[cfg(test)]
pub fn run(program: BorrowedFd<'_>, frame: &[u8], mark: u32, repeat: u32) -> io::Result<Ran> {
    const PROG_TEST_RUN: i64 = 10;
    /// Words of `struct __sk_buff`, and where these are in it.
    const WORDS: usize = 48;
    const MARK: usize = 2;
    #[repr(C)]
    struct Attr {
        program: u32,
        verdict: u32,
        size_in: u32,
        size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_size_in: u32,
        context_size_out: u32,
        context_in: u64,
        context_out: u64,
    }
    let mut out = vec![0u8; frame.len() + 256];
    let (mut before, mut after) = ([0u32; WORDS], [0u32; WORDS]);
    before[MARK] = mark;
    let size = u32::try_from(size_of::<[u32; WORDS]>()).unwrap();
    let mut attr = Attr {
        program: number(program),
        verdict: 0,
        size_in: u32::try_from(frame.len()).unwrap(),
        size_out: u32::try_from(out.len()).unwrap(),
        data_in: pointer(frame),
        data_out: out.as_mut_ptr() as u64,
        repeat,
        duration: 0,
        context_size_in: size,
        context_size_out: size,
        context_in: pointer(&before),
        context_out: after.as_mut_ptr() as u64,
    };
    // SAFETY: the layout is that of `BPF_PROG_TEST_RUN`, and the sizes are those of what it points to.
    unsafe { bpf(PROG_TEST_RUN, &mut attr)? };
    out.truncate(usize::try_from(attr.size_out).unwrap());
    Ok(Ran { verdict: attr.verdict, packet: out, mark: after[MARK], nanoseconds: attr.duration })
}
