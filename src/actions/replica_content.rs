//! The content of a physical replica compared with its primary's, while both go on. Without stopping either.
//!
//! `replica_judge` says what follows from three looks; here they are taken. A table is summed in stretches of blocks, a
//! piece of so many stretches at a time, and only stretches whose sums do not agree are looked at row by row, so that
//! what travels is what is being written to. A piece is as long as a question may take; one that a server refuses
//! because it stood in the way of replay is cut in two. Where the load may be full, several pairs of connections
//! work at once, so that one asks the primary while another asks the standby.
//!
//! **Limits.** What is proved is the state of each table as of its first look; younger rows are in flight. A
//! row that is rewritten faster than three looks take (some 10 ms near by, three round trips elsewhere) can
//! never be caught; it is tried until its time is up, and then the answer is *unknown*, never *equal*. So it
//! is for tables that are rewritten (DDL, `TRUNCATE`, `VACUUM FULL`) on and on. On the standby it only reads, and takes
//! no lock but the one that every query takes; while one of its questions runs there, replay may wait for it, for as
//! long as one piece takes.

use super::{
    replica_judge::{doubtful, judge},
    replica_load::{Bounds, Eye, Load, Queue, Watcher, patiently},
    replica_report::*,
};
use crate::providers::port::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Rows that are held at once, of each look.
const ROWS_AT_ONCE: u64 = 20_000;
/// How long one question should take.
const TARGET: Duration = Duration::from_millis(300);
const FIRST_BLOCKS: u32 = 1_024;
const MOST_BLOCKS: u32 = 65_536;
/// Connections that are lost one after the other, before that is the answer.
const LOST: u32 = 20;

/// Why a piece came to nothing.
pub(super) enum Stop {
    /// The standby does not replay what it must.
    Stalled(Lsn),
    Port(PortError),
}

impl From<PortError> for Stop {
    fn from(error: PortError) -> Self {
        Self::Port(error)
    }
}

/// Compares these tables.
pub(super) async fn compare(
    primary: &dyn SqlRead,
    standby: &dyn SqlRead,
    tables: Vec<TableFile>,
    bounds: &Bounds,
    watcher: &dyn Watcher,
) -> Result<Vec<TableReport>, Stop> {
    let loads = [Load::default(), Load::default()];
    let queue = Mutex::new(Queue::new(tables));
    let worker = || async {
        let (mut pair, mut blocks) = (Pair::open(primary, standby, &loads, bounds).await?, FIRST_BLOCKS);
        while !watcher.stopped() {
            let taken = queue.lock().unwrap_or_else(PoisonError::into_inner).take(blocks);
            let Some((index, table, piece)) = taken else { break };
            pair.slowest = Duration::ZERO;
            let found = match pair.piece(&table, piece).await {
                // Of one table: no right to read it, or it is gone.
                Err(Stop::Port(e @ (PortError::Refused(_) | PortError::NotFound(_) | PortError::Throttled { .. }))) => {
                    Found { why: Some(e.to_string()), ..Found::default() }
                }
                other => other?,
            };
            blocks = next_size(blocks, pair.slowest);
            let (stand, done) = {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                let done = queue.put(index, piece, found, bounds.limit);
                (queue.stand(), done)
            };
            watcher.progress(&stand);
            if let Some(report) = done {
                watcher.finished(&report);
            }
        }
        Ok::<_, Stop>(())
    };
    futures::future::try_join_all((0..bounds.workers.max(1)).map(|_| worker())).await?;
    Ok(queue.into_inner().unwrap_or_else(PoisonError::into_inner).reports())
}

fn next_size(blocks: u32, slowest: Duration) -> u32 {
    if slowest * 2 < TARGET {
        (blocks * 2).min(MOST_BLOCKS)
    } else if slowest > TARGET * 3 / 2 {
        (blocks / 2).max(1)
    } else {
        blocks
    }
}

/// Two servers.
struct Pair<'a> {
    primary: Eye<'a>,
    standby: Eye<'a>,
    bounds: &'a Bounds,
    lost: u32,
    slowest: Duration,
}

/// Stretches that do not agree, with the rows in them; or that the looks cannot be compared.
type Doubtful = Option<Vec<(u32, u64)>>;

/// A range of blocks, first and last, and how many rows it may have.
type Range = ((u32, u32), u64);

/// What rows were found to differ, each once.
type Wrong = BTreeMap<(u32, u32, Kind), u32>;

impl<'a> Pair<'a> {
    async fn open(primary: &'a dyn SqlRead, standby: &'a dyn SqlRead, loads: &'a [Load; 2], bounds: &'a Bounds) -> Result<Self, Stop> {
        let [here, there] = loads;
        let (primary, standby) = (Eye::open(primary, here, bounds).await?, Eye::open(standby, there, bounds).await?);
        Ok(Self { primary, standby, bounds, lost: 0, slowest: Duration::ZERO })
    }

    async fn piece(&mut self, table: &TableFile, piece: Piece) -> Result<Found, Stop> {
        let mut found = Found::default();
        let mut pieces = vec![piece];
        let mut deadline = self.bounds.deadline();
        while let Some(piece) = pieces.pop() {
            match self.sums(table, piece, &mut found).await {
                Ok(Some(doubtful)) => {
                    let ranges = doubtful.into_iter().map(|(number, rows)| (blocks(piece, number), rows)).collect();
                    self.rows(table, ranges, &mut found).await?;
                    deadline = self.bounds.deadline();
                }
                Ok(None) if self.bounds.late(deadline) => {
                    found.why = Some("it is rewritten on and on".into());
                    return Ok(found);
                }
                Ok(None) => pieces.push(piece),
                Err(Stop::Port(PortError::Corrupt(_))) if piece.first == piece.last => {
                    let (first, last) = blocks(piece, piece.first);
                    let last = last.min(table.blocks.max(first + piece.per) - 1);
                    let mut each: Vec<Range> = (first..=last).map(|block| ((block, block), ROWS_AT_ONCE)).collect();
                    if piece.open && last < u32::MAX {
                        each.push(((last + 1, u32::MAX), ROWS_AT_ONCE));
                    }
                    self.rows(table, each, &mut found).await?;
                }
                Err(Stop::Port(PortError::Corrupt(_))) => pieces.extend(halves(piece)),
                Err(Stop::Port(e)) => {
                    self.passing(e, deadline).await?;
                    pieces.extend(halves(piece));
                }
                Err(stalled) => return Err(stalled),
            }
        }
        Ok(found)
    }

    /// The doubtful stretches of a piece; none when the looks cannot be compared. What agrees is counted.
    async fn sums(&mut self, table: &TableFile, piece: Piece, found: &mut Found) -> Result<Doubtful, Stop> {
        let seed = self.bounds.seed;
        let began = self.primary.turn().await;
        let before = self.primary.rows.stretches(table, piece, seed, true).await;
        self.primary.asked(began);
        let before = before?;
        self.slowest = self.slowest.max(self.primary.took);
        self.replayed(before.at).await?;
        let began = self.standby.turn().await;
        let there = self.standby.rows.stretches(table, piece, seed, false).await;
        self.standby.asked(began);
        let there = there?;
        self.slowest = self.slowest.max(self.standby.took);
        let after = if there.seen == before.seen {
            there.clone()
        } else {
            let began = self.primary.turn().await;
            let after = self.primary.rows.stretches(table, piece, seed, false).await;
            self.primary.asked(began);
            after?
        };
        self.lost = 0;
        if !same_shape(&before, &there, &after) {
            self.bounds.clock.sleep(Duration::from_millis(5)).await;
            return Ok(None);
        }
        found.rows += before.seen.iter().map(|s| s.rows).sum::<u64>();
        found.at = found.at.max(Some(there.at));
        Ok(Some(doubtful(&before, &there, &after)))
    }

    /// Row by row, in parts that fit; what is open stays on the list.
    async fn rows(&mut self, table: &TableFile, mut list: Vec<Range>, found: &mut Found) -> Result<(), Stop> {
        let (mut strayed, mut wrong) = (BTreeSet::new(), Wrong::new());
        let mut deadline = self.bounds.deadline();
        let mut left = list.len();
        while !list.is_empty() {
            let part = take(&mut list);
            let ranges: Vec<(u32, u32)> = part.iter().map(|(range, _)| *range).collect();
            let looks = match self.versions(&table.name, &ranges).await {
                Err(Stop::Port(PortError::Corrupt(message))) => {
                    self.damaged(table, part, message, &mut list, found).await;
                    continue;
                }
                Err(Stop::Port(e)) => {
                    self.passing(e, deadline).await?;
                    None
                }
                other => other?,
            };
            match looks {
                None => list.extend(part),
                Some([before, there, after]) => {
                    let judged = judge(&before, &there, &after, &strayed);
                    wrong.extend(judged.wrong.into_iter().map(|((block, line, born), kind)| ((block, line, kind), born)));
                    found.at = found.at.max(Some(there.at));
                    strayed = judged.stray;
                    let rows = part.iter().map(|(_, rows)| rows).sum::<u64>() / part.len().max(1) as u64;
                    list.splice(0..0, judged.open.iter().map(|block| ((*block, *block), rows)));
                }
            }
            if list.len() < left {
                deadline = self.bounds.deadline();
            }
            left = list.len().min(left);
            if !list.is_empty() && self.bounds.late(deadline) {
                found.why = Some("some of its rows never stood still long enough to be compared".into());
                break;
            }
            if !list.is_empty() {
                self.bounds.clock.sleep(Duration::from_millis(5)).await;
            }
        }
        self.told(table, wrong, found).await
    }

    /// A part in which something cannot be read: smaller parts, down to the block.
    async fn damaged(&mut self, table: &TableFile, part: Vec<Range>, message: String, list: &mut Vec<Range>, found: &mut Found) {
        if let [((first, last), rows)] = part.as_slice() {
            let end = (*last).min(table.blocks.max(*first + 1) - 1);
            if first < &end {
                list.extend((*first..=end).map(|block| ((block, block), *rows)));
                return;
            }
            let side =
                if self.primary.rows.versions(&table.name, &[(*first, *last)], false).await.is_err() { "primary" } else { "standby" };
            found.damage.push(Damage { side: side.into(), block: Some(*first), message });
            return;
        }
        // One at a time from here on: each fills a part by itself.
        list.extend(part.into_iter().map(|(range, _)| (range, ROWS_AT_ONCE)));
    }

    async fn versions(&mut self, table: &str, ranges: &[(u32, u32)]) -> Result<Option<[Look<Version>; 3]>, Stop> {
        let began = self.primary.turn().await;
        let before = self.primary.rows.versions(table, ranges, true).await;
        self.primary.asked(began);
        let before = before?;
        self.replayed(before.at).await?;
        let began = self.standby.turn().await;
        let there = self.standby.rows.versions(table, ranges, false).await;
        self.standby.asked(began);
        let (there, began) = (there?, self.primary.turn().await);
        let after = self.primary.rows.versions(table, ranges, false).await;
        self.primary.asked(began);
        let after = after?;
        self.lost = 0;
        Ok(same_shape(&before, &there, &after).then_some([before, there, after]))
    }

    /// The keys of the rows that differ, and their columns, as far as they are listed.
    async fn told(&mut self, table: &TableFile, wrong: Wrong, found: &mut Found) -> Result<(), Stop> {
        let listed: Vec<(u32, u32)> = wrong.keys().take(self.bounds.limit).map(|(block, line, _)| (*block, *line)).collect();
        if listed.is_empty() {
            return Ok(());
        }
        // Best effort: that they differ is proved already.
        let clock = &self.bounds.clock;
        let here = patiently!(clock, self.primary.rows.rows_at(table, &listed)).unwrap_or_default();
        let there = patiently!(clock, self.standby.rows.rows_at(table, &listed)).unwrap_or_default();
        let find = |rows: &[RowText], block, line| rows.iter().find(|r| (r.block, r.line) == (block, line)).cloned();
        for (block, line, kind) in wrong.keys().take(self.bounds.limit) {
            let (ours, theirs) = (find(&here, *block, *line), find(&there, *block, *line));
            let place = Some(format!("({block},{line})"));
            found.differences.push(difference(*kind, place, ours, theirs));
        }
        found.more += wrong.len().saturating_sub(listed.len()) as u64;
        Ok(())
    }

    async fn replayed(&mut self, wanted: Lsn) -> Result<(), Stop> {
        let deadline = self.bounds.deadline();
        let mut pause = Duration::from_millis(1);
        while self.standby.rows.replayed().await? < wanted {
            if self.bounds.late(deadline) {
                return Err(Stop::Stalled(wanted));
            }
            self.bounds.clock.sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Ok(())
    }

    /// A conflict with replay or with a change of the table passes, and so does a session that was ended.
    async fn passing(&mut self, error: PortError, deadline: Duration) -> Result<(), Stop> {
        match error {
            PortError::Throttled { .. } if !self.bounds.late(deadline) => {
                self.bounds.clock.sleep(Duration::from_millis(50)).await;
            }
            PortError::Unreachable(_) if self.lost < LOST && !self.bounds.late(deadline) => {
                self.lost += 1;
                self.bounds.clock.sleep(Duration::from_millis(200)).await;
                // Who is ended again while it comes back is counted at its next question.
                for back in [self.primary.again().await, self.standby.again().await] {
                    back.or_else(|e| if matches!(e, PortError::Unreachable(_)) { Ok(()) } else { Err(e) })?;
                }
            }
            other => return Err(other.into()),
        }
        Ok(())
    }
}

pub(super) fn difference(kind: Kind, place: Option<String>, ours: Option<RowText>, theirs: Option<RowText>) -> RowDifference {
    let columns = match (kind, &ours, &theirs) {
        (Kind::Changed, Some(ours), Some(theirs)) => {
            ours.columns.iter().filter(|(name, digest)| theirs.columns.get(*name) != Some(digest)).map(|(name, _)| name.clone()).collect()
        }
        _ => Vec::new(),
    };
    let key = ours.or(theirs).map(|row| row.key).unwrap_or_default();
    RowDifference { kind, place, key, columns }
}

/// The blocks of one stretch of a piece.
fn blocks(piece: Piece, number: u32) -> (u32, u32) {
    let first = number.saturating_mul(piece.per);
    let end = piece.open && number == piece.last;
    (first, if end { u32::MAX } else { first.saturating_add(piece.per - 1) })
}

fn halves(piece: Piece) -> Vec<Piece> {
    if piece.first == piece.last {
        return vec![piece];
    }
    let middle = piece.first + (piece.last - piece.first) / 2;
    vec![Piece { first: middle + 1, ..piece }, Piece { last: middle, open: false, ..piece }]
}

fn same_shape<T>(before: &Look<T>, there: &Look<T>, after: &Look<T>) -> bool {
    before.shape == there.shape && there.shape == after.shape
}

/// The first stretches of the list that fit into one look, at least one.
fn take(list: &mut Vec<Range>) -> Vec<Range> {
    let mut rows = 0;
    let fit = list.iter().take_while(|(_, n)| {
        rows += n;
        rows <= ROWS_AT_ONCE
    });
    let count = fit.count().max(1).min(list.len());
    list.drain(..count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_cut_into_what_it_is_made_of() {
        let piece = Piece { per: 16, first: 3, last: 9, open: true };
        assert_eq!(blocks(piece, 3), (48, 63));
        assert_eq!(blocks(piece, 9), (144, u32::MAX));
        let [second, first] = halves(piece).try_into().unwrap();
        assert_eq!((first.first, first.last, first.open), (3, 6, false));
        assert_eq!((second.first, second.last, second.open), (7, 9, true));
        let single = Piece { first: 9, ..piece };
        assert_eq!(halves(single), [single]);
    }

    #[test]
    fn a_question_that_takes_long_is_followed_by_a_smaller_one() {
        assert_eq!(next_size(1_024, Duration::from_millis(20)), 2_048);
        assert_eq!(next_size(1_024, Duration::from_millis(300)), 1_024);
        assert_eq!(next_size(1_024, Duration::from_secs(1)), 512);
        assert_eq!(next_size(MOST_BLOCKS, Duration::ZERO), MOST_BLOCKS);
        assert_eq!(next_size(1, Duration::from_secs(9)), 1);
    }
}
