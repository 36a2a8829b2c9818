//! Log lines on standard error: time, program and process number, level, text.

use std::fmt::{self, Write as _};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime as Clock};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How a log line looks.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Begin with the time (UTC, RFC 3339).
    pub time: bool,
    /// Name the process number.
    pub pid: bool,
    /// Begin with the priority for the journal, as in sd-daemon(3).
    pub journal: bool,
}

/// Sends log lines to standard error: at verbosity 0 warnings and errors; with each further step also
/// what happens, every packet, and everything else. Only the first call has an effect.
pub fn init(verbosity: u8, format: Format) {
    let level = match verbosity {
        0 => Level::WARN,
        1 => Level::INFO,
        2 => Level::DEBUG,
        3.. => Level::TRACE,
    };
    // Libraries log their own affairs below warnings.
    let filter = tracing_subscriber::filter::Targets::new()
        .with_default(Level::WARN)
        .with_target("ipipou", level);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .event_format(format);
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if self.journal {
            write!(writer, "<{}>", priority(level))?;
        }
        if self.time {
            Clock.format_time(&mut writer)?;
            writer.write_char(' ')?;
        }
        match self.pid {
            true => write!(writer, "ipipou[{}]: ", std::process::id())?,
            false => writer.write_str("ipipou: ")?,
        }
        if !self.journal {
            write!(writer, "{level}: ")?;
        }
        let mut text = String::new();
        // What the line is about, where a process has several tunnels.
        if let Some(span) = context.lookup_current()
            && let Some(fields) = span.extensions().get::<FormattedFields<N>>()
        {
            let _ = write!(text, "{fields}: "); // a String takes everything
        }
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        writeln!(writer, "{}", super::printable(&text))
    }
}

/// Whether standard error goes to the journal (`JOURNAL_STREAM` in systemd.exec(5)).
pub fn stderr_is_journal(journal_stream: Option<&str>) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let Some((device, inode)) = journal_stream.and_then(|value| value.split_once(':')) else {
        return false;
    };
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| device.parse() == Ok(stderr.dev()) && inode.parse() == Ok(stderr.ino()))
}

/// The priority of a level for syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
