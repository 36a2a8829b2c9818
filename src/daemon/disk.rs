//! What waits for the disk, so that nothing else does.

use std::io;
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
