//! Verification: is everything there that the snapshots need, and is it what was written?
//!
//! Three depths. The structure: every snapshot opens, its list is read, every chunk that it names is in a pack that is
//! there with the size that the index says. With a share of the data: so many packs, chosen anew each time, are read,
//! every chunk in them decrypted, decoded and compared with its name. With all of it: every pack. What is damaged is
//! named together with the files that it touches.

use super::{
    RepositoryError, Result,
    entry::{Entry, Extent},
    index::{ById, Ids, Index, PackEntry},
    list, marks,
    names::{Id, PACKS},
    open::{Repository, damaged_slots},
    progress::Progress,
    proof,
    snapshot::Snapshot,
    verify_packs::{Read, read_packs},
};
use std::sync::Arc;

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    Structure,
    /// So many packs of a hundred, by chance.
    Share(u8),
    All,
}

/// What was looked at, and what is wrong.
#[derive(Debug, Default)]
pub struct Verified {
    pub snapshots: u64,
    pub files: u64,
    /// Packs of which every byte was read.
    pub packs: u64,
    pub chunks: u64,
    pub bytes_read: u64,
    /// Objects that are not what was written, or are missing.
    pub problems: Vec<String>,
    /// Which files of which snapshots that touches.
    pub touched: Vec<Touched>,
}

impl Verified {
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.problems.is_empty() && self.touched.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touched {
    pub snapshot: Id,
    pub path: String,
    pub why: String,
}

/// Verifies these snapshots and the packs that they need; without any, all there is. `chance` chooses the packs of a
/// share.
pub async fn verify(
    repository: Arc<Repository>,
    only: Option<Vec<(Id, Snapshot)>>,
    depth: Depth,
    chance: [u8; 32],
    progress: Arc<Progress>,
) -> Result<Verified> {
    let mut found = Verified::default();
    let everything = only.is_none();
    let snapshots = match only {
        Some(only) => only,
        None => {
            check_objects(&repository, &mut found).await?;
            let snapshots = repository.snapshots().await?;
            tell(&mut found, snapshots.damaged);
            snapshots.whole
        }
    };
    let packs = repository.packs().await?;
    tell(&mut found, packs.damaged);
    let there = repository.sizes().await?;
    let mut bad = check_places(&there, &packs.whole, &mut found);
    let is_there = |entry: &PackEntry| there.get(&entry.pack) == Some(&entry.size);
    let (mut wanted, gone): (Vec<PackEntry>, Vec<PackEntry>) = packs.whole.into_iter().partition(is_there);
    let index = Index::preferring(&wanted, &gone);
    if !everything && depth != Depth::Structure {
        let mut used = Ids::default();
        for (_, snapshot) in &snapshots {
            // What cannot be read here is named below.
            used.extend(super::rescue::used(&repository, &index, &snapshot.list).await.unwrap_or_default());
        }
        wanted.retain(|entry| entry.pieces.iter().any(|piece| used.contains(&piece.chunk)));
    }
    let wanted = share(wanted, depth, chance);
    progress.total_bytes.store(wanted.iter().map(|entry| entry.size).sum(), std::sync::atomic::Ordering::Relaxed);
    let reader = repository.clone();
    let read = tokio::task::spawn_blocking(move || read_packs(&reader, &wanted, &progress)).await;
    let Read { packs, chunks, bytes, problems, bad: unreadable } = read.map_err(|e| RepositoryError::Interrupted(e.to_string()))??;
    (found.packs, found.chunks, found.bytes_read) = (packs, chunks, bytes);
    found.problems.extend(problems);
    bad.extend(unreadable);
    for (id, snapshot) in &snapshots {
        check_snapshot(&repository, &index, (id, snapshot), &bad, &mut found).await?;
    }
    super::wal_keep::verify(&repository, &snapshots, depth, chance, &mut found).await?;
    found.touched.sort();
    found.touched.dedup();
    Ok(found)
}

fn tell(found: &mut Verified, damaged: Vec<RepositoryError>) {
    found.problems.extend(damaged.iter().map(ToString::to_string));
}

/// Key slots, marks and proofs: everything that is neither data nor a snapshot.
async fn check_objects(repository: &Repository, found: &mut Verified) -> Result<()> {
    tell(found, damaged_slots(&*repository.store).await?);
    tell(found, marks::load(repository).await?.damaged);
    tell(found, proof::load(repository).await?.damaged);
    Ok(())
}

/// Is every pack of the index there, with its size? Gives the chunks of those that are not.
fn check_places(there: &ById<u64>, packs: &[PackEntry], found: &mut Verified) -> ById<String> {
    let mut bad = ById::default();
    for entry in packs {
        let why = match there.get(&entry.pack) {
            Some(size) if *size == entry.size => continue,
            Some(size) => format!("{} is damaged: it has {size} bytes instead of {}", entry.pack.key(PACKS), entry.size),
            None => format!("{} is missing from the repository", entry.pack.key(PACKS)),
        };
        bad.extend(entry.pieces.iter().map(|piece| (piece.chunk, why.clone())));
        found.problems.push(why);
    }
    // Another copy of a chunk serves as well.
    for entry in packs.iter().filter(|entry| there.get(&entry.pack) == Some(&entry.size)) {
        entry.pieces.iter().for_each(|piece| drop(bad.remove(&piece.chunk)));
    }
    bad
}

/// Those packs that are to be read.
fn share(mut packs: Vec<PackEntry>, depth: Depth, chance: [u8; 32]) -> Vec<PackEntry> {
    match depth {
        Depth::Structure => packs.clear(),
        Depth::All => {}
        Depth::Share(percent) => {
            // The packs whose names, shuffled by chance, come first: at least one.
            packs.sort_by_cached_key(|entry| *blake3::keyed_hash(&chance, &entry.pack.0).as_bytes());
            let count = (packs.len() * usize::from(percent)).div_ceil(100);
            packs.truncate(count);
        }
    }
    packs
}

/// Can everything that a snapshot names be found, and is none of it bad?
async fn check_snapshot(
    repository: &Repository,
    index: &Index,
    (id, snapshot): (&Id, &Snapshot),
    bad: &ById<String>,
    found: &mut Verified,
) -> Result<()> {
    found.snapshots += 1;
    let touch = |path: String, why: String| Touched { snapshot: *id, path, why };
    for chunk in &snapshot.list {
        let content = match repository.chunk(index, chunk).await {
            Ok(content) => content,
            Err(error @ RepositoryError::Store { .. }) => return Err(error),
            Err(error) => {
                found.touched.push(touch(format!("all entries in list chunk {}", chunk.short()), error.to_string()));
                continue;
            }
        };
        for entry in list::entries(chunk, &content)? {
            found.files += u64::from(entry.node.content().is_some());
            if let Some(why) = check_entry(repository, index, &entry, bad).await? {
                found.touched.push(touch(entry.shown(), why));
            }
        }
    }
    Ok(())
}

/// Why an entry cannot be restored, if it cannot.
async fn check_entry(repository: &Repository, index: &Index, entry: &Entry, bad: &ById<String>) -> Result<Option<String>> {
    let Some(content) = entry.node.content() else { return Ok(None) };
    let wrong = |chunk: &Id| match bad.get(chunk) {
        Some(why) => Some(why.clone()),
        None if index.contains(chunk) => None,
        None => Some(format!("chunk {} is in no pack that the index names", chunk.short())),
    };
    if let Some(why) = content.extents.elsewhere().iter().find_map(wrong) {
        return Ok(Some(why));
    }
    let extents = match repository.extents(index, &entry.path, content).await {
        Ok(extents) => extents,
        Err(error @ RepositoryError::Store { .. }) => return Err(error),
        Err(error) => return Ok(Some(error.to_string())),
    };
    Ok(extents.iter().flat_map(Extent::chunks).find_map(wrong))
}
