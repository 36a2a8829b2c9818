//! Keeps the memory of this process from other users and processes.

use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Lets only root read the memory: no core dump is written, and other processes of the same user can
/// neither trace this one nor open its `/proc/PID/mem` (PR_SET_DUMPABLE in prctl(2)). The files in
/// `/proc/PID` then belong to root, except for a process that looks at its own through `/proc/self`
/// (`proc_fd_permission` and `__ptrace_may_access` in the kernel let a thread group look at itself). A
/// program that is started by this process is not protected.
///
/// # Errors
/// When a filter of system calls forbids it.
pub fn close_memory() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
