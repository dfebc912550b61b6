//! The content of a logical replica compared with its publisher's, by ranges of the primary key: there every row has a
//! place and a birth of its own, and what names it is its key.
//!
//! The looks are those of `replica_judge`: at the publisher, at the subscriber once it has said that it applied all that
//! the first look shows, at the publisher again. A row that the publisher did not rewrite between its two looks (it
//! bears the same transaction) must be at the subscriber, and be the same; one that only the subscriber has must be gone
//! when it is looked at again. Ranges of so many rows are summed, and those that do not agree are cut into smaller ones,
//! down to rows.

use super::{
    replica_content::{Stop, difference},
    replica_load::{Bounds, Eye, Load, Stand, Watcher, patiently},
    replica_report::*,
};
use crate::providers::port::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Rows of a range that is summed as one.
const STEP: u64 = 50_000;
/// Ranges that a doubtful one is cut into, and the rows that are looked at one by one.
const PARTS: u64 = 16;
const FEW: u64 = 2_000;

/// A table, and the slot through which its changes come.
pub(super) struct Subject {
    pub how: ByKey,
    pub slot: String,
}

pub(super) async fn compare(
    primary: &dyn SqlRead,
    replica: &dyn SqlRead,
    subjects: Vec<Subject>,
    bounds: &Bounds,
    watcher: &dyn Watcher,
) -> Result<Vec<TableReport>, Stop> {
    let loads = [Load::default(), Load::default()];
    let mut reports = Vec::new();
    let mut stand = Stand { tables: subjects.len() as u64, ..Stand::default() };
    for subject in &subjects {
        if watcher.stopped() {
            reports.push(TableReport::unknown(&subject.how.table, "it was not compared"));
            continue;
        }
        let report = table(primary, replica, subject, &loads, bounds, watcher, &mut stand).await?;
        stand.tables_done += 1;
        watcher.progress(&stand);
        watcher.finished(&report);
        reports.push(report);
    }
    Ok(reports)
}

/// Where the next range begins; none when the last one has been taken.
struct Cursor {
    after: Option<Key>,
    done: bool,
}

async fn table(
    primary: &dyn SqlRead,
    replica: &dyn SqlRead,
    subject: &Subject,
    loads: &[Load; 2],
    bounds: &Bounds,
    watcher: &dyn Watcher,
    stand: &mut Stand,
) -> Result<TableReport, Stop> {
    let cursor = tokio::sync::Mutex::new(Cursor { after: None, done: false });
    let report = tokio::sync::Mutex::new((TableReport::new(&subject.how.table, TableState::Equal), std::mem::take(stand)));
    let worker = || async {
        let mut pair = Pair::open(primary, replica, subject, loads, bounds).await?;
        while !watcher.stopped() {
            let Some(range) = pair.next(&cursor).await? else { break };
            let found = match pair.range(range).await {
                Err(Stop::Port(
                    e @ (PortError::Refused(_) | PortError::NotFound(_) | PortError::Throttled { .. } | PortError::Corrupt(_)),
                )) => Found { why: Some(e.to_string()), ..Found::default() },
                other => other?,
            };
            let mut held = report.lock().await;
            held.1.rows += found.rows;
            held.0.add(found, bounds.limit);
            watcher.progress(&held.1);
            if held.0.why.is_some() {
                cursor.lock().await.done = true;
            }
        }
        Ok::<_, Stop>(())
    };
    futures::future::try_join_all((0..bounds.workers.max(1)).map(|_| worker())).await?;
    let (mut whole, counted) = report.into_inner();
    *stand = counted;
    if !cursor.into_inner().done {
        whole.add(Found { why: Some("it was not compared to its end".into()), ..Found::default() }, 0);
    }
    Ok(whole)
}

struct Pair<'a> {
    primary: Eye<'a>,
    replica: Eye<'a>,
    subject: &'a Subject,
    bounds: &'a Bounds,
}

impl<'a> Pair<'a> {
    async fn open(
        primary: &'a dyn SqlRead,
        replica: &'a dyn SqlRead,
        subject: &'a Subject,
        loads: &'a [Load; 2],
        bounds: &'a Bounds,
    ) -> Result<Self, Stop> {
        let [here, there] = loads;
        let (primary, replica) = (Eye::open(primary, here, bounds).await?, Eye::open(replica, there, bounds).await?);
        Ok(Self { primary, replica, subject, bounds })
    }

    async fn next(&mut self, cursor: &tokio::sync::Mutex<Cursor>) -> Result<Option<KeyRange>, Stop> {
        let mut cursor = cursor.lock().await;
        if cursor.done {
            return Ok(None);
        }
        let after = cursor.after.take();
        let upto = self.primary.rows.bound(&self.subject.how, after.as_ref(), STEP).await?;
        cursor.after.clone_from(&upto);
        cursor.done = upto.is_none();
        Ok(Some(KeyRange { after, upto }))
    }

    async fn range(&mut self, range: KeyRange) -> Result<Found, Stop> {
        let mut found = Found::default();
        let mut list = vec![range];
        let mut first = true;
        let deadline = self.bounds.deadline();
        while !list.is_empty() {
            let Some([before, there, after]) = self.sums(&list).await? else {
                if self.bounds.late(deadline) {
                    found.why = Some("it is rewritten on and on".into());
                    return Ok(found);
                }
                self.bounds.clock.sleep(Duration::from_millis(20)).await;
                continue;
            };
            if first {
                found.rows += before.seen.iter().map(|s| s.rows).sum::<u64>();
                first = false;
            }
            found.at = found.at.max(Some(there.at));
            let doubtful = super::replica_judge::doubtful(&before, &there, &after);
            let mut smaller = Vec::new();
            for (number, rows) in doubtful {
                let Some(range) = list.get(number as usize) else { continue };
                if rows > FEW {
                    let here = before.seen.iter().find(|s| s.number == number).map_or(0, |s| s.rows);
                    smaller.extend(self.cut(range, rows, here < rows).await?);
                } else {
                    self.rows(range, &mut found).await?;
                }
            }
            list = smaller;
        }
        Ok(found)
    }

    /// Parts of a range, by the keys of the server that has more of it.
    async fn cut(&mut self, range: &KeyRange, rows: u64, by_replica: bool) -> Result<Vec<KeyRange>, Stop> {
        let how = &self.subject.how;
        let mut parts = Vec::new();
        let mut after = range.after.clone();
        for _ in 0..PARTS - 1 {
            let eye = if by_replica { &mut self.replica } else { &mut self.primary };
            let Some(upto) = eye.rows.bound(how, after.as_ref(), rows.div_ceil(PARTS)).await? else { break };
            // Within the range: rows come and go while it is cut, and the end stays where it is.
            parts.push(KeyRange { after: after.clone(), upto: Some(upto.clone()) });
            after = Some(upto);
        }
        parts.push(KeyRange { after, upto: range.upto.clone() });
        Ok(parts)
    }

    async fn sums(&mut self, ranges: &[KeyRange]) -> Result<Option<[Look<Stretch>; 3]>, Stop> {
        let (how, seed) = (&self.subject.how, self.bounds.seed);
        let began = self.primary.turn().await;
        let before = self.primary.rows.ranges(how, ranges, seed, true).await;
        self.primary.asked(began);
        let before = before?;
        self.applied(before.at).await?;
        let began = self.replica.turn().await;
        // The publication's filter is the publisher's: here are only such rows.
        let whole = ByKey { filter: None, ..how.clone() };
        let there = self.replica.rows.ranges(&whole, ranges, seed, false).await;
        self.replica.asked(began);
        let there = there?;
        let after = if there.seen == before.seen {
            before.clone()
        } else {
            let began = self.primary.turn().await;
            let after = self.primary.rows.ranges(how, ranges, seed, false).await;
            self.primary.asked(began);
            after?
        };
        Ok((before.shape == after.shape).then_some([before, there, after]))
    }

    async fn rows(&mut self, range: &KeyRange, found: &mut Found) -> Result<(), Stop> {
        let how = &self.subject.how;
        let whole = ByKey { filter: None, ..how.clone() };
        let (mut strayed, mut wrong) = (Strays::new(), BTreeSet::new());
        let deadline = self.bounds.deadline();
        loop {
            let before = self.primary.rows.keyed(how, range, true).await?;
            self.applied(before.at).await?;
            let there = self.replica.rows.keyed(&whole, range, false).await?;
            let after = self.primary.rows.keyed(how, range, false).await?;
            let judged = judge(&before, &there, &after, &strayed);
            wrong.extend(judged.wrong);
            found.at = found.at.max(Some(there.at));
            if judged.open == 0 {
                break;
            }
            if self.bounds.late(deadline) {
                found.why = Some("some of its rows never stood still long enough to be compared".into());
                break;
            }
            strayed = judged.stray;
            self.bounds.clock.sleep(Duration::from_millis(20)).await;
        }
        let listed: Vec<Key> = wrong.iter().take(self.bounds.limit).map(|(key, _)| key.clone()).collect();
        let clock = &self.bounds.clock;
        let here = patiently!(clock, self.primary.rows.rows_of(how, &listed)).unwrap_or_default();
        let there = patiently!(clock, self.replica.rows.rows_of(&whole, &listed)).unwrap_or_default();
        for (key, kind) in wrong.iter().take(self.bounds.limit) {
            let named: BTreeMap<String, Option<String>> =
                how.key.iter().map(|(name, _)| name.clone()).zip(key.iter().cloned().map(Some)).collect();
            let find = |rows: &[RowText]| rows.iter().find(|row| row.key == named).cloned();
            found.differences.push(RowDifference { key: named.clone(), ..difference(*kind, None, find(&here), find(&there)) });
        }
        found.more += (wrong.len() - listed.len()) as u64;
        Ok(())
    }

    async fn applied(&mut self, wanted: Lsn) -> Result<(), Stop> {
        let deadline = self.bounds.deadline();
        let mut pause = Duration::from_millis(1);
        while self.primary.rows.confirmed(&self.subject.slot).await?.is_none_or(|at| at < wanted) {
            if self.bounds.late(deadline) {
                return Err(Stop::Stalled(wanted));
            }
            self.bounds.clock.sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Rows that only the subscriber has, with the transaction that wrote them there.
type Strays = BTreeMap<Key, u32>;

#[derive(Debug, Default, PartialEq, Eq)]
struct Judged {
    wrong: Vec<(Key, Kind)>,
    open: usize,
    stray: Strays,
}

fn judge(before: &Look<Keyed>, there: &Look<Keyed>, after: &Look<Keyed>, strayed: &Strays) -> Judged {
    let index = |look: &'_ Look<Keyed>| -> BTreeMap<Key, Keyed> { look.seen.iter().map(|v| (v.key.clone(), v.clone())).collect() };
    let (old, copy, new) = (index(before), index(there), index(after));
    let mut judged = Judged::default();
    // The same version in both looks, and nobody is committing a change of it: it was there all the while.
    let stood = |key: &Key| match (old.get(key), new.get(key)) {
        (Some(old), Some(new)) => old.born == new.born && !(new.touched && after.busy),
        _ => false,
    };
    for (key, row) in &copy {
        let as_it_was = [old.get(key), new.get(key)].into_iter().flatten().any(|original| original.digest == row.digest);
        if as_it_was {
            continue;
        }
        if stood(key) {
            judged.wrong.push((key.clone(), Kind::Changed));
            continue;
        }
        let nowhere = !old.contains_key(key) && !new.contains_key(key);
        if nowhere && !before.busy && strayed.get(key) == Some(&row.born) {
            judged.wrong.push((key.clone(), Kind::Extra));
            continue;
        }
        if nowhere {
            judged.stray.insert(key.clone(), row.born);
        }
        judged.open += 1;
    }
    for key in old.keys().filter(|key| !copy.contains_key(*key)) {
        if stood(key) {
            judged.wrong.push((key.clone(), Kind::Missing));
        } else if new.contains_key(key) {
            judged.open += 1;
        }
    }
    judged
}

#[cfg(test)]
#[path = "replica_keys_tests.rs"]
mod tests;
