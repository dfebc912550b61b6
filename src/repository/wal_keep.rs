//! The logs among everything else of a repository: which of them no base backup needs, what is wrong with them, and how
//! they come along into a copy.
//!
//! A base backup needs the log from its start on, on its timeline and on all that branched off it. So of each cluster
//! everything before the oldest start of all its base backups goes, and pieces whose segment is there. History files stay:
//! they are small, and without them nobody knows which timeline came from which. A cluster without any base backup keeps
//! all: perhaps the first one is being made.

use super::{
    RepositoryError, Result,
    marks::{self, Mark},
    names::{Id, WAL},
    open::{AT_ONCE, Repository, put, retried},
    recovery::Cluster,
    snapshot::Snapshot,
    verify::{Depth, Touched, Verified},
    wal::{self, Listed, check_keys},
    wal_line,
    wal_name::{self, Segment, SegmentName, WalName},
};
use crate::providers::port::{ObjectWrite, PortError};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// What a prune does to logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalPlan {
    /// Keys of objects that nothing needs from now on.
    pub mark: Vec<String>,
    /// Marked long enough ago, and still needed by nothing.
    pub delete: Vec<String>,
    /// Of these the pieces of segments that are needed, and there whole: that is read first ([`super::wal_twins`]).
    pub replaced: Vec<String>,
    pub delete_bytes: u64,
    /// Marked, and not old enough.
    pub waiting: u64,
    pub stored_bytes: u64,
}

/// The oldest segment that is needed of each cluster, by number, and how large segments are there.
fn oldest(clusters: &[Cluster]) -> BTreeMap<&str, (u64, u32)> {
    let mut oldest: BTreeMap<&str, (u64, u32)> = BTreeMap::new();
    for cluster in clusters {
        let number = Segment::at(cluster.base.timeline, cluster.base.start, cluster.segment_size).number(cluster.segment_size);
        let one = oldest.entry(cluster.system.as_str()).or_insert((number, cluster.segment_size));
        one.0 = one.0.min(number);
    }
    oldest
}

/// Which objects no base backup needs.
#[must_use]
pub fn unneeded<'a>(listed: &'a [Listed], clusters: &[Cluster]) -> Vec<&'a Listed> {
    let oldest = oldest(clusters);
    let whole = listed.iter().filter_map(|one| match one.name {
        WalName::File(SegmentName::Whole(segment)) => Some((one.system.as_str(), segment)),
        _ => None,
    });
    let whole: HashSet<(&str, Segment)> = whole.collect();
    let goes = |one: &&Listed| {
        let segment = match one.name {
            WalName::Piece(piece) if whole.contains(&(one.system.as_str(), piece.segment)) => return true,
            WalName::Piece(piece) => Some(piece.segment),
            WalName::File(name) => name.segment(),
        };
        match (segment, oldest.get(one.system.as_str())) {
            (Some(segment), Some((number, size))) => segment.number(*size) < *number,
            _ => false,
        }
    };
    listed.iter().filter(goes).collect()
}

/// Is it a piece of a segment that a base backup may need? Then it goes only for the whole one.
fn is_replaced(one: &Listed, oldest: &BTreeMap<&str, (u64, u32)>) -> bool {
    let WalName::Piece(piece) = one.name else { return false };
    oldest.get(one.system.as_str()).is_none_or(|(number, size)| piece.segment.number(*size) >= *number)
}

/// Decides, by the same two phases as for packs.
#[must_use]
pub fn plan(listed: &[Listed], clusters: &[Cluster], marks: &[Mark], now: jiff::Timestamp) -> WalPlan {
    let (old, young): (Vec<&Mark>, Vec<&Mark>) = marks.iter().partition(|mark| mark.age_s(now) >= mark.marked.grace_s);
    let keys = |marks: &[&Mark]| -> HashSet<String> { marks.iter().flat_map(|mark| mark.marked.wal.iter().cloned()).collect() };
    let (old, young) = (keys(&old), keys(&young));
    let mut plan = WalPlan { waiting: young.len() as u64, stored_bytes: listed.iter().map(|one| one.size).sum(), ..WalPlan::default() };
    let oldest = oldest(clusters);
    for one in unneeded(listed, clusters) {
        let key = wal_name::key(&one.system, &one.name);
        if young.contains(&key) {
        } else if old.contains(&key) {
            plan.delete_bytes += one.size;
            plan.replaced.extend(is_replaced(one, &oldest).then(|| key.clone()));
            plan.delete.push(key);
        } else {
            plan.mark.push(key);
        }
    }
    plan
}

/// The base backups among these.
#[must_use]
pub fn clusters(snapshots: &[(Id, Snapshot)]) -> Vec<Cluster> {
    snapshots.iter().filter_map(|(_, snapshot)| Cluster::of(snapshot)).collect()
}

/// Looks at the logs and decides. What the store retains is left for a later prune.
pub async fn look(repository: &Repository, snapshots: &[(Id, Snapshot)], marks: &[Mark], now: jiff::Timestamp) -> Result<WalPlan> {
    let listed = wal::list(repository, WAL).await?;
    let mut plan = plan(&listed, &clusters(snapshots), marks, now);
    if !plan.delete.is_empty() && retried(&repository.place, || repository.store.locks()).await.unwrap_or(false) {
        let each = stream::iter(plan.delete.clone()).map(|key| async move {
            match retried(&key, || repository.store.retention(&key)).await {
                Ok(until) => Ok(until.is_some_and(|until| until > now).then_some(key)),
                Err(RepositoryError::Missing { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let kept: Vec<String> =
            each.buffer_unordered(AT_ONCE).try_filter_map(|key| async move { Ok::<_, RepositoryError>(key) }).try_collect().await?;
        plan.delete.retain(|key| !kept.contains(key));
        plan.replaced.retain(|key| !kept.contains(key));
    }
    Ok(plan)
}

/// Is the log that these base backups need there, and, with data, what it was?
pub async fn verify(
    repository: &Repository,
    snapshots: &[(Id, Snapshot)],
    depth: Depth,
    chance: [u8; 32],
    found: &mut Verified,
) -> Result<()> {
    let mut listed = wal::list(repository, WAL).await?;
    let mut lines: BTreeMap<String, wal_line::Line> = BTreeMap::new();
    for (id, snapshot) in snapshots {
        let Some(cluster) = Cluster::of(snapshot) else { continue };
        if !lines.contains_key(&cluster.system) {
            let line = match wal_line::look(repository, &cluster.system, cluster.segment_size).await {
                Ok(line) => line,
                Err(error @ RepositoryError::Damaged { .. }) => {
                    found.problems.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            };
            lines.insert(cluster.system.clone(), line);
        }
        let Some(line) = lines.get(&cluster.system) else { continue };
        // Where no log is archived, nothing leads from one base backup to the next, and nothing need.
        let reach = line.reach(&cluster.base, cluster.base.timeline, Some(cluster.base.stop));
        if let (Some(first), Some(last)) = (reach.missing.first(), reach.missing.last()) {
            let path = format!("log of cluster {}, {first} to {last}", cluster.system);
            found.touched.push(Touched {
                snapshot: *id,
                path,
                why: "missing from the repository: without it the base backup is not consistent".to_owned(),
            });
        }
    }
    match depth {
        Depth::Structure => return Ok(()),
        Depth::All => {}
        Depth::Share(percent) => {
            listed.sort_by_cached_key(|one| *blake3::keyed_hash(&chance, wal_name::key(&one.system, &one.name).as_bytes()).as_bytes());
            listed.truncate((listed.len() * usize::from(percent)).div_ceil(100));
        }
    }
    found.bytes_read += listed.iter().map(|one| one.size).sum::<u64>();
    let bad = wal::check(repository, &listed).await?;
    found.problems.extend(bad.iter().map(ToString::to_string));
    Ok(())
}

/// Why a base backup does not restore: something of the log from its start to its stop is missing, or about to be deleted.
/// That comes to be when another base backup of the cluster began later and ended sooner, by more than half a grace.
pub async fn lacks(repository: &Repository, cluster: &Cluster, now: jiff::Timestamp) -> Result<Option<String>> {
    let marks = marks::load(repository).await?.whole;
    let old = marks.iter().filter(|mark| mark.is_half_over(now));
    let old: HashSet<&str> = old.flat_map(|mark| mark.marked.wal.iter().map(String::as_str)).collect();
    // All of it is of one timeline, so no history is asked: a damaged one of another timeline is no reason.
    let mut line = wal_line::Line::new(cluster.segment_size);
    wal::list(repository, &wal_name::folder(&cluster.system)).await?.iter().for_each(|one| line.add(&one.name));
    let reach = line.reach(&cluster.base, cluster.base.timeline, Some(cluster.base.stop));
    if let Some(first) = reach.missing.first() {
        return Ok(Some(format!("segment {first} of its log is missing")));
    }
    let mut keys = line.objects(&reach.needed).into_iter().map(|name| wal_name::key(&cluster.system, &name));
    Ok(keys.find(|key| old.contains(key.as_str())).map(|key| format!("{key} is marked, and may be deleted any time")))
}

/// The log that these snapshots need goes to another place of the same repository: each object is opened on the way, since
/// its name does not tell whether it is whole. Gives how many were not there yet, and their bytes.
pub async fn copy(repository: &Repository, target: &Repository, to: &dyn ObjectWrite, snapshots: &[(Id, Snapshot)]) -> Result<(u64, u64)> {
    let clusters = clusters(snapshots);
    let systems: BTreeSet<&str> = clusters.iter().map(|cluster| cluster.system.as_str()).collect();
    if systems.is_empty() {
        return Ok((0, 0));
    }
    let listed = wal::list(repository, WAL).await?;
    let needless: HashSet<String> = unneeded(&listed, &clusters).iter().map(|one| wal_name::key(&one.system, &one.name)).collect();
    let there = wal::list(target, WAL).await?;
    let there: HashMap<String, u64> = there.iter().map(|one| (wal_name::key(&one.system, &one.name), one.size)).collect();
    let wanted = listed.iter().filter(|one| systems.contains(one.system.as_str()));
    let wanted: Vec<(String, u64)> = wanted.map(|one| (wal_name::key(&one.system, &one.name), one.size)).collect();
    let (mut missing, mut differing) = (Vec::new(), Vec::new());
    for (key, size) in wanted.into_iter().filter(|(key, _)| !needless.contains(key)) {
        match there.get(&key) {
            None => missing.push((key, size)),
            Some(other) if *other != size => differing.push(key),
            Some(_) => {}
        }
    }
    // Of another size may be what somebody else has put there, compressed otherwise, or what is cut short.
    if let Some(error) = check_keys(target, &differing).await?.first() {
        return Err(RepositoryError::Refused(format!("at {}: {error}; delete it there, and copy again", target.place)));
    }
    let total = (missing.len() as u64, missing.iter().map(|(_, size)| size).sum());
    let each = stream::iter(missing.into_iter().map(Ok::<_, RepositoryError>));
    each.try_for_each_concurrent(AT_ONCE / 4, |(key, _)| async move {
        match wal::open(repository, &key).await {
            Ok(_) => {}
            Err(RepositoryError::Missing { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        put(to, &key, repository.read(&key).await?.into()).await
    })
    .await?;
    Ok(total)
}

/// Removes these; what is gone already is removed.
pub(super) async fn delete(store: &dyn ObjectWrite, keys: &[String]) -> Result<u64> {
    for key in keys {
        match store.delete(key).await {
            Ok(()) | Err(PortError::NotFound(_)) => {}
            Err(error) => return Err(RepositoryError::Store { key: key.clone(), error }),
        }
    }
    Ok(keys.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        providers::port::Lsn,
        repository::{marks::Marked, wal_line::Base},
    };

    const MIB: u32 = 1 << 20;

    fn listed(system: &str, name: &str) -> Listed {
        Listed { system: system.to_owned(), name: name.parse().unwrap(), size: 10, modified: None }
    }
    fn cluster(system: &str, timeline: u32, segment: u64) -> Cluster {
        let start = Lsn(segment * u64::from(MIB) + 40);
        let base = Base { timeline, start, stop: Lsn(start.0 + 100) };
        Cluster { system: system.to_owned(), version: 150_018, segment_size: MIB, base }
    }
    fn names(listed: &[&Listed]) -> Vec<String> {
        listed.iter().map(|one| format!("{}/{}", one.system, one.name)).collect()
    }

    #[test]
    fn what_is_older_than_every_base_backup_goes() {
        let all = [
            listed("7", "000000010000000000000002"),
            listed("7", "000000010000000000000003"),
            listed("7", "000000010000000000000003.00000028.backup"),
            listed("7", "000000010000000000000004"),
            listed("7", "000000010000000000000004.00000000-00001000"),
            listed("7", "000000010000000000000005.00000000-00001000"),
            listed("7", "000000020000000000000003.partial"),
            listed("7", "00000002.history"),
            listed("8", "000000010000000000000001"),
        ];
        let gone = unneeded(&all, &[cluster("7", 2, 9), cluster("7", 1, 4)]);
        assert_eq!(
            names(&gone),
            [
                "7/000000010000000000000002",
                "7/000000010000000000000003",
                "7/000000010000000000000003.00000028.backup",
                "7/000000010000000000000004.00000000-00001000",
                "7/000000020000000000000003.partial"
            ]
        );
        // Where there is no base backup, only what is there twice.
        assert_eq!(names(&unneeded(&all, &[])), ["7/000000010000000000000004.00000000-00001000"]);
    }

    #[test]
    fn it_goes_in_two_phases() {
        let all = [listed("7", "000000010000000000000002"), listed("7", "000000010000000000000009")];
        let key = wal_name::key("7", &all[0].name);
        let mark = |made: i64, key: &str| Mark {
            id: Id([made as u8; 32]),
            made: jiff::Timestamp::from_second(made).unwrap(),
            marked: Marked { packs: Vec::new(), wal: vec![key.to_owned()], grace_s: 100 },
        };
        let now = jiff::Timestamp::from_second(1000).unwrap();
        let decide = |marks: &[Mark], clusters: &[Cluster]| plan(&all, clusters, marks, now);
        let needed = [cluster("7", 1, 5)];
        let first = decide(&[], &needed);
        assert_eq!((first.mark, first.delete), (vec![key.clone()], vec![]));
        let young = decide(&[mark(950, &key)], &needed);
        assert_eq!((young.mark, young.delete, young.waiting), (vec![], vec![], 1));
        let old = decide(&[mark(900, &key)], &needed);
        assert_eq!((old.mark, old.delete, old.delete_bytes), (vec![], vec![key.clone()], 10));
        // An older base backup has come meanwhile.
        let kept = decide(&[mark(900, &key)], &[cluster("7", 1, 5), cluster("7", 1, 2)]);
        assert_eq!((kept.mark, kept.delete), (vec![], vec![]));
    }
}
