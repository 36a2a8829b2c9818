//! The resolver carries what all parts of a configuration are made from. It checks at once that
//! this end of the tunnel uses every option that was given.

use super::error::UsageError;
use super::number::Number;
use super::peers::Peers;
use crate::cli::options::Options;
use crate::cli::options::attributes::{Misplaced, Role};
use crate::cli::secrets::Secrets;

/// The options as given, and what they have been found to mean so far.
pub struct Resolver<'a> {
    pub options: &'a Options,
    pub secrets: &'a Secrets,
    pub number: Number,
    pub peers: Peers,
    /// To be logged once logging is set up.
    pub warnings: Vec<String>,
}

/// Returns the number of the tunnel: only servers number their queues.
pub fn number_of(options: &Options, peers: &Peers) -> Number {
    let queue = match peers {
        Peers::Client | Peers::Clients(_) | Peers::Members(_) => options.queue_number,
        Peers::Server | Peers::Table(_) => None,
    };
    Number::new(options.number, queue)
}

impl<'a> Resolver<'a> {
    /// Starts with the options that this end of the tunnel uses, and warns of the others.
    ///
    /// # Errors
    /// When an option was given that this end has no use for, and that the first version did not
    /// take in silence either.
    pub fn new(
        options: &'a Options,
        secrets: &'a Secrets,
        peers: Peers,
    ) -> Result<Self, UsageError> {
        let number = number_of(options, &peers);
        let mut resolver = Resolver { options, secrets, number, peers, warnings: Vec::new() };
        let ignored = resolver.ignored()?;
        resolver.warn_of_ignored(ignored);
        Ok(resolver)
    }

    pub fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// Returns the options that were given and have no effect at this end.
    fn ignored(&self) -> Result<Vec<&'static str>, UsageError> {
        let mut ignored = Vec::new();
        for given in self.options.given.iter() {
            let option = given.attributes.name;
            match misplaced(given.attributes.role, &self.peers) {
                None => {}
                Some((_, Misplaced::Ignored)) if given.is_zero => {}
                Some((_, Misplaced::Ignored)) => ignored.push(option),
                Some((role, Misplaced::Refused)) => {
                    return Err(UsageError::OtherRole { option, role });
                }
            }
        }
        Ok(ignored)
    }

    fn warn_of_ignored(&mut self, ignored: Vec<&'static str>) {
        let mut names: Vec<_> = ignored.iter().map(|name| format!("--{name}")).collect();
        let has_secret = self.options.auth.auth_secret.is_some();
        let role = match self.peers {
            Peers::Members(_) => "a server",
            Peers::Client | Peers::Clients(_) => {
                if has_secret && self.options.auth.auth_remote_pubkey_b64.is_none() {
                    names.push("--auth-secret, without --auth-remote-pubkey-b64".to_owned());
                }
                "a server"
            }
            Peers::Server => {
                if has_secret && self.secrets.key.is_none() {
                    names.push("--auth-secret, without a key".to_owned());
                }
                "a client"
            }
            Peers::Table(_) => "a host of a table",
        };
        if !names.is_empty() {
            let names = names.join(", ");
            self.warn(format!("{names}: {role} has no use for it, and goes on without"));
        }
    }
}

/// Returns the end that an option of this role belongs to, and what happens to it, if our end is
/// another one.
fn misplaced(role: Role, peers: &Peers) -> Option<(&'static str, Misplaced)> {
    match (role, peers) {
        (Role::Both, _)
        | (Role::Server(_), Peers::Client | Peers::Clients(_) | Peers::Members(_))
        | (Role::Client(_), Peers::Server) => None,
        (Role::Server(otherwise), Peers::Server | Peers::Table(_)) => Some(("server", otherwise)),
        (
            Role::Client(otherwise),
            Peers::Client | Peers::Clients(_) | Peers::Table(_) | Peers::Members(_),
        ) => Some(("client", otherwise)),
    }
}
