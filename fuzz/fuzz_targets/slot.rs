//! A key slot, and an attempt to open it with a key file (a password would take a tenth of a second each).
#![no_main]
use muster::repository::{
    keys::{Slot, Stretch, Unlock},
    names::Id,
};
use secrecy::SecretBox;
use std::sync::Arc;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(slot) = serde_json::from_slice::<Slot>(data) else { return };
    let (_, stored) = slot.stored().expect("it is written again");
    assert_eq!(serde_json::from_slice::<Slot>(&stored).expect("and read"), slot);
    if slot.stretch == Stretch::Blake3 {
        let key = Unlock::KeyFile(Arc::new(SecretBox::new(Box::new(vec![7; 64]))));
        let _ = slot.open(&Id([0; 32]), &key);
    }
});
