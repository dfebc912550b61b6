//! A timeline's history, which comes from a server's archive: what it says of where timelines were left holds together.
#![no_main]
use muster::repository::wal_history::History;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((timeline, text)) = data.split_first_chunk() else { return };
    let timeline = u32::from_le_bytes(*timeline);
    let Ok(history) = History::parse(timeline, text) else { return };
    assert_eq!(history.left_at(timeline), Some(None));
    let path = history.path();
    assert_eq!(path.len(), history.left.len() + 1);
    assert!(path.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1), "{path:?}");
    // Written as PostgreSQL writes it, it is the same.
    let lines: String = history.left.iter().map(|(timeline, at)| format!("{timeline}\t{at}\tno recovery target specified\n")).collect();
    assert_eq!(History::parse(timeline, lines.as_bytes()), Ok(history));
});
