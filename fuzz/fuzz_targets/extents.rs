//! Extents of a file.
#![no_main]
use muster::repository::{
    entry::{covers, put_extents, take_extents},
    wire::Reader,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for patched in [false, true] {
        let Ok(extents) = take_extents(&mut Reader::new(data), patched) else { continue };
        let _ = covers(&extents, data.len() as u64);
        let mut out = Vec::new();
        put_extents(&mut out, &extents);
        assert_eq!(take_extents(&mut Reader::new(&out), patched).expect("it is read again"), extents);
    }
});
