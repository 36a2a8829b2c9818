//! Waiting: for a file, for the word of another thread, and what time it is then.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Looks before sleep, at most: some microseconds on an idle processor.
const MOST_LOOKS: u32 = 16;

/// How often a thread that found nothing looks again before it falls asleep. To sleep and be woken
/// costs it, and whoever wakes it, more than a look. While looking again finds something it looks
/// more often; where it does not, on machines with little to do, once.
pub struct Patience {
    looks: u32,
    left: u32,
}

impl Patience {
    pub fn new() -> Self {
        Patience { looks: 1, left: 1 }
    }

    /// There was something.
    pub fn renew(&mut self) {
        if self.left < self.looks {
            self.looks = (2 * self.looks).min(MOST_LOOKS);
        }
        self.left = self.looks;
    }

    /// There was nothing. Whether to look again; others had the processor in between.
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

/// The start that threads wait for until all of them are there.
#[derive(Default)]
pub struct Start(Vec<mpsc::Sender<()>>);

/// What one of them waits for.
pub struct Started(mpsc::Receiver<()>);

impl Start {
    pub fn one_more(&mut self) -> Started {
        let (sender, receiver) = mpsc::channel();
        self.0.push(sender);
        Started(receiver)
    }

    /// To all of them.
    pub fn give(self) {
        for waiting in self.0 {
            // One that panicked waits no more.
            let _ = waiting.send(());
        }
    }
}

impl Started {
    /// Waits; false when the start was dropped, and will never come.
    pub fn comes(self) -> bool {
        self.0.recv().is_ok()
    }
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    /// Somebody called.
    pub called: bool,
    /// The file has an error to tell, a socket one in its error queue.
    pub error: bool,
}

/// Waits until `fd` (if any) can be read or is broken, `wake` is called, or the time is over.
pub fn wait(fd: Option<BorrowedFd<'_>>, wake: &Wake, timeout: Option<Duration>) -> Woken {
    let readable = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // A negative descriptor is passed over (poll(2)).
    let mut fds = [readable(fd.map_or(-1, |fd| fd.as_raw_fd())), readable(wake.0.as_raw_fd())];
    let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
    // SAFETY: two entries. Whatever it fails with, the caller looks for itself.
    unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) };
    Woken { called: fds[1].revents != 0, error: fds[0].revents & libc::POLLERR != 0 }
}

/// Waits until `fd` can be written, for `timeout` at most.
pub fn wait_writable(fd: BorrowedFd<'_>, timeout: Duration) {
    let mut fd = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one entry.
    unsafe { libc::poll(&raw mut fd, 1, timeout) };
}

/// Whole milliseconds.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The monotonic clock, as of the last tick of the kernel: some milliseconds late, and cheap.
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
    fn all_start_or_none() {
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
        // What woke it is no reason to look more often.
        patience.renew();
        assert_eq!([8, 4, 2, 1, 1].map(|_| looks(&mut patience)), [8, 4, 2, 1, 1]);
    }
}
