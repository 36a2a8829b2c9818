//! Tells errors about what a call sends from errors about packets that were sent before.
//!
//! What routers and hosts say about a packet (ICMP) goes to the socket's error queue, and its error number
//! is returned by the next call as well, whatever that is for (`sock_error`). Anybody can send such a
//! message, and as many as they like. So a number that ICMP can cause proves nothing: the queue is read, the
//! call is made again, and it counts only when it comes back while nobody has said anything.

use std::io;

/// How often a call is made because of errors about other packets.
const TRIES: u8 = 32;

/// How a call deals with errors that are not about what it sends.
#[derive(Clone, Copy)]
pub struct Care<'a> {
    /// Reads the socket's error queue.
    pub read_errors: &'a dyn Fn(),
    /// Counts what is read there of what others say.
    pub heard: &'a dyn Fn() -> u64,
    /// Waits for room if the socket is full, and returns whether to try again.
    pub waits: &'a dyn Fn() -> bool,
}

/// Why a call failed.
#[derive(Debug)]
pub enum Failure {
    /// The kernel does not send this.
    Own(io::Error),
    /// Others said so much that nothing is known of this.
    Others(io::Error),
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Own(error) | Failure::Others(error) => error,
        }
    }
}

/// Makes a call until its result is its own, or until there were too many errors of others.
///
/// # Errors
/// [`Failure`].
pub fn own<T>(care: Care<'_>, mut call: impl FnMut() -> io::Result<T>) -> Result<T, Failure> {
    let mut waited = false;
    let mut tries = 0;
    // The last error about which nobody had said anything.
    let mut silent = None;
    loop {
        let before = (care.heard)();
        let error = match call() {
            Ok(result) => return Ok(result),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) if !waited && (care.waits)() => waited = true,
            number if is_about_others(&error) => {
                tries += 1;
                (care.read_errors)();
                let is_silent = (care.heard)() == before;
                if is_silent && silent == number {
                    return Err(Failure::Own(error));
                }
                if tries == TRIES {
                    return Err(Failure::Others(error));
                }
                silent = number.filter(|_| is_silent);
            }
            _ => return Err(Failure::Own(error)),
        }
    }
}

/// Whether an error may be about packets that were sent before: the errors that the kernel makes of
/// ICMP (`icmp_err_convert` in net/ipv4/icmp.c, `tab_unreach` in net/ipv6/icmp.c).
pub fn is_about_others(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMSGSIZE
                | libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::ENONET
                | libc::EHOSTDOWN
                | libc::EACCES
                | libc::EPROTO
        )
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// The result of calls that fail so, each perhaps after somebody has said something; and how many were
    /// made.
    fn result(errors: &[(libc::c_int, bool)], room: bool) -> (Result<(), (bool, i32)>, usize) {
        let (heard, calls) = (Cell::new(0), Cell::new(0));
        let care = Care { read_errors: &|| {}, heard: &|| heard.get(), waits: &|| room };
        let result = own(care, || {
            let said = errors.get(calls.get());
            calls.set(calls.get() + 1);
            let Some((error, is_said)) = said else { return Ok(()) };
            heard.set(heard.get() + u64::from(*is_said));
            Err(io::Error::from_raw_os_error(*error))
        });
        let result = result.map_err(|failure| {
            let is_own = matches!(failure, Failure::Own(_));
            (is_own, io::Error::from(failure).raw_os_error().unwrap())
        });
        (result, calls.get())
    }

    #[test]
    fn an_error_counts_when_it_comes_back_and_nobody_has_said_anything() {
        use libc::{ECONNREFUSED, EIO, EMSGSIZE, EOPNOTSUPP};
        let own = |error, calls| (Err((true, error)), calls);
        assert_eq!(result(&[(EIO, false)], true), own(EIO, 1));
        assert_eq!(result(&[(EMSGSIZE, false); 3], true), own(EMSGSIZE, 2));
        assert_eq!(result(&[(EMSGSIZE, false)], true), (Ok(()), 2));
        // The first two are others'.
        let errors = [(EMSGSIZE, true), (EMSGSIZE, true), (EMSGSIZE, false), (EMSGSIZE, false)];
        assert_eq!(result(&errors, true), own(EMSGSIZE, 4));
        assert_eq!(result(&errors[..2], true), (Ok(()), 3));
        let errors = [(EOPNOTSUPP, false), (ECONNREFUSED, false), (EOPNOTSUPP, false)];
        assert_eq!(result(&errors, true), (Ok(()), 4));
        let (said, calls) = result(&[(EOPNOTSUPP, true); 100], true);
        assert_eq!((said, calls), (Err((false, EOPNOTSUPP)), 32));
    }

    #[test]
    fn a_full_socket_is_waited_for_once_at_most() {
        let full = [(libc::EAGAIN, false); 2];
        assert_eq!(result(&full, true), (Err((true, libc::EAGAIN)), 2));
        assert_eq!(result(&full[..1], true), (Ok(()), 2));
        assert_eq!(result(&full, false), (Err((true, libc::EAGAIN)), 1));
        assert_eq!(result(&[(libc::EINTR, false); 9], true), (Ok(()), 10));
    }
}
