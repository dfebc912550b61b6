//! Verification: is everything there that the snapshots need, and is it what was written?
//!
//! Three depths. The structure: every snapshot opens, its list is read, every chunk that it names is in a pack that is
//! there with the size that the index says. With a share of the data: so many packs, chosen anew each time, are read,
//! every chunk in them decrypted, decoded and compared with its name. With all of it: every pack, also those that no index
//! names. What is damaged is named together with the files that it touches: those that a restore would not bring back.
//!
//! Damage in a pack that no index names costs nobody anything, unless a part of the index is lost: so it is told, and
//! is a problem only then.

use super::{
    RepositoryError, Result,
    entry::Entry,
    index::{ById, Ids, Index, PackEntry},
    list, marks,
    names::{Id, PACKS},
    open::{Repository, not_named},
    places::LOST_INDEX,
    progress::Progress,
    proof, slots,
    snapshot::Snapshot,
    verify_packs::{Bad, Read, read_packs},
};
use std::sync::{Arc, atomic::Ordering::Relaxed};

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
    /// What is worth knowing and no problem.
    pub notices: Vec<String>,
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
    let mut stray = Stray::look(&repository, not_named(&there, packs.whole.iter()), depth).await?;
    let named: Ids = packs.whole.iter().map(|entry| entry.pack).collect();
    let is_there = |entry: &PackEntry| there.get(&entry.pack) == Some(&entry.size);
    let (mut wanted, gone): (Vec<PackEntry>, Vec<PackEntry>) = packs.whole.into_iter().partition(is_there);
    let index = Index::preferring(&wanted, &gone);
    if !everything && depth != Depth::Structure {
        let mut used = Ids::default();
        for (_, snapshot) in &snapshots {
            // What cannot be read here is named below.
            used.extend(super::rescue::used(&repository, &index, &snapshot.list).await.unwrap_or_default());
        }
        let is_used = |entry: &PackEntry| entry.pieces.iter().any(|piece| used.contains(&piece.chunk));
        wanted.retain(is_used);
        stray.packs.retain(is_used);
    }
    let (wanted, strays) = (share(wanted, depth, chance), share(std::mem::take(&mut stray.packs), depth, chance));
    progress.total_bytes.store(wanted.iter().chain(&strays).map(|entry| entry.size).sum(), Relaxed);
    bad.extend(read(&repository, wanted, &progress, &mut found).await?);
    let listed = std::mem::take(&mut found.problems);
    bad.extend(read(&repository, strays, &progress, &mut found).await?);
    stray.damaged.extend(std::mem::replace(&mut found.problems, listed));
    bad = without_pruned(&repository, &named, bad, &mut found).await?;
    let mut sought =
        Sought { repository: &repository, index: &index, bad: nowhere_whole(&repository, &index, bad).await?, relied: Ids::default() };
    for (id, snapshot) in &snapshots {
        sought.check_snapshot(id, snapshot, &mut found).await?;
    }
    let relied = sought.relied;
    stray.judge(&relied, index.detours().strays, everything, &mut found);
    super::wal_keep::verify(&repository, &snapshots, depth, chance, &mut found).await?;
    found.touched.sort();
    found.touched.dedup();
    Ok(found)
}

/// A prune that ends meanwhile has deleted packs that the index named when it was read: by now it names them no more, so
/// nobody misses them.
async fn without_pruned(repository: &Repository, named: &Ids, mut bad: Vec<Bad>, found: &mut Verified) -> Result<Vec<Bad>> {
    if found.problems.is_empty() && bad.is_empty() {
        return Ok(bad);
    }
    let there = repository.sizes().await?;
    let missing: Vec<Id> = named.iter().filter(|pack| !there.contains_key(*pack)).copied().collect();
    if missing.is_empty() {
        return Ok(bad);
    }
    // What of the index cannot be read by now may name them.
    let now = repository.packs().await?;
    if now.damaged.is_empty() {
        let still: Ids = now.whole.iter().map(|entry| entry.pack).collect();
        let pruned: Ids = missing.into_iter().filter(|pack| !still.contains(pack)).collect();
        let names: Vec<String> = pruned.iter().map(Id::to_string).collect();
        found.problems.retain(|problem| !names.iter().any(|name| problem.contains(name)));
        bad.retain(|one| !pruned.contains(&one.pack));
    }
    Ok(bad)
}

/// Reads these packs, and counts them. Gives what cannot be had from them.
async fn read(repository: &Arc<Repository>, packs: Vec<PackEntry>, progress: &Arc<Progress>, found: &mut Verified) -> Result<Vec<Bad>> {
    let (reader, progress) = (repository.clone(), progress.clone());
    let read = tokio::task::spawn_blocking(move || read_packs(&reader, &packs, &progress)).await;
    let Read { packs, chunks, bytes, problems, bad } = read.map_err(|e| RepositoryError::Interrupted(e.to_string()))??;
    (found.packs, found.chunks, found.bytes_read) = (found.packs + packs, found.chunks + chunks, found.bytes_read + bytes);
    found.problems.extend(problems);
    Ok(bad)
}

/// Of what cannot be had from one pack: what no other has whole either, and why.
async fn nowhere_whole(repository: &Repository, index: &Index, bad: Vec<Bad>) -> Result<ById<String>> {
    let mut chunks: ById<(Vec<Id>, String)> = ById::default();
    for Bad { chunk, pack, why } in bad {
        chunks.entry(chunk).or_insert_with(|| (Vec::new(), why)).0.push(pack);
    }
    let mut lost = ById::default();
    for (chunk, (tried, why)) in chunks {
        let first = index.find(&chunk).filter(|(pack, _)| !tried.contains(pack));
        let whole = match first {
            Some((pack, piece)) => match repository.piece(&pack, &piece).await {
                Err(error) if !error.is_loss() => return Err(error),
                read => read.is_ok(),
            },
            None => false,
        };
        if !whole && repository.others(index).await?.content(repository, &chunk, &tried).await?.is_none() {
            lost.insert(chunk, why);
        }
    }
    Ok(lost)
}

/// Packs that no index names.
struct Stray {
    count: u64,
    /// Those that are to be read.
    packs: Vec<PackEntry>,
    damaged: Vec<String>,
}

impl Stray {
    /// Without their data only their number is of interest.
    async fn look(repository: &Repository, strays: Vec<(Id, u64)>, depth: Depth) -> Result<Self> {
        let count = strays.len() as u64;
        if depth == Depth::Structure {
            return Ok(Self { count, packs: Vec::new(), damaged: Vec::new() });
        }
        let asked = repository.ask_packs(strays).await?;
        // Deleted meanwhile, by a prune, is not damaged.
        let damaged = asked.damaged.iter().filter(|error| !matches!(error, RepositoryError::Missing { .. }));
        Ok(Self { count, packs: asked.whole, damaged: damaged.map(ToString::to_string).collect() })
    }

    /// What is to be told of them, now that it is known which of them snapshots rely on, and whether some stand in for
    /// what is damaged.
    fn judge(self, relied: &Ids, stand_in: bool, everything: bool, found: &mut Verified) {
        if !relied.is_empty() {
            found.problems.push(format!("{} needed packs are named by no object under index/: {LOST_INDEX}", relied.len()));
        }
        let left = self.count.saturating_sub(relied.len() as u64);
        if stand_in {
            found.problems.push(
                "some of what is damaged is whole only in packs that no index names: take the damaged packs away first, then the next prune takes these in"
                    .to_owned(),
            );
        } else if everything && left > 0 {
            found.notices.push(format!(
                "{left} packs are named by no index, and no snapshot needs them: a backup was cut off or is under way; `muster backup prune` deletes what is left over"
            ));
        }
        if relied.is_empty() && !stand_in && found.touched.is_empty() {
            found
                .notices
                .extend(self.damaged.into_iter().map(|damaged| format!("{damaged} (no index names that pack, and no snapshot needs it)")));
        } else {
            found.problems.extend(self.damaged);
        }
    }
}

fn tell(found: &mut Verified, damaged: Vec<RepositoryError>) {
    found.problems.extend(damaged.iter().map(ToString::to_string));
}

/// Key slots, marks and proofs: everything that is neither data nor a snapshot.
async fn check_objects(repository: &Repository, found: &mut Verified) -> Result<()> {
    tell(found, slots::slots(&*repository.store).await?.damaged);
    tell(found, marks::load(repository).await?.damaged);
    tell(found, proof::load(repository).await?.damaged);
    Ok(())
}

/// Is every pack of the index there, with its size? Gives the chunks of those that are not, and that the index has
/// nowhere else.
fn check_places(there: &ById<u64>, packs: &[PackEntry], found: &mut Verified) -> Vec<Bad> {
    let (mut bad, is_there) = (ById::default(), |entry: &&PackEntry| there.get(&entry.pack) == Some(&entry.size));
    for entry in packs.iter().filter(|entry| !is_there(entry)) {
        let why = match there.get(&entry.pack) {
            Some(size) => format!("{} is damaged: it has {size} bytes instead of {}", entry.pack.key(PACKS), entry.size),
            None => format!("{} is missing from the repository", entry.pack.key(PACKS)),
        };
        bad.extend(entry.pieces.iter().map(|piece| (piece.chunk, (entry.pack, why.clone()))));
        found.problems.push(why);
    }
    // Another copy of a chunk serves as well.
    for entry in packs.iter().filter(is_there) {
        entry.pieces.iter().for_each(|piece| drop(bad.remove(&piece.chunk)));
    }
    bad.into_iter().map(|(chunk, (pack, why))| Bad { chunk, pack, why }).collect()
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

/// Where what snapshots need is sought.
struct Sought<'a> {
    repository: &'a Repository,
    index: &'a Index,
    /// Chunks that no pack has whole, and why.
    bad: ById<String>,
    /// Packs that no index names, though they hold what is needed.
    relied: Ids,
}

impl Sought<'_> {
    /// Can everything that a snapshot names be found, and is none of it bad?
    async fn check_snapshot(&mut self, id: &Id, snapshot: &Snapshot, found: &mut Verified) -> Result<()> {
        found.snapshots += 1;
        let touch = |path: String, why: String| Touched { snapshot: *id, path, why };
        for chunk in &snapshot.list {
            let content = match self.repository.chunk(self.index, chunk).await {
                Ok(content) => content,
                Err(error) if error.is_loss() => {
                    found.touched.push(touch(format!("all entries in list chunk {}", chunk.short()), error.to_string()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.look(&[*chunk]).await?;
            for entry in list::entries(chunk, &content)? {
                found.files += u64::from(entry.node.content().is_some());
                if let Some(why) = self.check_entry(&entry).await? {
                    found.touched.push(touch(entry.shown(), why));
                }
            }
        }
        Ok(())
    }

    /// Why an entry cannot be restored, if it cannot.
    async fn check_entry(&mut self, entry: &Entry) -> Result<Option<String>> {
        let Some(content) = entry.node.content() else { return Ok(None) };
        if let Some(why) = self.look(content.extents.elsewhere()).await? {
            return Ok(Some(why));
        }
        let extents = match self.repository.extents(self.index, &entry.path, content).await {
            Ok(extents) => extents,
            Err(error) if error.is_loss() => return Ok(Some(error.to_string())),
            Err(error) => return Err(error),
        };
        for extent in &extents {
            if let Some(why) = self.look(extent.chunks()).await? {
                return Ok(Some(why));
            }
        }
        Ok(None)
    }

    /// Why one of these chunks cannot be had.
    async fn look(&mut self, chunks: &[Id]) -> Result<Option<String>> {
        if let Some(why) = chunks.iter().find_map(|chunk| self.bad.get(chunk)) {
            return Ok(Some(why.clone()));
        }
        for chunk in chunks.iter().filter(|chunk| !self.index.contains(chunk)) {
            let others = self.repository.others(self.index).await?;
            match others.of(chunk).next() {
                Some((pack, _)) => self.relied.extend(others.is_stray(&pack).then_some(pack)),
                None => return Ok(Some(format!("chunk {} is in no pack that the index names", chunk.short()))),
            }
        }
        Ok(None)
    }
}
