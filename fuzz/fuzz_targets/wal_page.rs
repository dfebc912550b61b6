//! The first page of a segment of PostgreSQL's log, against a name: whatever it is, it is refused or it fits.
#![no_main]
use muster::repository::{
    wal_history::History,
    wal_name::{Segment, is_segment_size},
    wal_page::{check, first_page},
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(page) = first_page(data) else {
        let segment = Segment { timeline: 1, high: 0, low: 1 };
        assert!(check(&segment, data, false, None).is_err());
        return;
    };
    assert!(is_segment_size(page.segment_size));
    let own = Segment::at(page.timeline, page.position, page.segment_size);
    for segment in [own, own.next(page.segment_size), Segment { timeline: 2, ..own }] {
        for whole in [false, true] {
            for history in [None, Some(&History::none(segment.timeline))] {
                let Ok(checked) = check(&segment, data, whole, history) else { continue };
                assert_eq!(checked, page);
                assert_eq!(segment.start(page.segment_size), page.position);
                assert!(!whole || data.len() as u64 == u64::from(page.segment_size));
            }
        }
    }
});
