//! An index object.
#![no_main]
use muster::repository::{
    index::{Index, decode, encode},
    names::Id,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(packs) = decode(&Id([0; 32]), data) else { return };
    let index = Index::of(&packs);
    assert!(packs.iter().flat_map(|entry| &entry.pieces).all(|piece| index.find(&piece.chunk).is_some()));
    assert_eq!(decode(&Id([0; 32]), &encode(&packs)).expect("it is read again").len(), packs.len());
});
