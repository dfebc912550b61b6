//! What the first page of a segment says of itself, compared with the segment's name: a file of another cluster, of
//! another timeline or place, a recycled one that was never written anew, or no log at all is refused before it is kept
//! under a name that it has no right to.

use super::{
    wal_history::History,
    wal_name::{Segment, is_segment_size},
};
use crate::providers::port::Lsn;

/// The long header that every segment begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstPage {
    pub timeline: u32,
    pub position: Lsn,
    pub system: u64,
    pub segment_size: u32,
}

/// Of the long header.
const LENGTH: usize = 40;
/// All versions of PostgreSQL since 9.0 have this in the upper byte of the magic number.
const MAGIC: u8 = 0xD1;
const HAS_LONG_HEADER: u16 = 2;

/// Reads the header; says why it is none.
pub fn first_page(content: &[u8]) -> Result<FirstPage, String> {
    let header = content.get(..LENGTH).ok_or_else(|| format!("it has {} bytes, fewer than the header of a page", content.len()))?;
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let number = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
    let long = |at: usize| u64::from(number(at)) | u64::from(number(at + 4)) << 32;
    if header[0] == MAGIC && header[1] != MAGIC {
        return Err("it was written on a machine with the other order of bytes".to_owned());
    }
    if header[1] != MAGIC || word(2) & HAS_LONG_HEADER == 0 {
        return Err("it does not begin as a segment of PostgreSQL's log does".to_owned());
    }
    let page = FirstPage { timeline: number(4), position: Lsn(long(8)), system: long(24), segment_size: number(32) };
    if !is_segment_size(page.segment_size) {
        return Err(format!("its header says that segments have {} bytes, which cannot be", page.segment_size));
    }
    Ok(page)
}

/// Is this what the segment of that name holds? `whole`: it must be complete. `history`: that of the segment's timeline,
/// if there is one; in the middle of a segment one timeline may have taken over from another.
pub fn check(segment: &Segment, content: &[u8], whole: bool, history: Option<&History>) -> Result<FirstPage, String> {
    let page = first_page(content)?;
    let size = page.segment_size;
    if !segment.fits(size) {
        return Err(format!("where segments have {size} bytes there is none of this name"));
    }
    if whole && content.len() as u64 != u64::from(size) {
        return Err(format!("it has {} bytes, and segments have {size}", content.len()));
    }
    if page.position != segment.start(size) {
        return Err(format!(
            "its first page is that of position {}, and by its name it begins at {}: a recycled segment, or renamed",
            page.position,
            segment.start(size)
        ));
    }
    if page.timeline == segment.timeline {
        return Ok(page);
    }
    let begins = history
        .and_then(History::begins)
        .filter(|(parent, at)| page.timeline <= *parent && Segment::at(segment.timeline, *at, size) == *segment);
    if begins.is_none() {
        return Err(format!(
            "its first page is of timeline {}, and by its name it is of timeline {}, which did not begin in it",
            page.timeline, segment.timeline
        ));
    }
    Ok(page)
}

/// The beginning of a segment, for tests.
#[cfg(test)]
pub(crate) fn header(timeline: u32, position: Lsn, system: u64, size: u32) -> Vec<u8> {
    let mut header = vec![0x10, MAGIC, 7, 0];
    header.extend(timeline.to_le_bytes());
    header.extend(position.0.to_le_bytes());
    header.extend([0; 8]);
    header.extend(system.to_le_bytes());
    header.extend(size.to_le_bytes());
    header.extend(8192u32.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    #[test]
    fn what_does_not_fit_its_name_is_refused() {
        let segment: Segment = "000000020000000000000003".parse().unwrap();
        let at = |timeline, position| {
            let mut content = header(timeline, Lsn(position), 7, MIB);
            content.resize(MIB as usize, 0);
            content
        };
        let start = 3 * u64::from(MIB);
        let good = check(&segment, &at(2, start), true, None).unwrap();
        assert_eq!((good.system, good.segment_size), (7, MIB));
        let refused = |content: &[u8], history: Option<&History>| check(&segment, content, true, history).unwrap_err();
        assert!(refused(&at(2, start + u64::from(MIB)), None).contains("recycled"));
        assert!(refused(&at(2, start)[..MIB as usize - 1], None).contains("bytes, and segments have"));
        assert!(check(&segment, &at(2, start)[..5000], false, None).is_ok());
        assert!(refused(&at(1, start), None).contains("of timeline 1"));
        // Timeline 2 took over within this segment: its beginning is a copy of timeline 1's.
        let history = History::parse(2, format!("1\t{}\tno recovery target specified\n", Lsn(start + 99)).as_bytes()).unwrap();
        assert!(check(&segment, &at(1, start), true, Some(&history)).is_ok());
        let earlier = History::parse(2, format!("1\t{}\tx\n", Lsn(start - 99)).as_bytes()).unwrap();
        assert!(refused(&at(1, start), Some(&earlier)).contains("did not begin in it"));
        assert!(refused(&at(3, start), Some(&history)).contains("of timeline 3"));
        assert!(refused(&[0; 8192], None).contains("does not begin as"));
        assert!(refused(&[], None).contains("0 bytes"));
        let huge: Segment = "0000000200000000000000FF".parse().unwrap();
        let content = header(2, Lsn(255 << 30), 7, 1 << 30);
        assert!(check(&huge, &content, false, None).unwrap_err().contains("none of this name"));
    }
}
