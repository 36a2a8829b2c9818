//! A record of the port at which this tunnel has a FOU listener. A listener has no label, and the rules
//! that came with it may have been flushed; by the record, the next process recognises it after a
//! crash.

use std::fs;
use std::num::NonZeroU16;
use std::path::Path;

use crate::host::atomic_file::replace;

const FILE: &str = "listener";

/// Writes the record.
///
/// # Errors
/// When the directory cannot be written.
pub fn write(state_dir: &Path, port: u16) -> std::io::Result<()> {
    let text = line(port)?;
    let path = state_dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(before) if before == text => Ok(()),
        Ok(_) | Err(_) => replace(&path, text.as_bytes()),
    }
}

/// Removes the record together with the listener. A record that stays names a listener that is gone.
pub fn remove(state_dir: &Path) {
    let _ = fs::remove_file(state_dir.join(FILE));
}

/// Whether a process of this tunnel has had a listener at this port since the machine started.
pub fn names(state_dir: &Path, port: NonZeroU16) -> bool {
    // Without proof, a listener is somebody else's.
    let written = fs::read_to_string(state_dir.join(FILE));
    written.is_ok_and(|text| line(port.get()).is_ok_and(|line| text == line))
}

fn line(port: u16) -> std::io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(format!("{port} {}\n", boot.trim()))
}
