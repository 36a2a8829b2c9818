//! Waiting: for a file, for the word of another thread, and what time it is then.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// An `eventfd`: one thread waits, others wake it.
pub struct Wake(OwnedFd);

impl Wake {
    /// # Errors
    /// Too many open files.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a descriptor that is not negative is new and ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        Ok(Wake(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Ends every [`wait`] that is going on or begins before it is cleared.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes are read. It fails only when the counter is full: then it is awake.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    pub fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight bytes are written. It fails when nobody has called: nothing to clear.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

/// Waits until `fd` (if any) can be read or is broken, `wake` is called, or the time is over.
pub fn wait(fd: Option<BorrowedFd<'_>>, wake: &Wake, timeout: Option<Duration>) {
    let readable = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // A negative descriptor is passed over (poll(2)).
    let mut fds = [readable(fd.map_or(-1, |fd| fd.as_raw_fd())), readable(wake.0.as_raw_fd())];
    let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: two entries. Whatever it fails with, the caller looks for itself.
    unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) };
}

/// Waits until `fd` can be written, for `timeout` at most.
pub fn wait_writable(fd: BorrowedFd<'_>, timeout: Duration) {
    let mut fd = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one entry.
    unsafe { libc::poll(&raw mut fd, 1, timeout) };
}

/// The monotonic clock, as of the last tick of the kernel: some milliseconds late, and cheap.
pub fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one timespec is written; the clock is there since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
}
