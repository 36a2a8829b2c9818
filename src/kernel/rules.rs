//! Our nftables table: installing it, checking on it, removing it.
//!
//! One table per tunnel process, so that it is installed, replaced and removed as a whole, and
//! processes cannot disturb each other. Installing runs `nft` (at the start, and when somebody
//! flushed the rules); letting remotes in and looking at what is there is netlink only
//! ([`Elements`]).

use std::collections::BTreeSet;
use std::io;

use super::elements::{self, Elements, Handles, RuleCounter};
use super::program;
use super::quoted;
use super::ruleset::{self, Installation, Reassembly, Replacement};
use crate::engine::host::{Admitted, Family, RulesFound};
use crate::engine::plan::RuleSpec;

/// Where the rules live, or that there are none.
pub enum Rules {
    InTable { elements: Elements, installed: Option<Handles> },
    Unavailable,
}

/// What `nft` or the kernel had against our rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    #[error("`nft` cannot be run ({0}): install the package nftables")]
    NoProgram(#[source] io::Error),
    #[error("nft: {0}")]
    Refused(String),
    #[error("nftables over netlink: {0}")]
    Netlink(#[from] io::Error),
}

impl Rules {
    pub fn in_table(table: &str) -> Self {
        Rules::InTable { elements: Elements::in_table(Family::V4, table), installed: None }
    }

    pub fn unavailable() -> Self {
        Rules::Unavailable
    }

    /// Whether `nft` runs and may read the rules; changes nothing.
    pub fn probe(&mut self) -> Result<RulesFound, RulesError> {
        if let Rules::InTable { .. } = self {
            nft(&["list", "tables", "ip"], "")?;
        }
        Ok(self.read()?)
    }

    pub fn read(&mut self) -> io::Result<RulesFound> {
        let Rules::InTable { elements, installed } = self else {
            return Ok(RulesFound::Unavailable);
        };
        let handles = elements.handles()?;
        Ok(match installed {
            _ if handles.rules.is_empty() => RulesFound::Missing,
            Some(installed) if installed.table == handles.table => {
                let is_ours = |admitted: &BTreeSet<Admitted>| {
                    // Those about what is quoted come and go with the remotes.
                    let quoted = quoted::count(&elements::elements(admitted));
                    installed.rules.is_subset(&handles.rules)
                        && installed.rules.len() + quoted == handles.rules.len()
                };
                let admitted = elements.admitted()?.filter(is_ours);
                admitted.map_or(RulesFound::Unknown, RulesFound::Intact)
            }
            Some(_) | None => RulesFound::Unknown,
        })
    }

    /// Replaces the table by one for `spec` that lets `admitted` in, in one transaction.
    pub fn install(
        &mut self,
        spec: &RuleSpec,
        admitted: &BTreeSet<Admitted>,
    ) -> Result<(), RulesError> {
        let Rules::InTable { elements, installed } = self else { return Ok(()) };
        let apply = |replacement, reassembly| {
            let how = Installation { replacement, reassembly };
            nft(&["-f", "-"], &ruleset::json(spec, admitted, how))
        };
        // The contents cannot be exchanged where another version made sets or chains otherwise.
        let result = apply(Replacement::Contents, Reassembly::On)
            .or_else(|_| apply(Replacement::Whole, Reassembly::On));
        if let Err(error) = result {
            // The one part that a kernel with FOU may well lack is nft_tproxy.
            apply(Replacement::Whole, Reassembly::Off).map_err(|_| error)?;
            tracing::warn!("without the module nft_tproxy, fragmented outer packets may be lost");
        }
        *installed = Some(elements.handles()?);
        Ok(elements.admit(admitted)?)
    }

    pub fn admit(&mut self, admitted: &BTreeSet<Admitted>) -> Result<(), RulesError> {
        match self {
            Rules::InTable { elements, .. } => Ok(elements.admit(admitted)?),
            Rules::Unavailable => Ok(()),
        }
    }

    pub fn remove(&mut self) -> Result<(), RulesError> {
        match self {
            Rules::InTable { elements, .. } => Ok(super::absent_is_fine(elements.delete_table())?),
            Rules::Unavailable => Ok(()),
        }
    }

    pub fn counters(&mut self) -> io::Result<Vec<RuleCounter>> {
        match self {
            Rules::InTable { elements, .. } => elements.counters(),
            Rules::Unavailable => Ok(Vec::new()),
        }
    }
}

/// Runs `nft` on JSON. The crate's own way to run it does not tell what it said.
pub(super) fn nft(arguments: &[&str], input: &str) -> Result<(), RulesError> {
    let arguments = [&["-j"], arguments].concat();
    let output =
        program::run("nft", &arguments, input.as_bytes()).map_err(RulesError::NoProgram)?;
    if output.status.success() {
        return Ok(());
    }
    // The first line names the fault, the rest repeats our input.
    let said = String::from_utf8_lossy(&output.stderr);
    Err(RulesError::Refused(said.lines().next().unwrap_or("it failed without a word").to_owned()))
}
