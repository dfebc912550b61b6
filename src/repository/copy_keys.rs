//! Which keys go along when snapshots are copied. Into a place that the copy makes, or that no key opens: all of them.
//! Else a key that is missing there may have been let go there, by a rotation or by name, and must not come back by way of
//! a second place that still has it. So nothing is brought, and what differs is said with the command that mends it.
//!
//! But a source that was rotated since the last copy writes under a master key that no key at the other place holds: what is
//! copied could not be read there. So if nothing there is under the source's master key yet, the source's keys are brought;
//! the place has never been where they are, and cannot have let them go. And if something there is under a later one, it is
//! the source that is behind: its key can read neither the marks nor the index there, and nothing is copied.
//!
//! And two places that were each rotated by themselves have parted for good: what is under the one's master key the other's keys
//! never open.
//!
//! Under which master key objects are is looked up only if the key that opened the source is not there. Their headers are
//! believed in that: who may write to the place can so have a copy refused, which shuts nobody out of a repository.

use super::{
    RepositoryError, Result,
    keys::Slot,
    names::Id,
    open::{AT_ONCE, Repository, put, retried},
    seal::{self, HEADER, Kind},
    slots::slots,
};
use crate::providers::port::{ObjectRead, ObjectWrite, PortError};
use futures::{StreamExt, TryStreamExt, stream};

/// What a copy did with keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    pub brought: u64,
    /// How the keys of both places differ, each in a sentence, with what mends it.
    pub differ: Vec<String>,
}

/// All keys, into a place that has none.
pub(super) async fn all(repository: &Repository, to: &dyn ObjectWrite) -> Result<Keys> {
    let here = slots(&*repository.store).await?.whole;
    bring(repository, to, &here.iter().collect::<Vec<_>>()).await
}

/// Compares the keys of a place that is there already, and brings those that it must have.
pub(super) async fn compare(repository: &Repository, target: &Repository, to: &dyn ObjectWrite) -> Result<Keys> {
    let (here, there) = (slots(&*repository.store).await?.whole, slots(to).await?.whole);
    let mut lacks: Vec<&(String, Slot)> = here.iter().filter(|(key, _)| !has(&there, key)).collect();
    let mut keys = Keys::default();
    // Also where no slot is left it is an error if the place has what the source's key cannot read.
    if !has(&there, &repository.opened_by) && (is_behind(repository, target).await? || there.is_empty()) {
        keys = bring(repository, to, &lacks).await?;
        lacks.clear();
    }
    keys.differ = told(repository, target, &lacks, &there, &here);
    Ok(keys)
}

/// How the keys of two places of one repository differ, each in a sentence: read only.
pub(super) async fn differ(repository: &Repository, target: &Repository) -> Result<Vec<String>> {
    let (here, there) = (slots(&*repository.store).await?.whole, slots(&*target.store).await?.whole);
    let lacks: Vec<&(String, Slot)> = here.iter().filter(|(key, _)| !has(&there, key)).collect();
    Ok(told(repository, target, &lacks, &there, &here))
}

fn has(all: &[(String, Slot)], key: &str) -> bool {
    all.iter().any(|(one, _)| one == key)
}

fn told(
    repository: &Repository,
    target: &Repository,
    lacks: &[&(String, Slot)],
    there: &[(String, Slot)],
    here: &[(String, Slot)],
) -> Vec<String> {
    let (source, place) = (&repository.place, &target.place);
    let lacks = lacks.iter().map(|(_, slot)| {
        format!(
            "{place} lacks {}, which {source} has: it was removed or rotated away there, or added here, so it is not brought. If it is \
             to open {place} as well: muster backup key add --repo {place}; if it is to open nothing: muster backup key remove {} --repo \
             {source}",
            named(slot),
            short(slot)
        )
    });
    let surplus = there.iter().filter(|(key, _)| !has(here, key)).map(|(_, slot)| {
        format!(
            "{place} still opens with {}, which {source} does not have: it was removed or rotated away here, or added there. If it is to \
             open nothing: muster backup key remove {} --repo {place}",
            named(slot),
            short(slot)
        )
    });
    lacks.chain(surplus).collect()
}

async fn bring(repository: &Repository, to: &dyn ObjectWrite, slots: &[&(String, Slot)]) -> Result<Keys> {
    for (key, _) in slots {
        put(to, key, repository.read(key).await?.into()).await?;
    }
    Ok(Keys { brought: slots.len() as u64, differ: Vec::new() })
}

/// Has a place nothing yet under the source's master key? That it has something under a later one, or under another that has
/// the same number, is an error.
async fn is_behind(repository: &Repository, target: &Repository) -> Result<bool> {
    let (ours, source, place) = (repository.keyring.current(), &repository.place, &target.place);
    let mut found = Vec::new();
    for kind in [Kind::Snapshot, Kind::Index, Kind::Marks, Kind::Proof] {
        let keys: Vec<String> = target.list(kind.folder()).await?.into_iter().map(|meta| meta.key).collect();
        let each = stream::iter(keys).map(|key| async move { Ok::<_, RepositoryError>((generation(&*target.store, &key).await?, key)) });
        let each: Vec<(Option<u32>, String)> = each.buffer_unordered(AT_ONCE).try_collect().await?;
        found.extend(each.into_iter().filter_map(|(generation, key)| Some((generation?, kind, key))));
    }
    match found.iter().max_by_key(|(generation, _, _)| *generation) {
        Some((later, _, key)) if *later > ours => Err(RepositoryError::Refused(format!(
            "{place} has a later master key ({later}; {key} is under it) than the key that opened {source} ({ours}): it was rotated, and \
             this key does not open all that is there. Bring {source} in line first, muster backup copy --repo {place} --to {source}, with \
             the key that opens {place}; then copy with that key"
        ))),
        Some((same, _, _)) if *same == ours => {
            for (_, kind, key) in found.iter().filter(|(generation, _, _)| *generation == ours) {
                let Some(id) = Id::in_key(key, kind.folder()) else { continue };
                match target.open_object(*kind, &id).await {
                    Ok(_) => return Ok(false),
                    Err(error) if error.is_loss() => {}
                    Err(error) => return Err(error),
                }
            }
            Err(RepositoryError::Refused(format!(
                "{source} and {place} were each rotated by themselves: both have a master key {ours}, and not the same one, so that no key \
                 would open all of it. Copy to an empty place"
            )))
        }
        _ => Ok(true),
    }
}

/// As the object's first bytes say it. What is no such object, or gone, says nothing.
async fn generation(store: &dyn ObjectRead, key: &str) -> Result<Option<u32>> {
    match retried(key, || store.range(key, 0, HEADER as u64)).await {
        Ok(header) => Ok(seal::generation(&header)),
        // It is too short for one.
        Err(RepositoryError::Missing { .. } | RepositoryError::Store { error: PortError::Refused(_), .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn short(slot: &Slot) -> &str {
    slot.id.get(..10).unwrap_or(&slot.id)
}

fn named(slot: &Slot) -> String {
    format!("key {} ({})", short(slot), slot.label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        providers::directory::Directory,
        repository::{
            copy::{Copied, copy},
            create::Created,
            damage_tests::{another_key, contents, quick_dir},
            keys::Unlock,
            rekey,
            tests::{Bench, Files, noise, unlock},
        },
    };
    use std::{path::Path, sync::Arc};

    fn files(seed: u8) -> Files {
        Files::from([("a", (noise(seed, 3000), u32::from(seed)))])
    }
    async fn open(dir: &Path, unlock: &Unlock) -> Result<Bench> {
        let store: Arc<dyn ObjectWrite> = Arc::new(Directory::new(dir.to_owned()));
        let repository = Repository::open(store.clone(), "here", unlock).await?;
        Ok(Bench { store, clock: Arc::new(crate::providers::clock::SystemClock::new()), repository: Arc::new(repository) })
    }
    async fn copied(from: &Bench, to: &Path) -> Result<Copied> {
        let snapshots = from.repository.snapshots().await?.whole;
        let to: Arc<dyn ObjectWrite> = Arc::new(Directory::new(to.to_owned()));
        copy(&from.repository, to, "there", &snapshots, Arc::default(), &*from.clock).await
    }
    /// Two places with one snapshot, of which the first is rotated from the one key to the other.
    async fn rotated(first: &Path, second: &Path) -> (Bench, Created) {
        let bench = Bench::new(first).await;
        let made = bench.backup(&files(1)).await;
        let keys = copied(&bench, second).await.unwrap().keys;
        assert_eq!((keys.brought, keys.differ.len()), (1, 0), "a place that is made by the copy has the keys");
        assert_eq!(copied(&bench, second).await.unwrap().keys, Keys::default());
        let mut owned = Repository::open(bench.store.clone(), "here", &unlock()).await.unwrap();
        rekey::rotate(&mut owned, &*bench.store, &another_key(), "new", bench.clock.now()).await.unwrap();
        (open(first, &another_key()).await.unwrap(), made)
    }
    async fn opens(dir: &Path, unlock: &Unlock) -> bool {
        open(dir, unlock).await.is_ok()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_that_was_rotated_away_does_not_come_back_from_a_second_place() {
        let (first, second) = (quick_dir(), quick_dir());
        rotated(first.path(), second.path()).await;
        // Nothing is under the new master key yet.
        let old = open(second.path(), &unlock()).await.unwrap();
        let keys = copied(&old, first.path()).await.unwrap().keys;
        assert!(!opens(first.path(), &unlock()).await && opens(first.path(), &another_key()).await);
        assert_eq!((keys.brought, keys.differ.len()), (0, 2), "{keys:?}");
        assert!(keys.differ[0].starts_with("there lacks key") && keys.differ[0].contains("key add --repo there"), "{keys:?}");
        assert!(keys.differ[1].contains("there still opens with key") && keys.differ[1].contains("(new)"), "{keys:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_place_that_is_behind_is_not_copied_from_until_it_is_in_line() {
        let (first, second) = (quick_dir(), quick_dir());
        let (now, made) = rotated(first.path(), second.path()).await;
        let later = now.backup(&files(2)).await;
        let old = open(second.path(), &unlock()).await.unwrap();
        let before = slots(&*now.store).await.unwrap().whole;
        let why = copied(&old, first.path()).await.unwrap_err().to_string();
        assert!(why.contains("later master key") && why.contains("copy --repo there --to here"), "{why}");
        assert_eq!(slots(&*now.store).await.unwrap().whole, before);
        // As it says: first the other way, which brings the new key along, since what is copied is under it.
        let keys = copied(&now, second.path()).await.unwrap().keys;
        assert_eq!((keys.brought, keys.differ.len()), (1, 1), "{keys:?}");
        let stale = &slots(&*old.store).await.unwrap().whole.into_iter().find(|(_, slot)| slot.label == "test").unwrap().1;
        let remedy = format!("muster backup key remove {} --repo there", short(stale));
        assert!(keys.differ[0].contains("still opens with") && keys.differ[0].ends_with(&remedy), "{keys:?}");
        let second_now = open(second.path(), &another_key()).await.unwrap();
        for (made, seed) in [(&made, 1), (&later, 2)] {
            assert!(second_now.content(&made.snapshot).await == contents(&files(seed)));
        }
        // And back: the old key, which the second place still has, stays there.
        let keys = copied(&second_now, first.path()).await.unwrap().keys;
        assert_eq!((keys.brought, keys.differ.len()), (0, 1), "{keys:?}");
        assert!(!opens(first.path(), &unlock()).await);
        rekey::remove(&*old.store, short(stale)).await.unwrap();
        assert_eq!(copied(&now, second.path()).await.unwrap().keys, Keys::default());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_places_that_were_rotated_by_themselves_are_not_mixed() {
        let (first, second) = (quick_dir(), quick_dir());
        let (now, _) = rotated(first.path(), second.path()).await;
        now.backup(&files(2)).await;
        let old = open(second.path(), &unlock()).await.unwrap();
        let mut owned = Repository::open(old.store.clone(), "here", &unlock()).await.unwrap();
        rekey::rotate(&mut owned, &*old.store, &unlock(), "other", old.clock.now()).await.unwrap();
        let other = open(second.path(), &unlock()).await.unwrap();
        other.backup(&files(3)).await;
        for (from, to) in [(&now, second.path()), (&other, first.path())] {
            let why = copied(from, to).await.unwrap_err().to_string();
            assert!(why.contains("each rotated by themselves") && why.contains("master key 2"), "{why}");
        }
        assert!(opens(first.path(), &another_key()).await && !opens(first.path(), &unlock()).await);
        assert!(opens(second.path(), &unlock()).await && !opens(second.path(), &another_key()).await);
    }

    /// So that nothing under the new master key is there to tell.
    #[tokio::test(flavor = "multi_thread")]
    async fn nor_does_it_come_back_beside_the_new_one() {
        let (first, second) = (quick_dir(), quick_dir());
        let (now, _) = rotated(first.path(), second.path()).await;
        assert_eq!(copied(&now, second.path()).await.unwrap().keys.brought, 1);
        let both = open(second.path(), &another_key()).await.unwrap();
        assert_eq!(copied(&both, first.path()).await.unwrap().keys.brought, 0);
        assert!(!opens(first.path(), &unlock()).await);
    }

    /// The second place has several slots for it then, and only the newest knows the master key that what comes is under.
    #[tokio::test(flavor = "multi_thread")]
    async fn after_a_rotation_that_keeps_the_secret_the_copy_opens_with_the_new_key() {
        let (first, second) = (quick_dir(), quick_dir());
        let bench = Bench::new(first.path()).await;
        for round in 1..6 {
            let now = open(first.path(), &unlock()).await.unwrap();
            let made = now.backup(&files(round)).await;
            copied(&now, second.path()).await.unwrap();
            let there = open(second.path(), &unlock()).await.unwrap();
            assert_eq!(slots(&*there.store).await.unwrap().whole.len(), usize::from(round));
            assert!(there.content(&made.snapshot).await == contents(&files(round)) && there.is_whole().await);
            let mut owned = Repository::open(bench.store.clone(), "here", &unlock()).await.unwrap();
            rekey::rotate(&mut owned, &*bench.store, &unlock(), "again", bench.clock.now()).await.unwrap();
        }
        // Who has a slot of before may put it back, and say that it was made tomorrow.
        for (key, _) in slots(&*open(second.path(), &unlock()).await.unwrap().store).await.unwrap().whole {
            let text = std::fs::read_to_string(second.path().join(key)).unwrap();
            let mut slot: serde_json::Value = serde_json::from_str(&text).unwrap();
            slot["created"] = "2099-01-01T00:00:00Z".into();
            let planted = serde_json::to_vec(&slot).unwrap();
            std::fs::write(first.path().join(Id::of(&planted).key(crate::repository::names::KEYS)), planted).unwrap();
        }
        assert_eq!(open(first.path(), &unlock()).await.unwrap().repository.keyring.current(), 6);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_that_was_removed_by_name_stays_removed_and_where_no_key_is_left_all_come() {
        let (first, second) = (quick_dir(), quick_dir());
        let bench = Bench::new(first.path()).await;
        bench.backup(&files(1)).await;
        let added = rekey::add(&bench.repository, &*bench.store, &another_key(), "ben", bench.clock.now()).await.unwrap();
        assert_eq!(copied(&bench, second.path()).await.unwrap().keys.brought, 2);
        rekey::remove(&*bench.store, &added.id).await.unwrap();
        for key in [unlock(), another_key()] {
            let keys = copied(&open(second.path(), &key).await.unwrap(), first.path()).await.unwrap().keys;
            assert!(keys.brought == 0 && keys.differ.len() == 1 && keys.differ[0].contains("(ben)"), "{keys:?}");
            assert!(!opens(first.path(), &another_key()).await);
        }
        let slots = slots(&*bench.store).await.unwrap().whole;
        for (key, _) in slots {
            bench.store.delete(&key).await.unwrap();
        }
        assert_eq!(copied(&open(second.path(), &unlock()).await.unwrap(), first.path()).await.unwrap().keys.brought, 2);
        assert!(opens(first.path(), &unlock()).await && opens(first.path(), &another_key()).await);
    }
}
