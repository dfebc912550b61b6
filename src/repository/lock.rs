//! Object Lock: what a snapshot needs is retained until a given instant, so that nobody, not even with the bucket's
//! credentials, deletes it before. Packs that older snapshots wrote are renewed; retention is never shortened.
//!
//! Of a database that is the log from the start of the base backup to its stop, without which it is nothing, and the
//! histories of timelines. What comes after the stop is written by others, later, and is retained by whatever the bucket
//! does by default.

use super::{
    RepositoryError, Result,
    index::Index,
    names::{CONFIG, INDEX, Id, KEYS, PACKS, SNAPSHOTS},
    open::{AT_ONCE, Repository, retried},
    recovery::Cluster,
    rescue::used,
    snapshot::Snapshot,
    wal_line,
    wal_name::{self, SegmentName, WalName},
};
use crate::providers::port::{LockMode, ObjectWrite};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeSet;

/// Retains a snapshot and all that it takes to restore it. Gives how many objects were renewed.
pub async fn lock(
    repository: &Repository,
    store: &dyn ObjectWrite,
    (id, snapshot): (&Id, &Snapshot),
    until: jiff::Timestamp,
    mode: LockMode,
) -> Result<usize> {
    if !store.locks().await.map_err(RepositoryError::store(&repository.place))? {
        return Err(RepositoryError::Refused(format!(
            "{}: the bucket has no Object Lock: make it with it, or leave out --lock",
            repository.place
        )));
    }
    let index = Index::of(&repository.present().await?.packs.whole);
    let mut keys = BTreeSet::from([CONFIG.to_owned(), id.key(SNAPSHOTS)]);
    for chunk in used(repository, &index, &snapshot.list).await? {
        keys.insert(index.find(&chunk).ok_or(RepositoryError::NoChunk { chunk })?.0.key(PACKS));
    }
    if let Some(cluster) = Cluster::of(snapshot) {
        // Without its log a base backup is nothing.
        let line = wal_line::look(repository, &cluster.system, cluster.segment_size).await?;
        let reach = line.reach(&cluster.base, cluster.base.timeline, Some(cluster.base.stop));
        let histories = line.histories.keys().map(|timeline| WalName::File(SegmentName::History(*timeline)));
        // The last segment may have come in pieces: a standby does not fill it up.
        let names = line.objects(&reach.needed).into_iter().chain(histories);
        keys.extend(names.map(|name| wal_name::key(&cluster.system, &name)));
    }
    for folder in [KEYS, INDEX] {
        keys.extend(repository.list(folder).await?.into_iter().map(|meta| meta.key));
    }
    let each = stream::iter(keys).map(|key| async move {
        let now = retried(&key, || store.retention(&key)).await?;
        if now.is_some_and(|now| now >= until) {
            return Ok::<_, RepositoryError>(0);
        }
        retried(&key, || store.retain(&key, until, mode)).await.map(|()| 1)
    });
    each.buffer_unordered(AT_ONCE).try_fold(0, |sum, one| async move { Ok(sum + one) }).await
}
