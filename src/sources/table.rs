//! The host table: read from a file or fetched, and kept up to date with all its names looked up.

use std::fs;
use std::io;
use std::num::NonZeroU16;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};

use super::lookups::Lookups;
use super::{file, https, names, url};
use crate::engine::config::{Datapath, HostName, HostsSource, HostsUrl};
use crate::engine::host::Family;
use crate::engine::table::{HostTable, Inner, MAX_SIZE, Node};
use crate::host::atomic_file;
use crate::host::clock::Clock;

/// How often a file is checked for changes.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a fetch may take; the first fetch delays the tunnel.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a fetch that failed; it is doubled each time, up to the interval.
const FETCH_AGAIN: Duration = Duration::from_secs(10);
/// How long a table waits for its new names: one that comes in pieces would remove for a moment what an
/// earlier process had set up.
const PATIENCE: Duration = Duration::from_secs(2);
/// The least time between two tables that are sent: answers come in bursts.
const BREATHE: Duration = Duration::from_millis(200);

/// The table as it was read last, and where it comes from.
#[derive(Debug)]
pub struct TableSource {
    source: HostsSource,
    /// Where a copy of the last good table from a URL is kept.
    cache: PathBuf,
    table: HostTable,
    /// The state of the file when it was read last.
    stamp: Option<Stamp>,
    /// What is wrong now; it is logged once.
    problem: Option<String>,
    /// How long to wait before the next fetch, after one that failed.
    retry: Option<Duration>,
    /// The most remotes that the datapath can carry.
    most: usize,
}

/// Whether there are changes to send, and how long they wait.
#[derive(Debug)]
struct Unsent {
    changed: bool,
    /// How long to wait for the new names of a table.
    patience: Option<Duration>,
    not_before: Duration,
}

/// The facts about a file that change when it is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl TableSource {
    /// Reads the table for the first time. A fault of the server does not keep the tunnel down: then
    /// the table is the last good one of an earlier process, or empty for now.
    ///
    /// # Errors
    /// Names what has to be mended on this host: a file that cannot be read or has a mistake, or
    /// missing certificate authorities.
    pub async fn load(source: HostsSource, state_dir: &Path) -> Result<Self, String> {
        let mut hosts = TableSource {
            source,
            cache: state_dir.join("hosts.json"),
            table: HostTable::default(),
            stamp: None,
            problem: None,
            retry: None,
            most: usize::MAX,
        };
        match &hosts.source {
            HostsSource::File(path) => {
                hosts.stamp = Stamp::of(path);
                hosts.table = read_file(path)?;
            }
            HostsSource::Url(url) => {
                https::roots(url)?;
                if !url::is_https(&url.url) {
                    let url = url::shown(&url.url);
                    tracing::warn!("{url}: anybody on the way can change it: use https");
                }
                match fetch_table(url, FIRST_FETCH_TIMEOUT).await {
                    Ok(table) => {
                        hosts.table = table;
                        hosts.keep_copy();
                    }
                    Err(problem) => hosts.start_without(problem),
                }
            }
        }
        Ok(hosts)
    }

    /// The most remotes that this table can have.
    pub fn remotes(&self) -> usize {
        self.table.remotes()
    }

    /// Sets the datapath: from now on, a table that is too large for it is not used.
    pub fn carried_by(mut self, datapath: Datapath) -> Self {
        self.most = datapath.capabilities().most_remotes;
        self
    }

    /// Sends the nodes whose addresses are known: once at first, and whenever they change, until the
    /// receiver is dropped. A node without a port gets `default_port`; `family` is that of our outer
    /// address; `now` requests that everything is read and looked up at once.
    pub async fn keep(
        mut self,
        default_port: NonZeroU16,
        mut family: watch::Receiver<Family>,
        updates: mpsc::Sender<Vec<Node>>,
        now: &Notify,
        clock: Clock,
    ) {
        let mut lookups = Lookups::new(*family.borrow_and_update());
        let (mut answers, mut reading) = (FuturesUnordered::new(), JoinSet::new());
        let (mut read_at, mut once_more) = (clock.elapsed().saturating_add(self.pause()), false);
        let mut unsent = Unsent { changed: false, patience: None, not_before: clock.elapsed() };
        let mut sent = None;
        self.hand_to(&mut lookups, &mut unsent, clock);
        loop {
            let at = clock.elapsed();
            lookups.expire(at);
            while let Some(name) = lookups.next(at) {
                answers.push(async move {
                    let answer = names::look_up(&HostName::Name(name.clone())).await;
                    (name, answer)
                });
            }
            let send_at = unsent.due(&lookups);
            if send_at.is_some_and(|due| due <= at) {
                unsent.sent(at);
                let nodes = self.table.resolve(default_port, |host| lookups.address_of(host));
                if sent.as_ref() != Some(&nodes) {
                    if updates.send(nodes.clone()).await.is_err() {
                        return;
                    }
                    sent = Some(nodes);
                }
            }
            let wake = send_at.filter(|due| at < *due).into_iter().chain(lookups.wake_at()).min();
            tokio::select! {
                () = updates.closed() => return,
                Some((name, answer)) = answers.next() => {
                    unsent.changed |= lookups.note(&name, answer, clock.elapsed());
                }
                () = until(wake.unwrap_or(at), clock), if wake.is_some() => {}
                () = until(read_at, clock), if reading.is_empty() => {
                    once_more = false;
                    self.start_reading(&mut reading);
                    read_at = clock.elapsed().saturating_add(self.pause());
                }
                Some(read) = reading.join_next() => {
                    if self.judge(read.unwrap_or_else(|e| Err(format!("{}: {e}", self.name())))) {
                        self.hand_to(&mut lookups, &mut unsent, clock);
                    }
                    if !once_more {
                        read_at = clock.elapsed().saturating_add(self.pause());
                    }
                }
                Ok(()) = family.changed() => {
                    lookups.set_family(*family.borrow_and_update());
                    self.hand_to(&mut lookups, &mut unsent, clock);
                }
                () = now.notified() => {
                    lookups.all_again();
                    self.stamp = None;
                    // A reading that is in progress may have begun before the change that is to be
                    // seen.
                    (read_at, once_more) = (clock.elapsed(), true);
                }
            }
        }
    }

    /// Takes another table, or another use of it.
    fn hand_to(&self, lookups: &mut Lookups, unsent: &mut Unsent, clock: Clock) {
        lookups.take(&self.table.names());
        unsent.changed = true;
        unsent.patience.get_or_insert_with(|| clock.elapsed() + PATIENCE);
        self.warn_of_unusable(lookups);
    }

    /// How long until the table is read again.
    fn pause(&self) -> Duration {
        match &self.source {
            HostsSource::File(_) => LOOK_EVERY,
            HostsSource::Url(url) => self.retry.unwrap_or(url.interval),
        }
    }

    /// Begins to read the table again; a file only if it has changed. A server may take its time.
    fn start_reading(&mut self, reading: &mut JoinSet<Result<HostTable, String>>) {
        match &self.source {
            HostsSource::File(path) => {
                let stamp = Stamp::of(path);
                if stamp.is_some() && stamp == self.stamp {
                    return;
                }
                // A file with a mistake is not read again until it changes.
                self.stamp = stamp;
                let read = read_file(path);
                reading.spawn(std::future::ready(read));
            }
            HostsSource::Url(url) => {
                let url = url.clone();
                reading.spawn(async move { fetch_table(&url, FETCH_TIMEOUT).await });
            }
        }
    }

    /// Takes what was read, if it is good. Returns whether the table differs.
    fn judge(&mut self, read: Result<HostTable, String>) -> bool {
        let most = self.most;
        let read = read.and_then(|table| match table.remotes() {
            few if few <= most => Ok(table),
            many => Err(format!(
                "{}: {many} remotes, and the kernel's datapath carries {most} at most: it needs a \
                 start with --datapath tun",
                self.name()
            )),
        });
        match read {
            Ok(table) => self.adopt(table),
            Err(problem) => {
                self.warn_once(problem, "the last good table of hosts stays");
                false
            }
        }
    }

    /// Takes a good table. Returns whether it differs.
    fn adopt(&mut self, table: HostTable) -> bool {
        if self.problem.take().is_some() {
            tracing::info!("the table of hosts can be read again");
        }
        self.retry = None;
        if table == self.table {
            return false;
        }
        self.table = table;
        self.keep_copy();
        true
    }

    /// Writes a copy of the server's table to the disk.
    fn keep_copy(&self) {
        match self.source {
            HostsSource::File(_) => {}
            HostsSource::Url(_) => {
                let text = serde_json::to_vec_pretty(&self.table).map_err(io::Error::other);
                if let Err(e) = text.and_then(|text| atomic_file::replace(&self.cache, &text)) {
                    let path = self.cache.display();
                    tracing::warn!("{path}: {e}: nothing to start with when the server is away");
                }
            }
        }
    }

    fn name(&self) -> String {
        match &self.source {
            HostsSource::File(path) => path.display().to_string(),
            HostsSource::Url(url) => url::shown(&url.url),
        }
    }

    fn warn_once(&mut self, problem: String, consequence: &str) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!("{problem}; {consequence}");
        }
        self.problem = Some(problem);
        if let HostsSource::Url(url) = &self.source {
            let retry = self.retry.map_or(FETCH_AGAIN, |before| before * 2);
            self.retry = Some(retry.min(url.interval));
        }
    }

    /// Starts without a table, because the server gave none.
    fn start_without(&mut self, problem: String) {
        let consequence = match read_file(&self.cache) {
            Ok(table) => {
                self.table = table;
                "starting with the table that was fetched last"
            }
            Err(e) => {
                if !matches!(self.cache.try_exists(), Ok(false)) {
                    tracing::warn!("{e}");
                }
                "starting without nodes"
            }
        };
        self.warn_once(problem, consequence);
    }

    fn warn_of_unusable(&self, lookups: &Lookups) {
        let unusable: Vec<_> = self
            .table
            .hosts()
            .filter(
                |(_, host)| matches!(host, HostName::Address(address) if !lookups.can_use(*address)),
            )
            .collect();
        if let Some((inner, HostName::Address(address))) = unusable.first() {
            let more = match unusable.len() {
                1 => String::new(),
                many => format!(" (and {} more)", many - 1),
            };
            let inner = Inner(*inner);
            tracing::warn!("node {inner}{more} is left out: ours cannot send to {address}");
        }
    }
}

impl Unsent {
    /// When the changes are to be sent.
    fn due(&self, lookups: &Lookups) -> Option<Duration> {
        let due = match self.patience {
            Some(until) if lookups.has_new() => until,
            Some(_) | None => self.not_before,
        };
        self.changed.then_some(due)
    }

    fn sent(&mut self, at: Duration) {
        *self = Unsent { changed: false, patience: None, not_before: at + BREATHE };
    }
}

/// Sleeps until a time that counts from the start of the process.
fn until(at: Duration, clock: Clock) -> Sleep {
    sleep(at.saturating_sub(clock.elapsed()))
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Stamp {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// Reads a table from a file.
///
/// # Errors
/// One line that names the file, and where in it the mistake is.
pub fn read_file(path: &Path) -> Result<HostTable, String> {
    let name = path.display();
    let text = file::contents(path, MAX_SIZE).map_err(|e| format!("{name}: {e}"))?;
    HostTable::parse(&text).map_err(|e| format!("{name}:{e}"))
}

/// Checks that the certificate authorities for a URL can be read.
///
/// # Errors
/// One line that says why they cannot.
pub fn check_authorities(url: &HostsUrl) -> Result<(), String> {
    https::roots(url).map(drop)
}

async fn fetch_table(url: &HostsUrl, timeout: Duration) -> Result<HostTable, String> {
    let name = url::shown(&url.url);
    let url = url.clone();
    let text = tokio::task::spawn_blocking(move || {
        let roots = https::roots(&url)?;
        https::fetch(&url, roots, timeout)
    });
    let text = text.await.map_err(|e| format!("cannot fetch {name}: {e}"))??;
    HostTable::parse(&text).map_err(|e| format!("{name}:{e}"))
}
