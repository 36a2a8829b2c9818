//! A record of what the parts of this tunnel are recognised by. Who edits its number or its interface's name
//! while no process runs leaves parts on the host that the new configuration does not know: by the record, the
//! next process gives them back.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Settings;
use super::disk;
use crate::engine::host::Identity;
use crate::host::atomic_file::replace;
use crate::host::{Lock, namespace, of_interface, of_table, remove_gateway_rules};
use crate::kernel;

const FILE: &str = "parts";
/// How many are kept, should none of them ever be given back.
const MOST: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    /// The network namespace, of one start of the machine, which has them.
    of: String,
    tunnels: Vec<Identity>,
}

/// What this tunnel was before, if something of that may be left here, and no other tunnel has it now.
pub async fn read(settings: &Settings) -> Vec<Identity> {
    let path = settings.state_dir.join(FILE);
    let own = Identity::of(settings.tunnel());
    let text = disk::in_turn(&path.clone(), move || fs::read(path)).await;
    let recorded: Option<Recorded> = text.ok().and_then(|text| serde_json::from_slice(&text).ok());
    let here = namespace::identity();
    let Some(recorded) = recorded.filter(|recorded| Some(&recorded.of) == here.as_ref()) else {
        return Vec::new();
    };
    let is_others = |former: &Identity| {
        (former.device != own.device && Lock::is_held(&of_interface(&former.device)))
            || (former.table != own.table && Lock::is_held(&of_table(&former.table)))
    };
    let former = recorded.tunnels.into_iter();
    former.filter(|former| *former != own && !is_others(former)).take(MOST).collect()
}

/// Writes what the tunnel is now, and what it was.
///
/// # Errors
/// When the directory cannot be written, or the disk does not answer.
pub async fn write(settings: &Settings, former: &[Identity]) -> io::Result<()> {
    let path = settings.state_dir.join(FILE);
    let Some(of) = namespace::identity() else { return Ok(()) };
    let own = Identity::of(settings.tunnel());
    let tunnels = [own].into_iter().chain(former.iter().cloned()).collect();
    disk::in_turn(&path.clone(), move || {
        let text = serde_json::to_vec(&Recorded { of, tunnels })?;
        match fs::read(&path) {
            Ok(before) if before == text => Ok(()),
            Ok(_) | Err(_) => replace(&path, &text),
        }
    })
    .await
}

/// Removes the record: nothing is left on the host.
pub async fn remove(state_dir: &Path) {
    let path = state_dir.join(FILE);
    let _ = disk::in_turn(&path.clone(), move || fs::remove_file(path)).await;
}

/// Removes the nftables tables of what the tunnel was. Whether none of them is left.
pub fn remove_tables(settings: &Settings, former: &[Identity]) -> bool {
    let own = &settings.tunnel().rules.table;
    let goes =
        |former: &&Identity| former.table != *own && !Lock::is_held(&of_table(&former.table));
    let tables = former.iter().filter(goes).map(|former| {
        let gateway = former.gateway_table();
        let of_gateway = remove_gateway_rules(&gateway);
        let of_tunnel = kernel::remove_rules(&former.table, former.port.get());
        [(gateway, of_gateway), (former.table.clone(), of_tunnel)]
    });
    let mut all_gone = true;
    for (table, removed) in tables.flatten() {
        match removed {
            Ok(true) => tracing::info!("removed the nft table {table} of the former configuration"),
            Ok(false) => {}
            Err(why) => {
                all_gone = false;
                tracing::warn!("the nft table {table} of the former configuration stays: {why}");
            }
        }
    }
    all_gone
}
