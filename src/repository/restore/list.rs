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
    snapshot::Snapshot,
};
use futures::{StreamExt, stream};
use std::sync::Arc;

pub(super) struct Reader<'a> {
    pub repository: &'a Repository,
    planner: Planner<'a>,
    /// Where chunks lie has been asked a second time.
    fresh: bool,
}

/// Reads the whole list. Gives the plan, and whether the index has been loaded again meanwhile.
pub(super) async fn read(repository: &Repository, index: Arc<Index>, snapshot: &Snapshot, include: &Globs) -> Result<(Plan, bool)> {
    let mut reader = Reader { repository, planner: Planner::new(index.clone(), include), fresh: false };
    reader.pass(&index, snapshot, false).await?;
    let missing = reader.planner.check();
    if !missing.is_empty() {
        reader.pass(&index, snapshot, true).await?;
    }
    Ok((reader.planner.finish(), reader.fresh))
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
                Err(why) if is_loss(&why) => self.lose(&chunk, &why, adopt),
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    async fn plan(&mut self, entries: Vec<Entry>) -> Result<()> {
        for entry in entries {
            let extents = if self.planner.wants(&entry.path) { self.extents(&entry).await? } else { Ok(Vec::new()) };
            self.planner.add(entry, extents);
        }
        Ok(())
    }

    async fn adopt(&mut self, entries: Vec<Entry>) -> Result<()> {
        for entry in entries {
            if self.planner.awaits(&entry.path) {
                let extents = self.extents(&entry).await?;
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
            Err(why) if is_loss(&why) => Ok(Err(why.to_string())),
            Err(why) => Err(why),
        }
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

/// What costs something of the snapshot; any other error ends the restore.
pub(super) fn is_loss(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::Damaged { .. } | RepositoryError::Missing { .. } | RepositoryError::NoChunk { .. })
}
