//! Takes the place of `https` in a program that was built without the feature `hosts-url`. `cli` has
//! already refused every URL there; this is for programs that run a tunnel through the library.

use std::time::Duration;

use super::url::shown;
use crate::engine::config::HostsUrl;

/// There are no certificate authorities.
pub enum Roots {}

pub fn roots(source: &HostsUrl) -> Result<Roots, String> {
    let url = shown(&source.url);
    Err(format!("{url} cannot be fetched: built without the cargo feature hosts-url"))
}

pub fn fetch(_: &HostsUrl, roots: Roots, _: Duration) -> Result<Vec<u8>, String> {
    match roots {}
}
