//! Forgetting snapshots, and giving back the space of what no snapshot needs: the only code that deletes.
//!
//! [`super::marks`] has the rule that makes it safe beside running backups, [`super::prune_plan`] the decisions. The
//! order of what is done: what is still used of packs that shall go is copied into new ones, and an index names them;
//! then the packs are marked. A later run, after the grace, reads what is kept of what they hold ([`super::twins`]), and of
//! logs the segments that their pieces go for ([`super::wal_twins`]), writes an index without them, deletes the old index objects, then the packs, then the marks. Killed anywhere, it leaves what the
//! next run goes on from.

use super::{
    RepositoryError, Result,
    index::{ById, Ids, Index, PackEntry},
    marks::{self, Marked},
    names::{INDEX, Id, MARKS, PACKS, SNAPSHOTS},
    open::{AT_ONCE, Repository, put_index, put_sealed, retried},
    pack::Opener,
    places::lost_to_the_index,
    progress::Progress,
    prune_plan::{Facts, Plan, plan},
    rescue::used_strictly,
    seal::{self, Kind},
    twins,
    wal_keep::{self, WalPlan},
    wal_twins,
    write::{Filler, Writer},
};
use crate::providers::port::{ObjectWrite, PortError};
use futures::{StreamExt, TryStreamExt, stream};
use std::{collections::HashSet, sync::Arc};
use tokio::runtime::Handle;

/// Deletes snapshots; their data go with a later prune.
pub async fn forget(store: &dyn ObjectWrite, snapshots: &[Id]) -> Result<()> {
    for id in snapshots {
        delete(store, &id.key(SNAPSHOTS)).await?;
    }
    Ok(())
}

/// What is gone already is deleted.
async fn delete(store: &dyn ObjectWrite, key: &str) -> Result<()> {
    match store.delete(key).await {
        Ok(()) | Err(PortError::NotFound(_)) => Ok(()),
        Err(error) => Err(RepositoryError::Store { key: key.to_owned(), error }),
    }
}

/// What is there, looked at once.
pub struct Look {
    pub plan: Plan,
    pub wal: WalPlan,
    packs: Vec<PackEntry>,
    /// In the store, and named by no index.
    strays: Vec<(Id, u64)>,
    used: Ids,
    indexes: Vec<Id>,
}

/// Looks at everything and decides. Refuses a repository in which something cannot be read: what that needs is not known.
pub async fn look(repository: &Repository, now: jiff::Timestamp) -> Result<Look> {
    let whole = |damaged: Vec<RepositoryError>| match damaged.into_iter().next() {
        Some(error) => Err(RepositoryError::Refused(format!(
            "nothing is pruned while something is damaged: {error}; `muster backup verify` names all of it, and docs/backups.md, \
                 \"What is damaged\", says what heals each (`muster backup forget ID` lets go of a damaged snapshot)"
        ))),
        None => Ok(()),
    };
    // Marks before snapshots: a snapshot that relies on a marked pack was there before the mark is old.
    let marks = marks::load(repository).await?;
    whole(marks.damaged)?;
    let indexes = repository.list(INDEX).await?;
    let indexes: Vec<Id> = indexes.iter().filter_map(|meta| Id::in_key(&meta.key, INDEX)).collect();
    let packs = repository.packs().await?;
    whole(packs.damaged)?;
    let snapshots = repository.snapshots().await?;
    whole(snapshots.damaged)?;
    // Once more: what the snapshots name may have been indexed since.
    let mut packs = merge(packs.whole, repository.packs().await?.whole);
    // A pack that is missing is no other copy of what it held.
    let sizes = repository.sizes().await?;
    let named = packs.len();
    packs.retain(|entry| sizes.get(&entry.pack) == Some(&entry.size));
    let gone = packs.len() < named;
    let index = Index::of(&packs);
    let mut needed = Ids::default();
    for (_, snapshot) in &snapshots.whole {
        needed.extend(used_strictly(repository, &index, &snapshot.list).await?);
    }
    // Where a part of the index is lost, it is written anew with the packs that it named.
    let lost = lost_to_the_index(repository, &sizes, &packs, &needed, &index).await?;
    let mend = !lost.is_empty();
    let (packs, index) = if mend { joined(packs, lost) } else { (packs, index) };
    if let Some(chunk) = needed.iter().find(|chunk| !index.contains(chunk)) {
        whole(vec![RepositoryError::NoChunk { chunk: *chunk }])?;
    }
    let strays = sizes.iter().map(|(pack, size)| (*pack, *size));
    let mut strays: Vec<(Id, u64)> = strays.filter(|(pack, _)| packs.binary_search_by_key(pack, |entry| entry.pack).is_err()).collect();
    strays.sort_unstable();
    let facts = Facts { packs: &packs, strays: &strays, used: &needed, marks: &marks.whole, now, indexes: indexes.len(), gone };
    let mut plan = plan(&facts);
    let wal = wal_keep::look(repository, &snapshots.whole, &marks.whole, now).await?;
    let retained = retained(repository, &plan.delete, &sizes, now).await?;
    if !retained.is_empty() {
        plan.keep(&retained, &marks.whole);
    }
    plan.fold_index |= mend;
    Ok(Look { plan, wal, packs, strays, used: needed, indexes })
}

fn joined(packs: Vec<PackEntry>, more: Vec<PackEntry>) -> (Vec<PackEntry>, Index) {
    let packs = merge(packs, more);
    let index = Index::of(&packs);
    (packs, index)
}

/// Which of these packs the store retains, their sizes, and until when. A bucket with Object Lock does not refuse a
/// deletion: it hides what is retained behind a marker, keeps it, and charges for it. So it is asked.
async fn retained(
    repository: &Repository,
    packs: &[Id],
    sizes: &ById<u64>,
    now: jiff::Timestamp,
) -> Result<Vec<(Id, u64, jiff::Timestamp)>> {
    let locks = if packs.is_empty() { Ok(false) } else { retried(&repository.place, || repository.store.locks()).await };
    match locks {
        Ok(true) => {}
        // Who may not ask whether the bucket locks anything cannot ask for single objects either.
        Ok(false) | Err(RepositoryError::Store { error: PortError::Refused(_), .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let each = stream::iter(packs.to_vec()).map(|pack| async move {
        let key = pack.key(PACKS);
        match retried(&key, || repository.store.retention(&key)).await {
            Ok(until) => Ok(until.filter(|until| *until > now).map(|until| (pack, sizes.get(&pack).copied().unwrap_or(0), until))),
            // Gone already.
            Err(RepositoryError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    });
    each.buffer_unordered(AT_ONCE).try_filter_map(|found| async move { Ok(found) }).try_collect().await
}

fn merge(packs: Vec<PackEntry>, more: Vec<PackEntry>) -> Vec<PackEntry> {
    let mut all: ById<PackEntry> = packs.into_iter().map(|entry| (entry.pack, entry)).collect();
    all.extend(more.into_iter().map(|entry| (entry.pack, entry)));
    let mut all: Vec<PackEntry> = all.into_values().collect();
    all.sort_by_key(|entry| entry.pack);
    all
}

/// What a prune did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub repacked: u64,
    pub marked: u64,
    pub deleted: u64,
    pub deleted_bytes: u64,
    /// What was read of the copies that are kept of what was deleted.
    pub checked_bytes: u64,
    /// Marked, and deleted by a later run.
    pub waiting: u64,
    /// Would have been deleted, but the store retains them.
    pub retained: u64,
    /// Objects of write-ahead logs.
    pub wal_marked: u64,
    pub wal_deleted: u64,
    pub wal_waiting: u64,
    /// Why pieces of segments are kept though those are there whole, each in a sentence.
    pub wal_kept: Vec<String>,
}

/// Carries the plan out.
pub async fn prune(
    repository: Arc<Repository>,
    store: Arc<dyn ObjectWrite>,
    look: Look,
    grace_s: u64,
    progress: Arc<Progress>,
) -> Result<Pruned> {
    let Look { plan, wal, mut packs, strays, used, indexes } = look;
    let mut done = Pruned { waiting: plan.waiting, wal_waiting: wal.waiting, retained: plan.retained, ..Pruned::default() };
    if !plan.delete.is_empty() {
        done.checked_bytes = twins::check(&repository, &packs, &strays, &plan.delete, &used, progress.clone()).await?;
    }
    let wal_goes = wal_twins::check(&repository, &store, &wal, &progress).await?;
    done.checked_bytes += wal_goes.read_bytes;
    done.wal_kept = wal_goes.kept;
    if !plan.repack.is_empty() {
        repack(&repository, &store, &packs, &plan.repack, used, progress.clone()).await?;
        done.repacked = plan.repack.len() as u64;
    }
    if !plan.mark.is_empty() || !wal.mark.is_empty() {
        let marked = Marked { packs: plan.mark.clone(), wal: wal.mark.clone(), grace_s };
        let plain = serde_json::to_vec(&marked).map_err(|e| RepositoryError::Refused(e.to_string()))?;
        put_sealed(&*store, &repository.keyring, Kind::Marks, &plain).await?;
        done.marked = plan.mark.len() as u64;
        done.waiting += done.marked;
        done.wal_marked = wal.mark.len() as u64;
        done.wal_waiting += done.wal_marked;
    }
    if plan.fold_index {
        let gone: HashSet<Id> = plan.delete.iter().copied().collect();
        packs.retain(|entry| !gone.contains(&entry.pack));
        // All that is new is there before any of the old goes.
        let (folded, _) = put_index(&*store, &repository.keyring, &packs).await?;
        for old in indexes.iter().filter(|old| !folded.contains(old)) {
            delete(&*store, &old.key(INDEX)).await?;
        }
    }
    for pack in &plan.delete {
        if progress.is_stopped() {
            return Err(RepositoryError::Interrupted("pruning was stopped; the next run goes on".to_owned()));
        }
        delete(&*store, &pack.key(PACKS)).await?;
        done.deleted += 1;
    }
    done.deleted_bytes = plan.delete_bytes;
    done.wal_deleted = wal_keep::delete(&*store, &wal_goes.delete).await?;
    for mark in &plan.settled {
        delete(&*store, &mark.key(MARKS)).await?;
    }
    Ok(done)
}

/// Copies what is used of these packs into new ones, every chunk compared with its name on the way.
async fn repack(
    repository: &Arc<Repository>,
    store: &Arc<dyn ObjectWrite>,
    packs: &[PackEntry],
    which: &[Id],
    used: Ids,
    progress: Arc<Progress>,
) -> Result<()> {
    let entries: Vec<PackEntry> = packs.iter().filter(|entry| which.contains(&entry.pack)).cloned().collect();
    let writer = Arc::new(Writer::new(repository.clone(), store.clone(), Arc::default()));
    let (threads, handle) = (writer.clone(), Handle::current());
    let moved = tokio::task::spawn_blocking(move || {
        let mut filler = Filler::new(&threads);
        let mut opener = Opener::default();
        for entry in &entries {
            if progress.is_stopped() {
                return Err(RepositoryError::Interrupted("pruning was stopped; the next run goes on".to_owned()));
            }
            move_used(&mut filler, &mut opener, &threads.repository, &handle, entry, &used)?;
            progress.add(1, entry.size);
        }
        filler.finish()
    });
    let moved = moved.await.map_err(|e| RepositoryError::Interrupted(e.to_string()))?;
    writer.finish().await?;
    moved
}

fn move_used(
    filler: &mut Filler,
    opener: &mut Opener,
    repository: &Repository,
    handle: &Handle,
    entry: &PackEntry,
    used: &Ids,
) -> Result<()> {
    let key = entry.pack.key(PACKS);
    let mut bytes = handle.block_on(repository.range(&key, 0, entry.size))?;
    let damaged = |why| RepositoryError::damaged(&key, why);
    let object = seal::unlock(&repository.keyring, Kind::Pack, &bytes).map_err(damaged)?;
    for piece in entry.pieces.iter().filter(|piece| used.contains(&piece.chunk)) {
        let range = piece.offset as usize..piece.offset as usize + piece.stored as usize;
        let sealed = bytes.get_mut(range).ok_or_else(|| damaged("a chunk lies beyond its end"))?;
        opener.open(&repository.keyring, &object, piece, sealed).map_err(damaged)?;
        let stored = sealed.get(..sealed.len() - seal::TAG).unwrap_or_default();
        filler.move_in(piece.chunk, stored, piece.length)?;
    }
    Ok(())
}
