//! The form in which the replay memory is written to the disk. Older versions of the program read and
//! write the first four fields, and take a new version's file for one of theirs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::replay::{Gap, ReplayMemory};

type Messages = BTreeSet<Vec<u8>>;

#[derive(Serialize, Deserialize)]
struct OnDisk {
    /// The newest ordinary time, what was accepted of it, and in the seconds before.
    newest: u64,
    within: Messages,
    #[serde(default)]
    before: BTreeMap<u64, Messages>,
    #[serde(default)]
    span: u64,
    /// `None`: from an older version.
    floor: Option<u64>,
    /// What was accepted of later times.
    #[serde(default)]
    after: BTreeMap<u64, Messages>,
    #[serde(default)]
    crowded: Option<(u64, u64)>,
    #[serde(default)]
    offset: i64,
    #[serde(default)]
    far_offset: Option<i64>,
    #[serde(default)]
    not_before: u64,
}

impl Serialize for ReplayMemory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        OnDisk::from(self.clone()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ReplayMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        OnDisk::deserialize(deserializer).map(ReplayMemory::from)
    }
}

impl From<ReplayMemory> for OnDisk {
    fn from(memory: ReplayMemory) -> Self {
        let newest = match memory.span {
            Some(_) => memory.newest().unwrap_or(memory.floor),
            None => memory.floor,
        };
        let mut before = memory.accepted;
        let mut after = before.split_off(&newest);
        OnDisk {
            newest,
            within: after.remove(&newest).unwrap_or_default(),
            before,
            span: memory.span.unwrap_or(0),
            floor: Some(memory.floor),
            after,
            crowded: memory.crowded,
            offset: memory.offset,
            far_offset: memory.far_offset,
            not_before: memory.gap.before,
        }
    }
}

impl From<OnDisk> for ReplayMemory {
    fn from(disk: OnDisk) -> Self {
        let mut accepted = disk.before;
        accepted.extend(disk.after);
        if !disk.within.is_empty() {
            accepted.insert(disk.newest, disk.within);
        }
        let floor = disk.floor.unwrap_or(disk.newest.saturating_sub(disk.span));
        ReplayMemory {
            span: (disk.span > 0).then_some(disk.span),
            floor,
            accepted,
            crowded: disk.crowded,
            offset: disk.offset,
            far_offset: disk.far_offset,
            grown: false,
            gap: Gap { before: disk.not_before, around_start: None },
            old: disk.floor.is_none(),
        }
    }
}
