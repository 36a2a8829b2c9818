//! Installs, checks and removes our nftables table.
//!
//! Each tunnel process has one table, so that it is installed, replaced and removed as a whole, and
//! processes cannot disturb each other. Installing runs `nft` (at the start, and when somebody flushed
//! the rules); letting remotes in and reading what is there needs only netlink ([`Elements`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddrV4;

use ipnet::Ipv4Net;

use super::elements::Elements;
use super::quoted;
use super::ruleset::{self, Replacement};
use super::shared::{self, Made};
use super::words;
use crate::engine::host::{Admitted, Family, RuleSpec, RulesFound};
use crate::host::absent_is_fine;
use crate::host::nft::{NftError, listed, nft, nft_in_words};
use crate::host::table::{Handles, RuleCounter, Table};

/// The table, or that the tunnel has no rules.
pub enum Rules {
    InTable { elements: Elements, installed: Option<Handles> },
    Unavailable,
}

impl Rules {
    pub fn in_table(table: &str) -> Self {
        Rules::InTable { elements: Elements::of(Table::new(Family::V4, table)), installed: None }
    }

    pub fn unavailable() -> Self {
        Rules::Unavailable
    }

    /// Whether `nft` runs and may read the rules; changes nothing.
    pub fn probe(&mut self) -> Result<RulesFound, NftError> {
        if let Rules::InTable { .. } = self {
            nft(&["list", "tables", "ip"], "")?;
        }
        Ok(self.read()?)
    }

    pub fn read(&mut self) -> io::Result<RulesFound> {
        let Rules::InTable { elements, installed } = self else {
            return Ok(RulesFound::Unavailable);
        };
        let now = elements.table.generation();
        if now.is_some() && now == elements.intact_since {
            return Ok(RulesFound::Intact(elements.let_in.clone()));
        }
        let handles = elements.table.handles()?;
        let found = match installed {
            _ if handles.rules.is_empty() => RulesFound::Missing,
            Some(installed)
                if installed.table == handles.table && installed.acting == handles.acting =>
            {
                let is_ours = |admitted: &BTreeSet<Admitted>| {
                    // The rules about what is quoted come and go with the remotes.
                    let quoted = quoted::count(&words::elements(admitted));
                    installed.rules.is_subset(&handles.rules)
                        && installed.rules.len() + quoted == handles.rules.len()
                };
                let admitted = elements.admitted()?.filter(is_ours);
                admitted.map_or(RulesFound::Unknown, RulesFound::Intact)
            }
            Some(_) | None => RulesFound::Unknown,
        };
        let is_ours = |all: &BTreeSet<Admitted>| *all == elements.let_in;
        let is_intact = matches!(&found, RulesFound::Intact(all) if is_ours(all));
        elements.intact_since = now.filter(|_| is_intact);
        Ok(found)
    }

    /// Where a table of an earlier process lets remotes in that share a link, by their inner networks.
    pub fn left_by_another(
        &mut self,
        found: &RulesFound,
    ) -> io::Result<BTreeMap<Ipv4Net, SocketAddrV4>> {
        match (self, found) {
            (Rules::InTable { elements, .. }, RulesFound::Unknown) => {
                match elements.senders() {
                    // It has no such set.
                    Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(BTreeMap::new()),
                    senders => Ok(senders?.into_iter().map(|(at, net)| (net, at)).collect()),
                }
            }
            (Rules::InTable { .. } | Rules::Unavailable, _) => Ok(BTreeMap::new()),
        }
    }

    /// Replaces the table by one for `spec` that lets `admitted` in: in one transaction, or, where there may be
    /// many on one link, without touching those that it lets in already.
    pub fn install(
        &mut self,
        spec: &RuleSpec,
        admitted: &BTreeSet<Admitted>,
    ) -> Result<(), NftError> {
        let Rules::InTable { elements, installed } = self else { return Ok(()) };
        elements.intact_since = None;
        elements.shared = spec.shared.is_some();
        let apply = |how| nft(&["-f", "-"], &ruleset::json(spec, admitted, how));
        match &spec.shared {
            None => {
                // Where another version made different sets or chains, the contents alone cannot be exchanged.
                apply(Replacement::Contents).or_else(|_| apply(Replacement::Whole))?;
            }
            Some(link) => {
                let apply_to = |made| {
                    nft_in_words(&shared::sets(spec, link, made))?;
                    apply(Replacement::Contents)
                };
                match elements.table.handles()?.rules.is_empty() {
                    true => apply_to(Made::Anew),
                    false => apply_to(Made::Beside).or_else(|_| apply_to(Made::Anew)),
                }?;
            }
        }
        *installed = Some(elements.table.handles()?);
        Ok(elements.admit(admitted)?)
    }

    pub fn admit(&mut self, admitted: &BTreeSet<Admitted>) -> Result<(), NftError> {
        match self {
            Rules::InTable { elements, .. } => Ok(elements.admit(admitted)?),
            Rules::Unavailable => Ok(()),
        }
    }

    /// Stops admitting one remote, and lets another in, beside the others that are.
    pub fn exchange(
        &mut self,
        old: Option<&Admitted>,
        new: Option<&Admitted>,
    ) -> Result<(), NftError> {
        match self {
            Rules::InTable { elements, .. } => Ok(elements.exchange(old, new)?),
            Rules::Unavailable => Ok(()),
        }
    }

    pub fn remove(&mut self) -> Result<(), NftError> {
        match self {
            Rules::InTable { elements, .. } => Ok(absent_is_fine(elements.table.delete())?),
            Rules::Unavailable => Ok(()),
        }
    }

    /// Whether the table judges what comes to this local port.
    pub fn guard(&mut self, port: u16) -> Result<bool, NftError> {
        let Rules::InTable { elements, .. } = self else { return Ok(false) };
        let name = elements.table.name.to_string_lossy();
        let text = listed(&name)?;
        let words: Vec<&str> = text.split_whitespace().collect();
        Ok(words.windows(2).any(|pair| pair == ["dport", &port.to_string()]))
    }

    pub fn counters(&mut self) -> io::Result<Vec<RuleCounter>> {
        match self {
            Rules::InTable { elements, .. } => elements.table.counters(),
            Rules::Unavailable => Ok(Vec::new()),
        }
    }
}
