//! The attributes of an option say what clap does not need to know for parsing it: which end of the
//! tunnel uses it, what it can be given with, and how its value is treated.
//!
//! Every group of options has a table of attributes below its fields. A test in `options` checks
//! that each option has its attributes.

/// The attributes of one option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// The long name without hyphens; that of `-v`, which has none, is clap's id.
    pub name: &'static str,
    /// Which end of a tunnel uses it.
    pub role: Role,
    /// Whether it can be given with a table of hosts.
    pub with_table: bool,
    /// Whether it can be given with files of peers.
    pub with_peers: bool,
    /// The option without which this one has no effect.
    pub only_with: Option<&'static str>,
    /// The flag that says the opposite; of the two, the last one counts.
    pub opposite: Option<&'static str>,
    /// Whether the kernel's datapath cannot do what it asks for.
    pub userspace_only: bool,
    /// Who may see its value.
    pub secrecy: Secrecy,
    /// Whether it can stand in a `.conf` file.
    pub in_files: bool,
    /// Whether the tunnel has no use for it, and commands that change its files of peers read it.
    pub for_commands: bool,
    /// What a shell proposes as its value.
    pub proposals: Option<Proposals>,
}

/// Which end uses an option, and what happens when the other end is given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Both,
    Server(Misplaced),
    Client(Misplaced),
}

/// What happens to an option that this end has no use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misplaced {
    /// It is named in a warning. The first version took these in silence, so its files have them.
    Ignored,
    /// It is a usage error. Options that are newer than the first version are refused.
    Refused,
}

/// Who may see the value of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// Everybody.
    Public,
    /// Everybody, but no message repeats it: a private key looks the same and is easily pasted in
    /// its place.
    PublicKey,
    /// Only this process if a password stands in it, before an `@`. No message repeats it.
    Url,
    /// Only this process.
    Secret,
}

/// What a shell proposes as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposals {
    /// The names of interfaces.
    Devices,
    /// The same, each behind an `@`.
    LocalEnds,
    /// The names of the files in /etc/ipipou, or paths.
    ConfFiles,
}

impl Secrecy {
    /// Whether a message may repeat the value.
    pub fn is_repeatable(self) -> bool {
        match self {
            Secrecy::Public => true,
            Secrecy::PublicKey | Secrecy::Url | Secrecy::Secret => false,
        }
    }

    /// Whether this value must not be read by other users.
    pub fn is_secret(self, value: &[u8]) -> bool {
        match self {
            Secrecy::Public | Secrecy::PublicKey => false,
            Secrecy::Url => value.contains(&b'@'),
            Secrecy::Secret => true,
        }
    }
}

/// Describes an option that both ends use, with nothing else to say about it.
pub const fn both(name: &'static str) -> Attributes {
    Attributes {
        name,
        role: Role::Both,
        with_table: true,
        with_peers: true,
        only_with: None,
        opposite: None,
        userspace_only: false,
        secrecy: Secrecy::Public,
        in_files: true,
        for_commands: false,
        proposals: None,
    }
}

/// Describes an option that only a server uses.
pub const fn server(name: &'static str, on_clients: Misplaced) -> Attributes {
    Attributes { role: Role::Server(on_clients), ..both(name) }
}

/// Describes an option that only a client uses.
pub const fn client(name: &'static str, on_servers: Misplaced) -> Attributes {
    Attributes { role: Role::Client(on_servers), ..both(name) }
}

impl Attributes {
    pub const fn not_with_table(self) -> Self {
        Attributes { with_table: false, ..self }
    }

    pub const fn not_with_peers(self) -> Self {
        Attributes { with_peers: false, ..self }
    }

    pub const fn only_with(self, other: &'static str) -> Self {
        Attributes { only_with: Some(other), ..self }
    }

    pub const fn opposite_of(self, other: &'static str) -> Self {
        Attributes { opposite: Some(other), ..self }
    }

    pub const fn userspace_only(self) -> Self {
        Attributes { userspace_only: true, ..self }
    }

    pub const fn value(self, secrecy: Secrecy) -> Self {
        Attributes { secrecy, ..self }
    }

    pub const fn not_in_files(self) -> Self {
        Attributes { in_files: false, ..self }
    }

    pub const fn for_commands(self) -> Self {
        Attributes { for_commands: true, ..self }
    }

    pub const fn propose(self, proposals: Proposals) -> Self {
        Attributes { proposals: Some(proposals), ..self }
    }

    /// Returns clap's id of the option.
    pub fn id(&self) -> String {
        self.name.replace('-', "_")
    }
}
