//! One server as a comparison asks it: not more often than it may, again when a connection was lost, and a queue of
//! work that several askers share.
//!
//! The load is a duty cycle: after a question that took so long, the next one waits so long that no more than the given
//! share of the time was spent answering. It is counted for each server by itself.

use super::replica_report::{Found, TableReport, TableState};
use crate::providers::{clock::Clock, port::*};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// What bounds a comparison.
pub(crate) struct Bounds {
    pub clock: Arc<dyn Clock>,
    /// How many ask at once.
    pub workers: usize,
    /// The share of the time that each server may be busy with us, in percent.
    pub max_load: u8,
    /// When all of it must be done.
    pub until: Option<Duration>,
    /// How long rows may take to settle.
    pub settle: Duration,
    /// So many differing rows are listed of each table.
    pub limit: usize,
    /// Of the checksums: another one each time.
    pub seed: i64,
}

impl Bounds {
    pub fn late(&self, deadline: Duration) -> bool {
        let now = self.clock.monotonic();
        now >= deadline || self.until.is_some_and(|until| now >= until)
    }
    pub fn deadline(&self) -> Duration {
        self.clock.monotonic() + self.settle
    }
}

/// What happens, for whoever looks on.
pub(crate) trait Watcher: Send + Sync {
    fn progress(&self, stand: &Stand);
    fn finished(&self, report: &TableReport);
    /// Stop as soon as what is under way is done.
    fn stopped(&self) -> bool;
}

/// Nobody looks on.
pub(crate) struct Nobody;

impl Watcher for Nobody {
    fn progress(&self, _: &Stand) {}
    fn finished(&self, _: &TableReport) {}
    fn stopped(&self) -> bool {
        false
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stand {
    pub tables: u64,
    pub tables_done: u64,
    pub rows: u64,
    pub blocks: u64,
    pub blocks_done: u64,
}

#[derive(Default)]
pub(crate) struct Load {
    free_at: Mutex<Duration>,
}

impl Load {
    async fn turn(&self, bounds: &Bounds) {
        let free_at = *self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = free_at.saturating_sub(bounds.clock.monotonic());
        if !wait.is_zero() {
            bounds.clock.sleep(wait).await;
        }
    }
    fn took(&self, length: Duration, bounds: &Bounds) {
        let rest = length.as_secs_f64() * (100.0 / f64::from(bounds.max_load.clamp(1, 100)) - 1.0);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at = (*free_at).max(bounds.clock.monotonic()) + Duration::from_secs_f64(rest);
    }
}

/// Asks again when the server says that it may, and some times when it broke off: a standby cancels what stands in the
/// way of replay, or ends the session.
macro_rules! patiently {
    ($clock:expr, $question:expr) => {{
        let mut tries = 0;
        loop {
            match $question.await {
                Err($crate::providers::port::PortError::Throttled { .. }) if tries < 50 => {
                    tries += 1;
                    $clock.sleep(std::time::Duration::from_millis(100)).await;
                }
                Err($crate::providers::port::PortError::Unreachable(_)) if tries < 6 => {
                    tries += 1;
                    $clock.sleep(std::time::Duration::from_millis(100)).await;
                }
                other => break other,
            }
        }
    }};
}
pub(crate) use patiently;

/// A connection to one server.
pub(crate) struct Eye<'a> {
    sql: &'a dyn SqlRead,
    pub rows: Box<dyn RowRead>,
    load: &'a Load,
    bounds: &'a Bounds,
    /// How long the last question took.
    pub took: Duration,
}

impl<'a> Eye<'a> {
    pub async fn open(sql: &'a dyn SqlRead, load: &'a Load, bounds: &'a Bounds) -> PortResult<Self> {
        Ok(Self { sql, rows: patiently!(bounds.clock, sql.rows())?, load, bounds, took: Duration::ZERO })
    }
    /// Before a question that is worth counting; gives the instant to hand to [`Eye::asked`].
    pub async fn turn(&mut self) -> Duration {
        self.load.turn(self.bounds).await;
        self.bounds.clock.monotonic()
    }
    pub fn asked(&mut self, began: Duration) {
        self.took = self.bounds.clock.monotonic().saturating_sub(began);
        self.load.took(self.took, self.bounds);
    }
    /// A standby ends sessions that stand in the way of replay.
    pub async fn again(&mut self) -> PortResult<()> {
        self.rows = patiently!(self.bounds.clock, self.sql.rows())?;
        Ok(())
    }
}

/// Stretches that a table is cut into at most.
const STRETCHES: u32 = 4096;
const SMALLEST: u32 = 16;

struct Work {
    table: TableFile,
    per: u32,
    stretches: u32,
    next: u32,
    out: u32,
    report: TableReport,
}

/// The tables, cut into pieces as they are asked for.
pub(crate) struct Queue {
    work: Vec<Work>,
    at: usize,
    stand: Stand,
}

impl Queue {
    pub fn new(tables: Vec<TableFile>) -> Self {
        let work = |table: TableFile| {
            let per = (table.blocks / STRETCHES).max(SMALLEST);
            let report = TableReport::new(&table.name, TableState::Equal);
            Work { per, stretches: table.blocks.div_ceil(per).max(1), next: 0, out: 0, report, table }
        };
        let blocks = tables.iter().map(|t| u64::from(t.blocks)).sum();
        let stand = Stand { tables: tables.len() as u64, blocks, ..Stand::default() };
        Self { work: tables.into_iter().map(work).collect(), at: 0, stand }
    }

    /// The next piece, of about so many blocks.
    pub fn take(&mut self, blocks: u32) -> Option<(usize, TableFile, Piece)> {
        while let Some(work) = self.work.get_mut(self.at) {
            if work.next >= work.stretches {
                self.at += 1;
                continue;
            }
            let first = work.next;
            let end = first.saturating_add((blocks / work.per).max(1)).min(work.stretches);
            work.next = end;
            work.out += 1;
            let piece = Piece { per: work.per, first, last: end - 1, open: end == work.stretches };
            return Some((self.at, work.table.clone(), piece));
        }
        None
    }

    /// Takes in what a piece came to; the whole report when the table is done.
    pub fn put(&mut self, index: usize, piece: Piece, found: Found, limit: usize) -> Option<TableReport> {
        let work = self.work.get_mut(index)?;
        work.out = work.out.saturating_sub(1);
        self.stand.rows += found.rows;
        self.stand.blocks_done =
            (self.stand.blocks_done + u64::from(piece.last - piece.first + 1) * u64::from(work.per)).min(self.stand.blocks);
        // There is no end to what a table without any likeness differs in.
        if found.why.is_some() || work.report.different_rows() + found.more > ENOUGH {
            work.next = work.stretches;
        }
        work.report.add(found, limit);
        if work.report.different_rows() > ENOUGH && work.report.why.is_none() {
            work.report.why = Some("so many rows differ that the rest was not looked at".into());
        }
        let done = work.out == 0 && work.next >= work.stretches;
        self.stand.tables_done += u64::from(done);
        done.then(|| work.report.clone())
    }

    pub fn stand(&self) -> Stand {
        self.stand.clone()
    }

    /// All reports; of what was not looked at to its end, that it was not.
    pub fn reports(self) -> Vec<TableReport> {
        let end = |mut work: Work| {
            if work.out > 0 || work.next < work.stretches {
                work.report.add(Found { why: Some("it was not compared to its end".into()), ..Found::default() }, 0);
            }
            work.report
        };
        self.work.into_iter().map(end).collect()
    }
}

/// Differing rows of one table after which nothing new can be learnt.
const ENOUGH: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::sim::SimClock;

    fn table(blocks: u32) -> TableFile {
        TableFile { name: format!("t{blocks}"), blocks, unlogged: false, columns: Vec::new(), key: Vec::new(), sorted: None }
    }

    #[test]
    fn every_block_is_in_one_piece_and_the_last_has_no_end() {
        let mut queue = Queue::new(vec![table(0), table(100), table(5_000_000)]);
        let mut covered = [0_u64; 3];
        while let Some((index, _, piece)) = queue.take(1_000) {
            assert_eq!(u64::from(piece.first) * u64::from(piece.per), covered[index]);
            covered[index] = u64::from(piece.last + 1) * u64::from(piece.per);
            assert_eq!(piece.open, covered[index] >= [0, 100, 5_000_000][index]);
            queue.put(index, piece, Found { rows: 1, ..Found::default() }, 10);
        }
        assert_eq!(queue.stand().tables_done, 3);
        assert!(queue.reports().iter().all(|r| r.state == TableState::Equal && r.rows > 0));
    }

    #[test]
    fn what_was_not_looked_at_is_not_equal() {
        let mut queue = Queue::new(vec![table(100), table(200)]);
        let (index, _, piece) = queue.take(10_000).unwrap();
        queue.put(index, piece, Found::default(), 10);
        let states: Vec<TableState> = queue.reports().iter().map(|r| r.state).collect();
        assert_eq!(states, [TableState::Equal, TableState::Unknown]);
    }

    #[test]
    fn a_list_has_an_end_and_the_count_has_not() {
        let mut report = TableReport::new("t", TableState::Equal);
        let row = super::super::replica_report::RowDifference {
            kind: super::super::replica_report::Kind::Missing,
            place: None,
            key: Default::default(),
            columns: Vec::new(),
        };
        report.add(Found { differences: vec![row; 7], more: 3, ..Found::default() }, 5);
        assert_eq!((report.differences.len(), report.more, report.state), (5, 5, TableState::Different));
        report.add(Found { why: Some("lost".into()), ..Found::default() }, 5);
        assert_eq!(report.state, TableState::Different);
    }

    #[tokio::test]
    async fn a_server_is_asked_for_its_share_of_the_time() {
        let clock: Arc<dyn Clock> = Arc::new(SimClock::default());
        let bounds = Bounds { clock: clock.clone(), workers: 1, max_load: 25, until: None, settle: Duration::ZERO, limit: 1, seed: 0 };
        let load = Load::default();
        let began = clock.monotonic();
        for _ in 0..10 {
            load.turn(&bounds).await;
            clock.sleep(Duration::from_millis(100)).await;
            load.took(Duration::from_millis(100), &bounds);
        }
        assert_eq!(clock.monotonic().saturating_sub(began).as_millis(), 10 * 100 + 9 * 300);
    }
}
