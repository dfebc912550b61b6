//! The JSON of marks and of proofs.
#![no_main]
use muster::repository::{marks::Marked, names::Id, proof::Proof};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(marked) = serde_json::from_slice::<Marked>(data) {
        let written = serde_json::to_vec(&marked).expect("it is written again");
        assert_eq!(serde_json::from_slice::<Marked>(&written).expect("and read"), marked);
    }
    let _ = serde_json::from_slice::<Proof>(data);
    // Names are parsed too: they come from whoever can write to the place.
    if let Ok(key) = std::str::from_utf8(data) {
        assert!(Id::in_key(key, "packs/").is_none_or(|id| id.key("packs/") == key));
        assert!(Id::in_key(key, "marks/").is_none_or(|id| id.key("marks/") == key));
    }
});
