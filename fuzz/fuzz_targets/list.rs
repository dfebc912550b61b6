//! A chunk of a snapshot's list: its entries are written as they were read.
#![no_main]
use muster::repository::{list::entries, names::Id};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(read) = entries(&Id([0; 32]), data) else { return };
    let mut out = Vec::new();
    read.iter().for_each(|entry| entry.encode(&mut out));
    read.iter().for_each(|entry| drop(entry.shown()));
    assert_eq!(entries(&Id([0; 32]), &out).expect("it is read again"), read);
});
