//! argv in, exit code out.

use std::io::Write as _;
use std::process::ExitCode;

use ipipou::cli::{self, CliError, Invocation, LogConfig, PeersQuestion, Run};
use ipipou::daemon::{self, Directories, Exit, Failure, PeersWanted, Settings, Style};
use ipipou::observe::{log, printable, printable_lines};

fn main() -> ExitCode {
    // Before a key is read.
    if let Err(error) = daemon::close_memory() {
        eprintln!("ipipou: keys in memory are not kept from core dumps: {error}");
    }
    let result = match cli::parse(std::env::args_os(), &|name| std::env::var_os(name)) {
        Ok(Invocation::Keygen { labelled }) => daemon::keygen(labelled),
        Ok(Invocation::Show { json, wide, name, runtime_root }) => {
            let style = match (json, wide) {
                (true, _) => Style::Json,
                (false, true) => Style::Wide,
                (false, false) => Style::Table,
            };
            daemon::show(&runtime_root, name.as_ref(), style).and_then(show_part)
        }
        Ok(Invocation::Genkey) => daemon::genkey(),
        Ok(Invocation::Pubkey) => daemon::pubkey(),
        Ok(Invocation::PubkeyOf { config, tunnel, runtime_root }) => {
            daemon::pubkey_of(&config, &tunnel, &runtime_root).map(|text| show(&text))
        }
        Ok(Invocation::Peers(PeersQuestion { name, state, tunnel, runtime_root, json })) => {
            let question = PeersWanted { name, state, json };
            daemon::show_peers(&runtime_root, tunnel.as_ref(), &question).and_then(show_part)
        }
        Ok(Invocation::EditPeers { edit, config, tunnel, runtime_root }) => {
            daemon::edit_peers(&config, &edit, &tunnel, &runtime_root).map(|text| show(&text))
        }
        Ok(Invocation::ImportPeers { servers, dry_run, config, tunnel, runtime_root }) => {
            daemon::import_peers(&config, &servers, dry_run, &tunnel, &runtime_root)
                .map(|text| show(&text))
        }
        Ok(Invocation::Monitor { peer, tunnel, runtime_root, json }) => {
            daemon::monitor(&runtime_root, tunnel.as_ref(), peer, json)
        }
        Ok(Invocation::Kick { peer, tunnel, runtime_root }) => {
            daemon::kick(&runtime_root, tunnel.as_ref(), peer).map(|text| show(&text))
        }
        Ok(Invocation::Ping { host, tunnel, count, runtime_root }) => {
            daemon::ping(&runtime_root, tunnel.as_ref(), host.as_deref(), count)
        }
        Ok(Invocation::Reload { tunnel, runtime_root, if_peers, peers }) => {
            daemon::reload(&runtime_root, tunnel.as_ref(), if_peers, peers).map(|text| show(&text))
        }
        Ok(Invocation::Checked { text, config }) => {
            daemon::check_files(&config).map(|more| show(&(text + &more)))
        }
        Ok(Invocation::Generate(document)) => {
            cli::render(document, &Exit::ALL.map(|exit| (exit.code(), exit.meaning())))
                .map(|text| print(&text))
                .map_err(|e| Failure::Generic(e.to_string()))
        }
        Ok(Invocation::Reauth(run)) => daemon::reauthenticate(&prepare(*run)),
        Ok(Invocation::Run(run)) => daemon::run(&prepare(*run)),
        Err(CliError::Print(text)) => {
            print(text.as_bytes());
            Ok(())
        }
        Err(CliError::Usage(line)) => Err(Failure::Usage(line)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            match &failure {
                // A line for each mistake.
                Failure::Usage(lines) | Failure::Generic(lines) => {
                    lines.lines().for_each(|line| eprintln!("ipipou: {}", printable(line)));
                }
                other => eprintln!("ipipou: {}", printable(&other.to_string())),
            }
            ExitCode::from(failure.exit().code())
        }
    }
}

/// The text may come from other processes.
fn show(text: &str) {
    print(printable_lines(text).as_bytes());
}

/// Shows what there is, and fails if something is missing.
fn show_part((text, missing): (String, Option<Failure>)) -> Result<(), Failure> {
    show(&text);
    missing.map_or(Ok(()), Err)
}

/// A reader who closed the pipe has seen enough.
fn print(text: &[u8]) {
    let _ = std::io::stdout().write_all(text);
}

fn prepare(run: Run) -> Settings {
    let Run { config, log, state_dir, runtime_dir, mut warnings } = run;
    let LogConfig { verbosity, time, pid } = log;
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let journal = log::stderr_is_journal(stream.as_deref());
    log::init(verbosity, log::Format { time, pid, journal });
    let directories = Directories::new(state_dir, runtime_dir, &config.tunnel.device);
    warnings.extend(directories.warning);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Settings { config, state_dir: directories.state, runtime_dir: directories.runtime }
}
