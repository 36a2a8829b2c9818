//! A `.conf` file: never a panic, and every error names its line.
#![no_main]

use std::path::Path;

use clap::CommandFactory as _;
use ipipou::cli::{conf, Options};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let mut command = Options::command();
    if let Err(error) = conf::arguments(text, Path::new("/f.conf"), &mut command) {
        let line = error.to_string();
        assert!(line.starts_with("/f.conf:"), "{line}");
    }
});
