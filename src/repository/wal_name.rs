//! The names of PostgreSQL's write-ahead log, and where its files lie in a repository.
//!
//! A segment is called by 24 hexadecimal digits: its timeline, and its number in two parts of which the second counts
//! up to 4 GiB (so what number that is depends on the size of a segment, which `initdb` chose). Beside segments there
//! are a timeline's history (`00000002.history`), the last segment of a timeline that another one left in its middle
//! (`….partial`) and the labels of base backups (`….00000028.backup`). All of them begin with the timeline, so all
//! have a place in its folder: `wal/SYSTEM/TIMELINE/NAME`.
//!
//! While a segment is not complete, what there is of it can be kept in pieces: `NAME.FROM-TO`, the bytes from one
//! offset to another. Once the segment itself is there they count no more.

use super::names::WAL;
use crate::providers::port::Lsn;
use std::{fmt, str::FromStr};

/// One segment, named without knowing how large segments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    pub timeline: u32,
    /// Position in units of 4 GiB.
    pub high: u32,
    /// Which segment within these 4 GiB.
    pub low: u32,
}

/// What PostgreSQL lets a segment be: powers of two from 1 MiB to 1 GiB.
#[must_use]
pub fn is_segment_size(size: u32) -> bool {
    size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size)
}

/// So many segments of this size are 4 GiB.
fn per_4gib(size: u32) -> u64 {
    (1 << 32) / u64::from(size.max(1))
}

impl Segment {
    /// The `number`th segment of a timeline whose segments have this size.
    #[must_use]
    pub fn of_number(timeline: u32, number: u64, size: u32) -> Self {
        let each = per_4gib(size);
        Self { timeline, high: (number / each) as u32, low: (number % each) as u32 }
    }
    /// That in which a position lies.
    #[must_use]
    pub fn at(timeline: u32, position: Lsn, size: u32) -> Self {
        Self::of_number(timeline, position.0 / u64::from(size.max(1)), size)
    }
    #[must_use]
    pub fn number(&self, size: u32) -> u64 {
        u64::from(self.high) * per_4gib(size) + u64::from(self.low)
    }
    /// Where it begins.
    #[must_use]
    pub fn start(&self, size: u32) -> Lsn {
        Lsn(self.number(size).wrapping_mul(u64::from(size)))
    }
    #[must_use]
    pub fn next(&self, size: u32) -> Self {
        Self::of_number(self.timeline, self.number(size) + 1, size)
    }
    /// Can there be a segment of this name where segments have this size?
    #[must_use]
    pub fn fits(&self, size: u32) -> bool {
        self.timeline > 0 && u64::from(self.low) < per_4gib(size)
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.high, self.low)
    }
}

/// Eight hexadecimal digits as PostgreSQL writes them: one spelling only.
fn digits(text: &str) -> Option<u32> {
    let ours = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    if text.len() == 8 && text.bytes().all(ours) { u32::from_str_radix(text, 16).ok() } else { None }
}

impl FromStr for Segment {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let segment = Self { timeline: digits(text.get(..8)?)?, high: digits(text.get(8..16)?)?, low: digits(text.get(16..)?)? };
            (segment.timeline > 0).then_some(segment)
        };
        parse().ok_or_else(|| format!("`{text}` is no WAL segment: it takes 24 hexadecimal digits, such as 000000010000000A000000FE"))
    }
}

/// A file of the write-ahead log, as `archive_command` and `restore_command` name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentName {
    Whole(Segment),
    /// The last one of a timeline that was left in its middle.
    Partial(Segment),
    /// The label of a base backup that began at this offset of the segment.
    Backup(Segment, u32),
    /// Where a timeline came from.
    History(u32),
}

impl SegmentName {
    #[must_use]
    pub fn timeline(&self) -> u32 {
        match self {
            Self::Whole(segment) | Self::Partial(segment) | Self::Backup(segment, _) => segment.timeline,
            Self::History(timeline) => *timeline,
        }
    }
    #[must_use]
    pub fn segment(&self) -> Option<Segment> {
        match self {
            Self::Whole(segment) | Self::Partial(segment) | Self::Backup(segment, _) => Some(*segment),
            Self::History(_) => None,
        }
    }
    /// If it is a whole segment, its number among segments of this size.
    #[must_use]
    pub fn number(&self, size: u32) -> Option<u64> {
        if let Self::Whole(segment) = self { Some(segment.number(size)) } else { None }
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(segment) => segment.fmt(f),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::Backup(segment, offset) => write!(f, "{segment}.{offset:08X}.backup"),
            Self::History(timeline) => write!(f, "{timeline:08X}.history"),
        }
    }
}

impl FromStr for SegmentName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || match text.split_once('.') {
            None => text.parse().ok().map(Self::Whole),
            Some((timeline, "history")) => digits(timeline).filter(|timeline| *timeline > 0).map(Self::History),
            Some((segment, "partial")) => segment.parse().ok().map(Self::Partial),
            Some((segment, rest)) => Some(Self::Backup(segment.parse().ok()?, digits(rest.strip_suffix(".backup")?)?)),
        };
        parse().ok_or_else(|| {
            format!(
                "`{text}` is no file of PostgreSQL's write-ahead log: it takes a name such as 000000010000000A000000FE or 00000002.history"
            )
        })
    }
}

/// The bytes of a segment from one offset to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Piece {
    pub segment: Segment,
    pub from: u32,
    /// The first byte that is not in it.
    pub to: u32,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:08X}-{:08X}", self.segment, self.from, self.to)
    }
}

/// What an object of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalName {
    File(SegmentName),
    Piece(Piece),
}

impl WalName {
    #[must_use]
    pub fn timeline(&self) -> u32 {
        match self {
            Self::File(name) => name.timeline(),
            Self::Piece(piece) => piece.segment.timeline,
        }
    }
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) => name.fmt(f),
            Self::Piece(piece) => piece.fmt(f),
        }
    }
}

impl FromStr for WalName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let piece = || {
            let (segment, range) = text.split_once('.')?;
            let (from, to) = range.split_once('-')?;
            let piece = Piece { segment: segment.parse().ok()?, from: digits(from)?, to: digits(to)? };
            (piece.from < piece.to).then_some(piece)
        };
        match piece() {
            Some(piece) => Ok(Self::Piece(piece)),
            None => text.parse().map(Self::File),
        }
    }
}

/// Is it what PostgreSQL calls a cluster by: a number of 64 bits, in decimal?
pub fn check_system(text: &str) -> Result<(), String> {
    match text.parse::<u64>() {
        Ok(number) if number > 0 && number.to_string() == text => Ok(()),
        _ => {
            Err(format!("`{text}` is no system identifier: it takes the number that `pg_controldata` prints, such as 7445172393480321234"))
        }
    }
}

/// Where everything of one cluster lies.
#[must_use]
pub fn folder(system: &str) -> String {
    format!("{WAL}{system}/")
}

#[must_use]
pub fn key(system: &str, name: &WalName) -> String {
    format!("{WAL}{system}/{:08X}/{name}", name.timeline())
}

/// The system and the name in an object's key, if it is one of ours.
#[must_use]
pub fn in_key(text: &str) -> Option<(&str, WalName)> {
    let (system, rest) = text.strip_prefix(WAL)?.split_once('/')?;
    let name: WalName = rest.split_once('/')?.1.parse().ok()?;
    (check_system(system).is_ok() && key(system, &name) == text).then_some((system, name))
}

/// Which of these pieces of one segment to read, to have as much as there is from its beginning on without a gap: the
/// fewest, in order.
#[must_use]
pub fn cover(pieces: &[Piece]) -> Vec<Piece> {
    let (mut chosen, mut end) = (Vec::new(), 0);
    loop {
        let reaching = pieces.iter().filter(|piece| piece.from <= end && piece.to > end);
        let Some(best) = reaching.max_by_key(|piece| piece.to) else { return chosen };
        end = best.to;
        chosen.push(*best);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u32 = 1 << 20;

    #[test]
    fn names_are_those_of_postgresql() {
        // By pg_walfile_name() of servers with segments of 1, 16 and 1024 MiB.
        for (position, size, name) in [
            ("0/16B3748", 16 * MIB, "000000010000000000000001"),
            ("1/0", 16 * MIB, "000000010000000100000000"),
            ("A/FE000028", 16 * MIB, "000000010000000A000000FE"),
            ("A/FE000028", MIB, "000000010000000A00000FE0"),
            ("2/40000000", 1024 * MIB, "000000010000000200000001"),
        ] {
            let segment = Segment::at(1, position.parse().unwrap(), size);
            assert_eq!(segment.to_string(), name);
            assert_eq!(name.parse(), Ok(segment));
            assert!(segment.start(size) <= position.parse().unwrap() && segment.next(size).start(size) > position.parse().unwrap());
        }
        let last: Segment = "0000000100000000000000FF".parse().unwrap();
        assert_eq!(last.next(16 * MIB).to_string(), "000000010000000100000000");
        assert!(last.fits(16 * MIB) && !last.fits(64 * MIB));
    }

    #[test]
    fn every_kind_of_file_has_a_place_and_nothing_else_does() {
        for name in [
            "000000010000000A000000FE",
            "000000010000000A000000FE.partial",
            "000000010000000A000000FE.00000028.backup",
            "0000000B.history",
            "000000010000000A000000FE.00002000-00010000",
        ] {
            let parsed: WalName = name.parse().unwrap();
            assert_eq!(parsed.to_string(), name);
            let place = key("7445172393480321234", &parsed);
            assert_eq!(place, format!("wal/7445172393480321234/{}/{name}", &name[..8]));
            assert_eq!(in_key(&place), Some(("7445172393480321234", parsed)));
        }
        for name in [
            "",
            "000000010000000a000000fe",
            "000000000000000A000000FE",
            "000000010000000A000000FE0",
            "000000010000000A000000F",
            "+00000010000000A000000FE",
            "000000010000000A000000FE.gz",
            "000000010000000A000000FE.28.backup",
            "00000000.history",
            "000000010000000A000000FE.00010000-00002000",
            "000000010000000A000000FE.00002000-00002000",
            "../0000000B.history",
            "0000000é.history",
        ] {
            assert!(name.parse::<WalName>().is_err(), "{name}");
        }
        for place in [
            "wal/7/00000002/000000010000000A000000FE",
            "wal/07/00000001/000000010000000A000000FE",
            "wal/x/00000001/000000010000000A000000FE",
            "wal/7/000000010000000A000000FE",
        ] {
            assert_eq!(in_key(place), None, "{place}");
        }
    }

    proptest! {
        #[test]
        fn a_number_comes_back(timeline in 1u32.., number in 0u64..1 << 30, power in 20u32..=30) {
            let size = 1 << power;
            let segment = Segment::of_number(timeline, number, size);
            prop_assert_eq!(segment.number(size), number);
            prop_assert_eq!(segment.to_string().parse(), Ok(segment));
            prop_assert!(segment.fits(size));
        }

        #[test]
        fn a_cover_has_no_gap_and_reaches_as_far_as_can_be(ends in proptest::collection::vec((0u32..64, 1u32..16), 0..24)) {
            let segment = Segment { timeline: 1, high: 0, low: 0 };
            let pieces: Vec<Piece> = ends.iter().map(|(from, length)| Piece { segment, from: *from, to: from + length }).collect();
            let covered = (0..80).take_while(|at| pieces.iter().any(|p| (p.from..p.to).contains(at))).count() as u32;
            let chosen = cover(&pieces);
            let mut end = 0;
            for piece in &chosen {
                prop_assert!(piece.from <= end && piece.to > end);
                end = piece.to;
            }
            prop_assert_eq!(end, covered);
        }
    }
}
