//! The addresses of the names in a host table, looked up again and again because hosts move.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures_util::stream::{self, Stream, StreamExt as _};

use super::names;
use crate::engine::config::Host;

/// So many lookups at a time: each is a thread that waits.
const AT_ONCE: usize = 16;
/// So many names are told of when all fail together.
const TELL: usize = 10;

/// What a resolver says.
pub type Answer = io::Result<Vec<IpAddr>>;

/// What is known of the names of a table.
#[derive(Debug)]
pub struct Lookups {
    known: BTreeMap<String, Known>,
    /// Whether packets from our outer address can go there.
    usable: fn(&IpAddr) -> bool,
    /// Names that failed since the last [`Lookups::told`].
    failed: usize,
}

#[derive(Debug, Default)]
struct Known {
    address: Option<IpAddr>,
    complaint: Option<String>,
}

impl Lookups {
    pub fn new(usable: fn(&IpAddr) -> bool) -> Self {
        Lookups { known: BTreeMap::new(), usable, failed: 0 }
    }

    /// Where packets for a host go.
    pub fn address_of(&self, host: &Host) -> Option<IpAddr> {
        match host {
            Host::Address(address) => Some(*address).filter(self.usable),
            Host::Name(name) => self.known.get(name)?.address,
        }
    }

    /// Forgets the names that are in the table no more.
    pub fn forget_but(&mut self, names: &BTreeSet<&str>) {
        self.known.retain(|name, _| names.contains(name.as_str()));
    }

    /// Whether the last lookup gave an address.
    pub fn is_good(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(|known| known.complaint.is_none())
    }

    /// An address that is still among the answers stays. So does one whose name cannot be looked
    /// up any more: the resolver is down more often than a host that has no successor.
    pub fn note(&mut self, name: String, answer: Answer) {
        let usable = answer.and_then(|mut addresses| {
            addresses.retain(self.usable);
            match addresses.is_empty() {
                true => Err(io::Error::other("it has no address that ours can send to")),
                false => Ok(addresses),
            }
        });
        let known = self.known.entry(name.clone()).or_default();
        match usable {
            Ok(addresses) => {
                if known.complaint.take().is_some() {
                    tracing::info!("{name} can be looked up again");
                }
                if known.address.is_none_or(|before| !addresses.contains(&before)) {
                    known.address = addresses.first().copied();
                }
            }
            Err(e) => {
                let complaint = e.to_string();
                if known.complaint.as_ref() != Some(&complaint) {
                    self.failed += 1;
                    let until = match known.address {
                        Some(address) => format!("{address} stays"),
                        None => "its node is left out".to_owned(),
                    };
                    match self.failed <= TELL {
                        true => tracing::warn!("cannot look up {name}: {complaint}; {until}"),
                        false => tracing::debug!("cannot look up {name}: {complaint}; {until}"),
                    }
                }
                known.complaint = Some(complaint);
            }
        }
    }

    /// Ends a round of lookups: tells how many names were not told of.
    pub fn told(&mut self) {
        let more = std::mem::take(&mut self.failed).saturating_sub(TELL);
        if more > 0 {
            tracing::warn!("cannot look up {more} more names either");
        }
    }
}

/// Looks names up, a few at a time.
pub fn look_up(names: Vec<String>) -> impl Stream<Item = (String, Answer)> + Unpin {
    let one = |name: String| async {
        let answer = names::look_up(&Host::Name(name.clone())).await;
        (name, answer)
    };
    stream::iter(names).map(one).buffer_unordered(AT_ONCE)
}
