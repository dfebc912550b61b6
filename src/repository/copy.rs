//! Copying snapshots to another place: the second region's copy. The copy is the same repository, with the same
//! identifier and keys, so objects go over as they are, and the provider copies them itself where both places are its
//! own. Every object that passes through here is compared with the digest in its name.

use super::{
    RepositoryError, Result,
    index::{self, Index, PackEntry},
    marks,
    names::{CONFIG, Id, KEYS, PACKS, SNAPSHOTS},
    open::{AT_ONCE, Repository, put, put_sealed},
    progress::Progress,
    rescue::used,
    seal::Kind,
    snapshot::Snapshot,
    wal_keep,
};
use crate::providers::port::{ObjectMeta, ObjectWrite, PortError};
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    pub snapshots: u64,
    pub packs: u64,
    pub bytes: u64,
    /// Objects of write-ahead logs.
    pub wal: u64,
    pub wal_bytes: u64,
    /// Did the provider copy, or did the bytes pass through here?
    pub server_side: bool,
    /// Snapshots that are there now, whole.
    pub there: Vec<Id>,
    /// What the source no longer has whole, each in a sentence: packs, and the snapshots that need them, which are not
    /// there for it. All the rest is.
    pub damaged: Vec<String>,
}

/// What a snapshot needs.
struct Needs<'a> {
    id: &'a Id,
    packs: BTreeSet<Id>,
}

/// Makes `to` hold these snapshots and all that they need.
pub async fn copy(
    repository: &Repository,
    to: Arc<dyn ObjectWrite>,
    place: &str,
    snapshots: &[(Id, Snapshot)],
    progress: Arc<Progress>,
    now: jiff::Timestamp,
) -> Result<Copied> {
    let target = prepare(repository, to.clone(), place).await?;
    let packs = repository.present().await?.packs.whole;
    let index = Index::of(&packs);
    let mut done = Copied { server_side: same_provider(repository, &*to).await, ..Copied::default() };
    let mut whole = Vec::new();
    for (id, snapshot) in snapshots {
        match needs(repository, &index, snapshot).await {
            Ok(packs) => whole.push(Needs { id, packs }),
            Err(error) if of_the_source(&error) => done.damaged.push(format!("snapshot {} is not copied: {error}", id.short())),
            Err(error) => return Err(error),
        }
    }
    let mut wanted: BTreeSet<Id> = whole.iter().flat_map(|needs| needs.packs.iter().copied()).collect();
    let old = marks::packs(&marks::load(&target).await?.whole, Some(now));
    if let Some(marked) = wanted.iter().find(|pack| old.contains(pack)) {
        return Err(RepositoryError::Refused(format!(
            "{place} is about to delete {}: prune it first (muster backup prune --repo {place}), then copy again",
            marked.key(PACKS)
        )));
    }
    let lost = carry(repository, &target, &*to, &wanted, &progress, &mut done).await?;
    wanted.retain(|pack| !lost.contains_key(pack));
    done.damaged.extend(lost.values().cloned());
    write_index(&target, &*to, &packs, &wanted).await?;
    (done.wal, done.wal_bytes) = wal_keep::copy(repository, &target, &*to, snapshots).await?;
    // A snapshot is written last, and only where all that it needs is: so what is there is whole.
    for Needs { id, packs } in whole {
        if let Some(pack) = packs.iter().find(|pack| lost.contains_key(pack)) {
            done.damaged.push(format!("snapshot {} is not copied: it needs {}", id.short(), pack.key(PACKS)));
            continue;
        }
        let key = id.key(SNAPSHOTS);
        if to.head(&key).await.map_err(RepositoryError::store(&key))?.is_none() {
            put(&*to, &key, repository.read(&key).await?.into()).await?;
            done.snapshots += 1;
        }
        done.there.push(*id);
    }
    Ok(done)
}

/// Carries over the packs that are not there yet. Answers those that the source no longer has whole, and why.
async fn carry(
    repository: &Repository,
    target: &Repository,
    to: &dyn ObjectWrite,
    wanted: &BTreeSet<Id>,
    progress: &Progress,
    done: &mut Copied,
) -> Result<BTreeMap<Id, String>> {
    let there = target.list(PACKS).await?;
    let there: HashSet<Id> = there.iter().filter_map(|meta| Id::in_key(&meta.key, PACKS)).collect();
    let here = repository.list(PACKS).await?;
    let here: BTreeMap<Id, ObjectMeta> = here.into_iter().filter_map(|meta| Some((Id::in_key(&meta.key, PACKS)?, meta))).collect();
    let (mut missing, mut lost) = (Vec::new(), BTreeMap::new());
    for pack in wanted.iter().filter(|pack| !there.contains(pack)) {
        match here.get(pack) {
            Some(meta) => missing.push(meta.clone()),
            None => drop(lost.insert(*pack, format!("{} is missing at the source", pack.key(PACKS)))),
        }
    }
    progress.total_bytes.store(missing.iter().map(|meta| meta.size).sum(), Relaxed);
    let mut each = Vec::new();
    for meta in missing {
        each.push(one(repository, to, meta, done.server_side, progress));
    }
    let mut each = stream::iter(each).buffer_unordered(AT_ONCE / 4);
    while let Some((meta, copied)) = each.next().await {
        match copied {
            Ok(()) => (done.packs, done.bytes) = (done.packs + 1, done.bytes + meta.size),
            Err(error) if of_the_source(&error) => {
                lost.extend(Id::in_key(&meta.key, PACKS).map(|pack| (pack, error.to_string())));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(lost)
}

async fn needs(repository: &Repository, index: &Index, snapshot: &Snapshot) -> Result<BTreeSet<Id>> {
    let mut packs = BTreeSet::new();
    for chunk in used(repository, index, &snapshot.list).await? {
        packs.insert(index.find(&chunk).ok_or(RepositoryError::NoChunk { chunk })?.0);
    }
    Ok(packs)
}

/// Is it damage that copying the rest does not suffer from? What concerns the place to copy to is not.
fn of_the_source(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::Damaged { .. } | RepositoryError::Missing { .. } | RepositoryError::NoChunk { .. })
}

/// The place to copy to, as a repository: made if it is empty, refused if it is another one.
async fn prepare(repository: &Repository, to: Arc<dyn ObjectWrite>, place: &str) -> Result<Repository> {
    let config = repository.read(CONFIG).await?;
    let there = match to.head(CONFIG).await.map_err(RepositoryError::store(place))? {
        Some(_) => {
            let target = Repository {
                store: to.clone(),
                place: place.to_owned(),
                id: repository.id.clone(),
                config: repository.config,
                keyring: repository.keyring.again(),
            };
            let there = target.read(CONFIG).await?;
            if there != config {
                return Err(RepositoryError::Refused(format!(
                    "{place} holds another repository: a copy is the same repository in another place; choose an empty one"
                )));
            }
            // Keys that were added or rotated since: without them the copy could not be opened as the original is.
            copy_keys(repository, &*to).await?;
            return Ok(target);
        }
        None => to.list("", None).await.map_err(RepositoryError::store(place))?,
    };
    if let Some(other) = there.objects.iter().find(|object| !object.key.starts_with(KEYS)) {
        return Err(RepositoryError::Occupied { place: place.to_owned(), found: other.key.clone() });
    }
    copy_keys(repository, &*to).await?;
    match to.put(CONFIG, config.into(), &BTreeMap::new(), true).await {
        Ok(_) | Err(PortError::Conflict { .. }) => {}
        Err(error) => return Err(RepositoryError::Store { key: CONFIG.to_owned(), error }),
    }
    Ok(Repository {
        store: to,
        place: place.to_owned(),
        id: repository.id.clone(),
        config: repository.config,
        keyring: repository.keyring.again(),
    })
}

async fn copy_keys(repository: &Repository, to: &dyn ObjectWrite) -> Result<()> {
    for meta in repository.list(KEYS).await? {
        put(to, &meta.key, repository.read(&meta.key).await?.into()).await?;
    }
    Ok(())
}

async fn same_provider(repository: &Repository, to: &dyn ObjectWrite) -> bool {
    match (repository.store.provider().await, to.provider().await) {
        (Ok(Some(from)), Ok(Some(to))) => from == to,
        _ => false,
    }
}

/// One pack, and what became of it.
async fn one(
    repository: &Repository,
    to: &dyn ObjectWrite,
    meta: ObjectMeta,
    server_side: bool,
    progress: &Progress,
) -> (ObjectMeta, Result<()>) {
    let copied = pack(repository, to, &meta, server_side, progress).await;
    (meta, copied)
}

async fn pack(repository: &Repository, to: &dyn ObjectWrite, meta: &ObjectMeta, server_side: bool, progress: &Progress) -> Result<()> {
    if progress.is_stopped() {
        return Err(RepositoryError::Interrupted("copying was stopped; the next run goes on".to_owned()));
    }
    let by_provider = match repository.store.place(&meta.key).filter(|_| server_side) {
        Some(from) => to.copy_from(&meta.key, &from, meta).await.is_ok_and(|copied| copied.size == meta.size),
        None => false,
    };
    if !by_provider {
        let bytes = repository.read(&meta.key).await?;
        if Id::in_key(&meta.key, PACKS) != Some(Id::of(&bytes)) {
            return Err(RepositoryError::damaged(&meta.key, "its bytes do not have the digest that its name says; verify the source"));
        }
        put(to, &meta.key, bytes.into()).await?;
    }
    progress.add(1, meta.size);
    Ok(())
}

/// Names the packs there that no index there names yet.
async fn write_index(target: &Repository, to: &dyn ObjectWrite, packs: &[PackEntry], wanted: &BTreeSet<Id>) -> Result<()> {
    let named = Index::of(&target.packs().await?.whole);
    let new: Vec<PackEntry> = packs.iter().filter(|entry| wanted.contains(&entry.pack) && !named.has_pack(&entry.pack)).cloned().collect();
    if !new.is_empty() {
        put_sealed(to, &target.keyring, Kind::Index, &index::encode(&new)).await?;
    }
    Ok(())
}
