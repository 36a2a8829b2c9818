//! The fields of a peer, and what other programs call them.

use strsim::osa_distance;

use super::fault::{Mistake, quoted};

/// What can be said of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    PublicKey,
    TokenFile,
    Address,
    Route,
    Secret,
    SecretFile,
    Lifetime,
    Expires,
    Enabled,
    Isolate,
    Old,
    ServerAddress,
    Note,
}

impl Field {
    /// All of them, the usual ones first.
    const ALL: [Field; 13] = [
        Field::PublicKey,
        Field::Address,
        Field::Route,
        Field::Secret,
        Field::SecretFile,
        Field::Lifetime,
        Field::Expires,
        Field::Enabled,
        Field::Isolate,
        Field::Note,
        Field::TokenFile,
        Field::Old,
        Field::ServerAddress,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Field::PublicKey => "public-key",
            Field::TokenFile => "token-file",
            Field::Address => "address",
            Field::Route => "route",
            Field::Secret => "secret",
            Field::SecretFile => "secret-file",
            Field::Lifetime => "lifetime",
            Field::Expires => "expires",
            Field::Enabled => "enabled",
            Field::Isolate => "isolate",
            Field::Old => "old",
            Field::ServerAddress => "server-address",
            Field::Note => "note",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }

    /// Whether it can stand in `[defaults]`.
    pub fn has_default(self) -> bool {
        match self {
            Field::Secret
            | Field::SecretFile
            | Field::Lifetime
            | Field::Expires
            | Field::Enabled
            | Field::Isolate => true,
            Field::PublicKey
            | Field::TokenFile
            | Field::Address
            | Field::Route
            | Field::Old
            | Field::ServerAddress
            | Field::Note => false,
        }
    }
}

/// What other programs and other spellings call a field, in small letters and without hyphens.
const ALSO: [(Field, &[&str]); 9] = [
    (Field::PublicKey, &["pubkey", "key", "peerpublickey"]),
    (Field::Address, &["ip", "ips", "addr", "addresses", "inner", "tunlip"]),
    (Field::Route, &["routes", "network", "networks", "subnet", "subnets"]),
    (Field::Secret, &["presharedkey", "psk", "authsecret", "sharedsecret"]),
    (Field::SecretFile, &["presharedkeyfile", "authsecretfile"]),
    (Field::Lifetime, &["lease", "authlifetime", "timeout", "ttl"]),
    (Field::Expires, &["expire", "expiry", "until", "validuntil"]),
    (Field::Enabled, &["enable", "disabled", "disable", "active"]),
    (Field::Note, &["comment", "description", "remark"]),
];

/// What has no field here, and why.
const NOWHERE: [(&[&str], &str); 4] = [
    (
        &["endpoint", "remote", "host", "foremoteip", "fouremoteip", "fouremoteport"],
        "leave it out, the server learns from a peer's hellos where it is",
    ),
    (
        &["persistentkeepalive", "keepalive"],
        "leave it out, a client's own --keepalive says how often it sends a hello",
    ),
    (&["privatekey", "privkey"], "leave it out, only the peer itself has its private key"),
    (&["name", "id"], "leave it out, a peer's name stands in the head of its table, [peer.NAME]"),
];

/// Says what an unknown field is called here, and which field it stands for, if it does.
pub fn unknown(name: &str) -> (Mistake, Option<Field>) {
    let (todo, meant) = advice(name);
    (Mistake::new(format!("unknown field {}", quoted(name)), todo), meant)
}

fn advice(name: &str) -> (String, Option<Field>) {
    let plain = |text: &str| text.to_lowercase().replace(['-', '_', ' '], "");
    let short = plain(name);
    if short == "allowedips" || short == "allowedip" {
        let todo =
            "it is `address` for the peer's own addresses, and `route` for networks behind it";
        return (todo.to_owned(), Some(Field::Address));
    }
    if let Some((_, why)) = NOWHERE.iter().find(|(names, _)| names.contains(&short.as_str())) {
        return ((*why).to_owned(), None);
    }
    let spelt = Field::ALL.into_iter().find(|field| plain(field.name()) == short);
    let other = ALSO.iter().find(|(_, names)| names.contains(&short.as_str()));
    if let Some(field) = spelt.or(other.map(|(field, _)| *field)) {
        return (format!("it is `{}` here", field.name()), Some(field));
    }
    let distance = |field: Field| osa_distance(&name.to_lowercase(), field.name());
    let nearest = Field::ALL.into_iter().min_by_key(|field| distance(*field));
    match nearest.filter(|field| distance(*field) <= (field.name().len() / 3).max(1)) {
        Some(field) => (format!("did you mean `{}`?", field.name()), Some(field)),
        None => {
            let names = Field::ALL.map(Field::name).join(", ");
            (format!("the fields are {names}"), None)
        }
    }
}
