//! Does a standby hold what its primary holds, told while both go on? Without stopping either.
//!
//! Three looks, each in a single snapshot: at the primary (*before*), at the standby once it has replayed
//! all that the first look shows (*there*), at the primary again (*after*). A version of a row is named by its
//! place and the transaction that wrote it; it never changes, and once gone never returns; and a standby of
//! physical replication has it at the same place. So each version can be judged by itself ([`judge`]):
//! what was in both looks at the primary was there all the while, so it must be on the standby, and be the
//! same; what is only on the standby must be younger than the first look. A transaction that has reached the
//! standby but is not yet shown by the primary (it is about to acknowledge) is the one trap: what it may have
//! removed is looked at again. So a difference is never one in flight, and what is reported as equal was
//! compared. Tables are first summed in stretches of blocks, and only stretches whose sums do not agree are
//! looked at row by row, so that what travels is what is being written to.
//!
//! **Limits.** What is proved is the state of each table as of its first look; younger rows are in flight. A
//! row that is rewritten faster than three looks take (some 10 ms near by, three round trips elsewhere) can
//! never be caught; it is tried until the deadline, and then the answer is *unknown*, never *equal*. So it
//! is for tables that are rewritten (DDL, `TRUNCATE`, `VACUUM FULL`) on and on. It needs physical replication.
//! On the standby it only reads, and takes no lock but the one that every query takes.

use super::{
    contract::{ApplyError, ReadCx},
    shared::fail,
};
use crate::providers::port::*;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

/// Rows that are held at once, of each look.
const ROWS_AT_ONCE: u64 = 20_000;
/// Stretches that a table is cut into at most.
const STRETCHES: u32 = 4096;
const SMALLEST: u32 = 16;

pub(crate) struct Equal {
    pub tables: u64,
    /// Of the standby, at the last look.
    pub at: Lsn,
}

/// What was found of versions of rows of one table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Judged {
    /// Proved to be different, with the reason.
    wrong: Vec<String>,
    /// Blocks that hold what could not be decided in these looks.
    open: BTreeSet<u32>,
    /// Versions that only the standby has, and that are not surely younger than the first look.
    stray: BTreeSet<Name>,
}

/// Block, line, birth.
type Name = (u32, u32, u32);

fn name(v: &Version) -> Name {
    (v.block, v.line, v.born)
}

/// Was it written before every transaction that the look does not show? Numbers wrap around.
fn surely_before(born: u32, horizon: u64) -> bool {
    // 1 and 2 are no transactions, and older than any.
    born < 3 || (horizon as u32).wrapping_sub(born).cast_signed() > 0
}

/// Judges every version in three looks, and in the light of what was stray in the looks before these.
fn judge(before: &Look<Version>, there: &Look<Version>, after: &Look<Version>, strayed: &BTreeSet<Name>) -> Judged {
    let index = |look: &'_ Look<Version>| -> HashMap<Name, Version> { look.seen.iter().map(|v| (name(v), v.clone())).collect() };
    let (old, copy, new) = (index(before), index(there), index(after));
    let mut judged = Judged::default();
    for (id, version) in &copy {
        let place = format!("({},{})", id.0, id.1);
        match old.get(id).or_else(|| new.get(id)) {
            Some(original) if original.digest != version.digest => judged.wrong.push(format!("the row at {place} has other content")),
            Some(_) => {}
            // Gone before the first look, and the standby has replayed that.
            None if surely_before(id.2, before.horizon) || (strayed.contains(id) && !before.busy) => {
                judged.wrong.push(format!("the row at {place} is not on the primary"));
            }
            None => {
                judged.stray.insert(*id);
                judged.open.insert(id.0);
            }
        }
    }
    for id in old.keys().filter(|id| !copy.contains_key(*id)) {
        match new.get(id) {
            // Untouched, or by nobody who may be committing: it was there all the while.
            Some(still) if !(still.touched && after.busy) => judged.wrong.push(format!("the row at ({},{}) is missing", id.0, id.1)),
            _ => _ = judged.open.insert(id.0),
        }
    }
    judged.wrong.sort();
    judged
}

/// Numbers of stretches whose sums agree in no two successive looks, with the rows in them.
fn doubtful(before: &Look<Stretch>, there: &Look<Stretch>, after: &Look<Stretch>) -> Vec<(u32, u64)> {
    let index = |look: &'_ Look<Stretch>| -> BTreeMap<u32, Stretch> { look.seen.iter().map(|s| (s.number, s.clone())).collect() };
    let (old, copy, new) = (index(before), index(there), index(after));
    let numbers: BTreeSet<u32> = old.keys().chain(copy.keys()).chain(new.keys()).copied().collect();
    let rows = |number: &u32| [&old, &copy, &new].iter().filter_map(|of| of.get(number)).map(|s| s.rows).max().unwrap_or(0);
    let agree = |number: &u32| old.get(number) == copy.get(number) || copy.get(number) == new.get(number);
    numbers.iter().filter(|n| !agree(n)).map(|n| (*n, rows(n))).collect()
}

/// Two servers, a table, and how long it may take.
struct Pair<'a> {
    cx: &'a ReadCx,
    primary: Box<dyn RowRead>,
    standby: Box<dyn RowRead>,
    who: &'a str,
    until: Duration,
}

/// Compares the tables of these names (all, if none): how many are equal.
pub(crate) async fn compare(
    cx: &ReadCx,
    primary: &dyn SqlRead,
    standby: &dyn SqlRead,
    names: &[String],
    who: &str,
) -> Result<Equal, ApplyError> {
    let until = cx.world.clock().monotonic() + cx.deadline.saturating_sub(Duration::from_secs(2));
    let mut pair = Pair { cx, primary: primary.rows().await.map_err(unread)?, standby: standby.rows().await.map_err(unread)?, who, until };
    let tables = pair.primary.tables(names).await.map_err(unread)?;
    let mut at = pair.standby.replayed().await.map_err(unread)?;
    for table in &tables {
        at = pair.table(table).await?;
    }
    Ok(Equal { tables: tables.len() as u64, at })
}

fn unread(error: PortError) -> ApplyError {
    fail("replica_unknown", format!("tables could not be compared: {error}"))
}

impl Pair<'_> {
    async fn table(&mut self, table: &TableFile) -> Result<Lsn, ApplyError> {
        let per = (table.blocks / STRETCHES).max(SMALLEST);
        loop {
            let (looks, at) = self.stretches(&table.name, per).await?;
            if let Some(doubtful) = looks {
                return self.rows(&table.name, per, doubtful, at).await;
            }
            self.again(&table.name).await?;
        }
    }

    /// The doubtful stretches; none when the looks cannot be compared.
    async fn stretches(&mut self, table: &str, per: u32) -> Result<(Option<Vec<(u32, u64)>>, Lsn), ApplyError> {
        let before = match self.primary.stretches(table, per, true).await {
            Ok(look) => look,
            Err(e) => return passing(e).map(|()| (None, Lsn::default())),
        };
        self.replayed(before.at).await?;
        let looks = async {
            let there = self.standby.stretches(table, per, false).await?;
            let after = if there.seen == before.seen { there.clone() } else { self.primary.stretches(table, per, false).await? };
            Ok::<_, PortError>((there, after))
        };
        match looks.await {
            Ok((there, after)) if same_shape(&before, &there, &after) => Ok((Some(doubtful(&before, &there, &after)), there.at)),
            Ok((there, _)) => Ok((None, there.at)),
            Err(e) => passing(e).map(|()| (None, Lsn::default())),
        }
    }

    /// Row by row, in parts that fit; what is open stays on the list.
    async fn rows(&mut self, table: &str, per: u32, doubtful: Vec<(u32, u64)>, mut at: Lsn) -> Result<Lsn, ApplyError> {
        let all = |(number, rows): (u32, u64)| ((number * per, (number * per).saturating_add(per - 1)), rows);
        let mut list: Vec<((u32, u32), u64)> = doubtful.into_iter().map(all).collect();
        let mut strayed = BTreeSet::new();
        while !list.is_empty() {
            let part = take(&mut list);
            let ranges: Vec<(u32, u32)> = part.iter().map(|(range, _)| *range).collect();
            let Some([before, there, after]) = self.versions(table, &ranges).await? else {
                list.extend(part);
                self.again(table).await?;
                continue;
            };
            let judged = judge(&before, &there, &after, &strayed);
            if let Some(first) = judged.wrong.first() {
                let more =
                    if judged.wrong.len() > 1 { format!(", and {} more differences", judged.wrong.len() - 1) } else { String::new() };
                let message = format!("{} differs in table {table} at {}: {first}{more}", self.who, there.at);
                return Err(fail("replica_differs", message));
            }
            at = there.at;
            strayed = judged.stray;
            if !judged.open.is_empty() {
                let rows = part.iter().map(|(_, rows)| rows).sum::<u64>() / part.len().max(1) as u64;
                list.splice(0..0, judged.open.iter().map(|block| ((*block, *block), rows)));
                self.again(table).await?;
            }
        }
        Ok(at)
    }

    async fn versions(&mut self, table: &str, ranges: &[(u32, u32)]) -> Result<Option<[Look<Version>; 3]>, ApplyError> {
        let before = match self.primary.versions(table, ranges, true).await {
            Ok(look) => look,
            Err(e) => return passing(e).map(|()| None),
        };
        self.replayed(before.at).await?;
        let looks = async {
            let there = self.standby.versions(table, ranges, false).await?;
            Ok::<_, PortError>((there, self.primary.versions(table, ranges, false).await?))
        };
        match looks.await {
            Ok((there, after)) if same_shape(&before, &there, &after) => Ok(Some([before, there, after])),
            Ok(_) => Ok(None),
            Err(e) => passing(e).map(|()| None),
        }
    }

    async fn replayed(&mut self, wanted: Lsn) -> Result<(), ApplyError> {
        let clock = self.cx.world.clock();
        let mut pause = Duration::from_millis(1);
        while self.standby.replayed().await.map_err(unread)? < wanted {
            if clock.monotonic() >= self.until {
                return Err(fail("replica_stalled", format!("{} did not replay {wanted} in time", self.who)));
            }
            clock.sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Before looking again: is there time?
    async fn again(&mut self, table: &str) -> Result<(), ApplyError> {
        let clock = self.cx.world.clock();
        if clock.monotonic() >= self.until {
            let why = format!("{}: rows of table {table} that never stood still could not be compared", self.who);
            return Err(fail("replica_unknown", why));
        }
        clock.sleep(Duration::from_millis(5)).await;
        Ok(())
    }
}

fn same_shape<T>(before: &Look<T>, there: &Look<T>, after: &Look<T>) -> bool {
    before.shape == there.shape && there.shape == after.shape
}

/// A conflict with replay or with a change of the table passes; nothing else does.
fn passing(error: PortError) -> Result<(), ApplyError> {
    match error {
        PortError::Throttled { .. } => Ok(()),
        other => Err(unread(other)),
    }
}

/// The first stretches of the list that fit into one look, at least one.
fn take(list: &mut Vec<((u32, u32), u64)>) -> Vec<((u32, u32), u64)> {
    let mut rows = 0;
    let fit = list.iter().take_while(|(_, n)| {
        rows += n;
        rows <= ROWS_AT_ONCE
    });
    let count = fit.count().max(1).min(list.len());
    list.drain(..count).collect()
}

#[cfg(test)]
#[path = "replica_content_tests.rs"]
mod tests;
