//! One peers file, by its tables.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::fault::{Mistake, quoted, shortened};
use super::field::{self, Field};
use super::lines::Lines;
use super::peer::{self, Draft};
use super::reader::{Findings, Reader};
use super::secrets::Secrets;
use super::settings::Settings;
use super::{Context, SourceFile, syntax, value};

/// Reads the peers of a file, in the order of its lines, and adds what is wrong with it, and the keys
/// that are to be checked.
pub fn read<'c>(
    file: &SourceFile,
    context: &Context<'c>,
    secrets: &mut Secrets<'c>,
    findings: &mut Findings,
) -> Vec<Draft> {
    let (document, errors) = DeTable::parse_recoverable(&file.text);
    let mut reader = Reader {
        file,
        name: file.name.as_str().into(),
        lines: Lines::of(&file.text),
        context,
        secrets,
        findings,
    };
    if !errors.is_empty() {
        syntax::faults(&mut reader, &errors);
        return Vec::new();
    }
    let mut drafts = tables(&mut reader, document.get_ref());
    drafts.sort_by_key(|draft| draft.origin.line);
    drafts
}

fn tables(reader: &mut Reader, document: &DeTable) -> Vec<Draft> {
    let defaults = document.get_key_value("defaults");
    let defaults = defaults.map(|(key, value)| settings(reader, key.span(), value.get_ref()));
    let defaults = defaults.unwrap_or_default();
    let mut drafts = Vec::new();
    for (key, value) in document {
        match key.get_ref().as_ref() {
            "defaults" => {}
            "peer" => drafts = peers(reader, key.span(), value.get_ref(), &defaults),
            other => reader.fault(key.span(), None, unknown(other, value.get_ref())),
        }
    }
    drafts
}

/// Reads `[defaults]`.
fn settings(reader: &mut Reader, at: Range<usize>, value: &DeValue) -> Settings {
    let mut settings = Settings::default();
    let Some(table) = value.as_table() else {
        let what = format!("`defaults` is {}", value::kind(value));
        let todo = "write [defaults], and the fields below it";
        reader.fault(at, None, Mistake::new(what, todo));
        return settings;
    };
    for (key, value) in table {
        match Field::by_name(key.get_ref()) {
            Some(field) if field.has_default() => {
                let set = settings.set(field, value.get_ref(), reader.secrets);
                reader.kept(value.span(), None, set);
            }
            Some(field) => {
                let what = format!("`{}` stands in [defaults]", field.name());
                let todo = "write it below [peer.NAME], as it belongs to one peer";
                reader.fault(key.span(), None, Mistake::new(what, todo));
            }
            None => reader.fault(key.span(), None, field::unknown(key.get_ref()).0),
        }
    }
    settings
}

fn peers(
    reader: &mut Reader,
    at: Range<usize>,
    value: &DeValue,
    defaults: &Settings,
) -> Vec<Draft> {
    let Some(table) = value.as_table() else {
        let what = format!("`peer` is {}", value::kind(value));
        let todo = "write [peer.NAME] once above the fields of each peer";
        reader.fault(at, None, Mistake::new(what, todo));
        return Vec::new();
    };
    let read = |(name, value): (&_, &toml::Spanned<DeValue>)| {
        peer::read(reader, name, value.get_ref(), defaults)
    };
    table.iter().filter_map(read).collect()
}

/// What stands outside of the two tables that there are.
fn unknown(name: &str, value: &DeValue) -> Mistake {
    const TABLES: &str = "a peers file has [defaults], and [peer.NAME] for each peer";
    let is_table = value.is_table() || value.is_array();
    let is_field = Field::by_name(name).or(field::unknown(name).1).is_some();
    match is_table {
        false if is_field => {
            let what = format!("{} belongs to no peer", quoted(name));
            Mistake::new(what, "write it below [peer.NAME], or below [defaults]")
        }
        false => Mistake::new(format!("unknown field {}", quoted(name)), TABLES),
        true => {
            let todo = match name.to_lowercase().trim_end_matches('s') {
                "peer" => "write [peer.NAME] once above the fields of each peer".to_owned(),
                "default" => "did you mean [defaults]?".to_owned(),
                "interface" => {
                    format!("the server's own options stand in its .conf file; {TABLES}")
                }
                _ => TABLES.to_owned(),
            };
            Mistake::new(format!("unknown table [{}]", shortened(name)), todo)
        }
    }
}
