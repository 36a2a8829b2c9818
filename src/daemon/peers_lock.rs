//! Lets one command at a time change the files of peers, from reading them until the running server
//! has taken them. Otherwise two commands could find the same address free, or send the server
//! files that another one has changed since.
//!
//! The locks are in directories, because the files themselves are replaced: in that around the files, and in
//! the one above, as the first peer's command makes the one around them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::Failure;
use crate::host::{Holder, LockFile, atomic_file};

/// A file that is there while a command changes peers. It is hidden, so that it is not read as one of theirs.
const NAME: &str = ".ipipou.lock";

/// How long a command waits for others, in pauses: one of them may wait for a server that does not answer.
const PATIENCE: u32 = 600;
const PAUSE: Duration = Duration::from_millis(50);

/// The right to change the files of peers, until it is dropped.
#[derive(Debug)]
pub struct PeersLock {
    _locked: Vec<LockFile>,
}

impl PeersLock {
    /// Waits for half a minute at most until no other command changes the files at `peers`.
    ///
    /// # Errors
    /// When another command changes them for longer than that; the message names it.
    pub fn take(peers: &Path) -> Result<Self, Failure> {
        PeersLock::wait(peers, PATIENCE).map_err(|(directory, holder)| {
            let directory = directory.display();
            let seconds = (PAUSE * PATIENCE).as_secs();
            Failure::Generic(format!(
                "{directory}: {holder} changes peers there, for more than {seconds} s: nothing was \
                 changed; try again when it is done, or end it"
            ))
        })
    }

    fn wait(peers: &Path, mut patience: u32) -> Result<Self, (PathBuf, Holder)> {
        loop {
            let places = places(peers);
            let mut locked = Vec::new();
            for place in &places {
                // Where there can be no lock, nobody is kept out.
                while let Ok(taken) = LockFile::take(&place.join(NAME)) {
                    match taken {
                        Ok(lock) => {
                            locked.push(lock);
                            break;
                        }
                        Err(holder) => {
                            patience = patience.checked_sub(1).ok_or((place.clone(), holder))?;
                        }
                    }
                    sleep(PAUSE);
                }
            }
            // The holder before may have made the directory.
            if places == self::places(peers) {
                return Ok(PeersLock { _locked: locked });
            }
        }
    }
}

/// The directories that have locks, the upper one first.
fn places(peers: &Path) -> Vec<PathBuf> {
    let path = std::path::absolute(peers).unwrap_or_else(|_| peers.to_owned());
    let path = atomic_file::behind_links(&path).unwrap_or(path);
    match fs::canonicalize(&path) {
        Ok(path) => {
            let above = path.parent().map(Path::to_owned);
            above.into_iter().chain(path.is_dir().then_some(path.clone())).collect()
        }
        Err(_) => path
            .ancestors()
            .skip(1)
            .find_map(|above| fs::canonicalize(above).ok())
            .into_iter()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_command_at_a_time_changes_the_files() {
        let name = format!("ipipou-lock-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        let peers = directory.join("peers.d");
        let refused = |peers: &Path| PeersLock::wait(peers, 1).map_err(|(place, _)| place).err();
        let one = PeersLock::take(&peers).unwrap();
        assert_eq!(refused(&peers).as_ref(), Some(&directory));
        fs::create_dir(&peers).unwrap(); // by the command that has the lock
        assert_eq!(refused(&peers).as_ref(), Some(&directory));
        drop(one);
        let two = PeersLock::take(&peers).unwrap();
        let link = directory.join("link");
        std::os::unix::fs::symlink("peers.d/../peers.d", &link).unwrap();
        assert_eq!(refused(&link).as_ref(), Some(&directory));
        drop(two);
        // The same directory, as another container has it: the one above is another.
        let inside = LockFile::take(&peers.join(NAME)).unwrap().unwrap();
        assert_eq!(refused(&peers).as_ref(), Some(&peers));
        drop(inside);
        drop(PeersLock::take(&peers).unwrap());
        fs::remove_dir_all(&directory).unwrap();
    }
}
