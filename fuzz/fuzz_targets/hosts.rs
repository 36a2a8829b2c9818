//! A host table: never a panic, a mistake is one line of bounded length, and a good table stays the
//! same when it is written and read again.
#![no_main]

use ipipou::engine::hosts::HostTable;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| match HostTable::parse(text) {
    Ok(table) => {
        let written = serde_json::to_vec(&table).expect("strings and numbers");
        assert_eq!(HostTable::parse(&written), Ok(table));
    }
    Err(error) => {
        let line = error.to_string();
        assert!(!line.contains('\n') && line.len() < 3000, "{line}");
    }
});
