//! Where a timeline came from: PostgreSQL writes it into `TIMELINE.history` at every promotion, one line for each
//! timeline before, with the position at which it was left.

use crate::providers::port::Lsn;

/// The ancestors of a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    pub timeline: u32,
    /// The oldest first: a timeline, and where it was left for the next.
    pub left: Vec<(u32, Lsn)>,
}

impl History {
    /// Of a timeline that came from none.
    #[must_use]
    pub fn none(timeline: u32) -> Self {
        Self { timeline, left: Vec::new() }
    }

    pub fn parse(timeline: u32, content: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(content).map_err(|_| "it is no text".to_owned())?;
        let mut left: Vec<(u32, Lsn)> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let wrong = || format!("`{line}` is no line of a timeline's history");
            let mut words = line.split_whitespace();
            let parent: u32 = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
            let at: Lsn = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
            let ascends = left.last().is_none_or(|(before, position)| *before < parent && *position <= at);
            if !ascends || parent >= timeline || parent == 0 {
                return Err(format!("{} and does not follow what stands above it", wrong()));
            }
            left.push((parent, at));
        }
        if left.is_empty() && timeline > 1 {
            return Err(format!("it names no timeline from which {timeline} came"));
        }
        Ok(Self { timeline, left })
    }

    /// The timeline before, and where this one took over.
    #[must_use]
    pub fn begins(&self) -> Option<(u32, Lsn)> {
        self.left.last().copied()
    }

    /// Where `timeline` was left on the way to this one; `None` within: it was not, since it is this one. Outer `None`:
    /// this one did not come from it.
    #[must_use]
    pub fn left_at(&self, timeline: u32) -> Option<Option<Lsn>> {
        if timeline == self.timeline {
            return Some(None);
        }
        self.left.iter().find(|(one, _)| *one == timeline).map(|(_, at)| Some(*at))
    }

    /// The timelines from the oldest to this one, each with where it began.
    #[must_use]
    pub fn path(&self) -> Vec<(u32, Lsn)> {
        let begins = std::iter::once(Lsn(0)).chain(self.left.iter().map(|(_, at)| *at));
        self.left.iter().map(|(timeline, _)| *timeline).chain([self.timeline]).zip(begins).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_as_postgresql_writes_it() {
        let text = b"# a comment\n1\t0/3000148\tno recovery target specified\n\n2\t0/50000A0\tbefore 2026-11-26 03:00:00+00\n";
        let history = History::parse(3, text).unwrap();
        assert_eq!(history.begins(), Some((2, Lsn(0x0500_00A0))));
        assert_eq!(history.left_at(1), Some(Some(Lsn(0x0300_0148))));
        assert_eq!((history.left_at(3), history.left_at(4)), (Some(None), None));
        assert_eq!(history.path(), [(1, Lsn(0)), (2, Lsn(0x0300_0148)), (3, Lsn(0x0500_00A0))]);
        assert_eq!(History::none(1).path(), [(1, Lsn(0))]);
    }

    #[test]
    fn what_is_no_history_is_refused() {
        for text in
            [&b"1 0/3000148 x\n1 0/4000000 y"[..], b"3 0/3000148 x", b"1 nowhere x", b"", b"\xff", b"2 0/5 x\n1 0/6 y", b"1 0/6 x\n2 0/5 y"]
        {
            assert!(History::parse(3, text).is_err(), "{text:?}");
        }
    }
}
