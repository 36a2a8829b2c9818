//! A host table as it is written: the shape of the JSON, before anything in it is looked at.
//!
//! It is written by hand because what serde derives would let the last of two equal keys win, and would
//! refuse comments.

use std::fmt;
use std::num::NonZeroU16;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Unexpected,
    Visitor,
};

/// A node as it is written.
#[derive(Debug, serde::Serialize)]
pub struct Written {
    pub host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
}

/// The nodes as they are written, in the order of the file. At node number `stop_at` there is an
/// error instead, which tells where that node is.
pub fn read(text: &str, stop_at: Option<usize>) -> serde_json::Result<Vec<(String, Written)>> {
    let mut json = serde_json::Deserializer::from_str(text);
    let nodes = Document { stop_at }.deserialize(&mut json)?;
    json.end()?;
    Ok(nodes)
}

/// The line of a node of a text that could be read.
pub fn line_of(text: &str, node: usize) -> usize {
    read(text, Some(node)).map_or_else(|e| e.line(), |_| 1)
}

/// The whole file.
struct Document {
    stop_at: Option<usize>,
}

impl<'de> DeserializeSeed<'de> for Document {
    type Value = Vec<(String, Written)>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document {
    type Value = Vec<(String, Written)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table: {\"nodes\": {…}}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut nodes = None;
        while let Some(field) = map.next_key::<String>()? {
            match field.as_str() {
                "nodes" => {
                    let read = map.next_value_seed(Nodes { stop_at: self.stop_at })?;
                    once(&mut nodes, "nodes", read)?;
                }
                _ => comment(&field, &mut map)?,
            }
        }
        nodes.ok_or_else(|| A::Error::missing_field("nodes"))
    }
}

struct Nodes {
    stop_at: Option<usize>,
}

impl<'de> DeserializeSeed<'de> for Nodes {
    type Value = Vec<(String, Written)>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Nodes {
    type Value = Vec<(String, Written)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the nodes: {\"ADDRESS\": {\"host\": …}, …}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if self.stop_at == Some(nodes.len()) {
                return Err(A::Error::custom("this node"));
            }
            nodes.push((key, map.next_value()?));
        }
        Ok(nodes)
    }
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a node: {\"host\": …, \"port\": …}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Written, A::Error> {
                let (mut host, mut port) = (None, None);
                while let Some(field) = map.next_key::<String>()? {
                    match field.as_str() {
                        "host" => once(&mut host, "host", map.next_value()?)?,
                        "port" => once(&mut port, "port", map.next_value::<Port>()?.0)?,
                        _ => comment(&field, &mut map)?,
                    }
                }
                Ok(Written { host: host.ok_or_else(|| A::Error::missing_field("host"))?, port })
            }
        }
        json.deserialize_map(Fields)
    }
}

struct Port(NonZeroU16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port (1..65535)")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Port, E> {
                let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
                port.map(Port).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
            }
        }
        json.deserialize_u64(Number)
    }
}

fn once<T, E: serde::de::Error>(
    place: &mut Option<T>,
    field: &'static str,
    value: T,
) -> Result<(), E> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(E::duplicate_field(field)),
    }
}

fn comment<'de, A: MapAccess<'de>>(field: &str, map: &mut A) -> Result<(), A::Error> {
    match field.starts_with('_') {
        true => map.next_value::<IgnoredAny>().map(|_| ()),
        false => Err(A::Error::custom(format_args!("unknown field {field:?}"))),
    }
}
