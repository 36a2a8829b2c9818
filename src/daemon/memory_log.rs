//! The log of additions to `memory.json`: a line for each record, and a first line that says to
//! which file they belong.
//!
//! ```text
//! {"of":"CHECKSUM OF memory.json"}
//! {"record":{"Client":["198.51.100.7:4500",1700000000]},"sum":"CHECKSUM OF THE LINE BEFORE AND THE RECORD"}
//! ```
//!
//! A log that is about another file was written before that file, and does not count. A crash may leave
//! half a line at the end, which did not count yet. Anything else is damage.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::engine::Record;

/// Bytes after which the whole file is written again.
const LONG: u64 = 256 * 1024;

/// A memory file of fewer bytes is always written as a whole: that costs no more, and 0.3.0, which does
/// not read the log, finds all of it after a crash, too.
const SMALL: u64 = 4096;

#[derive(Serialize, Deserialize)]
struct Head {
    of: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    record: Record,
    sum: String,
}

/// The log beside a memory file that was written by this process.
#[derive(Debug)]
pub struct MemoryLog {
    memory: PathBuf,
    /// The memory file, by which another one in its place is known.
    file: FileMark,
    /// The checksum of the last line, or of the memory file.
    last: String,
    bytes: u64,
}

/// What distinguishes a file from one that has taken its place, and from itself before a change.
#[derive(Debug, PartialEq, Eq)]
struct FileMark {
    inode: u64,
    modified: (i64, i64),
    bytes: u64,
}

impl FileMark {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        let modified = (found.mtime(), found.mtime_nsec());
        Ok(FileMark { inode: found.ino(), modified, bytes: found.len() })
    }
}

/// The path of the log beside a memory file. It is not called a log: nobody is to clean it up.
pub fn path(memory: &Path) -> PathBuf {
    memory.with_extension("records")
}

impl MemoryLog {
    /// The empty log of a memory file with this checksum, once an older log is removed.
    ///
    /// # Errors
    /// When the memory file is gone already.
    pub fn after(memory: &Path, checksum: &str) -> io::Result<Self> {
        let (file, last) = (FileMark::of(memory)?, checksum.to_owned());
        Ok(MemoryLog { memory: memory.to_owned(), file, last, bytes: 0 })
    }

    /// Whether it is worth while to add to it.
    pub fn is_worth_while(&self) -> bool {
        self.file.bytes >= SMALL && self.bytes < LONG
    }

    /// Adds records, and flushes them to the disk.
    ///
    /// # Errors
    /// When the disk refuses; then a part of them may be there. Also when the memory file or the log is
    /// not as this process left it: a restart would not find what belongs together.
    pub fn append(&mut self, records: &[Record]) -> io::Result<()> {
        if FileMark::of(&self.memory)? != self.file {
            return Err(io::Error::other("another program changed it"));
        }
        let mut text = Vec::new();
        if self.bytes == 0 {
            line(&mut text, &Head { of: self.last.clone() })?;
        }
        for record in records {
            let sum = sum(&self.last, record)?;
            self.last.clone_from(&sum);
            line(&mut text, &Line { record: record.clone(), sum })?;
        }
        let first = self.bytes == 0;
        let path = path(&self.memory);
        if !first {
            let found = fs::symlink_metadata(&path)?;
            if !found.is_file() || found.len() != self.bytes {
                return Err(io::Error::other("another program changed the records beside it"));
            }
        }
        let mut file = OpenOptions::new().append(true).create_new(first).mode(0o600).open(&path)?;
        file.write_all(&text)?;
        file.sync_data()?;
        if first {
            fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        }
        self.bytes += text.len() as u64;
        Ok(())
    }
}

fn line(text: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *text, value).map_err(io::Error::other)?;
    text.push(b'\n');
    Ok(())
}

fn sum(last: &str, record: &Record) -> io::Result<String> {
    let record = serde_json::to_vec(record).map_err(io::Error::other)?;
    Ok(checksum(&[last.as_bytes(), &record].concat()))
}

/// SHA-256 in hexadecimal.
pub fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The records that are to be added to the memory file with this checksum.
///
/// # Errors
/// When the log cannot be read, or is damaged.
pub fn read(path: &Path, checksum: &str) -> io::Result<Vec<Record>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut lines =
        bytes.split_inclusive(|&byte| byte == b'\n').filter_map(|l| l.strip_suffix(b"\n"));
    let Some(head) = lines.next() else { return Ok(Vec::new()) };
    let damaged =
        || io::Error::new(io::ErrorKind::InvalidData, "the records beside it are damaged");
    let Head { of } = serde_json::from_slice(head).map_err(|_| damaged())?;
    if of != checksum {
        return Ok(Vec::new());
    }
    let mut last = of;
    let record = |line: &[u8]| {
        let Line { record, sum: written } = serde_json::from_slice(line).map_err(|_| damaged())?;
        last = sum(&last, &record)?;
        Some(record).filter(|_| written == last).ok_or_else(damaged)
    };
    lines.map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let at = |last: u8| std::net::SocketAddr::from(([192, 0, 2, last], 1000));
        vec![
            Record::Accepted { seconds: 7, message: vec![1, 2, 3], now: 8, start: 6 },
            Record::Client(at(1), 9),
            Record::Session(at(2), 10),
            Record::Gone(at(1)),
        ]
    }

    /// A memory file in a directory of its own.
    fn memory(name: &str) -> PathBuf {
        let directory =
            std::env::temp_dir().join(format!("ipipou-log-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let memory = directory.join("memory.json");
        fs::write(&memory, "{}").unwrap();
        memory
    }

    fn log(memory: &Path, checksum: &str) -> MemoryLog {
        let _ = fs::remove_file(path(memory)); // as when the memory file is replaced
        MemoryLog::after(memory, checksum).unwrap()
    }

    #[test]
    fn added_records_are_read_back_and_belong_to_one_memory() {
        let memory = memory("added");
        let mut added = log(&memory, "of this");
        for record in records() {
            added.append(&[record]).unwrap();
        }
        assert_eq!(read(&path(&memory), "of this").unwrap(), records());
        assert_eq!(read(&path(&memory), "of another").unwrap(), []);
        // For the next file, the log of the one before does not count.
        log(&memory, "of the next").append(&records()[1..2]).unwrap();
        assert_eq!(read(&path(&memory), "of the next").unwrap(), records()[1..2]);
        fs::remove_dir_all(memory.parent().unwrap()).unwrap();
    }

    #[test]
    fn half_a_line_at_the_end_is_ignored_and_damage_is_detected() {
        let memory = memory("damaged");
        log(&memory, "base").append(&records()).unwrap();
        let whole = fs::read(path(&memory)).unwrap();
        let broken = memory.with_extension("broken");
        let mut lengths = Vec::new();
        for length in 0..=whole.len() {
            fs::write(&broken, &whole[..length]).unwrap();
            let found = read(&broken, "base").unwrap();
            assert!(records().starts_with(&found), "cut after {length} bytes");
            lengths.push(found.len());
        }
        assert!(lengths.is_sorted() && lengths.last() == Some(&records().len()));
        let head = whole.iter().position(|&byte| byte == b'\n').unwrap();
        for at in 0..whole.len() - 1 {
            let mut bent = whole.clone();
            bent[at] ^= 1;
            fs::write(&broken, &bent).unwrap();
            // Of a bent checksum in the first line it is not known that it is not another file's.
            let is_another =
                at <= head && read(&broken, "base").is_ok_and(|found| found.is_empty());
            assert!(is_another || read(&broken, "base").is_err(), "byte {at}");
        }
        fs::remove_dir_all(memory.parent().unwrap()).unwrap();
    }

    /// What a restart finds must belong together.
    #[test]
    fn nothing_is_added_to_what_another_program_changed() {
        let memory = memory("changed");
        let log_path = path(&memory);
        type Change<'a> = &'a dyn Fn() -> io::Result<()>;
        let changes: [Change; 6] = [
            &|| fs::remove_file(&memory),
            &|| fs::write(&memory, "{ }"),
            &|| {
                fs::copy(&memory, memory.with_extension("new"))
                    .map(drop)
                    .and_then(|()| fs::rename(memory.with_extension("new"), &memory))
            },
            &|| fs::remove_file(&log_path),
            &|| fs::write(&log_path, "other"),
            &|| fs::remove_file(&log_path).and_then(|()| fs::create_dir(&log_path)),
        ];
        for (number, change) in changes.iter().enumerate() {
            fs::write(&memory, "{}").unwrap();
            let mut added = log(&memory, "base");
            added.append(&records()[..1]).unwrap();
            change().unwrap();
            let before = fs::read(&log_path).ok();
            assert!(added.append(&records()[1..]).is_err(), "{number}");
            assert_eq!(fs::read(&log_path).ok(), before, "{number}");
        }
        // What is in the place of a new log stays as it is.
        assert!(MemoryLog::after(&memory, "base").unwrap().append(&[]).is_err());
        assert!(log_path.is_dir());
        fs::remove_dir_all(memory.parent().unwrap()).unwrap();
    }
}
