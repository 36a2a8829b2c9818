//! Makes the man page and the shell completions from the table of options.
//!
//! The daemon's binary prints them (`ipipou generate`, which is in 0.3.0, too), although a second one
//! could when it is built: without them it has 171,088 of 6,603,784 bytes less, which is not worth it.

use std::io;

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::completions::with_names;
use super::options::help::EXAMPLES;
use super::options::{Document, Options};

const DESCRIPTION: &str = "\
An IP tunnel in UDP datagrams; nothing is encrypted. The kernel carries the packets (IPIP over \
FOU), or, where it cannot, this process does, through a TUN interface; both are the same on the \
wire. A server waits until a client proves itself with one signed packet, and makes the tunnel \
towards the address that it came from. When the client moves, its next packet moves the tunnel. One process is \
one tunnel, numbered by -n. Long options may be shortened as long as they stay unambiguous.";

const CONFIGURATION: &str = "\
A file has one option per line. Leading blanks, tabs and hyphens are dropped, the option's name runs \
to the first blank, and the rest of the line is its value, which may contain blanks and is not \
quoted. Empty lines and lines that start with # are skipped. A name of one letter is a short option. \
Options of files come before those of the command line, and the last one counts; --route and --dns \
add up instead.";

const MANY_PEERS: &str = "\
A server with --learn has many clients, which share its token or key. Such a client gives its own \
address with --tunl-ip, the server's with --tunl-peer-ip, and the network of them all with \
--route. Hosts with --hosts-file or --hosts-url are all alike, and may share one table. It has the \
inner address of every host, or a network behind it, and where the host is. Without a port it is \
our own.";

const TABLE: &str = r#"  {"nodes": {
    "192.168.100.1": {"host": "vps1.example.org"},
    "192.168.100.2": {"host": "203.0.113.2", "port": 7777},
    "10.2.0.0/16": {"host": "203.0.113.2", "port": 7777}
  }}"#;

const COMMANDS: [(&str, &str); 3] = [
    (
        "show [--json | --wide] [NAME]",
        "Print what the tunnels of this host are doing, or the tunnel NAME.",
    ),
    (
        "check [NAME] [OPTIONS]",
        "Read the options of a start, of which --config NAME may be given as NAME, and say what is \
         wrong with them. Nothing is changed. The exit status is 0 or 2.",
    ),
    (
        "generate man|bash|zsh|fish",
        "Print this page, or the completions of a shell, which know the names of tunnels and of \
         interfaces.",
    ),
];

const SIGNALS: [(&str, &str); 5] = [
    ("SIGTERM, SIGINT", "Remove the tunnel and exit."),
    ("SIGUSR1", "A client authenticates again, a node does as with SIGHUP; a server ignores it."),
    (
        "SIGHUP",
        "A node reads its table and looks names up again, a server with --peers reads its files of peers; \
         others ignore it.",
    ),
    ("SIGUSR2", "Ignored."),
    (
        "SIGKILL",
        "In the kernel's datapath the tunnel stays and passes traffic; the next start takes it over.",
    ),
];

const FILES: [(&str, &str); 3] = [
    ("/etc/ipipou/NAME.conf", "What --config NAME and the service ipipou@NAME read."),
    ("/var/lib/ipipou", "The memory that refuses replayed packets, a directory for each tunnel."),
    ("/run/ipipou", "The control sockets that `ipipou show` asks."),
];

/// Returns the text of a document. `exits` has the exit codes and their meanings.
///
/// # Errors
/// Never in practice: it is written to memory.
pub fn render(document: Document, exits: &[(u8, &str)]) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let shell = match document {
        Document::Man => {
            man(&mut text, exits)?;
            return Ok(text);
        }
        Document::Bash => Shell::Bash,
        Document::Zsh => Shell::Zsh,
        Document::Fish => Shell::Fish,
    };
    clap_complete::generate(shell, &mut Options::command(), "ipipou", &mut text);
    let generated = String::from_utf8(text).map_err(io::Error::other)?;
    Ok(with_names(shell, &generated).into_owned().into_bytes())
}

fn man(text: &mut Vec<u8>, exits: &[(u8, &str)]) -> io::Result<()> {
    let man =
        Man::new(Options::command()).title("IPIPOU").section("8").manual("System administration");
    man.render_title(text)?;
    man.render_name_section(text)?;
    man.render_synopsis_section(text)?;
    let mut description = Roff::new();
    description.control("SH", ["DESCRIPTION"]).text([roman(DESCRIPTION)]);
    description.to_writer(text)?;
    man.render_options_section(text)?;
    let mut rest = Roff::new();
    list(&mut rest, "COMMANDS", &COMMANDS);
    rest.control("SH", ["CONFIGURATION FILES"]).text([roman(CONFIGURATION)]);
    rest.control("SH", ["TUNNELS WITH MANY PEERS"]).text([roman(MANY_PEERS)]);
    rest.control("nf", []).text([roman(TABLE)]).control("fi", []);
    list(&mut rest, "SIGNALS", &SIGNALS);
    let exits: Vec<_> = exits.iter().map(|(code, meaning)| (code.to_string(), *meaning)).collect();
    let exits: Vec<_> = exits.iter().map(|(code, meaning)| (code.as_str(), *meaning)).collect();
    list(&mut rest, "EXIT STATUS", &exits);
    list(&mut rest, "FILES", &FILES);
    rest.control("SH", ["EXAMPLES"]).control("nf", []);
    rest.text([roman(EXAMPLES)]).control("fi", []);
    rest.control("SH", ["SEE ALSO"])
        .text([roman("ip-link(8), ip-fou(8), nft(8), systemd.unit(5)")]);
    rest.to_writer(text)
}

fn list(page: &mut Roff, title: &str, entries: &[(&str, &str)]) {
    page.control("SH", [title]);
    for (term, meaning) in entries {
        page.control("TP", []).text([bold(*term)]).text([roman(*meaning)]);
    }
}
