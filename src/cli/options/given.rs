//! Records which options were given, so that rules about them can be checked by their attributes.

use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::attributes::Attributes;

/// The options that were given and count, in the order of the tables of attributes.
#[derive(Debug, Clone, Default)]
pub struct Given {
    options: Vec<GivenOption>,
    /// Flags that a later one of the opposite meaning undid, each with that one.
    undone: Vec<(&'static str, &'static str)>,
}

/// An option that was given.
#[derive(Debug, Clone, Copy)]
pub struct GivenOption {
    pub attributes: &'static Attributes,
    /// Whether its value is zero seconds, which asks for nothing.
    pub is_zero: bool,
    /// Whether its value must not be read by other users.
    pub is_secret: bool,
}

impl Given {
    pub fn new(matches: &ArgMatches, tables: impl Iterator<Item = &'static Attributes>) -> Self {
        let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let place = |id: &str| matches.indices_of(id).and_then(Iterator::last);
        let mut given = Given::default();
        for attributes in tables {
            let id = attributes.id();
            if !is_given(&id) {
                continue;
            }
            if let Some(opposite) = attributes.opposite {
                let other = opposite.replace('-', "_");
                if is_given(&other) && place(&id) < place(&other) {
                    given.undone.push((attributes.name, opposite));
                    continue;
                }
            }
            let seconds: Option<&Duration> = matches.try_get_one(&id).ok().flatten();
            let mut values = matches.get_raw(&id).into_iter().flatten();
            given.options.push(GivenOption {
                attributes,
                is_zero: seconds.is_some_and(Duration::is_zero),
                is_secret: values
                    .any(|value| attributes.secrecy.is_secret(value.as_encoded_bytes())),
            });
        }
        given
    }

    pub fn iter(&self) -> impl Iterator<Item = &GivenOption> {
        self.options.iter()
    }

    pub fn has(&self, name: &str) -> bool {
        self.options.iter().any(|given| given.attributes.name == name)
    }

    /// Returns the name of the first given option whose attributes fulfil `is_like`.
    pub fn first(&self, is_like: impl Fn(&Attributes) -> bool) -> Option<&'static str> {
        let mut given = self.options.iter().map(|given| given.attributes);
        given.find(|attributes| is_like(attributes)).map(|attributes| attributes.name)
    }

    /// Returns the warnings about flags that were undone.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let warn = |(undone, last): &(_, _)| {
            format!("--{undone} and --{last}: the last one counts, --{last}")
        };
        self.undone.iter().map(warn)
    }

    /// Returns the names of options whose values other users must not read.
    pub fn secrets(&self) -> impl Iterator<Item = &'static str> {
        let secret = self.options.iter().filter(|given| given.is_secret);
        secret.map(|given| given.attributes.name)
    }
}
