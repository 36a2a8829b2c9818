//! The links of a server with many peers: its own, and one for each peer with the old program.

use std::num::NonZeroU16;

use crate::engine::config::DeviceName;
use crate::engine::table::nodes::shortened;

/// The link to a peer with the old program: unlike those to other peers, it has its port in its name. A name
/// of the server's that is too long for that is told from others that begin like it by a few digits.
pub fn of_old_peer(hub: &DeviceName, port: NonZeroU16) -> DeviceName {
    let suffix = format!("_{port}");
    let name = shortened(hub, DeviceName::MAX_LEN - suffix.len());
    format!("{name}{suffix}").parse().unwrap_or_else(|_| hub.clone())
}

/// Whether a link of this name is one of those of the server whose own has the name `hub`.
pub fn is_of_server(name: &str, hub: &DeviceName) -> bool {
    let port = || name.rsplit_once('_')?.1.parse().ok();
    name == hub.as_str() || port().is_some_and(|port| of_old_peer(hub, port).as_str() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_that_begin_alike_have_links_of_their_own() {
        let port = NonZeroU16::new(10003).unwrap();
        let link = |hub: &str| of_old_peer(&hub.parse().unwrap(), port).as_str().to_owned();
        assert_eq!(link("ipipou0"), "ipipou0_10003");
        assert_eq!(link("ninechars"), "ninechars_10003");
        let (a, b) = (link("longtunnel-a"), link("longtunnel-b"));
        assert_ne!(a, b);
        for long in [a, b] {
            assert_eq!(long.len(), DeviceName::MAX_LEN);
            assert!(long.starts_with("longt") && long.ends_with("_10003"), "{long}");
        }
    }

    #[test]
    fn a_servers_links_are_told_from_those_of_others() {
        for hub in ["ipipou0", "longtunnel-a"] {
            let hub: DeviceName = hub.parse().unwrap();
            let old = of_old_peer(&hub, NonZeroU16::new(10003).unwrap());
            assert!(is_of_server(hub.as_str(), &hub) && is_of_server(old.as_str(), &hub), "{old}");
            for other in ["ipipou1", "ipipou1_10003", "ipipou0_", "ipipou0_0", "ipipou0_x", "x_1"] {
                assert!(!is_of_server(other, &hub), "{other}");
            }
        }
    }
}
