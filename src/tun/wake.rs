//! Waits for a file, for a signal from another thread, or until a time; and reads the clock for that.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// The most looks before a thread sleeps: some microseconds on an idle processor.
const MOST_LOOKS: u32 = 16;

/// How often a thread that found nothing looks again before it falls asleep. Sleeping and waking costs
/// more than a look, both for this thread and for the one that wakes it. As long as looking again finds
/// something, it looks more often; where it does not, on machines with little to do, it looks once.
pub struct Patience {
    looks: u32,
    left: u32,
}

impl Patience {
    pub fn new() -> Self {
        Patience { looks: 1, left: 1 }
    }

    /// Notes that there was something.
    pub fn renew(&mut self) {
        if self.left < self.looks {
            self.looks = (2 * self.looks).min(MOST_LOOKS);
        }
        self.left = self.looks;
    }

    /// Notes that there was nothing. Returns whether to look again; other threads had the processor in
    /// between.
    pub fn looks_again(&mut self) -> bool {
        if self.left == 0 {
            self.looks = (self.looks / 2).max(1);
            self.left = self.looks;
            return false;
        }
        self.left -= 1;
        thread::yield_now();
        true
    }
}

/// An `eventfd`: one thread waits, others wake it.
pub struct Wake(OwnedFd);

impl Wake {
    /// # Errors
    /// Too many open files.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers; a descriptor that is not negative is new and owned here.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        Ok(Wake(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Ends every [`wait`] that is in progress or that begins before this is cleared.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes are read. It fails only when the counter is full: then it is awake.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    pub fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight bytes are written. It fails when nobody has called: then there is nothing to
        // clear.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

/// A start signal that threads wait for until all of them are there.
#[derive(Default)]
pub struct Start(Vec<mpsc::Sender<()>>);

/// The end at which one of these threads waits.
pub struct Started(mpsc::Receiver<()>);

impl Start {
    pub fn one_more(&mut self) -> Started {
        let (sender, receiver) = mpsc::channel();
        self.0.push(sender);
        Started(receiver)
    }

    /// Starts all of them.
    pub fn give(self) {
        for waiting in self.0 {
            // A thread that panicked no longer waits.
            let _ = waiting.send(());
        }
    }
}

impl Started {
    /// Waits for the start; false when it was dropped and will never come.
    pub fn comes(self) -> bool {
        self.0.recv().is_ok()
    }
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    /// Another thread called.
    pub called: bool,
    /// The file has an error to report; for a socket, it is in its error queue.
    pub error: bool,
}

/// Waits until `fd` (if any) can be read or is broken, `wake` is called, or the time is over.
pub fn wait(fd: Option<BorrowedFd<'_>>, wake: &Wake, timeout: Option<Duration>) -> Woken {
    let readable = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // poll(2) ignores a negative descriptor.
    let mut fds = [readable(fd.map_or(-1, |fd| fd.as_raw_fd())), readable(wake.0.as_raw_fd())];
    let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: two entries. No matter how it fails, the caller looks for itself.
    unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) };
    Woken { called: fds[1].revents != 0, error: fds[0].revents & libc::POLLERR != 0 }
}

/// Waits until `fd` can be written or is broken; false when the time is over.
pub fn wait_writable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut fd = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: there is one entry.
    unsafe { libc::poll(&raw mut fd, 1, timeout) != 0 }
}

/// Whole milliseconds, for poll(2).
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The monotonic clock as of the kernel's last tick: some milliseconds late, and cheap.
pub fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one timespec is written; the clock is there since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(patience: &mut Patience) -> usize {
        (0..100).take_while(|_| patience.looks_again()).count()
    }

    #[test]
    fn all_threads_start_or_none() {
        for given in [true, false] {
            let mut start = Start::default();
            let threads = [0; 3].map(|_| {
                let started = start.one_more();
                thread::spawn(move || started.comes())
            });
            if given {
                start.give();
            } else {
                drop(start);
            }
            assert_eq!(threads.map(|thread| thread.join().unwrap()), [given; 3]);
        }
    }

    #[test]
    fn patience_grows_while_it_pays() {
        let mut patience = Patience::new();
        assert_eq!((looks(&mut patience), looks(&mut patience)), (1, 1));
        for _ in 0..10 {
            assert!(patience.looks_again());
            patience.renew();
        }
        assert_eq!(looks(&mut patience), 16);
        // Being woken is not a reason to look more often.
        patience.renew();
        assert_eq!([8, 4, 2, 1, 1].map(|_| looks(&mut patience)), [8, 4, 2, 1, 1]);
    }
}
