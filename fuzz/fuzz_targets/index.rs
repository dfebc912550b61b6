//! An index object.
#![no_main]
use muster::repository::{
    index::{Index, PackEntry, decode, encode},
    names::Id,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(packs) = decode(&Id([0; 32]), data) else { return };
    let index = Index::of(&packs);
    // A pack is named by its bytes, so whoever names it again says the same: what is said first counts.
    let first = |entry: &&PackEntry| packs.iter().find(|other| other.pack == entry.pack).is_some_and(|found| std::ptr::eq(found, *entry));
    assert!(packs.iter().filter(first).flat_map(|entry| &entry.pieces).all(|piece| index.find(&piece.chunk).is_some()));
    assert_eq!(decode(&Id([0; 32]), &encode(&packs)).expect("it is read again").len(), packs.len());
});
