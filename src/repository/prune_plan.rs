//! What a prune does, decided from what there is: pure, so that every rule can be tested without a store.

use super::{
    index::{self, ById, Ids, PackEntry},
    marks::Mark,
    names::Id,
};
use std::collections::HashSet;

/// How much may stay unused, in percent of what is needed: less would move much to gain little.
const TOLERATED: u64 = 5;
/// Packs below this size are put together once there are so many of them; what is unused in them counts as everywhere.
const SMALL: u64 = super::pack::ENOUGH as u64 / 4;
const MANY_SMALL: usize = 8;
/// The index is put together once it has so many parts more than it must have.
const MANY_INDEXES: usize = 15;

/// What there is.
pub struct Facts<'a> {
    /// Every pack that an index names, in the order of their names.
    pub packs: &'a [PackEntry],
    /// Packs in the store that no index names, and their sizes.
    pub strays: &'a [(Id, u64)],
    /// Every chunk that a snapshot needs.
    pub used: &'a Ids,
    pub marks: &'a [Mark],
    pub now: jiff::Timestamp,
    /// How many index objects there are.
    pub indexes: usize,
    /// They name packs that are gone, of which nobody needs anything.
    pub gone: bool,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is used of these is copied into new packs.
    pub repack: Vec<Id>,
    /// Are unused from then on, and marked.
    pub mark: Vec<Id>,
    /// Were marked long enough ago, and are unused still.
    pub delete: Vec<Id>,
    /// Marks of which nothing is left to do.
    pub settled: Vec<Id>,
    /// The index is written anew, in as few parts as it takes.
    pub fold_index: bool,
    /// That is due, whether or not anything is deleted.
    fold_due: bool,
    /// Marked, and not old enough.
    pub waiting: u64,
    /// Marked long enough ago, but the store retains them: Object Lock.
    pub retained: u64,
    /// Until when, the longest of them.
    pub retained_until: Option<jiff::Timestamp>,
    pub stored_bytes: u64,
    pub unused_bytes: u64,
    pub delete_bytes: u64,
}

impl Plan {
    /// These packs stay, since the store retains them: in the index, and under their marks, for a later run.
    pub fn keep(&mut self, retained: &[(Id, u64, jiff::Timestamp)], marks: &[Mark]) {
        let kept: HashSet<Id> = retained.iter().map(|(pack, _, _)| *pack).collect();
        self.delete.retain(|pack| !kept.contains(pack));
        self.delete_bytes -= retained.iter().map(|(_, size, _)| size).sum::<u64>().min(self.delete_bytes);
        let needed = |mark: &&Mark| mark.marked.packs.iter().any(|pack| kept.contains(pack));
        let needed: HashSet<Id> = marks.iter().filter(needed).map(|mark| mark.id).collect();
        self.settled.retain(|mark| !needed.contains(mark));
        self.retained = kept.len() as u64;
        self.retained_until = retained.iter().map(|(_, _, until)| *until).max();
        self.fold_index = !self.delete.is_empty() || self.fold_due;
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.repack.is_empty() && self.mark.is_empty() && self.delete.is_empty() && self.settled.is_empty() && !self.fold_index
    }
}

#[must_use]
pub fn plan(facts: &Facts) -> Plan {
    let marked: HashSet<Id> = facts.marks.iter().flat_map(|mark| mark.marked.packs.iter().copied()).collect();
    let live = live_bytes(facts, &marked);
    let mut plan = Plan::default();
    let (mut partly, mut small) = (Vec::new(), Vec::new());
    for entry in facts.packs {
        let live = live.get(&entry.pack).copied().unwrap_or(0);
        plan.stored_bytes += entry.size;
        plan.unused_bytes += entry.size - live.min(entry.size);
        if marked.contains(&entry.pack) {
            continue;
        }
        if live == 0 {
            plan.mark.push(entry.pack);
        } else if entry.size < SMALL {
            small.push(entry.pack);
            // By what its chunks take: in a small pack all else weighs much, and is no reason to write it again.
            let held: u64 = entry.pieces.iter().map(|piece| u64::from(piece.stored)).sum();
            if live < held {
                partly.push((live * 1000 / held, held - live, entry.pack));
            }
        } else {
            partly.push((live * 1000 / entry.size, entry.size - live.min(entry.size), entry.pack));
        }
    }
    plan.mark.extend(facts.strays.iter().map(|(pack, _)| *pack).filter(|pack| !marked.contains(pack)));
    plan.repack = worth_moving(partly, live.values().sum());
    if small.len() >= MANY_SMALL {
        small.retain(|pack| !plan.repack.contains(pack));
        plan.repack.extend(small);
    }
    plan.mark.extend(&plan.repack);
    judge_marks(facts, &live, &mut plan);
    plan.fold_due = facts.gone || facts.indexes > MANY_INDEXES + index::parts(facts.packs).len().max(1);
    plan.fold_index = !plan.delete.is_empty() || plan.fold_due;
    plan
}

/// What of each pack is needed. Of a chunk that several packs hold one copy is: in a pack that is not marked, if there is
/// one, and else in the first by name, so that everybody who decides this decides the same.
fn live_bytes(facts: &Facts, marked: &HashSet<Id>) -> ById<u64> {
    let mut holder: ById<(bool, Id, u64)> = ById::default();
    for entry in facts.packs {
        let is_marked = marked.contains(&entry.pack);
        for piece in entry.pieces.iter().filter(|piece| facts.used.contains(&piece.chunk)) {
            let candidate = (is_marked, entry.pack, u64::from(piece.stored));
            holder.entry(piece.chunk).and_modify(|best| *best = (*best).min(candidate)).or_insert(candidate);
        }
    }
    let mut live: ById<u64> = ById::default();
    for (_, pack, stored) in holder.into_values() {
        *live.entry(pack).or_default() += stored;
    }
    live
}

/// The least used first, until what stays unused is tolerable. `packs`: how much of a thousand is used, what is not.
/// Measured by what is needed, which a prune does not change: by what is stored, the next one would find more to do.
fn worth_moving(mut packs: Vec<(u64, u64, Id)>, needed: u64) -> Vec<Id> {
    packs.sort_unstable();
    let mut unused: u64 = packs.iter().map(|(_, unused, _)| unused).sum();
    let mut repack = Vec::new();
    for (share, gain, pack) in packs {
        if unused * 100 <= needed * TOLERATED || share > 950 {
            break;
        }
        unused -= gain;
        repack.push(pack);
    }
    repack
}

/// What is old enough and still unused is deleted; a mark whose packs are all deleted or needed again is settled.
fn judge_marks(facts: &Facts, live: &ById<u64>, plan: &mut Plan) {
    let mut size: ById<u64> = facts.packs.iter().map(|entry| (entry.pack, entry.size)).collect();
    size.extend(facts.strays.iter().copied());
    let mut decided = HashSet::new();
    for mark in facts.marks {
        if mark.age_s(facts.now) < mark.marked.grace_s {
            plan.waiting += mark.marked.packs.len() as u64;
            continue;
        }
        plan.settled.push(mark.id);
        for pack in &mark.marked.packs {
            let needed = live.get(pack).is_some_and(|live| *live > 0);
            if !needed
                && let Some(bytes) = size.get(pack)
                && decided.insert(*pack)
            {
                plan.delete.push(*pack);
                plan.delete_bytes += bytes;
            }
        }
    }
    // A pack under a younger mark as well waits for that one.
    let young = facts.marks.iter().filter(|mark| mark.age_s(facts.now) < mark.marked.grace_s);
    let young: HashSet<Id> = young.flat_map(|mark| mark.marked.packs.iter().copied()).collect();
    plan.delete.retain(|pack| !young.contains(pack));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{marks::Marked, pack::Piece};

    const BIG: u32 = 10_000_000;

    fn pack(name: u8, chunks: &[(u8, u32)]) -> PackEntry {
        let piece = |(chunk, stored): &(u8, u32)| Piece { chunk: Id([*chunk; 32]), number: 0, offset: 0, stored: *stored, length: 1 };
        let pieces: Vec<Piece> = chunks.iter().map(piece).collect();
        PackEntry { pack: Id([name; 32]), size: pieces.iter().map(|p| u64::from(p.stored)).sum(), pieces }
    }
    fn mark(name: u8, packs: &[u8], made: i64) -> Mark {
        let marked = Marked { packs: packs.iter().map(|p| Id([*p; 32])).collect(), wal: Vec::new(), grace_s: 100 };
        Mark { id: Id([name; 32]), made: jiff::Timestamp::from_second(made).unwrap(), marked }
    }
    fn decide(packs: &[PackEntry], used: &[u8], marks: &[Mark]) -> Plan {
        let used = used.iter().map(|c| Id([*c; 32])).collect();
        let now = jiff::Timestamp::from_second(1000).unwrap();
        plan(&Facts { packs, strays: &[], used: &used, marks, now, indexes: 1, gone: false })
    }
    /// However few there are.
    #[test]
    fn a_small_pack_is_written_again_when_little_of_it_is_used() {
        let little = pack(1, &[(1, 1_000), (2, 100_000)]);
        let moved = decide(&[little.clone(), pack(2, &[(3, 5_000)])], &[1, 3], &[]);
        assert_eq!((moved.repack, moved.mark), (ids(&[1]), ids(&[1])));
        // All of it is used, and it is larger than its chunks: there is nothing to gain.
        let mut whole = pack(1, &[(1, 100)]);
        whole.size = 400;
        assert!(decide(&[whole], &[1], &[]).is_empty());
        // Beside much that is needed it is tolerable.
        assert!(decide(&[little, pack(2, &[(3, BIG)])], &[1, 3], &[]).is_empty());
        // With enough of them all are put together, each once.
        let many: Vec<PackEntry> = (1..=9).map(|n| pack(n, &[(n, 1_000), (100 + n, 100_000)])).collect();
        let mut all = decide(&many, &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[]).repack;
        all.sort_unstable();
        assert_eq!(all, ids(&[1, 2, 3, 4, 5, 6, 7, 8, 9]));
    }

    fn ids(names: &[u8]) -> Vec<Id> {
        names.iter().map(|n| Id([*n; 32])).collect()
    }

    #[test]
    fn what_is_unused_is_marked_and_later_deleted() {
        let packs = [pack(1, &[(10, BIG)]), pack(2, &[(11, BIG)])];
        let first = decide(&packs, &[10], &[]);
        assert_eq!((first.mark, first.delete), (ids(&[2]), vec![]));
        let young = decide(&packs, &[10], &[mark(50, &[2], 950)]);
        assert_eq!((young.mark, young.delete, young.waiting), (vec![], vec![], 1));
        let old = decide(&packs, &[10], &[mark(50, &[2], 900)]);
        assert_eq!((old.delete, old.settled, old.fold_index), (ids(&[2]), ids(&[50]), true));
    }

    #[test]
    fn what_the_store_retains_stays_under_its_mark() {
        let packs = [pack(1, &[(10, BIG)]), pack(2, &[(11, BIG)]), pack(3, &[(12, BIG)])];
        let marks = [mark(50, &[1, 2], 0), mark(51, &[3], 0)];
        let mut plan = decide(&packs, &[], &marks);
        let until = jiff::Timestamp::from_second(2000).unwrap();
        plan.keep(&[(Id([2; 32]), u64::from(BIG), until)], &marks);
        assert_eq!((plan.delete.clone(), plan.settled.clone(), plan.retained), (ids(&[1, 3]), ids(&[51]), 1));
        assert_eq!((plan.delete_bytes, plan.retained_until, plan.fold_index), (2 * u64::from(BIG), Some(until), true));
        plan.keep(&[(Id([1; 32]), u64::from(BIG), until), (Id([3; 32]), u64::from(BIG), until)], &marks);
        assert_eq!((plan.delete, plan.fold_index, plan.delete_bytes), (vec![], false, 0));
    }

    #[test]
    fn an_index_is_put_together_when_it_is_in_pieces_and_not_since_it_is_large() {
        let packs: Vec<PackEntry> = (1..=200).map(|n| pack(n, &[(n, BIG)])).collect();
        let used: Ids = (1..=200).map(|c| Id([c; 32])).collect();
        let parts = index::parts(&packs).len();
        assert!(parts > 20, "{parts}");
        let folds = |packs: &[PackEntry], indexes, gone| {
            let now = jiff::Timestamp::from_second(1000).unwrap();
            plan(&Facts { packs, strays: &[], used: &used, marks: &[], now, indexes, gone }).fold_index
        };
        assert!(!folds(&packs, parts, false) && !folds(&packs, parts + 15, false) && folds(&packs, parts + 16, false));
        assert!(!folds(&packs[..1], 16, false) && folds(&packs[..1], 17, false));
        assert!(folds(&packs, parts, true), "what is gone is named no more");
    }

    #[test]
    fn what_is_needed_again_is_kept() {
        let packs = [pack(1, &[(10, BIG)]), pack(2, &[(11, BIG)])];
        let plan = decide(&packs, &[10, 11], &[mark(50, &[2], 0)]);
        assert_eq!((plan.mark, plan.delete, plan.settled), (vec![], vec![], ids(&[50])));
    }

    #[test]
    fn one_copy_of_a_chunk_always_stays() {
        let packs = [pack(1, &[(10, BIG)]), pack(2, &[(10, BIG)])];
        assert_eq!(decide(&packs, &[10], &[]).mark, ids(&[2]));
        assert_eq!(decide(&packs, &[10], &[mark(50, &[1], 0)]).delete, ids(&[1]), "the other one is not marked");
        assert_eq!(decide(&packs, &[10], &[mark(50, &[1, 2], 0)]).delete, ids(&[2]), "both are: the first stays");
    }

    #[test]
    fn little_used_and_small_packs_are_moved_together() {
        let packs = [pack(1, &[(10, BIG), (11, BIG)]), pack(2, &[(12, BIG), (13, 100)])];
        let plan = decide(&packs, &[10, 12], &[]);
        assert_eq!((plan.repack, plan.mark), (ids(&[1]), ids(&[1])), "of the other, almost everything is used");
        let small: Vec<PackEntry> = (1..=8).map(|n| pack(n, &[(n + 100, 1000)])).collect();
        let used: Vec<u8> = (101..=108).collect();
        assert_eq!(decide(&small, &used, &[]).repack.len(), 8);
        assert_eq!(decide(&small[..7], &used, &[]).repack.len(), 0);
    }

    #[test]
    fn a_younger_mark_of_the_same_pack_counts() {
        let packs = [pack(1, &[(10, BIG)])];
        let plan = decide(&packs, &[], &[mark(50, &[1], 0), mark(51, &[1], 990)]);
        assert_eq!((plan.delete, plan.settled), (vec![], ids(&[50])));
    }
}
