//! What the plan for a few of many peers starts from.

use crate::engine::endpoint::{Endpoint, OuterFound};
use crate::engine::host::Found;
use crate::engine::host::plan::Owned;
use crate::engine::peers::{Changed, Peers};

/// The peers as they are now, what changed among them, and the host as it was before.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    pub endpoint: &'a Endpoint,
    pub outer: OuterFound,
    pub peers: &'a Peers,
    pub changed: &'a Changed,
    pub found: &'a Found,
    pub owned: &'a Owned,
}
