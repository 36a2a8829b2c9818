//! The memory of a tunnel on disk: a file that is replaced as a whole, so that a crash leaves the old or
//! the new one, and a log of additions to it, so that one of thousands of peers costs one line.
//!
//! A checksum distinguishes a whole file from a damaged one, and a second, small file distinguishes a
//! first start from one whose memory was lost. Writing waits for the disk, so it is done in the
//! background; all requests that come during one write are covered by the next. The next
//! write waits also for one that nobody waits for any more, because the disk took too long.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use sha2::{Digest as _, Sha256};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Sleep, sleep, timeout};

use super::disk::{self, PATIENCE, Turn};
use super::memory_log::{self, MemoryLog, checksum};
use crate::engine::{Engine, Memory, Record, Writing};
use crate::host::atomic_file::replace;

/// The fields that version 0.3 wrote, without a checksum.
const OLD_FIELDS: [&str; 7] =
    ["key", "seen", "authenticated", "reserved", "clock_from", "clients", "settings"];

const CHECKSUM: &str = ",\"checksum\":\"";

const MARK: &str = "ipipou keeps memory.json in this directory. While this file is here, a missing \
                    memory.json is a loss, and no first start.\n";

/// Files in the state directory.
#[derive(Debug)]
pub struct MemoryFile {
    path: PathBuf,
    /// The log beside the file; `None`: it is not known what is on the disk, as after an error.
    log: Option<MemoryLog>,
    under_way: Option<UnderWay>,
    /// The write that was requested and has not begun.
    wanted: Option<Writing>,
    /// The write that is done and was not reported yet.
    done: Option<(Writing, io::Result<()>)>,
}

#[derive(Debug)]
struct UnderWay {
    writing: Writing,
    /// It is added to what is there.
    adds: bool,
    patience: Pin<Box<Sleep>>,
    task: JoinHandle<io::Result<MemoryLog>>,
}

/// What an earlier process left.
#[derive(Debug)]
pub enum Loaded {
    /// There was no memory.
    FirstStart,
    Whole(Memory),
    /// There was one, and it is lost for this reason.
    Lost(io::Error),
}

impl MemoryFile {
    pub fn in_directory(directory: &Path) -> Self {
        let path = directory.join("memory.json");
        MemoryFile { path, log: None, under_way: None, wanted: None, done: None }
    }

    /// The path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier process remembered. Safe to cancel.
    pub async fn load(&self) -> Loaded {
        let path = self.path.clone();
        disk::in_turn(&self.path, move || Ok(load(&path))).await.unwrap_or_else(Loaded::Lost)
    }

    /// The same file for the next engine of this tunnel, once what is being written is: that engine counts
    /// its writes from the beginning.
    pub async fn at_rest(mut self) -> Self {
        if let Some(UnderWay { task, .. }) = self.under_way.take() {
            let _ = timeout(PATIENCE, task).await; // the next one writes all of it
        }
        MemoryFile { path: self.path, log: None, under_way: None, wanted: None, done: None }
    }

    /// Writes what `engine` remembers, now or after the write that is in progress.
    pub fn write(&mut self, writing: Writing, engine: &mut Engine) {
        self.wanted = Some(writing);
        self.begin(engine);
    }

    /// Begins the requested write, unless the disk is still busy.
    fn begin(&mut self, engine: &mut Engine) {
        if self.under_way.is_none()
            && let Some(writing) = self.wanted.take()
        {
            let records = engine.take_records();
            let log = self.log.take().filter(MemoryLog::is_worth_while);
            let work = match log.zip(records) {
                Some((log, records)) => Work::Append(log, records),
                None => Work::Replace(engine.memory()),
            };
            self.under_way = Some(self.start(writing, work));
        }
    }

    fn start(&self, writing: Writing, work: Work) -> UnderWay {
        let adds = matches!(work, Work::Append(..));
        UnderWay {
            writing,
            adds,
            patience: Box::pin(sleep(PATIENCE)),
            task: self.begun(|path| work.done(path)),
        }
    }

    /// Has the disk do something when it has done all that it was asked before, of this file.
    fn begun<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let (turn, path) = (Turn::of(&self.path), self.path.clone());
        spawn_blocking(move || turn.take(|| work(&path)))
    }

    /// Waits for the next write that is done, or that has taken too long: then the error says so. Where
    /// nothing could be added, all that `engine` remembers is written instead. Cancel safe.
    pub async fn written(&mut self, engine: &mut Engine) -> (Writing, io::Result<()>) {
        if let Some(done) = self.done.take() {
            return done;
        }
        loop {
            let Some(UnderWay { writing, adds, patience, task }) = &mut self.under_way else {
                return std::future::pending().await;
            };
            tokio::select! {
                result = task => {
                    let (writing, adds) = (*writing, *adds);
                    self.under_way = None;
                    let result = self.note(result);
                    if !adds || result.is_ok() {
                        return (writing, result);
                    }
                    self.wanted = self.wanted.max(Some(writing));
                    self.begin(engine);
                }
                () = patience.as_mut() => {
                    *patience = Box::pin(sleep(PATIENCE));
                    let writing = self.wanted.take().unwrap_or(*writing).max(*writing);
                    return (writing, Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
    }

    /// Begins the write that was requested in the meantime.
    pub fn go_on(&mut self, engine: &mut Engine) {
        self.begin(engine);
    }

    /// Writes all that `engine` remembers, and waits for it; `memory` is that.
    ///
    /// # Errors
    /// When the directory cannot be made or written, or the disk does not answer.
    pub async fn save(&mut self, memory: &Memory, engine: &mut Engine) -> io::Result<()> {
        let last = match &mut self.under_way {
            Some(under_way) => {
                let result = timeout(PATIENCE, &mut under_way.task).await;
                let writing = under_way.writing;
                let result = self.note(result?);
                self.done = Some((writing, result));
                writing
            }
            None => Writing::default(),
        };
        engine.take_records(); // they are part of it
        self.under_way = Some(self.start(last, Work::Replace(memory.clone())));
        let Some(under_way) = &mut self.under_way else { return Ok(()) };
        let result = timeout(PATIENCE, &mut under_way.task).await?;
        self.under_way = None;
        self.note(result)
    }

    /// Notes what is on the disk now.
    fn note(
        &mut self,
        result: Result<io::Result<MemoryLog>, tokio::task::JoinError>,
    ) -> io::Result<()> {
        self.log = Some(result.map_err(io::Error::other)??);
        Ok(())
    }
}

fn load(path: &Path) -> Loaded {
    match fs::read(path) {
        Ok(bytes) => match decode_with_log(path, &bytes) {
            Ok(memory) => Loaded::Whole(memory),
            Err(e) => Loaded::Lost(e),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => match mark(path).try_exists() {
            Ok(false) => Loaded::FirstStart,
            Ok(true) | Err(_) => Loaded::Lost(e),
        },
        Err(e) => Loaded::Lost(e),
    }
}

fn decode_with_log(path: &Path, bytes: &[u8]) -> io::Result<Memory> {
    let (mut memory, checksum) = decode(bytes)?;
    let records = memory_log::read(&memory_log::path(path), &checksum)?;
    records.into_iter().for_each(|record| memory.apply(record));
    Ok(memory)
}

/// What the disk is to do.
#[derive(Debug)]
enum Work {
    Replace(Memory),
    Append(MemoryLog, Vec<Record>),
}

impl Work {
    fn done(self, path: &Path) -> io::Result<MemoryLog> {
        match self {
            Work::Replace(memory) => {
                let (bytes, checksum) = encode(&memory)?;
                save(path, &bytes)?;
                let _ = fs::remove_file(memory_log::path(path)); // it is not about this file
                MemoryLog::after(path, &checksum)
            }
            Work::Append(mut log, records) => {
                log.append(&records)?;
                Ok(log)
            }
        }
    }
}

fn mark(path: &Path) -> PathBuf {
    path.with_extension("mark")
}

fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mark = mark(path);
    if !mark.try_exists()? {
        replace(&mark, MARK.as_bytes())?;
    }
    replace(path, bytes)
}

/// The memory as JSON whose last field is the checksum of everything before it, and that checksum.
fn encode(memory: &Memory) -> io::Result<(Vec<u8>, String)> {
    let mut bytes = serde_json::to_vec(memory).map_err(io::Error::other)?;
    bytes.pop();
    let checksum = checksum(&bytes);
    bytes.extend_from_slice(CHECKSUM.as_bytes());
    bytes.extend_from_slice(checksum.as_bytes());
    bytes.extend_from_slice(b"\"}");
    Ok((bytes, checksum))
}

/// Reads the memory back, and the checksum by which a log names its file.
///
/// # Errors
/// When this is not what was written.
fn decode(bytes: &[u8]) -> io::Result<(Memory, String)> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the file is damaged");
    let tail = CHECKSUM.len() + 2 * Sha256::output_size() + 2;
    let (body, tail) = bytes.split_at(bytes.len().saturating_sub(tail));
    let checksum = checksum(body);
    let expected = format!("{CHECKSUM}{checksum}\"}}");
    if tail != expected.as_bytes() {
        // A file without a checksum must be the whole file of an older version, and nothing more.
        let fields: serde_json::Map<_, _> = serde_json::from_slice(bytes).map_err(|_| damaged())?;
        if !fields.keys().all(|name| OLD_FIELDS.contains(&name.as_str())) {
            return Err(damaged());
        }
    }
    Ok((serde_json::from_slice(bytes).map_err(|_| damaged())?, checksum))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        let clients = [("192.0.2.1:1".parse().unwrap(), 7)].into();
        Memory { key: Some([7; 32]), reserved: 100, clients, ..Memory::default() }
    }

    #[test]
    fn a_written_memory_is_read_back() {
        let (bytes, checksum) = encode(&memory()).unwrap();
        assert_eq!(decode(&bytes).unwrap(), (memory(), checksum));
    }

    #[test]
    fn damage_is_seen_wherever_it_is() {
        let (whole, _) = encode(&memory()).unwrap();
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "cut after {length} bytes");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bent = whole.clone();
                bent[at] ^= 1 << bit;
                assert!(decode(&bent).is_err(), "byte {at}, bit {bit}");
            }
        }
        assert!(decode(&[whole.clone(), whole].concat()).is_err());
    }

    /// The next tunnel to the same peer may have begun by then.
    #[test]
    fn a_write_that_was_given_up_puts_nothing_older_back() {
        let name = format!("ipipou-memory-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let of = |reserved| Memory { reserved, ..memory() };
        runtime.block_on(async {
            let (go, hung) = std::sync::mpsc::channel::<()>();
            let slow = MemoryFile::in_directory(&directory).begun(move |path| {
                let _ = hung.recv();
                Work::Replace(of(1)).done(path).unwrap();
            });
            let next = MemoryFile::in_directory(&directory);
            let mut quick = next.start(Writing::default(), Work::Replace(of(2))).task;
            let early = timeout(std::time::Duration::from_millis(100), &mut quick).await;
            drop(go);
            slow.await.unwrap();
            let Loaded::Whole(found) = MemoryFile::in_directory(&directory).load().await else {
                panic!("it is lost")
            };
            assert_eq!(found.reserved, 2, "{early:?}");
        });
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn old_and_new_versions_read_each_others_memory() {
        // As 0.3.0 wrote it.
        let old = r#"{"key":null,"seen":{"newest":0,"within":[],"before":{},"span":0},
            "authenticated":["192.0.2.7:4500",1700000000],"reserved":1700003600,
            "clock_from":1700000000,"clients":{},"settings":{}}"#;
        let (memory, _) = decode(old.as_bytes()).unwrap();
        assert_eq!(memory.authenticated, Some(("192.0.2.7:4500".parse().unwrap(), 1_700_000_000)));
        assert_eq!((memory.reserved, memory.clock_from), (1_700_003_600, 1_700_000_000));
        // 0.3.0 can read the new file: every field that it needs is there under its name.
        let new: serde_json::Value = serde_json::from_slice(&encode(&memory).unwrap().0).unwrap();
        assert!(OLD_FIELDS.iter().all(|name| !new[name].is_null() || *name == "key"));
        let seen = &new["seen"];
        assert!(["newest", "within", "before", "span"].iter().all(|name| !seen[name].is_null()));
    }
}
