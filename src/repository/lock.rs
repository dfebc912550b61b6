//! Object Lock: what a snapshot needs is retained until a given instant, so that nobody, not even with the bucket's
//! credentials, deletes it before. Packs that older snapshots wrote are renewed; retention is never shortened, and never
//! made less firm. What is retained long enough, but less firmly than is asked for now, is made as firm.
//!
//! An object that refuses keeps none of the others from being retained: another process may have taken it away a moment ago. In the
//! end it is said how many did. Where nothing at all is let through, or the place does not answer, it ends there.
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
use crate::providers::port::{LockMode, ObjectWrite, PortError};
use futures::{StreamExt, stream};
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
        let (mut until, mut mode) = (until, mode);
        if let Some((now, firmly)) = retried(&key, || store.retained(&key)).await? {
            if now >= until && (mode == LockMode::Governance || firmly == Some(LockMode::Compliance)) {
                return Ok::<_, RepositoryError>(0);
            }
            until = until.max(now);
            if firmly == Some(LockMode::Compliance) {
                mode = LockMode::Compliance;
            }
        }
        retried(&key, || store.retain(&key, until, mode)).await.map(|()| 1)
    });
    let mut each = std::pin::pin!(each.buffer_unordered(AT_ONCE));
    let (mut retained, mut renewed, mut refused) = (0_usize, 0, Vec::new());
    while let Some(one) = each.next().await {
        match one {
            Ok(new) => (retained, renewed) = (retained + 1, renewed + new),
            // Another prune has put it together with others meanwhile: nothing needs it.
            Err(RepositoryError::Missing { object }) if object.starts_with(INDEX) => {}
            Err(error) if refuses(&error) => refused.push(error.to_string()),
            Err(error) => return Err(error),
        }
        if retained == 0 && refused.len() == AT_ONCE {
            break;
        }
    }
    match refused.first() {
        None => Ok(renewed),
        Some(first) => {
            let (several, rest) = (refused.len(), if retained == 0 { "nothing is" } else { "all others are" });
            Err(RepositoryError::Refused(format!("{several} objects are not retained, {rest}; the first: {first}")))
        }
    }
}

/// It is this object that refuses, not the place that does not answer.
fn refuses(error: &RepositoryError) -> bool {
    matches!(
        error,
        RepositoryError::Missing { .. } | RepositoryError::Store { error: PortError::Refused(_) | PortError::Conflict { .. }, .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{
        damage_tests::quick_dir,
        tests::{Bench, Files, noise},
        wrapped::Wrapped,
    };
    use std::sync::Arc;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_older_snapshots_wrote_is_retained_as_long_and_as_firmly_as_the_new_one_asks() {
        let dir = quick_dir();
        let bench = Bench::new(dir.path()).await;
        let mut files = Files::from([("a", (noise(1, 3000), 1))]);
        let first = bench.backup(&files).await;
        let index = Index::of(&bench.repository.present().await.unwrap().packs.whole);
        let needed = index.find(&bench.repository.keyring.chunk_id(&noise(1, 3000))).unwrap().0.key(PACKS);
        let store = Wrapped::locking(dir.path());
        let at = |hour: i64| jiff::Timestamp::from_second(hour * 3600).unwrap();
        let retain = async |made: &crate::repository::create::Created, hour: i64, mode: LockMode| {
            lock(&bench.repository, &*store, (&made.id, &made.snapshot), at(hour), mode).await.unwrap()
        };
        let is = |until: i64, mode: LockMode| store.locked().get(&needed) == Some(&(at(until), mode));
        let count = retain(&first, 10, LockMode::Governance).await;
        assert!(count >= 5 && is(10, LockMode::Governance), "packs, config, a key, an index, the snapshot: {count}");
        assert_eq!(retain(&first, 10, LockMode::Governance).await, 0, "nothing is asked for twice");
        files.insert("b", (noise(2, 3000), 1));
        let second = bench.backup(&files).await;
        // For a shorter time, but so that nobody can undo it: what the first one wrote is needed just as much.
        retain(&second, 5, LockMode::Compliance).await;
        assert!(is(10, LockMode::Compliance), "{:?}", store.locked());
        // And for longer, less firmly: it cannot be made less firm.
        retain(&second, 20, LockMode::Governance).await;
        assert!(is(20, LockMode::Compliance), "{:?}", store.locked());
        assert_eq!(store.locked()[&second.id.key(SNAPSHOTS)], (at(20), LockMode::Compliance));
        assert_eq!(store.locked()[&first.id.key(SNAPSHOTS)], (at(10), LockMode::Governance), "it is nobody's but its own");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_that_refuses_keeps_no_other_from_being_retained() {
        let dir = quick_dir();
        let bench = Bench::new(dir.path()).await;
        let made = bench.backup(&Files::from([("a", (noise(1, 3000), 1)), ("b", (noise(2, 3000), 1))])).await;
        let until = jiff::Timestamp::from_second(3600).unwrap();
        let retain = async |store: Arc<Wrapped>| {
            let ended = lock(&bench.repository, &*store, (&made.id, &made.snapshot), until, LockMode::Governance).await;
            (ended.map_err(|e| e.to_string()), store.locked().len())
        };
        let (whole, all) = retain(Wrapped::locking(dir.path())).await;
        assert_eq!(whole, Ok(all));
        // The first by its name, so that most of the others come after it.
        let (ended, others) = retain(Wrapped::locking_all_but(dir.path(), |key| key == CONFIG)).await;
        assert_eq!(others, all - 1, "{ended:?}");
        assert!(
            ended.as_ref().is_err_and(|why| why.contains("1 objects are not retained, all others are") && why.contains(CONFIG)),
            "{ended:?}"
        );
        let (ended, none) = retain(Wrapped::locking_all_but(dir.path(), |_| true)).await;
        assert!(none == 0 && ended.as_ref().is_err_and(|why| why.contains("nothing is")), "{ended:?}");
    }
}
