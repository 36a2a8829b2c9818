//! Reads whole files whose kind and length somebody else decides.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Why a file is not read. The message follows the name of the file and a colon.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("is not a file")]
    NotAFile,
    #[error("has more than {0} bytes")]
    TooLong(usize),
}

/// Returns all bytes of a file.
///
/// # Errors
/// When it cannot be read, has more than `most` bytes, or is something else than a file: nothing is
/// waited for, as a pipe would be.
pub fn contents(path: &Path, most: usize) -> Result<Vec<u8>, FileError> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(FileError::NotAFile);
    }
    let mut bytes = Vec::new();
    let limit = (most as u64).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > most { Err(FileError::TooLong(most)) } else { Ok(bytes) }
}
