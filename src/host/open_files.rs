//! How many files this process may have open at a time.

use rustix::process::{Resource, getrlimit, setrlimit};

/// How many it may have open.
pub fn most() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Allows as many as there may be: the lower limit is for programs that use select(2), and a server with many
/// old peers has more.
pub fn allow_all() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the limit of open files stays at {}: {error}", most());
    }
}
