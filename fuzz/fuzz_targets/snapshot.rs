//! The JSON of a snapshot.
#![no_main]
use muster::repository::snapshot::Snapshot;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(snapshot) = serde_json::from_slice::<Snapshot>(data) else { return };
    let written = serde_json::to_vec(&snapshot).expect("it is written again");
    assert_eq!(serde_json::from_slice::<Snapshot>(&written).expect("and read"), snapshot);
});
