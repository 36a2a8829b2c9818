//! What is said when there is nothing to run.

/// Why nothing is to be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// Help or version: to standard output, exit 0.
    #[error("{0}")]
    Print(String),
    /// To standard error, each line after `ipipou: `; exit 2. Bad lines of `.conf` files are several.
    #[error("{0}")]
    Usage(String),
}

/// Several problems, a line each.
pub fn usage_lines(problems: &[String]) -> CliError {
    let lines: Vec<_> = problems.iter().map(|problem| usage(problem).to_string()).collect();
    CliError::Usage(lines.join("\n"))
}

/// Whatever stands in a path or a value, a message stays one line.
pub fn usage(problem: impl ToString) -> CliError {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    CliError::Usage(problem.to_string().chars().map(escape).collect())
}
