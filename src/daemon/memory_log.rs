//! What is to be added to `memory.json`: a line for each record, and a first line that says to which file.
//!
//! ```text
//! {"of":"CHECKSUM OF memory.json"}
//! {"record":{"Client":["198.51.100.7:4500",1700000000]},"sum":"CHECKSUM OF THE LINE BEFORE AND THE RECORD"}
//! ```
//!
//! A log that is about another file was written before that file, and says nothing of it. A crash may leave
//! half a line at the end, which did not count yet. Anything else is damage.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::engine::Record;

/// Bytes after which the whole file is written again.
const LONG: u64 = 256 * 1024;

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
    path: PathBuf,
    /// The checksum of the last line, or of the memory file.
    last: String,
    bytes: u64,
}

/// The path of the log beside a memory file. It is not called a log: nobody is to clean it up.
pub fn path(memory: &Path) -> PathBuf {
    memory.with_extension("records")
}

impl MemoryLog {
    /// The empty log of a memory file with this checksum. The next line replaces what is there.
    pub fn after(memory: &Path, checksum: &str) -> Self {
        MemoryLog { path: path(memory), last: checksum.to_owned(), bytes: 0 }
    }

    /// Whether it is worth while to add to it.
    pub fn is_short(&self) -> bool {
        self.bytes < LONG
    }

    /// Adds records, and flushes them to the disk.
    ///
    /// # Errors
    /// When the disk refuses; then a part of them may be there.
    pub fn append(&mut self, records: &[Record]) -> io::Result<()> {
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
        let mut options = OpenOptions::new();
        options.create(true).mode(0o600).append(!first).write(true).truncate(first);
        let mut file = options.open(&self.path)?;
        file.write_all(&text)?;
        file.sync_data()?;
        if first {
            fs::File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
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

    fn directory(name: &str) -> PathBuf {
        let directory =
            std::env::temp_dir().join(format!("ipipou-log-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn what_is_added_is_read_and_belongs_to_one_file() {
        let memory = directory("added").join("memory.json");
        let mut log = MemoryLog::after(&memory, "of this");
        for record in records() {
            log.append(&[record]).unwrap();
        }
        assert_eq!(read(&path(&memory), "of this").unwrap(), records());
        assert_eq!(read(&path(&memory), "of another").unwrap(), []);
        // Of the next file it says nothing of the one before.
        let mut log = MemoryLog::after(&memory, "of the next");
        log.append(&records()[1..2]).unwrap();
        assert_eq!(read(&path(&memory), "of the next").unwrap(), records()[1..2]);
        fs::remove_dir_all(memory.parent().unwrap()).unwrap();
    }

    #[test]
    fn half_a_line_at_the_end_is_left_out_and_damage_is_seen() {
        let memory = directory("damaged").join("memory.json");
        MemoryLog::after(&memory, "base").append(&records()).unwrap();
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
}
