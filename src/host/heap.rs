//! The memory of this process.

/// Gives free memory back to the kernel: what reads thousands of peers needs ten times what stays of
/// them, and glibc keeps what is between the rest (malloc_trim(3)). Other C libraries give it back by
/// themselves.
pub fn give_back() {
    // SAFETY: it may be called at any time; each arena is locked while it is looked at.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
