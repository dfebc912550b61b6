//! The last look before a snapshot is committed: what it uses of packs that may soon be deleted is stored anew.
//! [`super::marks`] has the rule.

use super::{
    RepositoryError, Result,
    codec::Hint,
    index::{Ids, Index},
    list, marks,
    names::Id,
    open::Repository,
    write::{Filler, Writer},
};
use std::sync::Arc;

/// Every chunk that a list and the files on it are made of.
pub async fn used(repository: &Repository, index: &Index, chunks: &[Id]) -> Result<Ids> {
    let mut used = Ids::default();
    for chunk in chunks {
        used.insert(*chunk);
        for entry in list::entries(chunk, &repository.chunk(index, chunk).await?)? {
            let Some(content) = entry.node.content() else { continue };
            used.extend(content.extents.elsewhere());
            for extent in repository.extents(index, &entry.path, content).await? {
                used.extend(extent.chunks());
            }
        }
    }
    Ok(used)
}

pub async fn rescue(writer: Arc<Writer>, chunks: &[Id], now: jiff::Timestamp) -> Result<()> {
    let repository = writer.repository.clone();
    let old = marks::packs(&marks::load(&repository).await?.whole, Some(now));
    if old.is_empty() {
        return Ok(());
    }
    let packs = repository.present().await?.packs.whole;
    let (all, safe) = (Arc::new(Index::of(&packs)), Index::without(&packs, &old));
    let mut lost: Vec<Id> = used(&repository, &all, chunks).await?.into_iter().collect();
    lost.retain(|chunk| !safe.contains(chunk));
    if lost.is_empty() {
        return Ok(());
    }
    let handle = tokio::runtime::Handle::current();
    let again = writer.clone();
    let stored = tokio::task::spawn_blocking(move || {
        let mut filler = Filler::new(&again);
        for chunk in lost {
            let content = handle.block_on(repository.chunk(&all, &chunk))?;
            filler.add_again(chunk, &content, Hint::None)?;
        }
        filler.finish()
    });
    stored.await.map_err(|e| RepositoryError::Interrupted(e.to_string()))??;
    writer.finish().await
}
