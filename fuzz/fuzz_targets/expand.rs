//! The stored form of what is no chunk: a length, and then as a chunk.
#![no_main]
use muster::repository::{
    pack::{expand, squeeze},
    wire::Reader,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // It is believed up to a GiB: who says so has the repository's key. Here that much would only be slow.
    if Reader::new(data).number().is_ok_and(|length| length < 1 << 24) {
        let _ = expand(data);
    }
    assert_eq!(expand(&squeeze(data)).expect("what is written is read"), data);
});
