//! Extents of a file.
#![no_main]
use muster::repository::{
    entry::{covers, put_extents, take_extents},
    wire::Reader,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(extents) = take_extents(&mut Reader::new(data)) else { return };
    let _ = covers(&extents, data.len() as u64);
    let mut out = Vec::new();
    put_extents(&mut out, &extents);
    assert_eq!(take_extents(&mut Reader::new(&out)).expect("it is read again"), extents);
});
