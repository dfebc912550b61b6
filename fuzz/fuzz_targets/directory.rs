//! The directory of a pack: what is read is written as it was, and no chunk lies over another.
#![no_main]
use muster::repository::{
    pack::{put_directory, take_directory},
    wire::Reader,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(pieces) = take_directory(&mut Reader::new(data)) else { return };
    for two in pieces.windows(2) {
        assert_eq!(u64::from(two[0].offset) + u64::from(two[0].stored), u64::from(two[1].offset));
    }
    let mut out = Vec::new();
    put_directory(&mut out, &pieces);
    assert_eq!(take_directory(&mut Reader::new(&out)).expect("it is read again").len(), pieces.len());
});
