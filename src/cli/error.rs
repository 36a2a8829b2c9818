//! What `parse` returns when there is nothing to run.

/// Why there is nothing to run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// Help or the version was asked for. It goes to standard output; the exit code is 0.
    #[error("{0}")]
    Print(String),
    /// Something is wrong. Each line goes to standard error after `ipipou: `; the exit code is 2.
    /// There are several lines if a `.conf` file has several bad lines.
    #[error("{0}")]
    Usage(String),
}

/// Makes an error of several problems, one line each.
pub fn usage_lines(problems: &[String]) -> CliError {
    let lines: Vec<_> = problems.iter().map(|problem| usage(problem).to_string()).collect();
    CliError::Usage(lines.join("\n"))
}

/// Makes an error of one line, whatever stands in a path or a value.
pub fn usage(problem: impl ToString) -> CliError {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    CliError::Usage(problem.to_string().chars().map(escape).collect())
}
