//! One program for all targets, as it takes longer to link than to run: `FUZZ_TARGET=conf fuzz`.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod targets;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let wanted = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names the target");
    let found = targets::TARGETS.iter().find(|(name, _)| *name == wanted);
    found.unwrap_or_else(|| panic!("FUZZ_TARGET: there is no target {wanted}")).1
});

fuzz_target!(|input: &[u8]| TARGET(input));
