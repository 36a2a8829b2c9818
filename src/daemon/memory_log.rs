//! What is to be added to `memory.json`: a line for each record, and a first line that says to which file.
//!
//! ```text
//! {"of":"CHECKSUM OF memory.json"}
//! {"record":{"Client":["198.51.100.7:4500",1700000000]},"sum":"CHECKSUM OF THE LINE BEFORE AND THE RECORD"}
//! ```
//!
//! Whoever finds another file than the log is about takes none of it: it was written before that file.
//! What follows a damaged line is not taken either.

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

/// The path of the log beside a memory file.
pub fn path(memory: &Path) -> PathBuf {
    memory.with_extension("log")
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
pub fn read(path: &Path, checksum: &str) -> Vec<Record> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines();
    let head = lines.next().and_then(|line| serde_json::from_str::<Head>(line).ok());
    if head.is_none_or(|head| head.of != checksum) {
        return Vec::new();
    }
    let mut last = checksum.to_owned();
    let records = lines.map_while(|line| {
        let Line { record, sum: written } = serde_json::from_str(line).ok()?;
        let expected = sum(&last, &record).ok()?;
        last.clone_from(&expected);
        (written == expected).then_some(record)
    });
    records.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let at = |last: u8| std::net::SocketAddr::from(([192, 0, 2, last], 1000));
        vec![
            Record::Accepted { seconds: 7, message: vec![1, 2, 3], unix: 8 },
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
        assert_eq!(read(&path(&memory), "of this"), records());
        assert_eq!(read(&path(&memory), "of another"), []);
        // Of the next file it says nothing of the one before.
        let mut log = MemoryLog::after(&memory, "of the next");
        log.append(&records()[1..2]).unwrap();
        assert_eq!(read(&path(&memory), "of the next"), records()[1..2]);
        fs::remove_dir_all(memory.parent().unwrap()).unwrap();
    }

    #[test]
    fn nothing_is_taken_of_what_is_damaged_or_follows_it() {
        let memory = directory("damaged").join("memory.json");
        MemoryLog::after(&memory, "base").append(&records()).unwrap();
        let whole = fs::read(path(&memory)).unwrap();
        let broken = memory.with_extension("broken");
        for length in 0..whole.len() {
            fs::write(&broken, &whole[..length]).unwrap();
            assert!(records().starts_with(&read(&broken, "base")), "cut after {length} bytes");
        }
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 1;
            fs::write(&broken, &bent).unwrap();
            assert!(records().starts_with(&read(&broken, "base")), "byte {at}");
        }
        fs::remove_dir_all(memory.parent().unwrap()).unwrap();
    }
}
