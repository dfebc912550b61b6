//! Page-level deltas. The files of a database are cut into chunks of one length; of a chunk that is not held, the pages
//! that the parent snapshot has at the same place are found again, and only the others are stored: gathered from many
//! places, of many files, into chunks that are filled with them. What such a place then consists of is an
//! [`Extent::Patched`]: parts of the older chunk, and parts of the chunks of gathered pages.
//!
//! # The rule
//!
//! A chunk is stored whole, and not as a patch, when
//! - more than a quarter of its pages have changed,
//! - or the patch would have more than 32 parts, or parts of more than 8 chunks,
//! - or what it would rest on is not held: nothing there before, lost, or about to be pruned.
//!
//! Parts always are of chunks and never of patches, so a restore follows one step, however long the chain of backups is; and
//! since every backup may patch what was patched before, it is the bound on parts and chunks that ends a chain: then
//! the place is stored whole, and begins anew.
//!
//! # Sizes
//!
//! Chunks of 256 KiB are 32 pages of PostgreSQL's usual 8 KiB. Larger ones would make the index smaller still, but the
//! content of the older chunk must be fetched for each that has changed: a scattered update of a 2 GiB database touches
//! most chunks of 1 MiB, and its backup would read the database twice.

use super::{
    Result,
    entry::{Extent, Part, Patched},
    names::Id,
    write::{Filler, Slot, Writer},
};
use std::{ops::Range, sync::Arc};

/// What a page of PostgreSQL measures, unless it was built otherwise; then deltas are merely coarser or finer.
pub const PAGE: usize = 8192;
/// The files of a database are cut every so many bytes.
pub const CHUNK: usize = 256 * 1024;
/// Looks at a piece of a file that begins at this offset, whole pages of it.
pub type PageCheck = Arc<dyn Fn(u64, &[u8]) + Send + Sync>;
const MOST_PARTS: usize = 32;
const MOST_CHUNKS: usize = 8;

/// Where a piece of a patched chunk comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum From {
    /// A part of the older content's chunk of this number, from there on.
    Kept(u32, u32),
    New,
}

/// A piece of the new content and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    at: Range<usize>,
    from: From,
}

/// What chunks an older content is made of.
#[derive(Debug, PartialEq, Eq)]
struct Older {
    chunks: Vec<Id>,
    /// Where each part of it lies: its place in the content, its chunk's number and offset.
    parts: Vec<(Range<usize>, u32, u32)>,
}

impl Older {
    fn of(extent: &Extent) -> Option<Self> {
        match extent {
            Extent::Zeros(_) => None,
            Extent::Chunk { id, length } => Some(Self { chunks: vec![*id], parts: vec![(0..*length as usize, 0, 0)] }),
            Extent::Patched(patched) => {
                let mut at = 0;
                let each = patched.parts.iter().map(|part| {
                    let range = at..at + part.length as usize;
                    at = range.end;
                    (range, part.chunk, part.offset)
                });
                Some(Self { parts: each.collect(), chunks: patched.chunks.clone() })
            }
        }
    }

    /// Where this range of it lies, if one part has it all.
    fn find(&self, range: &Range<usize>) -> Option<(u32, u32)> {
        let at = self.parts.partition_point(|(part, ..)| part.end <= range.start);
        let (part, chunk, offset) = self.parts.get(at)?;
        (part.start <= range.start && range.end <= part.end).then(|| (*chunk, offset + (range.start - part.start) as u32))
    }
}

/// What the new content takes from the old one, page by page; `None`: by the rule it is stored whole.
fn compare(content: &[u8], old: &[u8], older: &Older) -> Option<Vec<Run>> {
    let (mut runs, mut changed) = (Vec::<Run>::new(), 0);
    for start in (0..content.len()).step_by(PAGE) {
        let range = start..(start + PAGE).min(content.len());
        let same = old.get(range.clone()).is_some_and(|old| old == &content[range.clone()]);
        let from = match older.find(&range).filter(|_| same) {
            Some((chunk, offset)) => From::Kept(chunk, offset),
            None => From::New,
        };
        changed += usize::from(from == From::New);
        match (runs.last_mut(), &from) {
            (Some(last), From::New) if last.from == From::New => last.at.end = range.end,
            (Some(last), From::Kept(chunk, offset))
                if last.from == From::Kept(*chunk, offset.wrapping_sub((last.at.end - last.at.start) as u32)) =>
            {
                last.at.end = range.end;
            }
            _ => runs.push(Run { at: range, from }),
        }
    }
    let pages = content.len().div_ceil(PAGE);
    (changed * 4 <= pages && runs.len() <= MOST_PARTS).then_some(runs)
}

/// Changed pages that wait for a chunk to be filled with them, and who waits for its name.
#[derive(Default)]
pub struct Gather {
    bytes: Vec<u8>,
    waiting: Vec<Waiting>,
}

struct Waiting {
    slot: Arc<Slot>,
    at: usize,
    id: Id,
    length: u32,
    runs: Vec<Run>,
    chunks: Vec<Id>,
    /// Where its pages begin among those that are gathered.
    offset: u32,
}

impl Waiting {
    /// What it is once the chunk of gathered pages has a name.
    fn patched(self, gathered: Id) -> (Arc<Slot>, usize, Extent) {
        let (mut chunks, mut parts, mut new) = (Vec::new(), Vec::new(), self.offset);
        let mut number = |id: Id| {
            let known = chunks.iter().position(|chunk| *chunk == id);
            known.unwrap_or_else(|| {
                chunks.push(id);
                chunks.len() - 1
            }) as u32
        };
        for run in &self.runs {
            let length = (run.at.end - run.at.start) as u32;
            let (id, offset) = match run.from {
                From::Kept(chunk, offset) => (self.chunks.get(chunk as usize).copied().unwrap_or(gathered), offset),
                From::New => (gathered, new),
            };
            new += if run.from == From::New { length } else { 0 };
            parts.push(Part { chunk: number(id), offset, length });
        }
        let patched = Patched { id: self.id, length: self.length, chunks, parts };
        (self.slot, self.at, Extent::Patched(Box::new(patched)))
    }
}

/// Stores one chunk of a database's file, of which the parent has `before` at the same place. The extent goes into the
/// slot, now or when the chunk that its changed pages are gathered in is full. Gives how many bytes were new.
pub fn store(writer: &Writer, filler: &mut Filler, content: &[u8], before: &Extent, slot: (&Arc<Slot>, usize)) -> Result<u64> {
    let (slot, at) = slot;
    let (id, length) = (writer.repository.keyring.chunk_id(content), content.len() as u32);
    let relied_on = || before.chunks().iter().all(|chunk| writer.holds(chunk));
    let set = |extent| slot.set(at, extent);
    match before {
        Extent::Patched(patched) if patched.id == id && relied_on() => {
            set(before.clone());
            return Ok(0);
        }
        _ if writer.knows(&id) => {
            set(Extent::Chunk { id, length });
            return Ok(0);
        }
        _ => {}
    }
    let older = Older::of(before).filter(|_| relied_on());
    // What cannot be had now is stored again.
    let old = older.as_ref().and_then(|_| writer.fetch(before).ok());
    let runs = match (&older, &old) {
        (Some(older), Some(old)) => compare(content, old, older),
        _ => None,
    };
    let kept = |runs: &[Run]| {
        let mut used: Vec<u32> =
            runs.iter().filter_map(|run| if let From::Kept(chunk, _) = run.from { Some(chunk) } else { None }).collect();
        used.sort_unstable();
        used.dedup();
        used.len()
    };
    let (Some(runs), Some(older)) = (runs.filter(|runs| kept(runs) < MOST_CHUNKS), older) else {
        let (id, new) = filler.add_named(id, content, super::codec::Hint::Pages)?;
        set(Extent::Chunk { id, length });
        return Ok(if new { content.len() as u64 } else { 0 });
    };
    let waiting = Waiting { slot: slot.clone(), at, id, length, runs, chunks: older.chunks, offset: 0 };
    let full = writer.gather(|gather| gather.take(waiting, content));
    full.map_or(Ok(0), |full| full.store(writer, filler))
}

impl Gather {
    /// Takes changed pages in. Gives back those that there is no more room beside.
    fn take(&mut self, mut waiting: Waiting, content: &[u8]) -> Option<Self> {
        let new: usize = waiting.runs.iter().filter(|run| run.from == From::New).map(|run| run.at.len()).sum();
        let full = (self.bytes.len() + new > CHUNK).then(|| std::mem::take(self));
        waiting.offset = self.bytes.len() as u32;
        for run in waiting.runs.iter().filter(|run| run.from == From::New) {
            self.bytes.extend_from_slice(content.get(run.at.clone()).unwrap_or_default());
        }
        self.waiting.push(waiting);
        full
    }

    /// Stores what is gathered, and tells everybody who waits. Gives how many bytes were new.
    pub fn store(self, writer: &Writer, filler: &mut Filler) -> Result<u64> {
        if self.waiting.is_empty() {
            return Ok(0);
        }
        let stored = filler.add(&self.bytes, super::codec::Hint::Pages);
        // Whoever waits for an extent gets one, also after a failure.
        let name = stored.as_ref().map_or(Id([0; 32]), |(id, _)| *id);
        for waiting in self.waiting {
            let (slot, at, extent) = waiting.patched(name);
            slot.set(at, extent);
        }
        let new = stored.inspect_err(|_| writer.stop())?.1;
        Ok(if new { self.bytes.len() as u64 } else { 0 })
    }
}

/// Where each extent begins.
#[must_use]
pub fn starts(extents: &[Extent]) -> Vec<u64> {
    let mut at = 0;
    let each = extents.iter().map(|extent| {
        let start = at;
        at += extent.length();
        start
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(pages: &[u8]) -> Vec<u8> {
        pages.iter().flat_map(|n| vec![*n; PAGE]).collect()
    }
    fn whole(length: usize) -> Older {
        Older::of(&Extent::Chunk { id: Id([1; 32]), length: length as u32 }).unwrap()
    }

    /// What runs give, from the old content's chunks and the new content's own pages.
    fn made(runs: &[Run], chunks: &[Vec<u8>], content: &[u8]) -> Vec<u8> {
        let piece = |run: &Run| match run.from {
            From::Kept(chunk, offset) => chunks[chunk as usize][offset as usize..offset as usize + run.at.len()].to_vec(),
            From::New => content[run.at.clone()].to_vec(),
        };
        runs.iter().flat_map(piece).collect()
    }

    #[test]
    fn unchanged_pages_are_parts_of_the_old_chunk() {
        let old = content(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let new = content(&[1, 2, 9, 4, 5, 6, 7, 10]);
        let runs = compare(&new, &old, &whole(old.len())).unwrap();
        let told: Vec<_> = runs.iter().map(|run| (run.at.len() / PAGE, run.from.clone())).collect();
        let page = PAGE as u32;
        assert_eq!(told, [(2, From::Kept(0, 0)), (1, From::New), (4, From::Kept(0, 3 * page)), (1, From::New)]);
        assert_eq!(made(&runs, &[old], &new), new);
    }

    #[test]
    fn a_third_backup_rests_on_the_same_chunks_and_not_on_patches() {
        let (first, second) = (content(&[1, 2, 3, 4]), content(&[9]));
        let part = |chunk, offset, pages| Part { chunk, offset: offset * PAGE as u32, length: pages * PAGE as u32 };
        let parts = vec![part(0, 0, 1), part(1, 0, 1), part(0, 2, 2)];
        let patched = Patched { id: Id([7; 32]), length: 4 * PAGE as u32, chunks: vec![Id([1; 32]), Id([2; 32])], parts };
        let older = Older::of(&Extent::Patched(Box::new(patched))).unwrap();
        let (old, new) = (content(&[1, 9, 3, 4]), content(&[1, 9, 8, 4]));
        let runs = compare(&new, &old, &older).unwrap();
        assert_eq!(made(&runs, &[first, second], &new), new);
        assert!(runs.iter().any(|run| run.from == From::Kept(1, 0)));
    }

    #[test]
    fn by_the_rule_much_change_is_stored_whole() {
        let old = content(&(0..32).collect::<Vec<u8>>());
        let mut new = old.clone();
        let change = |bytes: &mut Vec<u8>, page: usize| bytes[page * PAGE] = 255;
        (0..8).for_each(|page| change(&mut new, page * 2));
        assert!(compare(&new, &old, &whole(old.len())).is_some());
        change(&mut new, 31);
        assert!(compare(&new, &old, &whole(old.len())).is_none());
        // A file that has grown: what was not there is new.
        let grown = [&old[..], &vec![3; PAGE]].concat();
        assert_eq!(compare(&grown, &old, &whole(old.len())).unwrap().len(), 2);
    }

    proptest! {
        #[test]
        fn what_is_patched_is_what_it_was(old in prop::collection::vec(0u8..4, 1..40), new in prop::collection::vec(0u8..4, 1..40)) {
            let (old, new) = (content(&old), content(&new));
            if let Some(runs) = compare(&new, &old, &whole(old.len())) {
                prop_assert_eq!(made(&runs, &[old], &new), new);
                prop_assert!(runs.len() <= MOST_PARTS);
            }
        }
    }
}
