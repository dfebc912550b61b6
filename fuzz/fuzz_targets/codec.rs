//! The stored form of a chunk: never more than was promised, whatever the bytes say.
#![no_main]
use muster::repository::codec::Decoder;
use std::cell::RefCell;

thread_local!(static KEPT: RefCell<(Decoder, Vec<u8>)> = RefCell::new((Decoder::new(), Vec::new())));

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((length, stored)) = data.split_first_chunk() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    KEPT.with_borrow_mut(|(decoder, out)| {
        let good = decoder.decode(stored, length, out).is_ok();
        assert_eq!(out.len(), if good { length } else { 0 });
    });
});
