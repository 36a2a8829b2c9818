//! Answers of other processes, which may be any.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream as Connection;
use std::time::Duration;

use crate::host::clock::Clock;

/// The longest status that is read: there is room for many thousand remotes.
pub const MAX_STATUS: usize = 64 << 20;

/// Reads up to the end. All of it, not each part, has as long as `patience`.
///
/// # Errors
/// When it takes longer, or is longer than `most` bytes and what one call reads.
pub fn read_all(stream: &mut Connection, patience: Duration, most: usize) -> io::Result<Vec<u8>> {
    let start = Clock::start();
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let left = patience.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
        stream.set_read_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(_) if bytes.len() > most => return Err(io::ErrorKind::FileTooLarge.into()),
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            // The error of a time limit (SO_RCVTIMEO in socket(7)).
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(e) => return Err(e),
        }
    }
}
