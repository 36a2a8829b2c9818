//! The command line as a user meets it: what is accepted, what it means, and what is said when it
//! is wrong.

#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/files.rs"]
mod files;
#[path = "cli/gateway.rs"]
mod gateway;
#[path = "cli/import.rs"]
mod import;
#[path = "cli/meaning.rs"]
mod meaning;
#[path = "cli/peers.rs"]
mod peers;
#[path = "cli/program.rs"]
mod program;
#[path = "cli/properties.rs"]
mod properties;
#[path = "cli/secrets.rs"]
mod secrets;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipipou::auth::{Credential, Policy, Proof};
use ipipou::cli::{self, CliError, Document, Invocation, Run};
use ipipou::engine::config::{
    Admits, AlternateAddress, AnsweringServer, Config, Expects, HostName, HostsSource, LearnConfig,
    Outer, PeerConfig, PeerSource, QueueConfig, Reply, ServerName, Shows, SourceCheck,
    TunnelConfig,
};

const PRIVATE: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const PUBLIC: &str = "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=";
const OTHER_PUBLIC: &str = "6uHIeTtVl8Sz9JDnasMRcsQ5aQ+O4UFCu4UaYfmknw4=";
/// The least that a client, a server, one that learns, and a host of a table need.
const CLIENT: &str = "-b @eth0 -r 203.0.113.1:10000 --tunl-ip 172.28.0.1";
const SERVER: &str = "-s -b @eth0";
const HUB: &str = "-s -b @eth0 --learn --tunl-ip 10.8.0.1/24";
const NODE: &str = "-b @eth0 --tunl-ip 10.7.0.1/24 --hosts-file /t.json";

fn parse<S: Into<OsString>>(args: impl IntoIterator<Item = S>) -> Result<Invocation, CliError> {
    let args = args.into_iter().map(Into::into);
    cli::parse(std::iter::once("ipipou".into()).chain(args), &|_| None)
}

fn run(line: &str) -> Run {
    match parse(line.split_whitespace()) {
        Ok(Invocation::Run(run)) => *run,
        other => panic!("{line}: {other:?}"),
    }
}

/// What a server's command line asks for.
struct Server {
    tunnel: TunnelConfig,
    queue: QueueConfig,
    policy: Policy,
    lifetime: Option<Duration>,
    reply: Reply,
    learn: Option<LearnConfig>,
}

/// What a client's command line asks for.
struct Client {
    tunnel: TunnelConfig,
    server: ServerName,
    credential: Credential,
    keepalive: Option<Duration>,
    answers: Option<AnsweringServer>,
}

impl Server {
    fn of(config: Config) -> Self {
        match config.peers {
            PeerSource::One(PeerConfig { at: None, expects: Some(expects), shows: None }) => {
                let Expects { queue, policy, lifetime, reply, admits } = expects;
                let learn = match admits {
                    Admits::One => None,
                    Admits::Shared(learn) => Some(learn),
                };
                Server { tunnel: config.tunnel, queue, policy, lifetime, reply, learn }
            }
            other => panic!("no server: {other:?}"),
        }
    }
}

impl Client {
    fn of(config: Config) -> Self {
        match config.peers {
            PeerSource::One(PeerConfig { at: Some(server), expects: None, shows: Some(shows) }) => {
                let Shows { credential, keepalive, server: answers } = shows;
                Client { tunnel: config.tunnel, server, credential, keepalive, answers }
            }
            other => panic!("no client: {other:?}"),
        }
    }
}

fn client(line: &str) -> Client {
    Client::of(run(&format!("{CLIENT} {line}")).config)
}

fn server(line: &str) -> Server {
    Server::of(run(&format!("{SERVER} {line}")).config)
}

/// What the command line of a host with a table asks for.
struct Node {
    tunnel: TunnelConfig,
    hosts: HostsSource,
}

fn node(line: &str) -> Node {
    let Config { tunnel, peers } = run(line).config;
    match peers {
        PeerSource::Table(hosts) => Node { tunnel, hosts },
        other @ (PeerSource::One(_) | PeerSource::Hub(_)) => panic!("{line}: {other:?}"),
    }
}

fn usage<S: Into<OsString>>(args: impl IntoIterator<Item = S>) -> String {
    match parse(args) {
        Err(CliError::Usage(line)) => line,
        other => panic!("{other:?}"),
    }
}

fn file(text: impl AsRef<[u8]>) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("ipipou-cli-test-{}-{number}.conf", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).expect("the temporary directory can be written");
    path
}

/// The result of parsing with one file, whose path is replaced by `FILE` in messages.
fn with_file(text: impl AsRef<[u8]>, line: &str) -> Result<Invocation, CliError> {
    let path = file(text);
    let mut args: Vec<OsString> = vec!["--config".into(), path.clone().into()];
    args.extend(line.split_whitespace().map(OsString::from));
    let result = parse(args);
    std::fs::remove_file(&path).expect("it was just written");
    result.map_err(|error| match error {
        CliError::Usage(line) => CliError::Usage(line.replace(&path.display().to_string(), "FILE")),
        print => print,
    })
}
