//! What a peer may leave to the defaults of its file.

use std::time::Duration;

use toml::de::DeValue;

use super::fault::Mistake;
use super::field::Field;
use super::secrets::{self, Secrets};
use super::value::{self, Expiry};
use crate::auth::SharedSecret;

/// The lease of a peer for which nothing else is written.
const LEASE: Duration = Duration::from_secs(180);

/// What one table says.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    secret: Option<SharedSecret>,
    lifetime: Option<Duration>,
    expires: Option<Expiry>,
    enabled: Option<bool>,
    isolate: Option<bool>,
}

impl Settings {
    /// Takes one field of a table. One that has no default is not taken.
    pub fn set(
        &mut self,
        field: Field,
        value: &DeValue,
        secrets: &mut Secrets,
    ) -> Result<(), Mistake> {
        match field {
            Field::Secret => {
                self.set_secret(value::text(field, value).and_then(secrets::written)?)?;
            }
            Field::SecretFile => {
                let path = value::text(field, value)?;
                self.set_secret(secrets.in_file(path)?)?;
            }
            Field::Lifetime => self.lifetime = Some(value::lifetime(value)?),
            Field::Expires => self.expires = Some(value::expires(value)?),
            Field::Enabled => self.enabled = Some(value::boolean(field, value)?),
            Field::Isolate => self.isolate = Some(value::boolean(field, value)?),
            Field::PublicKey
            | Field::TokenFile
            | Field::Address
            | Field::Route
            | Field::Old
            | Field::ServerAddress
            | Field::Note => {}
        }
        Ok(())
    }

    fn set_secret(&mut self, secret: SharedSecret) -> Result<(), Mistake> {
        match self.secret.replace(secret) {
            None => Ok(()),
            Some(_) => {
                Err(Mistake::new("`secret-file` stands beside `secret`", "leave one of them out"))
            }
        }
    }

    /// Takes what is missing from those for all.
    pub fn or(self, defaults: &Settings) -> Self {
        Settings {
            secret: self.secret.or_else(|| defaults.secret.clone()),
            lifetime: self.lifetime.or(defaults.lifetime),
            expires: self.expires.or(defaults.expires),
            enabled: self.enabled.or(defaults.enabled),
            isolate: self.isolate.or(defaults.isolate),
        }
    }

    pub fn secret<'a>(&'a self, default: &'a SharedSecret) -> &'a SharedSecret {
        self.secret.as_ref().unwrap_or(default)
    }

    pub fn lease(&self) -> Duration {
        self.lifetime.unwrap_or(LEASE)
    }

    pub fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    pub fn expires(&self) -> Option<u64> {
        match self.expires? {
            Expiry::Never => None,
            Expiry::At(unix) => Some(unix),
        }
    }

    pub fn enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }

    pub fn isolate(&self) -> bool {
        self.isolate.unwrap_or(false)
    }
}
