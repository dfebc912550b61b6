//! The last look before a snapshot is committed: what it uses of packs that may soon be deleted is stored anew, and what is
//! deleted already is found out, so that no snapshot comes to be without its data. [`super::marks`] has the rule.
//!
//! It costs two listings, of marks and of packs, as long as nothing has gone and no mark is old. Else all that the
//! snapshot uses is looked for.

use super::{
    RepositoryError, Result,
    codec::Hint,
    index::{ById, Ids, Index, PackEntry},
    list, marks,
    names::Id,
    open::Repository,
    write::{Filler, Writer},
};
use crate::providers::clock::Clock;
use std::sync::Arc;

/// Every chunk that a list and the files on it are made of.
pub async fn used(repository: &Repository, index: &Index, chunks: &[Id]) -> Result<Ids> {
    used_by(repository, index, chunks, false).await
}

/// The same for who deletes: of a chunk that several packs hold it keeps the copy that the index finds, so nothing may be
/// wrong with that one.
pub async fn used_strictly(repository: &Repository, index: &Index, chunks: &[Id]) -> Result<Ids> {
    used_by(repository, index, chunks, true).await
}

async fn used_by(repository: &Repository, index: &Index, chunks: &[Id], strictly: bool) -> Result<Ids> {
    let mut used = Ids::default();
    for chunk in chunks {
        used.insert(*chunk);
        for entry in list::entries(chunk, &read(repository, index, chunk, strictly).await?)? {
            let Some(content) = entry.node.content() else { continue };
            let mut more = ById::default();
            for chunk in content.extents.elsewhere() {
                used.insert(*chunk);
                more.insert(*chunk, read(repository, index, chunk, strictly).await?);
            }
            let known = |chunk: &Id| more.get(chunk).cloned().ok_or(RepositoryError::NoChunk { chunk: *chunk });
            for extent in list::extents(&entry.path, content, known)? {
                used.extend(extent.chunks());
            }
        }
    }
    Ok(used)
}

async fn read(repository: &Repository, index: &Index, chunk: &Id, strictly: bool) -> Result<Vec<u8>> {
    if strictly { repository.first_copy(index, chunk).await } else { repository.chunk(index, chunk).await }
}

/// So often it is looked, if each time something has to be stored anew or is gone.
pub(super) const LOOKS: usize = 4;

/// What there is when a snapshot is about to be committed: made only if not everything is as it was.
pub struct LastLook {
    all: Arc<Index>,
    /// Without what may soon be deleted.
    safe: Index,
}

impl LastLook {
    /// `relied`: the packs that whoever writes relies on, and their sizes: those that were there, and those it has stored.
    /// `None`: all of them are there, and none is about to go.
    pub async fn take(repository: &Repository, relied: impl IntoIterator<Item = (Id, u64)>, now: jiff::Timestamp) -> Result<Option<Self>> {
        // Marks before packs: a mark that is gone by now was deleted after its packs, so these are seen to be gone.
        let old = marks::packs(&marks::load(repository).await?.whole, Some(now));
        let there = repository.sizes().await?;
        if old.is_empty() && relied.into_iter().all(|(pack, size)| there.get(&pack) == Some(&size)) {
            return Ok(None);
        }
        let packs = repository.present().await?.packs.whole;
        let (goes, stays): (Vec<PackEntry>, Vec<PackEntry>) = packs.into_iter().partition(|entry| old.contains(&entry.pack));
        Ok(Some(Self { safe: Index::of(&stays), all: Arc::new(Index::preferring(&stays, &goes)) }))
    }

    /// Stores anew what these lists use of packs that may soon be deleted. False: there was nothing of it. What is deleted
    /// already is `NoChunk` or `Missing`.
    pub async fn store_anew(&self, writer: &Arc<Writer>, chunks: &[Id]) -> Result<bool> {
        let repository = writer.repository.clone();
        let mut lost: Vec<Id> = used(&repository, &self.all, chunks).await?.into_iter().collect();
        lost.retain(|chunk| !self.safe.contains(chunk));
        if lost.is_empty() {
            return Ok(false);
        }
        let handle = tokio::runtime::Handle::current();
        let (again, all) = (writer.clone(), self.all.clone());
        let stored = tokio::task::spawn_blocking(move || {
            let mut filler = Filler::new(&again);
            for chunk in lost {
                let content = handle.block_on(repository.chunk(&all, &chunk))?;
                filler.add_again(chunk, &content, Hint::None)?;
            }
            filler.finish()
        });
        let stored = stored.await.map_err(|e| RepositoryError::Interrupted(e.to_string()))?;
        // Also after a failure: what is under way is waited for.
        writer.finish().await?;
        stored.map(|()| true)
    }
}

/// Sees that all that a list names is there and stays, or refuses: `held` are the packs that were there when the writing
/// began. It may have taken longer than a prune waits, so that what it relies on, even what it has stored itself, is marked
/// or gone.
pub async fn secure(writer: &Arc<Writer>, held: &[(Id, u64)], chunks: &[Id], clock: &dyn Clock) -> Result<()> {
    let mut why = String::from("it is marked as fast as it is stored anew");
    for _ in 0..LOOKS {
        let relied = held.iter().copied().chain(writer.packs());
        let Some(look) = LastLook::take(&writer.repository, relied, clock.now()).await? else { return Ok(()) };
        match look.store_anew(writer, chunks).await {
            Ok(false) => return Ok(()),
            // That took a while too.
            Ok(true) => {}
            // Perhaps it has been moved just now, and another look finds it.
            Err(error) if is_gone(&error) => why = error.to_string(),
            Err(error) => return Err(error),
        }
    }
    Err(RepositoryError::Refused(format!(
        "no snapshot was made: a prune has deleted some of its data meanwhile, or is about to ({why}). It deletes what no snapshot uses \
         once its --grace is over, and a backup may take half of that: give prune a longer --grace, and back up again"
    )))
}

/// Is it that something was deleted meanwhile?
#[must_use]
pub fn is_gone(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::NoChunk { .. } | RepositoryError::Missing { .. })
}
