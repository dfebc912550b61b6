//! Names in PostgreSQL's log, and keys below `wal/`, which anybody may choose who can write there: one spelling each.
#![no_main]
use muster::repository::wal_name::{Piece, Segment, SegmentName, WalName, check_system, cover, in_key, key};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(segment) = text.parse::<Segment>() {
        assert_eq!(segment.to_string(), text);
    }
    if let Ok(name) = text.parse::<SegmentName>() {
        assert_eq!(name.to_string(), text);
    }
    if let Some((system, name)) = in_key(text) {
        assert!(check_system(system).is_ok());
        assert_eq!(key(system, &name), text);
    }
    let mut pieces: Vec<Piece> = Vec::new();
    for line in text.lines() {
        if let Ok(name) = line.parse::<WalName>() {
            assert_eq!(name.to_string(), line);
            if let WalName::Piece(piece) = name {
                pieces.push(piece);
            }
        }
    }
    let mut end = 0;
    for piece in cover(&pieces) {
        assert!(piece.from <= end && piece.to > end, "a gap before {piece}");
        end = piece.to;
    }
});
