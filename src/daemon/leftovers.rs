//! Removes what a process that was killed left of the kernel's datapath, where the next one has no
//! use for it.

use std::num::NonZeroU16;

use super::process::{Kept, Process};
use super::{Failure, Settings, record};
use crate::engine::config::Datapath;
use crate::kernel::{self, listening_ports};
use crate::tun::Owner;

/// Removes what a process of this tunnel left of the kernel's datapath, if its record shows a listener that is
/// there: the tunnel is to have another datapath, and perhaps another port. Rules that guard nothing any more go,
/// too.
pub async fn remove_of_kernel(settings: &Settings, owner: Owner) {
    let port = settings.tunnel().port;
    if let Some(recorded) = record::port(&settings.state_dir, port).await
        && listening_ports().contains(&recorded.get())
    {
        remove(settings, owner).await;
    }
    remove_rules(&settings.tunnel().rules.table, port);
}

/// Removes rules that were left alone: somebody has removed the listener and the link, by hand or by a start of
/// the machine's network, and the rules would keep the data of another datapath out. Ours are known by the name
/// of their table and the port in them.
pub fn remove_rules(table: &str, port: NonZeroU16) {
    if listening_ports().contains(&port.get()) {
        return;
    }
    match kernel::remove_rules(table, port.get()) {
        Ok(true) => tracing::info!("removed the nft table {table} that an earlier process left"),
        Ok(false) => {}
        Err(why) => {
            tracing::warn!("the nft table {table} that an earlier process left stays: {why}")
        }
    }
}

/// Removes what is left of a tunnel with the kernel's datapath: link, listener and rules. Another process that
/// runs it keeps it.
pub async fn remove(settings: &Settings, owner: Owner) {
    let device = &settings.tunnel().device;
    match try_remove(settings, owner).await {
        Ok(()) => tracing::info!("removed what an earlier process left of {device}"),
        Err(why) => tracing::warn!("what an earlier process left of {device} stays: {why}"),
    }
}

async fn try_remove(settings: &Settings, owner: Owner) -> Result<(), Failure> {
    let mut kept = Kept::default();
    let mut process = Process::open_on(settings, Datapath::Kernel, (owner, &mut kept)).await?;
    process.remove_leftovers().await
}
