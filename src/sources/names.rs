//! Looks up the server's name again and again, because servers move.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use crate::engine::config::HostName;

/// The number of a server, and the addresses of its name.
pub type LookedUp = (usize, Vec<IpAddr>);

/// The pause between two lookups.
const EVERY: Duration = Duration::from_secs(60);
/// The pause after a lookup that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Looks a host up once.
///
/// # Errors
/// When the resolver fails, or has no address.
pub async fn look_up(host: &HostName) -> io::Result<Vec<IpAddr>> {
    let name = match host {
        HostName::Address(address) => return Ok(vec![*address]),
        HostName::Name(name) => name,
    };
    let answers = tokio::net::lookup_host((name.as_str(), 0)).await?;
    let found: Vec<_> = answers.map(|address| address.ip()).collect();
    match found.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "it has no address")),
        false => Ok(found),
    }
}

/// Sends every answer to `answers`, for the server with this number, until the receiver is dropped. `now` requests a lookup at once.
pub async fn keep_looking(
    number: usize,
    name: String,
    answers: mpsc::Sender<LookedUp>,
    now: &Notify,
) {
    let host = HostName::Name(name.clone());
    let mut told = false;
    loop {
        let pause = match look_up(&host).await {
            Ok(addresses) => {
                told = false;
                if answers.send((number, addresses)).await.is_err() {
                    return;
                }
                EVERY
            }
            Err(e) => {
                if !told {
                    tracing::warn!("cannot look up {name}: {e}; trying again");
                }
                told = true;
                RETRY
            }
        };
        let _ = tokio::time::timeout(pause, now.notified()).await;
    }
}
