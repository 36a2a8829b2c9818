//! A command line: never a panic, and what is wrong is said in one line.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use ipipou::cli::{self, CliError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let words = text.split(|b| *b == b'\n').map(|word| OsString::from_vec(word.to_vec()));
    // Reading files is not what is tried here.
    let words: Vec<_> = words.filter(|w| !w.as_encoded_bytes().starts_with(b"--c")).collect();
    let args = std::iter::once(OsString::from("ipipou")).chain(words);
    if let Err(CliError::Usage(line)) = cli::parse(args, &|_| None) {
        assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
    }
});
