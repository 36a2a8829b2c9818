//! A record of the port at which this tunnel has a FOU listener. A listener has no label, and the rules
//! that came with it may have been flushed; by the record, the next process recognises it after a
//! crash.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use super::disk;
use crate::host::atomic_file::replace;
use crate::host::namespace::boot_id;

const FILE: &str = "listener";

/// Writes the record.
///
/// # Errors
/// When the directory cannot be written, or the disk does not answer.
pub async fn write(state_dir: &Path, port: u16) -> io::Result<()> {
    let path = state_dir.join(FILE);
    disk::in_turn(&path.clone(), move || {
        let text = line(port)?;
        match fs::read_to_string(&path) {
            Ok(before) if before == text => Ok(()),
            Ok(_) | Err(_) => replace(&path, text.as_bytes()),
        }
    })
    .await
}

/// Removes the record together with the listener. A record that stays names a listener that is gone.
pub async fn remove(state_dir: &Path) {
    let path = state_dir.join(FILE);
    let _ = disk::in_turn(&path.clone(), move || fs::remove_file(path)).await;
}

/// The port at which a process of this tunnel has had a listener since the machine started, and may have it still:
/// `own`, which the tunnel has now, or another one, unless another tunnel beside it has that now.
pub async fn port(state_dir: &Path, own: NonZeroU16) -> Option<NonZeroU16> {
    let path = state_dir.join(FILE);
    let read = disk::in_turn(&path.clone(), move || fs::read_to_string(path)).await;
    let port = named(&read.ok()?)?;
    if port == own {
        return Some(own);
    }
    // A service may not see the others' directories.
    let others = below(state_dir.parent()?).await;
    let is_others = others.iter().any(|(directory, at)| *at == port && directory != state_dir);
    Some(port).filter(|_| !is_others)
}

/// The port that a record of this boot names.
fn named(text: &str) -> Option<NonZeroU16> {
    let port: NonZeroU16 = text.split(' ').next()?.parse().ok()?;
    (text == line(port.get()).ok()?).then_some(port)
}

/// The ports that the records in the directories below `parent` name, by directory.
pub async fn below(parent: &Path) -> BTreeMap<PathBuf, NonZeroU16> {
    let parent = parent.to_owned();
    let found = disk::wait(move || {
        let of_directory = |entry: io::Result<fs::DirEntry>| {
            let directory = entry.ok()?.path();
            let port = named(&fs::read_to_string(directory.join(FILE)).ok()?)?;
            Some((directory, port))
        };
        Ok(fs::read_dir(parent)?.filter_map(of_directory).collect())
    });
    found.await.unwrap_or_default()
}

fn line(port: u16) -> io::Result<String> {
    Ok(format!("{port} {}\n", boot_id()?))
}
