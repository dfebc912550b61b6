//! Does a standby hold what its primary holds, told while both go on? The judgement alone: what was seen, and what
//! follows from it.
//!
//! Three looks, each in a single snapshot: at the primary (*before*), at the standby once it has replayed
//! all that the first look shows (*there*), at the primary again (*after*). A version of a row is named by its
//! place and the transaction that wrote it; it never changes, and once gone never returns; and a standby of
//! physical replication has it at the same place. So each version can be judged by itself ([`judge`]):
//! what was in both looks at the primary was there all the while, so it must be on the standby, and be the
//! same; what is only on the standby must be younger than the first look. A transaction that has reached the
//! standby but is not yet shown by the primary (it is about to acknowledge) is the one trap: what it may have
//! removed is looked at again. So a difference is never one in flight, and what is reported as equal was
//! compared. `replica_content` takes the looks, `replica_keys` does the same for logical replicas.

use super::replica_report::Kind;
use crate::providers::port::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What was found of versions of rows of one table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    /// Proved to be different.
    pub wrong: Vec<(Name, Kind)>,
    /// Blocks that hold what could not be decided in these looks.
    pub open: BTreeSet<u32>,
    /// Versions that only the standby has, and that are not surely younger than the first look.
    pub stray: BTreeSet<Name>,
}

/// Block, line, birth.
pub(super) type Name = (u32, u32, u32);

fn name(v: &Version) -> Name {
    (v.block, v.line, v.born)
}

/// Was it written before every transaction that the look does not show? Numbers wrap around.
fn surely_before(born: u32, horizon: u64) -> bool {
    // 1 and 2 are no transactions, and older than any.
    born < 3 || (horizon as u32).wrapping_sub(born).cast_signed() > 0
}

/// Judges every version in three looks, and in the light of what was stray in the looks before these.
pub(super) fn judge(before: &Look<Version>, there: &Look<Version>, after: &Look<Version>, strayed: &BTreeSet<Name>) -> Judged {
    let index = |look: &'_ Look<Version>| -> HashMap<Name, Version> { look.seen.iter().map(|v| (name(v), v.clone())).collect() };
    let (old, copy, new) = (index(before), index(there), index(after));
    let mut judged = Judged::default();
    for (id, version) in &copy {
        match old.get(id).or_else(|| new.get(id)) {
            Some(original) if original.digest != version.digest => judged.wrong.push((*id, Kind::Changed)),
            Some(_) => {}
            // Gone before the first look, and the standby has replayed that.
            None if surely_before(id.2, before.horizon) || (strayed.contains(id) && !before.busy) => {
                judged.wrong.push((*id, Kind::Extra));
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
            Some(still) if !(still.touched && after.busy) => judged.wrong.push((*id, Kind::Missing)),
            _ => _ = judged.open.insert(id.0),
        }
    }
    judged.wrong.sort();
    judged
}

/// Numbers of stretches whose sums agree in no two successive looks, with the rows in them.
pub(super) fn doubtful(before: &Look<Stretch>, there: &Look<Stretch>, after: &Look<Stretch>) -> Vec<(u32, u64)> {
    let index = |look: &'_ Look<Stretch>| -> BTreeMap<u32, Stretch> { look.seen.iter().map(|s| (s.number, s.clone())).collect() };
    let (old, copy, new) = (index(before), index(there), index(after));
    let numbers: BTreeSet<u32> = old.keys().chain(copy.keys()).chain(new.keys()).copied().collect();
    let rows = |number: &u32| [&old, &copy, &new].iter().filter_map(|of| of.get(number)).map(|s| s.rows).max().unwrap_or(0);
    let agree = |number: &u32| old.get(number) == copy.get(number) || copy.get(number) == new.get(number);
    numbers.iter().filter(|n| !agree(n)).map(|n| (*n, rows(n))).collect()
}

#[cfg(test)]
#[path = "replica_judge_tests.rs"]
mod tests;
