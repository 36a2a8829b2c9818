//! The fuzz targets are compiled with everything else, and hold for the inputs that are kept.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn stored_fuzz_inputs_do_not_fail() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let directories = fs::read_dir(&corpus).expect("it is in the repository");
    let kept: BTreeSet<_> = directories.map(|entry| entry.unwrap().file_name()).collect();
    let names: BTreeSet<_> = targets::TARGETS.iter().map(|(name, _)| (*name).into()).collect();
    assert_eq!(kept, names, "a directory for each target");
    for (name, target) in targets::TARGETS {
        let mut tried = 0;
        for entry in fs::read_dir(corpus.join(name)).expect("it was listed") {
            target(&fs::read(entry.unwrap().path()).expect("a file"));
            tried += 1;
        }
        assert!(tried >= 3, "{name}: few inputs are kept");
    }
}
