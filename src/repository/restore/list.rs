//! From a snapshot's list to a plan. A part of the list that is damaged is named, and the rest is planned all the same.

use super::plan::{Plan, Planner};
use crate::repository::{
    RepositoryError, Result,
    entry::{Entry, Extent},
    globs::Globs,
    index::Index,
    list,
    names::Id,
    open::{AT_ONCE, Repository},
    places::Detours,
    snapshot::Snapshot,
};
use futures::{StreamExt, stream};
use std::sync::Arc;

struct Reader<'a> {
    repository: &'a Repository,
    planner: Planner<'a>,
    /// Where chunks lie has been asked a second time.
    fresh: bool,
    /// Packs that no index names have been asked as well, and some of what was sought is in them, or it is nowhere.
    strays: bool,
    found: bool,
}

/// What reading the list came to.
pub(super) struct Read {
    pub plan: Plan,
    /// The index has been loaded again meanwhile.
    pub fresh: bool,
    pub detours: Detours,
}

/// Reads the whole list.
pub(super) async fn read(repository: &Repository, index: Arc<Index>, snapshot: &Snapshot, include: &Globs) -> Result<Read> {
    let mut reader = Reader { repository, planner: Planner::new(index.clone(), include), fresh: false, strays: false, found: false };
    reader.pass(&index, snapshot, false).await?;
    let missing = reader.planner.check();
    if !missing.is_empty() {
        reader.pass(&index, snapshot, true).await?;
    }
    let mut detours = index.detours();
    if !Arc::ptr_eq(&index, &reader.planner.index) {
        detours = detours.and(reader.planner.index.detours());
    }
    detours.lost_index |= reader.found;
    Ok(Read { plan: reader.planner.finish(), fresh: reader.fresh, detours })
}

impl Reader<'_> {
    /// Goes over all entries: to plan them, or to adopt those that only links lead to.
    async fn pass(&mut self, index: &Index, snapshot: &Snapshot, adopt: bool) -> Result<()> {
        let repository = self.repository;
        let chunks = snapshot.list.clone().into_iter().map(|chunk| async move { (chunk, repository.chunk(index, &chunk).await) });
        let mut chunks = stream::iter(chunks).buffered(AT_ONCE);
        while let Some((chunk, content)) = chunks.next().await {
            let content = match content {
                Err(RepositoryError::Missing { .. }) => {
                    self.look_again().await?;
                    repository.chunk(&self.planner.index, &chunk).await
                }
                other => other,
            };
            match content.and_then(|content| list::entries(&chunk, &content)) {
                Ok(entries) if adopt => self.adopt(entries).await?,
                Ok(entries) => self.plan(entries).await?,
                Err(why) if why.is_loss() => self.lose(&chunk, &why, adopt),
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    async fn plan(&mut self, entries: Vec<Entry>) -> Result<()> {
        for entry in entries {
            let extents = if self.planner.wants(&entry.path) { self.extents(&entry).await? } else { Ok(Vec::new()) };
            self.seek(&extents).await?;
            self.planner.add(entry, extents);
        }
        Ok(())
    }

    async fn adopt(&mut self, entries: Vec<Entry>) -> Result<()> {
        for entry in entries {
            if self.planner.awaits(&entry.path) {
                let extents = self.extents(&entry).await?;
                self.seek(&extents).await?;
                self.planner.adopt(entry, extents);
            }
        }
        Ok(())
    }

    /// The extents of an entry, or why they are lost.
    async fn extents(&mut self, entry: &Entry) -> Result<std::result::Result<Vec<Extent>, String>> {
        let Some(content) = entry.node.content() else { return Ok(Ok(Vec::new())) };
        let mut extents = self.repository.extents(&self.planner.index, &entry.path, content).await;
        if matches!(extents, Err(RepositoryError::Missing { .. })) {
            self.look_again().await?;
            extents = self.repository.extents(&self.planner.index, &entry.path, content).await;
        }
        match extents {
            Ok(extents) => Ok(Ok(extents)),
            Err(why) if why.is_loss() => Ok(Err(why.to_string())),
            Err(why) => Err(why),
        }
    }

    /// If the index does not know all of these, a part of it is lost: then packs that it does not name are asked too.
    async fn seek(&mut self, extents: &std::result::Result<Vec<Extent>, String>) -> Result<()> {
        let Ok(extents) = extents else { return Ok(()) };
        let unknown = |index: &Index| extents.iter().flat_map(Extent::chunks).any(|chunk| !index.contains(chunk));
        if !self.strays && unknown(&self.planner.index) {
            self.strays = true;
            self.planner.index = Arc::new(self.repository.index_with_strays().await?);
            self.found = !unknown(&self.planner.index);
        }
        Ok(())
    }

    /// A pack is gone: a prune has folded its chunks into another, which the index names by now.
    async fn look_again(&mut self) -> Result<()> {
        if !self.fresh {
            self.fresh = true;
            self.planner.index = Arc::new(self.repository.index().await?.whole);
        }
        Ok(())
    }

    fn lose(&mut self, chunk: &Id, why: &RepositoryError, told: bool) {
        self.planner.plan.partial = true;
        if !told {
            let path = format!("entries in chunk {} of the list", chunk.short());
            self.planner.plan.lose(path.as_bytes(), format!("what they are is not known: {why}"));
        }
    }
}
