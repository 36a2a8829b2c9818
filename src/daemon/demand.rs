//! Checks that the datapath that was requested can do what the peers ask of it.

use super::Failure;
use crate::engine::config::{Config, DatapathChoice};

/// What a table or files of peers ask of a datapath.
#[derive(Debug, Clone, Default)]
pub struct Demand {
    /// How many remotes it has at most.
    pub remotes: usize,
    /// A peer that is to reach no other peer.
    pub isolated: Option<String>,
}

/// Checks that the datapath that was requested can do what is asked of it.
///
/// # Errors
/// When it cannot.
pub fn suits(config: &Config, demand: &Demand) -> Result<(), Failure> {
    let DatapathChoice::Only(datapath) = config.tunnel.datapath else { return Ok(()) };
    let (name, can) = (datapath.name(), datapath.capabilities());
    let most = can.most_remotes;
    if demand.remotes > most {
        let what = said(config, demand);
        return Err(Failure::Usage(format!(
            "--datapath {name}: {what}, and this datapath carries {most} at most; leave the option out"
        )));
    }
    match &demand.isolated {
        Some(isolated) if !can.isolates => Err(Failure::Usage(format!(
            "--datapath {name}: peer {isolated} has `isolate`, which needs the userspace datapath; \
             leave the option out"
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Says where the peers come from, and how many there are.
pub fn said(config: &Config, Demand { remotes, .. }: &Demand) -> String {
    match config.hub() {
        Some(_) => format!("the files of peers name {remotes} peers"),
        None => format!("the table of hosts has {remotes} remotes"),
    }
}
