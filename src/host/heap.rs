//! The memory of this process: what it does not need is given back to the kernel.

use std::ffi::c_void;
use std::ptr;

/// `PF_W` of elf(5): the process may write to it.
const WRITABLE: u32 = 2;

/// Gives back free memory, and unmaps the pages of the program. What reads thousands of peers needs ten times
/// what stays of them, and glibc keeps what is between the rest (malloc_trim(3)); other C libraries give it
/// back by themselves. Of the program, a running tunnel needs a fifth of what its start did: these pages come
/// back from the page cache when they are used (madvise(2), MADV_DONTNEED), and the others are free for
/// whoever needs memory.
pub fn give_back() {
    // SAFETY: it may be called at any time; each arena is locked while it is looked at.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: the function has the type that is asked for, and gets no data.
    unsafe { libc::dl_iterate_phdr(Some(unmap_program), ptr::null_mut()) };
}

/// Unmaps what is mapped of the first object, which is the program itself, and ends the iteration
/// (dl_iterate_phdr(3)).
unsafe extern "C" fn unmap_program(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> libc::c_int {
    // SAFETY: the caller lends the description of an object, with as many headers as it says.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    for header in headers {
        if header.p_type == libc::PT_LOAD && header.p_flags & WRITABLE == 0 {
            let offset = header.p_vaddr % header.p_align.max(1);
            let (Ok(start), Ok(length)) = (
                usize::try_from(base + header.p_vaddr - offset),
                usize::try_from(header.p_memsz + offset),
            ) else {
                continue;
            };
            // SAFETY: nobody writes there, so every page is as it is in the file, from which it comes back.
            unsafe {
                libc::madvise(ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED)
            };
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of files that are mapped (proc_pid_status(5)).
    fn mapped() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn pages_of_the_program_are_unmapped_and_come_back() {
        let before = mapped();
        give_back();
        let after = mapped();
        assert!(after < before * 3 / 4, "{before} KiB, then {after}");
    }
}
