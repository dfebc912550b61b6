//! Copying snapshots to another place: the second region's copy. The copy is the same repository, with the same
//! identifier and keys, so objects go over as they are, and the provider copies them itself where both places are its
//! own. Every object that passes through here is compared with the digest in its name.
//!
//! The place to copy to may be pruned meanwhile, and has marks of its own. So whoever copies is a writer there as a backup
//! is: what lies there in marked packs does not count as held, and before a snapshot is committed it is looked whether all
//! that it needs is there and stays. A pack that is there under its name is not carried again even if it is marked, since
//! there is no second place for it; if its mark is old, the last look stores anew what is needed of it.

use super::{
    RepositoryError, Result,
    copy_keys::{self, Keys},
    index::{Index, PackEntry},
    marks,
    names::{CONFIG, Id, KEYS, PACKS, SNAPSHOTS},
    open::{AT_ONCE, Repository, put, put_index},
    progress::Progress,
    recovery::Cluster,
    rescue::{LOOKS, LastLook, is_gone, used},
    snapshot::Snapshot,
    wal_keep,
    write::Writer,
};
use crate::providers::{
    clock::Clock,
    port::{ObjectMeta, ObjectRead, ObjectWrite, PortError},
};
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
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
    pub keys: Keys,
    /// Marks there that this key does not open, each in a sentence: what they mark is not known.
    pub marks_unread: Vec<String>,
    /// Snapshots that are there now, whole.
    pub there: Vec<Id>,
    /// What the source no longer has whole, or the place to copy to, each in a sentence: packs, and the snapshots that need
    /// them, which are not there for it. All the rest is.
    pub damaged: Vec<String>,
}

/// What a snapshot needs of the packs of the source, beside what is at the place to copy to already.
struct Needs<'a> {
    id: &'a Id,
    snapshot: &'a Snapshot,
    packs: BTreeSet<Id>,
}

/// Makes `to` hold these snapshots and all that they need.
pub async fn copy(
    repository: &Repository,
    to: Arc<dyn ObjectWrite>,
    place: &str,
    snapshots: &[(Id, Snapshot)],
    progress: Arc<Progress>,
    clock: &dyn Clock,
) -> Result<Copied> {
    let (target, keys) = prepare(repository, to.clone(), place).await?;
    let target = Arc::new(target);
    // Marks before packs, as for every writer: nothing is taken from a pack that is marked there.
    let marks = marks::load(&target).await?;
    let marked = marks::packs(&marks.whole, None);
    let held = Index::without(&target.present().await?.packs.whole, &marked);
    let packs = repository.present().await?.packs.whole;
    let index = Index::of(&packs);
    let (server_side, marks_unread) = (same_provider(repository, &*to).await, unread(place, &marks.damaged));
    let mut done = Copied { server_side, keys, marks_unread, ..Copied::default() };
    let mut whole = Vec::new();
    for (id, snapshot) in snapshots {
        match needs(repository, &index, &held, snapshot).await {
            Ok(packs) => whole.push(Needs { id, snapshot, packs }),
            Err(error) if of_the_source(&error) => done.damaged.push(not_copied(id, &error)),
            Err(error) => return Err(error),
        }
    }
    let mut wanted: BTreeSet<Id> = whole.iter().flat_map(|needs| needs.packs.iter().copied()).collect();
    let lost = carry(repository, &target, &*to, &wanted, &progress, &mut done).await?;
    wanted.retain(|pack| !lost.contains_key(pack));
    done.damaged.extend(lost.values().cloned());
    write_index(&target, &*to, &packs, &wanted).await?;
    (done.wal, done.wal_bytes) = wal_keep::copy(repository, &target, &*to, snapshots).await?;
    whole.retain(|needs| match needs.packs.iter().find(|pack| lost.contains_key(pack)) {
        Some(pack) => {
            done.damaged.push(not_copied(needs.id, &format!("it needs {}", pack.key(PACKS))));
            false
        }
        None => true,
    });
    let carried = packs.iter().filter(|entry| wanted.contains(&entry.pack)).map(|entry| (entry.pack, entry.size));
    let relied: Vec<(Id, u64)> = held.packs().copied().chain(carried).collect();
    let writer = Arc::new(Writer::new(target, to, Arc::default()));
    commit(repository, &writer, &relied, whole, clock, &mut done).await?;
    done.there.sort_by_key(|there| snapshots.iter().position(|(id, _)| id == there));
    Ok(done)
}

/// How a place that was copied to stands beside the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    pub keys_differ: Vec<String>,
    pub marks_unread: Vec<String>,
}

/// What [`copy`] says of keys and marks there, without copying anything. Both places are told by these names, which are such
/// as `--repo` takes.
pub async fn beside(repository: &Repository, source: &str, there: Arc<dyn ObjectRead>, place: &str) -> Result<Beside> {
    if there.head(CONFIG).await.map_err(RepositoryError::store(place))?.is_none() {
        return Ok(Beside::default());
    }
    let (source, target) = (repository.at(repository.store.clone(), source), repository.at(there, place));
    let marks_unread = unread(place, &marks::load(&target).await?.damaged);
    Ok(Beside { keys_differ: copy_keys::differ(&source, &target).await?, marks_unread })
}

fn unread(place: &str, marks: &[RepositoryError]) -> Vec<String> {
    let each = marks.iter().map(|error| {
        format!(
            "at {place}, {error}: which packs it marks is not known, so that a prune by somebody who can open it may delete what is copied \
             there. If nobody can, nothing is pruned there: take it away (docs/backups.md, \"What is damaged\")"
        )
    });
    each.collect()
}

fn not_copied(id: &Id, why: &dyn std::fmt::Display) -> String {
    format!("snapshot {} is not copied: {why}", id.short())
}

/// A snapshot is written last, and only where all that it needs is: so what is there is whole.
async fn commit(
    repository: &Repository,
    writer: &Arc<Writer>,
    relied: &[(Id, u64)],
    whole: Vec<Needs<'_>>,
    clock: &dyn Clock,
    done: &mut Copied,
) -> Result<()> {
    let target = &writer.repository;
    let there = target.list(SNAPSHOTS).await?;
    let there: BTreeMap<&str, u64> = there.iter().map(|meta| (meta.key.as_str(), meta.size)).collect();
    let mut ready = Vec::new();
    for needs in whole {
        let key = needs.id.key(SNAPSHOTS);
        let bytes = repository.read(&key).await?;
        match there.get(key.as_str()) {
            Some(size) if *size == bytes.len() as u64 => done.there.push(*needs.id),
            Some(size) => done.damaged.push(cut_short(&target.place, &key, *size, bytes.len() as u64)),
            // It has been opened before: that it is another by now is nothing to go on from.
            None if Id::of(&bytes) != *needs.id => return Err(RepositoryError::damaged(key, "it changed while it was copied")),
            None => match lacks_its_log(repository, target, needs.snapshot, clock).await? {
                Some(why) => done.damaged.push(not_copied(needs.id, &why)),
                None => ready.push((needs, bytes)),
            },
        }
    }
    let gone = last_look(writer, relied, &ready, clock).await?;
    for (Needs { id, .. }, bytes) in ready {
        if let Some(why) = gone.get(id) {
            let why = format!("a prune of {} has deleted what it needs meanwhile ({why}); copy again", target.place);
            done.damaged.push(not_copied(id, &why));
            continue;
        }
        put(&*writer.store, &id.key(SNAPSHOTS), bytes.into()).await?;
        done.snapshots += 1;
        done.there.push(*id);
    }
    Ok(())
}

/// What these snapshots use of packs there that may soon be deleted is stored anew there. Gives those of which something is
/// deleted already, and what.
async fn last_look(
    writer: &Arc<Writer>,
    relied: &[(Id, u64)],
    ready: &[(Needs<'_>, Vec<u8>)],
    clock: &dyn Clock,
) -> Result<BTreeMap<Id, String>> {
    let mut gone = BTreeMap::new();
    for _ in 0..LOOKS {
        let relied = relied.iter().copied().chain(writer.packs());
        let Some(look) = LastLook::take(&writer.repository, relied, clock.now()).await? else { return Ok(BTreeMap::new()) };
        gone.clear();
        let mut stored = false;
        for (Needs { id, snapshot, .. }, _) in ready {
            match look.store_anew(writer, &snapshot.list).await {
                Ok(some) => stored |= some,
                Err(error) if is_gone(&error) => drop(gone.insert(**id, error.to_string())),
                Err(error) => return Err(error),
            }
        }
        if !stored {
            return Ok(gone);
        }
    }
    Err(RepositoryError::Refused(format!(
        "no snapshot is copied: prunes of {} mark what they need as fast as it is stored anew; give prune there a longer --grace, and \
         copy again",
        writer.repository.place
    )))
}

/// Why a base backup would not restore there for want of its log, though it does here.
async fn lacks_its_log(repository: &Repository, target: &Repository, snapshot: &Snapshot, clock: &dyn Clock) -> Result<Option<String>> {
    let Some(cluster) = Cluster::of(snapshot) else { return Ok(None) };
    let Some(why) = wal_keep::lacks(target, &cluster, clock.now()).await? else { return Ok(None) };
    if wal_keep::lacks(repository, &cluster, clock.now()).await?.is_some() {
        return Ok(None);
    }
    let place = &target.place;
    Ok(Some(format!("at {place}, {why}: prune it first (muster backup prune --repo {place}), then copy again")))
}

fn cut_short(place: &str, key: &str, there: u64, here: u64) -> String {
    format!("{key} has {there} bytes at {place}, and {here} at the source: delete it there, and copy again")
}

/// Carries over the packs that are not there yet. Answers those that are whole in neither place, and why.
async fn carry(
    repository: &Repository,
    target: &Repository,
    to: &dyn ObjectWrite,
    wanted: &BTreeSet<Id>,
    progress: &Progress,
    done: &mut Copied,
) -> Result<BTreeMap<Id, String>> {
    let there = target.sizes().await?;
    let here = repository.list(PACKS).await?;
    let here: BTreeMap<Id, ObjectMeta> = here.into_iter().filter_map(|meta| Some((Id::in_key(&meta.key, PACKS)?, meta))).collect();
    let (mut missing, mut lost) = (Vec::new(), BTreeMap::new());
    for pack in wanted {
        let key = pack.key(PACKS);
        match (there.get(pack), here.get(pack)) {
            (Some(size), Some(meta)) if *size == meta.size => {}
            // Nothing is written over.
            (Some(size), Some(meta)) => drop(lost.insert(*pack, cut_short(&target.place, &key, *size, meta.size))),
            (None, Some(meta)) => missing.push(meta.clone()),
            (None, None) => drop(lost.insert(*pack, format!("{key} is missing at the source"))),
            // Whether it is whole the last look sees.
            (Some(_), None) => {}
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

/// The packs of the source that have what is not held there.
async fn needs(repository: &Repository, index: &Index, held: &Index, snapshot: &Snapshot) -> Result<BTreeSet<Id>> {
    let mut packs = BTreeSet::new();
    for chunk in used(repository, index, &snapshot.list).await? {
        if held.contains(&chunk) {
            continue;
        }
        packs.insert(index.find(&chunk).ok_or(RepositoryError::NoChunk { chunk })?.0);
    }
    Ok(packs)
}

/// Is it damage that copying the rest does not suffer from? What concerns the place to copy to is not.
fn of_the_source(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::Damaged { .. } | RepositoryError::Missing { .. } | RepositoryError::NoChunk { .. })
}

/// The place to copy to, as a repository: made if it is empty, refused if it is another one. Which keys went along, and
/// what differs, is told.
async fn prepare(repository: &Repository, to: Arc<dyn ObjectWrite>, place: &str) -> Result<(Repository, Keys)> {
    let config = repository.read(CONFIG).await?;
    let target = repository.at(to.clone(), place);
    if to.head(CONFIG).await.map_err(RepositoryError::store(place))?.is_some() {
        if target.read(CONFIG).await? != config {
            return Err(RepositoryError::Refused(format!(
                "{place} holds another repository: a copy is the same repository in another place; choose an empty one"
            )));
        }
        let keys = copy_keys::compare(repository, &target, &*to).await?;
        return Ok((target, keys));
    }
    let there = to.list("", None).await.map_err(RepositoryError::store(place))?;
    if let Some(other) = there.objects.iter().find(|object| !object.key.starts_with(KEYS)) {
        return Err(RepositoryError::Occupied { place: place.to_owned(), found: other.key.clone() });
    }
    let keys = copy_keys::all(repository, &*to).await?;
    match to.put(CONFIG, config.into(), &BTreeMap::new(), true).await {
        Ok(_) | Err(PortError::Conflict { .. }) => {}
        Err(error) => return Err(RepositoryError::Store { key: CONFIG.to_owned(), error }),
    }
    Ok((target, keys))
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
    put_index(to, &target.keyring, &new).await.map(drop)
}
