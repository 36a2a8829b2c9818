//! Changes the text of a peers file, for `ipipou peer add` and the like: comments, order and everything
//! else stay as they are.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use toml::de::DeValue;
use toml_edit::{Array, DocumentMut, Item, Key, Table, value};

use super::value::{Expiry, expires, written};
use super::{PeerEntry, PeerName};
use crate::auth::key_text;

/// What is to become of the files of peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// One peer more.
    Add(NewPeer),
    /// These may come in again.
    Enable(Vec<PeerName>),
    /// These may not come in.
    Disable(Vec<PeerName>),
    /// These are not named any more.
    Remove(Vec<PeerName>),
}

/// A peer that is to be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPeer {
    /// Its name.
    pub name: PeerName,
    /// Its ed25519 public key; `None`: a pair is made for it.
    pub public_key: Option<[u8; 32]>,
    /// Its own addresses; none: those that are free in the server's pool.
    pub addresses: Vec<IpAddr>,
    /// Networks behind it.
    pub routes: Vec<IpNet>,
    /// Its last day, or a time, as TOML has it.
    pub expires: Option<String>,
    /// Where its own configuration is to be written.
    pub client_conf: Option<ClientConf>,
}

/// A file that a client is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConf {
    /// Where it is written.
    pub path: PathBuf,
    /// Name or address of the server, as clients reach it; `None`: it is to be filled in.
    pub server: Option<String>,
}

impl NewPeer {
    /// The text that names it, with this public key.
    pub fn text(&self, public_key: &[u8; 32]) -> String {
        let mut fields = Table::new();
        fields.insert("public-key", value(key_text(public_key)));
        let many = |values: Vec<String>| match values.as_slice() {
            [one] => value(one.as_str()),
            many => value(many.iter().collect::<Array>()),
        };
        fields.insert("address", many(self.addresses.iter().map(ToString::to_string).collect()));
        if !self.routes.is_empty() {
            fields.insert("route", many(self.routes.iter().map(ToString::to_string).collect()));
        }
        let mut text = format!("[peer.{}]\n{fields}", Key::new(self.name.as_str()).display_repr());
        if let Some(expires) = &self.expires {
            text += &format!("expires = {expires}\n");
        }
        text
    }

    /// What a peer of this name has otherwise than is asked for, a phrase each. An address and a time that
    /// are not given may be any.
    pub fn differences(&self, there: &PeerEntry) -> Vec<String> {
        let mut found = Vec::new();
        let mut say = |field: &str, has: String, asked: String| {
            found.push(format!("its `{field}` is {has}, not {asked}"));
        };
        let has = there.public_key();
        if let Some(asked) = self.public_key.filter(|asked| has != Some(asked)) {
            say("public-key", shown_key(there), key_text(&asked));
        }
        if let Some(old) = there.old() {
            say("old", old.port.to_string(), NONE.to_owned());
        }
        if !self.addresses.is_empty() && there.addresses != self.addresses {
            say("address", listed(&there.addresses), listed(&self.addresses));
        }
        if there.routes != self.routes {
            say("route", listed(&there.routes), listed(&self.routes));
        }
        if let Some(asked) = &self.expires
            && !expires_at(there, asked)
        {
            say("expires", written(there.expires), asked.clone());
        }
        found
    }
}

/// What stands in messages for something that is not there.
const NONE: &str = "none";

/// The public key of a peer, for messages.
pub fn shown_key(peer: &PeerEntry) -> String {
    peer.public_key().map_or_else(|| NONE.to_owned(), key_text)
}

fn listed(values: &[impl ToString]) -> String {
    match values {
        [] => NONE.to_owned(),
        values => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// Whether a peer expires when this text says, which may be no time at all.
fn expires_at(peer: &PeerEntry, text: &str) -> bool {
    let value = DeValue::parse(text).ok();
    let asked = value.and_then(|value| expires(value.get_ref()).ok());
    asked == Some(peer.expires.map_or(Expiry::Never, Expiry::At))
}

/// The text in which `enabled` of a peer is this; `None`: it does not name the peer.
pub fn set_enabled(text: &str, name: &PeerName, enabled: bool) -> Option<String> {
    let mut document: DocumentMut = text.parse().ok()?;
    let peer = document.get_mut("peer")?.get_mut(name.as_str())?.as_table_like_mut()?;
    match peer.get_mut("enabled").and_then(Item::as_value_mut) {
        Some(before) => {
            let around = before.decor().clone();
            *before = enabled.into();
            *before.decor_mut() = around;
        }
        None => drop(peer.insert("enabled", value(enabled))),
    }
    Some(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# Shops.
[peer.anna]   # Eva knows
public-key = \"x\"
enabled = true # for now

[peer.\"b.ob\"]
public-key = \"y\"
# the last line
";

    fn name(text: &str) -> PeerName {
        text.parse().unwrap()
    }

    #[test]
    fn a_change_leaves_comments_and_others_alone() {
        let disabled = set_enabled(TEXT, &name("anna"), false).unwrap();
        assert_eq!(disabled, TEXT.replace("= true # for now", "= false # for now"));
        assert_eq!(set_enabled(&disabled, &name("anna"), true).unwrap(), TEXT);
        let disabled = set_enabled(TEXT, &name("b.ob"), false).unwrap();
        let added = "public-key = \"y\"\nenabled = false\n# the last line";
        assert_eq!(disabled, TEXT.replace("public-key = \"y\"\n# the last line", added));
        assert_eq!(set_enabled(TEXT, &name("b"), false), None);
    }

    #[test]
    fn a_new_peer_is_written_as_a_person_would() {
        let peer = NewPeer {
            name: name("b.ob"),
            public_key: None,
            addresses: vec!["10.8.0.8".parse().unwrap(), "fd00::8".parse().unwrap()],
            routes: vec!["192.168.7.0/24".parse().unwrap()],
            expires: Some("2027-01-31".to_owned()),
            client_conf: None,
        };
        let key = "A".repeat(43) + "=";
        assert_eq!(
            peer.text(&[0; 32]),
            format!(
                "[peer.\"b.ob\"]\npublic-key = \"{key}\"\naddress = [\"10.8.0.8\", \"fd00::8\"]\n\
                 route = \"192.168.7.0/24\"\nexpires = 2027-01-31\n"
            )
        );
    }
}
