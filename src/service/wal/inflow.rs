//! A log that comes in: cut into segments as they fill, and into pieces of the one that is not full yet. No clock and no
//! store here, so that every rule can be tested.
//!
//! The content of the segment at hand is kept from its beginning. Now and then a piece begins anew at offset 0, so that
//! who puts a segment together never reads more than so many pieces, however slowly it filled.

use crate::providers::port::Lsn;
use crate::repository::wal_name::Segment;
use bytes::Bytes;

/// After so many pieces comes one that has all of them.
const PIECES: u32 = 32;

/// Something to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub segment: Segment,
    /// `None`: it is the whole segment.
    pub from: Option<u32>,
    pub content: Bytes,
    /// When this is durable, all before here is.
    pub end: Lsn,
}

#[derive(Debug)]
pub struct Inflow {
    size: u32,
    segment: Segment,
    content: Vec<u8>,
    /// So much of it was cut off as pieces.
    cut: usize,
    pieces: u32,
}

impl Inflow {
    /// Begins at the beginning of a segment.
    #[must_use]
    pub fn new(segment: Segment, size: u32) -> Self {
        Self { size, segment, content: Vec::new(), cut: 0, pieces: 0 }
    }

    #[must_use]
    pub fn timeline(&self) -> u32 {
        self.segment.timeline
    }

    /// What comes next begins here.
    #[must_use]
    pub fn end(&self) -> Lsn {
        Lsn(self.segment.start(self.size).0 + self.content.len() as u64)
    }

    /// Is there anything that was not cut off yet?
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.content.len() > self.cut
    }

    /// Takes what came; gives the segments that it fills.
    pub fn add(&mut self, start: Lsn, mut data: &[u8]) -> Result<Vec<Part>, String> {
        if start != self.end() {
            return Err(format!("the server sent log from {start} on, and {} was to come", self.end()));
        }
        let (mut full, size) = (Vec::new(), self.size as usize);
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(size - self.content.len()));
            self.content.extend_from_slice(now);
            data = later;
            if self.content.len() == size {
                let next = self.segment.next(self.size);
                let content = Bytes::from(std::mem::take(&mut self.content));
                full.push(Part { segment: self.segment, from: None, content, end: next.start(self.size) });
                *self = Self::new(next, self.size);
            }
        }
        Ok(full)
    }

    /// Cuts off what came since the last time.
    pub fn cut(&mut self) -> Option<Part> {
        if !self.has_more() {
            return None;
        }
        self.pieces += 1;
        let from = if self.pieces.is_multiple_of(PIECES) { 0 } else { self.cut };
        self.cut = self.content.len();
        let content = Bytes::copy_from_slice(self.content.get(from..)?);
        Some(Part { segment: self.segment, from: Some(from as u32), content, end: self.end() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u32 = 1 << 20;

    #[test]
    fn what_does_not_follow_is_refused() {
        let mut inflow = Inflow::new(Segment::of_number(1, 3, MIB), MIB);
        let start = 3 * u64::from(MIB);
        assert_eq!(inflow.add(Lsn(start), b"abc").unwrap(), []);
        assert!(inflow.add(Lsn(start), b"abc").unwrap_err().contains("was to come"));
        let piece = inflow.cut().unwrap();
        assert_eq!((piece.from, &piece.content[..], piece.end), (Some(0), &b"abc"[..], Lsn(start + 3)));
        assert_eq!(inflow.cut(), None);
    }

    proptest! {
        #[test]
        fn parts_put_together_are_what_came(lengths in proptest::collection::vec(1usize..200_000, 1..60), cuts: u64) {
            let first = Segment::of_number(2, 7, MIB);
            let mut inflow = Inflow::new(first, MIB);
            let (mut at, mut all) = (first.start(MIB), Vec::new());
            let (mut wholes, mut beginning) = (Vec::new(), Vec::new());
            for (number, length) in lengths.iter().enumerate() {
                let data: Vec<u8> = (0..*length).map(|i| (i * 7 + number) as u8).collect();
                all.extend_from_slice(&data);
                for part in inflow.add(at, &data).unwrap() {
                    prop_assert_eq!(part.segment, Segment::of_number(2, 7 + (wholes.len() as u64) / u64::from(MIB), MIB));
                    wholes.extend_from_slice(&part.content);
                    beginning.clear();
                }
                at = Lsn(at.0 + *length as u64);
                if cuts >> (number % 64) & 1 == 1 && let Some(part) = inflow.cut() {
                    let from = part.from.unwrap() as usize;
                    prop_assert!(from <= beginning.len());
                    beginning.truncate(from);
                    beginning.extend_from_slice(&part.content);
                    prop_assert_eq!(part.end, inflow.end());
                }
            }
            if let Some(part) = inflow.cut() {
                beginning.truncate(part.from.unwrap() as usize);
                beginning.extend_from_slice(&part.content);
            }
            wholes.extend_from_slice(&beginning);
            prop_assert_eq!(wholes, all);
            prop_assert_eq!(inflow.end(), at);
        }
    }
}
