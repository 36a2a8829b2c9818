//! Works with files on threads of their own, so that nothing else waits for the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// The longest that anything waits for the disk.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Does something with files on a thread of its own. Where the disk does not answer in time, it may still be
/// done later.
///
/// # Errors
/// What it says, and `TimedOut`.
pub async fn wait<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    timeout(PATIENCE, spawn_blocking(work)).await?.map_err(io::Error::other)?
}

/// The same with one file, or with what belongs to it: a later writer waits for all earlier ones,
/// including those that nobody waits for any more. Otherwise an earlier writer might put older contents back.
///
/// # Errors
/// As [`wait`].
pub async fn in_turn<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let turn = Turn::of(path);
    wait(move || turn.take(work)).await
}

/// A place in the queue for a file, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    number: u64,
    queue: Arc<Queue>,
}

/// The works that use a file or wait for it, by number.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<BTreeSet<u64>>,
    gone: Condvar,
}

/// The queues that are not empty.
#[derive(Debug)]
struct Queues {
    by_path: BTreeMap<PathBuf, Weak<Queue>>,
    last: u64,
}

static QUEUES: Mutex<Queues> = Mutex::new(Queues { by_path: BTreeMap::new(), last: 0 });

impl Turn {
    /// A place behind all who have one.
    pub fn of(path: &Path) -> Self {
        let mut queues = locked(&QUEUES);
        queues.last += 1;
        let number = queues.last;
        let queue = queues.by_path.get(path).and_then(Weak::upgrade).unwrap_or_else(|| {
            let queue = Arc::default();
            queues.by_path.retain(|_, queue| queue.strong_count() > 0);
            queues.by_path.insert(path.to_owned(), Arc::downgrade(&queue));
            queue
        });
        locked(&queue.waiting).insert(number);
        Turn { number, queue }
    }

    /// Does something when it is its turn. Blocks until then.
    pub fn take<T>(self, work: impl FnOnce() -> T) -> T {
        let is_behind = |waiting: &mut BTreeSet<u64>| waiting.first() != Some(&self.number);
        let waiting = self.queue.gone.wait_while(locked(&self.queue.waiting), is_behind);
        drop(waiting.unwrap_or_else(PoisonError::into_inner));
        work()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        locked(&self.queue.waiting).remove(&self.number);
        self.queue.gone.notify_all();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_work_that_was_given_up_is_waited_for_by_later_ones() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let path = Path::new("a file");
            let done = Arc::new(Mutex::new(Vec::new()));
            let note = |what| {
                let done = Arc::clone(&done);
                move || {
                    locked(&done).push(what);
                    Ok(())
                }
            };
            let moment = Duration::from_millis(50);
            let (go, hung) = mpsc::channel();
            let first = note("first");
            let first =
                in_turn(path, move || hung.recv().map_err(io::Error::other).and_then(|()| first()));
            assert!(timeout(moment, first).await.is_err()); // nobody waits for it any more
            assert!(timeout(moment, in_turn(path, note("second"))).await.is_err());
            in_turn(Path::new("another file"), note("other")).await.unwrap();
            let third = tokio::spawn(in_turn(path, note("third")));
            tokio::task::yield_now().await;
            go.send(()).unwrap();
            third.await.unwrap().unwrap();
            assert_eq!(*locked(&done), ["other", "first", "second", "third"]);
        });
    }

    #[test]
    fn a_caller_that_goes_before_its_turn_delays_no_other() {
        let path = Path::new("one that is left");
        let (first, second) = (Turn::of(path), Turn::of(path));
        drop(first);
        second.take(|| ());
        Turn::of(path).take(|| ());
    }
}
