//! What there is of a cluster's log, what a recovery needs of it, and how far it can come: decided from names alone, so
//! that every rule can be tested without a store.
//!
//! PostgreSQL replays one segment after another. Of which timeline it takes a segment is a matter of the history of
//! the timeline that it makes for: the newest of it that had begun when the segment ended. So a segment in whose middle
//! a timeline took over is that of the new one; its first half is a copy of the old one's.

use super::{
    RepositoryError, Result,
    open::Repository,
    wal,
    wal_history::History,
    wal_name::{self, Piece, Segment, SegmentName, WalName, cover},
};
use crate::providers::port::Lsn;
use std::collections::{BTreeMap, BTreeSet};

/// The segments of one timeline, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    pub whole: BTreeSet<u64>,
    pub pieces: BTreeMap<u64, Vec<Piece>>,
}

/// All that there is of one cluster's log.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub size: u32,
    pub timelines: BTreeMap<u32, Have>,
    pub histories: BTreeMap<u32, History>,
    /// When the newest object came.
    pub newest_at: Option<jiff::Timestamp>,
}

/// From where a recovery begins, and what it cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub timeline: u32,
    pub start: Lsn,
    /// Before this the copy is not consistent.
    pub stop: Lsn,
}

/// How far a recovery comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    pub timeline: u32,
    /// To be replayed, in order.
    pub needed: Vec<Segment>,
    /// How much there is of the last one, if it is not whole.
    pub last_piece: Option<u32>,
    /// There is log up to here (how much of that holds records, only the records tell).
    pub end: Lsn,
    /// What lies between the last that there is and others that come later: nothing, if the log just ends.
    pub missing: Vec<Segment>,
}

impl Reach {
    /// The same without what lies beyond a position, though it may have come meanwhile.
    #[must_use]
    pub fn no_further(mut self, end: Lsn, size: u32) -> Self {
        if self.end > end {
            let part = end.0 % u64::from(size.max(1));
            self.needed.retain(|segment| segment.start(size) < end);
            self.last_piece = u32::try_from(part).ok().filter(|part| *part > 0);
            self.end = end;
        }
        self
    }
}

impl Line {
    #[must_use]
    pub fn new(size: u32) -> Self {
        Self { size, ..Self::default() }
    }

    pub fn add(&mut self, name: &WalName) {
        let size = self.size;
        let have = self.timelines.entry(name.timeline()).or_default();
        match name {
            WalName::File(SegmentName::Whole(segment)) => drop(have.whole.insert(segment.number(size))),
            WalName::Piece(piece) => have.pieces.entry(piece.segment.number(size)).or_default().push(*piece),
            WalName::File(_) => {}
        }
    }

    /// Where a timeline came from.
    #[must_use]
    pub fn history(&self, timeline: u32) -> History {
        self.histories.get(&timeline).cloned().unwrap_or_else(|| History::none(timeline))
    }

    /// The newest timeline on which this base backup can be led on.
    #[must_use]
    pub fn newest(&self, base: &Base) -> u32 {
        let known = self.histories.values().rev();
        known.filter(|history| Self::leads_on(history, base)).map(|history| history.timeline).next().unwrap_or(base.timeline)
    }

    /// Did this timeline come from that of the base backup, and after it?
    #[must_use]
    pub fn leads_on(history: &History, base: &Base) -> bool {
        history.left_at(base.timeline).is_some_and(|left| left.is_none_or(|at| at >= base.stop))
    }

    /// Bytes of a segment that there are, from its beginning on.
    fn length(&self, segment: &Segment) -> u32 {
        let Some(have) = self.timelines.get(&segment.timeline) else { return 0 };
        let number = segment.number(self.size);
        if have.whole.contains(&number) {
            return self.size;
        }
        have.pieces.get(&number).and_then(|pieces| cover(pieces).last().map(|piece| piece.to)).unwrap_or(0)
    }

    /// There is log of this segment's timeline up to here.
    #[must_use]
    pub fn end_of(&self, segment: &Segment) -> Lsn {
        Lsn(segment.start(self.size).0 + u64::from(self.length(segment)))
    }

    /// Of which timeline on the way a segment is taken.
    fn on_path(&self, path: &[(u32, Lsn)], base: &Base, number: u64) -> Segment {
        let begun = |(timeline, at): &&(u32, Lsn)| *timeline <= base.timeline || number >= at.0 / u64::from(self.size.max(1));
        let timeline = path
            .iter()
            .rev()
            .filter(|(timeline, _)| *timeline >= base.timeline)
            .find(begun)
            .map_or(base.timeline, |(timeline, _)| *timeline);
        Segment::of_number(timeline, number, self.size)
    }

    /// How far this base backup can be led on towards `timeline`, or up to `to` on the way there.
    #[must_use]
    pub fn reach(&self, base: &Base, timeline: u32, to: Option<Lsn>) -> Reach {
        let size = u64::from(self.size.max(1));
        let path = self.history(timeline).path();
        let mut number = base.start.0 / size;
        // A position at the very beginning of a segment needs nothing of it.
        let least = base.stop.0.saturating_sub(1) / size;
        let last = to.map(|to| (to.0.saturating_sub(1) / size).max(least));
        let mut reach = Reach { timeline, needed: Vec::new(), last_piece: None, end: Lsn(number * size), missing: Vec::new() };
        while last.is_none_or(|last| number <= last) {
            let segment = self.on_path(&path, base, number);
            let length = self.length(&segment);
            if length > 0 {
                reach.needed.push(segment);
                reach.end = Lsn(number * size + u64::from(length));
            }
            if length < self.size {
                reach.last_piece = (length > 0).then_some(length);
                // All of it or the rest of it is missing, if there is more behind it.
                reach.missing = self.gap(&path, base, number, last.unwrap_or(u64::MAX).max(least));
                return reach;
            }
            number += 1;
        }
        reach
    }

    /// The segments from this number on that are missing before the next one that there is; none if there is none, and the
    /// base backup can do without.
    fn gap(&self, path: &[(u32, Lsn)], base: &Base, from: u64, last: u64) -> Vec<Segment> {
        let there = |number: u64| self.length(&self.on_path(path, base, number)) > 0;
        let numbers = self
            .timelines
            .iter()
            .filter(|(timeline, _)| **timeline >= base.timeline)
            .flat_map(|(_, have)| have.whole.range(from + 1..).chain(have.pieces.range(from + 1..).map(|(number, _)| number)).copied());
        let next = numbers.filter(|number| *number <= last && there(*number)).min();
        let least = base.stop.0.saturating_sub(1) / u64::from(self.size.max(1));
        let end = match next {
            Some(next) => next,
            None if from <= least
                && Lsn(from * u64::from(self.size) + u64::from(self.length(&self.on_path(path, base, from)))) < base.stop =>
            {
                least + 1
            }
            None => return Vec::new(),
        };
        (from..end).map(|number| self.on_path(path, base, number)).collect()
    }

    /// The objects that hold these segments: whole, or else the pieces that there are.
    #[must_use]
    pub fn objects(&self, segments: &[Segment]) -> Vec<WalName> {
        let of = |segment: &Segment| {
            let number = segment.number(self.size);
            let Some(have) = self.timelines.get(&segment.timeline) else { return Vec::new() };
            if have.whole.contains(&number) {
                return vec![WalName::File(SegmentName::Whole(*segment))];
            }
            have.pieces.get(&number).map(|pieces| cover(pieces)).unwrap_or_default().into_iter().map(WalName::Piece).collect()
        };
        segments.iter().flat_map(of).collect()
    }

    /// Runs of segments that are there, of one timeline: the first and the last of each.
    #[must_use]
    pub fn runs(&self, timeline: u32) -> Vec<(u64, u64)> {
        let Some(have) = self.timelines.get(&timeline) else { return Vec::new() };
        let numbers: BTreeSet<u64> = have.whole.iter().chain(have.pieces.keys()).copied().collect();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for number in numbers {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => runs.push((number, number)),
            }
        }
        runs
    }
}

/// Looks at all that a repository has of a cluster's log. `size`: of its segments.
pub async fn look(repository: &Repository, system: &str, size: u32) -> Result<Line> {
    let mut line = Line::new(size);
    for one in wal::list(repository, &wal_name::folder(system)).await? {
        line.add(&one.name);
        line.newest_at = line.newest_at.max(one.modified);
        if let WalName::File(SegmentName::History(timeline)) = one.name {
            let key = wal_name::key(system, &one.name);
            let content = wal::open(repository, &key).await?;
            let history = History::parse(timeline, &content).map_err(|why| RepositoryError::damaged(key, why))?;
            line.histories.insert(timeline, history);
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    fn line(names: &[&str], histories: &[(u32, &str)]) -> Line {
        let mut line = Line::new(MIB);
        names.iter().for_each(|name| line.add(&name.parse().unwrap()));
        for (timeline, text) in histories {
            line.histories.insert(*timeline, History::parse(*timeline, text.as_bytes()).unwrap());
        }
        line
    }
    fn base(start: u64, stop: u64) -> Base {
        Base { timeline: 1, start: Lsn(start), stop: Lsn(stop) }
    }
    fn names(segments: &[Segment]) -> Vec<String> {
        // The timeline and the number say it all.
        segments.iter().map(|segment| format!("{}/{}", segment.timeline, segment.number(MIB))).collect()
    }
    const AT: u64 = MIB as u64;

    #[test]
    fn the_log_leads_on_until_it_ends() {
        let all = [
            "000000010000000000000001",
            "000000010000000000000002",
            "000000010000000000000003",
            "000000010000000000000004.00000000-00001000",
        ];
        let line = line(&all, &[]);
        let reach = line.reach(&base(AT + 40, AT + 300), 1, None);
        assert_eq!(names(&reach.needed), ["1/1", "1/2", "1/3", "1/4"]);
        assert_eq!((reach.end, reach.last_piece, reach.missing.len()), (Lsn(4 * AT + 0x1000), Some(0x1000), 0));
        let to = line.reach(&base(AT + 40, AT + 300), 1, Some(Lsn(3 * AT)));
        assert_eq!((names(&to.needed), to.end), (vec!["1/1".to_owned(), "1/2".to_owned()], Lsn(3 * AT)));
        let beyond = line.reach(&base(AT + 40, AT + 300), 1, Some(Lsn(9 * AT)));
        assert!(beyond.end < Lsn(9 * AT) && beyond.missing.is_empty());
    }

    #[test]
    fn what_came_later_can_be_left_out() {
        let all = ["000000010000000000000001", "000000010000000000000002", "000000010000000000000003"];
        let reach = line(&all, &[]).reach(&base(AT + 40, AT + 300), 1, None);
        let part = reach.clone().no_further(Lsn(2 * AT + 0x1000), MIB);
        assert_eq!(
            (names(&part.needed), part.end, part.last_piece),
            (vec!["1/1".to_owned(), "1/2".to_owned()], Lsn(2 * AT + 0x1000), Some(0x1000))
        );
        let whole = reach.clone().no_further(Lsn(2 * AT), MIB);
        assert_eq!((names(&whole.needed), whole.end, whole.last_piece), (vec!["1/1".to_owned()], Lsn(2 * AT), None));
        assert_eq!(reach.clone().no_further(Lsn(9 * AT), MIB), reach);
    }

    #[test]
    fn what_is_missing_is_named() {
        let there = line(&["000000010000000000000001", "000000010000000000000004", "000000010000000000000006"], &[]);
        let reach = there.reach(&base(AT, AT + 300), 1, None);
        assert_eq!((names(&reach.missing), reach.end), (vec!["1/2".to_owned(), "1/3".to_owned()], Lsn(2 * AT)));
        // What the target does not need is not missed.
        assert!(there.reach(&base(AT, AT + 300), 1, Some(Lsn(2 * AT))).missing.is_empty());
        // Half a segment with others behind it is a gap too.
        let half = line(&["000000010000000000000001.00000000-00001000", "000000010000000000000002"], &[]);
        assert_eq!(names(&half.reach(&base(AT, AT + 300), 1, None).missing), ["1/1"]);
        // Without what it takes to be consistent there is nothing at all.
        let none = line(&[], &[]);
        assert_eq!(names(&none.reach(&base(AT, 2 * AT + 300), 1, None).missing), ["1/1", "1/2"]);
        let short = line(&["000000010000000000000001.00000000-00000100"], &[]);
        assert_eq!(names(&short.reach(&base(AT, AT + 300), 1, None).missing), ["1/1"]);
    }

    #[test]
    fn what_holds_a_segment_is_found() {
        let all = [
            "000000010000000000000001",
            "000000010000000000000001.00000000-00001000",
            "000000010000000000000002.00000000-00001000",
            "000000010000000000000002.00000800-00002000",
            "000000010000000000000002.00000100-00000200",
        ];
        let line = line(&all, &[]);
        let reach = line.reach(&base(AT + 40, 2 * AT + 300), 1, Some(Lsn(2 * AT + 300)));
        let names: Vec<String> = line.objects(&reach.needed).iter().map(ToString::to_string).collect();
        assert_eq!(names, [all[0], all[2], all[3]]);
    }

    #[test]
    fn timelines_follow_each_other() {
        let switched = format!("1\t{}\tno recovery target specified\n", Lsn(3 * AT + 500));
        let all = [
            "000000010000000000000002",
            "000000020000000000000003",
            "000000020000000000000004",
            "000000010000000000000003",
            "000000010000000000000004",
            "000000010000000000000005",
        ];
        let line = line(&all, &[(2, &switched)]);
        let from = base(2 * AT, 2 * AT + 300);
        assert_eq!(line.newest(&from), 2);
        let reach = line.reach(&from, 2, None);
        assert_eq!((names(&reach.needed), reach.missing.len()), (vec!["1/2".to_owned(), "2/3".to_owned(), "2/4".to_owned()], 0));
        assert_eq!(names(&line.reach(&from, 1, None).needed), ["1/2", "1/3", "1/4", "1/5"]);
        // A base backup of what the old primary wrote after it was left does not lead to the new timeline.
        assert_eq!(line.newest(&base(4 * AT, 4 * AT + 300)), 1);
        // One made on the new timeline needs nothing of the old one.
        let second = Base { timeline: 2, start: Lsn(4 * AT), stop: Lsn(4 * AT + 300) };
        assert_eq!(names(&line.reach(&second, 2, None).needed), ["2/4"]);
        assert_eq!(line.runs(1), [(2, 5)]);
    }
}
