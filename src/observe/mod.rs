//! What people and programs see of a tunnel: log lines and `ipipou show`.

pub mod log;
pub mod rate;
pub mod status;
