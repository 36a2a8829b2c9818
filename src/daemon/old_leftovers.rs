//! Removes what an earlier process left of peers with the old program that are not named any more,
//! or have another key, secret, port or datapath now. Nothing guards these remains, and nothing
//! else would ever remove them.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use super::old::Base;
use super::old_settings::{self, STATE};
use super::{Settings, disk, leftovers, record};
use crate::engine::host::{Interface, is_labelled};
use crate::engine::links;
use crate::engine::peers_file::PeerEntry;
use crate::host::Links;
use crate::kernel::{listening_ports, tables};
use crate::tun::Owner;

/// Removes it. `entries` are all peers with the old program; `unix` is the time, in seconds.
pub async fn remove(base: &Base, entries: &[PeerEntry], unix: u64) {
    let parent = base.settings.state_dir.join(STATE);
    take_over_named(&base.settings, entries).await;
    let recorded = record::below(&parent).await;
    let stays = !base.datapath.capabilities().open_files;
    let wanted: BTreeMap<NonZeroU16, PathBuf> = (entries.iter())
        .filter(|entry| stays && entry.is_welcome(unix))
        .filter_map(|entry| {
            let old = entry.old()?;
            Some((old.port, old_settings::state_dir(&base.settings, entry, old)))
        })
        .collect();
    let goes_on = |port: &NonZeroU16| {
        wanted.get(port).is_some_and(|directory| recorded.get(directory) == Some(port))
    };
    let listening = listening_ports();
    let mut left: BTreeMap<NonZeroU16, PathBuf> = (recorded.iter())
        .filter(|(_, port)| listening.contains(&port.get()) && !goes_on(port))
        .map(|(directory, port)| (*port, directory.clone()))
        .collect();
    // The disk may have refused the record of what has a link.
    for port in linked(&base.settings).await.into_iter().filter(|p| !wanted.contains_key(p)) {
        left.entry(port).or_insert_with(|| parent.join(port.to_string()));
    }
    for (port, directory) in left {
        let Ok(settings) = old_settings::of_nobody(base, port, directory) else { continue };
        leftovers::remove(&settings, Owner::OldPeer(port)).await;
    }
    for table in tables() {
        let own = table.strip_prefix(&base.settings.tunnel().rules.table);
        let port = own.and_then(|rest| rest.strip_prefix('-')?.parse().ok());
        if let Some(port) = port.filter(|port| !wanted.contains_key(port)) {
            leftovers::remove_rules(&table, port);
        }
    }
}

/// The ports that our links have in their names.
async fn linked(settings: &Settings) -> Vec<NonZeroU16> {
    let Ok(links) = Links::open() else { return Vec::new() };
    let hub = &settings.tunnel().device;
    let port_of = |link: &Interface| {
        let port: NonZeroU16 = link.name.rsplit_once('_')?.1.parse().ok()?;
        let is_ours = is_labelled(link)
            && link.link_from(port.get()).is_some()
            && link.name == links::of_old_peer(hub, port).as_str();
        is_ours.then_some(port)
    };
    links.ipip().unwrap_or_default().iter().filter_map(port_of).collect()
}

/// Gives the memories that were kept by the names of peers the places that they have now.
async fn take_over_named(settings: &Settings, entries: &[PeerEntry]) {
    let parent = settings.state_dir.join(STATE);
    let places: Vec<(PathBuf, PathBuf)> = (entries.iter())
        .filter_map(|entry| {
            let old = entry.old()?;
            let place = old_settings::state_dir(settings, entry, old);
            Some((parent.join(entry.name.as_str()), place))
        })
        .collect();
    let moved = disk::wait(move || {
        let is_named =
            |(named, place): &&(PathBuf, PathBuf)| Path::is_dir(named) && !place.exists();
        for (named, place) in places.iter().filter(is_named) {
            std::fs::rename(named, place)?;
        }
        Ok(())
    });
    if let Err(error) = moved.await {
        tracing::warn!("{}: {error}: memories of old peers may be lost", parent.display());
    }
}
