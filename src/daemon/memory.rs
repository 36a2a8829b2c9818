//! The memory of a tunnel on disk: replaced as a whole, so that a crash leaves the old or the new.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::engine::Memory;

/// A file in the state directory.
#[derive(Debug)]
pub struct MemoryFile {
    path: PathBuf,
}

impl MemoryFile {
    pub fn in_directory(directory: &Path) -> Self {
        MemoryFile { path: directory.join("memory.json") }
    }

    /// The path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier process remembered; nothing when there is no file.
    ///
    /// # Errors
    /// When the file cannot be read or is not ours.
    pub fn load(&self) -> io::Result<Memory> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Memory::default()),
            Err(e) => Err(e),
        }
    }

    /// # Errors
    /// When the directory cannot be made or written.
    pub fn save(&self, memory: &Memory) -> io::Result<()> {
        replace(&self.path, &serde_json::to_vec(memory).map_err(io::Error::other)?)
    }
}

/// Writes beside the file, flushes to the disk, and renames over it. Makes the directory.
///
/// # Errors
/// When the directory cannot be made or written.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let beside = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&beside, path)?;
    File::open(directory)?.sync_all()
}
