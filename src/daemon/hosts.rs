//! The host table: read from a file or fetched, and kept up to date with all its names looked up.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::lookups::{Lookups, look_up};
use super::{Failure, fetch, memory};
use crate::engine::config::{Datapath, Host, HostsSource, HostsUrl, MOST_KERNEL_REMOTES};
use crate::engine::hosts::{HostTable, Inner, MAX_SIZE, Node};

/// How often a file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a fetch may take; the first keeps the tunnel waiting.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// After a fetch that failed; doubled each time, up to the interval.
const FETCH_AGAIN: Duration = Duration::from_secs(10);
/// Names that failed are looked up again after this time, and all of them every sixth time.
const LOOK_UP_EVERY: Duration = Duration::from_secs(10);
const ALL_ROUNDS: u32 = 6;
/// So long what is known waits for names that are being looked up: a table that comes in pieces
/// would take away for a moment what an earlier process had set up.
const PATIENCE: Duration = Duration::from_secs(2);

/// The table as last read, and where it comes from.
#[derive(Debug)]
pub struct Hosts {
    source: HostsSource,
    /// Where the last good table of a URL is kept.
    cache: PathBuf,
    table: HostTable,
    /// The file as it was when it was read last.
    stamp: Option<Stamp>,
    /// What is wrong now; told once.
    complaint: Option<String>,
    /// Until the next fetch, after one that failed.
    retry: Option<Duration>,
    /// Remotes that the datapath carries at most.
    most: usize,
}

/// What changes when a file is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl Hosts {
    /// Reads the table for the first time. What a server does wrong keeps no tunnel down: then the
    /// table is the last good one of an earlier process, or empty for now.
    ///
    /// # Errors
    /// What has to be mended on this host: a file that cannot be read or has a mistake, no
    /// certificate authorities.
    pub async fn load(source: HostsSource, state_dir: &Path) -> Result<Self, Failure> {
        let mut hosts = Hosts {
            source,
            cache: state_dir.join("hosts.json"),
            table: HostTable::default(),
            stamp: None,
            complaint: None,
            retry: None,
            most: usize::MAX,
        };
        match &hosts.source {
            HostsSource::File(path) => {
                hosts.stamp = Stamp::of(path);
                hosts.table = read_file(path).map_err(Failure::Usage)?;
            }
            HostsSource::Url(url) => {
                fetch::roots(url).map_err(Failure::Usage)?;
                if !fetch::is_https(&url.url) {
                    let url = fetch::shown(&url.url);
                    tracing::warn!("{url}: whoever is on the way can change it: use https");
                }
                match fetch_table(url, FIRST_FETCH_TIMEOUT).await {
                    Ok(table) => {
                        hosts.table = table;
                        hosts.keep_copy();
                    }
                    Err(complaint) => hosts.start_without(complaint),
                }
            }
        }
        Ok(hosts)
    }

    /// How many remotes the table has at most.
    pub fn remotes(&self) -> usize {
        self.table.remotes()
    }

    /// From now on, a table that is too large for this datapath is not used.
    pub fn carried_by(mut self, datapath: Datapath) -> Self {
        self.most = match datapath {
            Datapath::Kernel => MOST_KERNEL_REMOTES,
            Datapath::Tun => usize::MAX,
        };
        self
    }

    /// Sends the nodes whose address is known: once at first, and whenever they differ, until
    /// nobody listens. A node without a port has `default_port`; `usable` tells whether our outer
    /// address can send to an address; `now` asks for everything to be read and looked up at once.
    pub async fn keep(
        mut self,
        default_port: NonZeroU16,
        usable: fn(&IpAddr) -> bool,
        updates: mpsc::Sender<Vec<Node>>,
        now: &Notify,
    ) {
        let mut lookups = Lookups::new(usable);
        let mut answers = look_up(Vec::new());
        let mut looking = false;
        let mut rounds = 0;
        let mut again = interval(LOOK_UP_EVERY);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let patience = sleep(PATIENCE);
        let reload = sleep(self.pause());
        tokio::pin!(patience, reload);
        let mut sent = None;
        self.warn_of_unusable(usable);
        loop {
            // The names to look up now, or nothing when what is known is to be sent.
            let names = tokio::select! {
                () = updates.closed() => return,
                answer = answers.next(), if looking => match answer {
                    Some((name, answer)) => {
                        lookups.note(name, answer);
                        continue;
                    }
                    None => {
                        looking = false;
                        lookups.told();
                        None
                    }
                },
                () = &mut patience, if looking => None,
                _ = again.tick(), if !looking => {
                    let all = rounds % ALL_ROUNDS == 0;
                    rounds = rounds.wrapping_add(1);
                    Some(self.names(|name| all || !lookups.is_good(name)))
                }
                () = &mut reload => {
                    let changed = self.reload(false).await;
                    reload.set(sleep(self.pause()));
                    if !changed {
                        continue;
                    }
                    self.warn_of_unusable(usable);
                    lookups.forget_but(&self.table.names());
                    Some(self.names(|name| !lookups.is_good(name)))
                }
                () = now.notified() => {
                    if self.reload(true).await {
                        self.warn_of_unusable(usable);
                    }
                    reload.set(sleep(self.pause()));
                    lookups.forget_but(&self.table.names());
                    Some(self.names(|_| true))
                }
            };
            match names {
                Some(names) if !names.is_empty() => {
                    answers = look_up(names);
                    looking = true;
                    patience.set(sleep(PATIENCE));
                }
                Some(_) | None => {
                    // What is still being looked up is sent together, at the end.
                    patience.set(sleep(Duration::MAX));
                    let nodes = self.table.resolve(default_port, |host| lookups.address_of(host));
                    if sent.as_ref() != Some(&nodes) {
                        if updates.send(nodes.clone()).await.is_err() {
                            return;
                        }
                        sent = Some(nodes);
                    }
                }
            }
        }
    }

    /// Until the table is read again.
    fn pause(&self) -> Duration {
        match &self.source {
            HostsSource::File(_) => LOOK_EVERY,
            HostsSource::Url(url) => self.retry.unwrap_or(url.interval),
        }
    }

    fn names(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        self.table.names().into_iter().filter(|name| wanted(name)).map(str::to_owned).collect()
    }

    /// Reads the table again, a file only when it has changed; whether the table differs.
    async fn reload(&mut self, even_unchanged: bool) -> bool {
        let read = match &self.source {
            HostsSource::File(path) => {
                let stamp = Stamp::of(path);
                if stamp.is_some() && stamp == self.stamp && !even_unchanged {
                    return false;
                }
                // A file with a mistake is not read again until it changes.
                self.stamp = stamp;
                read_file(path)
            }
            HostsSource::Url(url) => fetch_table(url, FETCH_TIMEOUT).await,
        };
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
            Err(complaint) => {
                self.complain(complaint, "the last good table of hosts stays");
                false
            }
        }
    }

    /// Takes a good table; whether it differs.
    fn adopt(&mut self, table: HostTable) -> bool {
        if self.complaint.take().is_some() {
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

    /// Writes the table of a server to the disk.
    fn keep_copy(&self) {
        match self.source {
            HostsSource::File(_) => {}
            HostsSource::Url(_) => {
                let text = serde_json::to_vec_pretty(&self.table).map_err(io::Error::other);
                if let Err(e) = text.and_then(|text| memory::replace(&self.cache, &text)) {
                    let path = self.cache.display();
                    tracing::warn!("{path}: {e}: nothing to start with when the server is away");
                }
            }
        }
    }

    fn name(&self) -> String {
        match &self.source {
            HostsSource::File(path) => path.display().to_string(),
            HostsSource::Url(url) => fetch::shown(&url.url),
        }
    }

    fn complain(&mut self, complaint: String, consequence: &str) {
        if self.complaint.as_ref() != Some(&complaint) {
            tracing::warn!("{complaint}; {consequence}");
        }
        self.complaint = Some(complaint);
        if let HostsSource::Url(url) = &self.source {
            let retry = self.retry.map_or(FETCH_AGAIN, |before| before * 2);
            self.retry = Some(retry.min(url.interval));
        }
    }

    /// The server gave no table at the start.
    fn start_without(&mut self, complaint: String) {
        let consequence = match read_file(&self.cache) {
            Ok(table) => {
                self.table = table;
                "starting with the table that was fetched last"
            }
            Err(e) => {
                if self.cache.exists() {
                    tracing::warn!("{e}");
                }
                "starting without nodes"
            }
        };
        self.complain(complaint, consequence);
    }

    fn warn_of_unusable(&self, usable: fn(&IpAddr) -> bool) {
        let unusable: Vec<_> = self
            .table
            .hosts()
            .filter(|(_, host)| matches!(host, Host::Address(address) if !usable(address)))
            .collect();
        if let Some((inner, Host::Address(address))) = unusable.first() {
            let more = match unusable.len() {
                1 => String::new(),
                many => format!(" (and {} more)", many - 1),
            };
            let inner = Inner(*inner);
            tracing::warn!("node {inner}{more} is left out: ours cannot send to {address}");
        }
    }
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

fn read_file(path: &Path) -> Result<HostTable, String> {
    let name = path.display();
    let say = |e: io::Error| format!("{name}: {e}");
    if !fs::metadata(path).map_err(say)?.is_file() {
        return Err(format!("{name}: is not a file")); // nor waited for, as a pipe would be
    }
    let mut text = Vec::new();
    let limit = MAX_SIZE as u64 + 1;
    File::open(path).map_err(say)?.take(limit).read_to_end(&mut text).map_err(say)?;
    if text.len() > MAX_SIZE {
        return Err(format!("{name}: has more than {MAX_SIZE} bytes"));
    }
    HostTable::parse(&text).map_err(|e| format!("{name}:{e}"))
}

async fn fetch_table(url: &HostsUrl, timeout: Duration) -> Result<HostTable, String> {
    let name = fetch::shown(&url.url);
    let url = url.clone();
    let text = tokio::task::spawn_blocking(move || {
        let roots = fetch::roots(&url)?;
        fetch::fetch(&url, roots, timeout)
    });
    let text = text.await.map_err(|e| format!("cannot fetch {name}: {e}"))??;
    HostTable::parse(&text).map_err(|e| format!("{name}:{e}"))
}
