//! One peer as it is written, and what is wrong with it alone.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::fault::{Mistake, quoted};
use super::field::{self, Field};
use super::key::Unchecked;
use super::name::PeerName;
use super::reader::Reader;
use super::settings::Settings;
use super::{Origin, inside, key, value};
use crate::auth::Token;

/// A peer as far as it could be read: where something is missing, a fault says why.
#[derive(Debug)]
pub struct Draft {
    pub name: PeerName,
    pub origin: Origin,
    pub key: Option<Written<[u8; 32]>>,
    pub token: Option<Token>,
    /// The port of a peer with the old program.
    pub old: Option<Written<NonZeroU16>>,
    /// Our address as it knows it, with the old program.
    pub server_address: Option<Written<Ipv4Addr>>,
    pub addresses: Vec<Written<IpAddr>>,
    pub routes: Vec<Written<IpNet>>,
    pub settings: Settings,
    /// The lifetime that stands with the peer itself.
    pub own_lifetime: Option<Duration>,
    pub note: Option<String>,
}

/// A value, and the line it stands in.
#[derive(Debug, Clone, Copy)]
pub struct Written<T> {
    pub value: T,
    pub line: usize,
}

/// The fields of a peer while they are read.
#[derive(Default)]
struct Fields {
    key: Option<Written<[u8; 32]>>,
    token: Option<Token>,
    old: Option<Written<NonZeroU16>>,
    server_address: Option<Written<Ipv4Addr>>,
    addresses: Vec<Written<IpAddr>>,
    routes: Vec<Written<IpNet>>,
    settings: Settings,
    note: Option<String>,
    /// Whether there is something in the place of a key, a token, a port, or an address, right or wrong.
    has_key: bool,
    has_token: bool,
    has_old: bool,
    has_server_address: bool,
    has_address: bool,
}

/// Reads one peer. Of one with a bad name only the faults are kept.
pub fn read(
    reader: &mut Reader,
    name: &Spanned<DeString>,
    value: &DeValue,
    defaults: &Settings,
) -> Option<Draft> {
    let (at, written) = (name.span(), name.get_ref().as_ref());
    let Some(table) = value.as_table() else {
        let what = format!("{} below [peer] is {}", quoted(written), value::kind(value));
        let todo = "write [peer.NAME] once above the fields of each peer";
        reader.fault(at, None, Mistake::new(what, todo));
        return None;
    };
    let name = reader.kept(at.clone(), None, parse_name(written));
    let mut fields = read_fields(reader, name.as_ref(), table);
    missing(reader, at.clone(), name.as_ref(), &fields);
    let own_lifetime = fields.settings.lifetime();
    fields.settings = fields.settings.or(defaults);
    check_old(reader, at.clone(), name.as_ref(), &fields);
    let Fields { key, token, old, server_address, addresses, routes, settings, note, .. } = fields;
    let origin = reader.origin(at);
    Some(Draft {
        name: name?,
        origin,
        key,
        token,
        old,
        server_address,
        addresses,
        routes,
        settings,
        own_lifetime,
        note,
    })
}

fn parse_name(written: &str) -> Result<PeerName, Mistake> {
    written.parse().map_err(|why| {
        let near = written.to_lowercase().replace(' ', "-");
        let todo = match near.parse::<PeerName>() {
            Ok(name) => format!("did you mean {name}?"),
            Err(_) => "give the peer another name".to_owned(),
        };
        Mistake::new(format!("the name {} {why}", quoted(written)), todo)
    })
}

fn read_fields(reader: &mut Reader, peer: Option<&PeerName>, table: &DeTable) -> Fields {
    let mut fields = Fields::default();
    for (key, value) in table {
        match (Field::by_name(key.get_ref()), value.get_ref()) {
            (Some(field), _) => read_field(reader, peer, field, value, &mut fields),
            (None, DeValue::Table(_)) => {
                // [peer.a.b], and all that is missing belongs to "a.b".
                (fields.has_key, fields.has_address) = (true, true);
                let what = format!("{} is a table in another", quoted(key.get_ref()));
                let whole = peer.map(|peer| format!("{peer}.{}", key.get_ref()));
                let whole = whole.and_then(|name| name.parse::<PeerName>().ok());
                let whole = whole.as_ref().map_or("NAME.WITH.DOTS", PeerName::as_str);
                let todo = format!("a name with a dot in it needs quotes: [peer.\"{whole}\"]");
                reader.fault(key.span(), peer, Mistake::new(what, todo));
            }
            (
                None,
                DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_),
            ) => {
                let (mistake, meant) = field::unknown(key.get_ref());
                fields.has_key |= meant == Some(Field::PublicKey);
                fields.has_address |= meant == Some(Field::Address);
                reader.fault(key.span(), peer, mistake);
            }
        }
    }
    fields
}

fn read_field(
    reader: &mut Reader,
    peer: Option<&PeerName>,
    field: Field,
    value: &Spanned<DeValue>,
    fields: &mut Fields,
) {
    let (at, context) = (value.span(), reader.context);
    match field {
        Field::PublicKey => {
            fields.has_key = true;
            let own = context.own_public_key.as_ref();
            let key = value::text(field, value.get_ref());
            let key = key.and_then(|text| key::public_key(text, own));
            fields.key = written(reader, at.clone(), peer, key);
            let unchecked = fields.key.map(|key| Unchecked {
                key: key.value,
                origin: reader.origin(at),
                peer: peer.cloned(),
            });
            reader.findings.keys.extend(unchecked);
        }
        Field::Address => {
            for item in value::items(value) {
                fields.has_address = true;
                let address = value::text(field, item.get_ref());
                let address = address.and_then(|text| inside::address(text, context));
                fields.addresses.extend(written(reader, item.span(), peer, address));
            }
        }
        Field::Route => {
            for item in value::items(value) {
                let route = value::text(field, item.get_ref());
                let route = route.and_then(|text| inside::route(text, context));
                fields.routes.extend(written(reader, item.span(), peer, route));
            }
        }
        Field::Note => {
            let note = value::text(field, value.get_ref()).map(str::to_owned);
            fields.note = reader.kept(at, peer, note);
        }
        Field::Secret
        | Field::SecretFile
        | Field::Lifetime
        | Field::Expires
        | Field::Enabled
        | Field::Isolate => {
            let set = fields.settings.set(field, value.get_ref(), reader.secrets);
            reader.kept(at, peer, set);
        }
        Field::TokenFile => {
            fields.has_token = true;
            let path = value::text(field, value.get_ref());
            let token = path.and_then(|path| reader.secrets.token_in(path));
            fields.token = reader.kept(at, peer, token);
        }
        Field::Old => {
            fields.has_old = true;
            let port = value::port(value.get_ref(), context.port);
            fields.old = written(reader, at, peer, port);
        }
        Field::ServerAddress => {
            fields.has_server_address = true;
            let address = value::text(field, value.get_ref());
            let address = address.and_then(inside::server_address);
            fields.server_address = written(reader, at, peer, address);
        }
    }
}

fn written<T>(
    reader: &mut Reader,
    at: Range<usize>,
    peer: Option<&PeerName>,
    value: Result<T, Mistake>,
) -> Option<Written<T>> {
    let line = reader.lines.at(at.start);
    reader.kept(at, peer, value).map(|value| Written { value, line })
}

/// Says what a peer cannot do without.
fn missing(reader: &mut Reader, at: Range<usize>, peer: Option<&PeerName>, fields: &Fields) {
    if !(fields.has_key || fields.has_token) {
        let mistake = Mistake::new("it has no `public-key`", key::GIVE);
        reader.fault(at.clone(), peer, mistake);
    }
    if !fields.has_address {
        let what = "it has no `address`, so it could neither send nor receive";
        let todo = format!("give it one of {}", reader.context.network.trunc());
        reader.fault(at, peer, Mistake::new(what, todo));
    }
}

/// Says what does not go together where only one of two peers runs the old program.
fn check_old(reader: &mut Reader, at: Range<usize>, peer: Option<&PeerName>, fields: &Fields) {
    let mut say = |what: &str, todo: &str| {
        reader.fault(at.clone(), peer, Mistake::new(what.to_owned(), todo));
    };
    if fields.has_token && fields.has_key {
        say("it has a `public-key` and a `token-file`", "leave out the one that it does not use");
    }
    if !fields.has_old {
        if fields.has_server_address {
            say(
                "it has a `server-address` and no `old`, and other peers know the server's own",
                "leave it out",
            );
        }
        if fields.has_token {
            say(
                "it has a `token-file` and no `old`, and only peers with the old program have tokens",
                "add `old = PORT`, the port that it sends to, or give it a `public-key` instead",
            );
        }
        return;
    }
    if fields.settings.isolate() {
        say("it has `old` and `isolate`", "leave `isolate` out: it is for peers without `old`");
    }
    let is_v4 = |address: &IpAddr| address.is_ipv4();
    let (v4, all) = (
        fields.addresses.iter().filter(|address| is_v4(&address.value)).count(),
        fields.addresses.len(),
    );
    if all > 1 || all != v4 {
        say("it has `old`, so its `address` is one IPv4 address", "leave the others out");
    }
    if fields.routes.iter().any(|route| matches!(route.value, IpNet::V6(_))) {
        say("it has `old`, so its `route` holds IPv4 networks only", "leave the others out");
    }
}
