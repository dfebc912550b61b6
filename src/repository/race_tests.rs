//! What others do between two requests of somebody who writes: a prune marks and deletes while a backup or a copy is under
//! way, also one that takes longer than the grace. Whatever comes of it, no snapshot is committed that does not restore.

use super::{
    copy::{self, Copied},
    create::{About, Base, Created, Ended, create, create_then},
    index,
    index::Index,
    names::{INDEX, Id, MARKS, PACKS, SNAPSHOTS},
    open::Repository,
    prune,
    snapshot::{Snapshot, Source as Origin},
    source::Parent,
    sweep_tests::{Ahead, HOUR},
    tests::{Bench, Files, noise, unlock},
    verify::{Depth, verify},
    wrapped::Wrapped,
};
use crate::providers::{
    clock::{Clock, SystemClock},
    directory::Directory,
    port::*,
};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

/// A few packs of two chunks each.
fn files(seed: u8) -> Files {
    ["a", "b", "c", "d", "e"].into_iter().enumerate().map(|(n, name)| (name, (noise(seed + n as u8, 160 << 10), u32::from(seed)))).collect()
}

/// To be compared by `assert!`: what `assert_eq!` would print are megabytes.
fn content(files: &Files) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(path, (content, _))| ((*path).to_owned(), content.clone())).collect()
}

fn about() -> About {
    About {
        origin: Origin::Stream { name: "test".to_owned(), of: None },
        host: String::new(),
        user: String::new(),
        tags: Vec::new(),
        run: None,
    }
}

/// Both phases of a prune, without any grace.
async fn pruned(dir: &Path) -> u64 {
    let bench = at(dir).await;
    bench.prune(0).await.deleted + bench.prune(0).await.deleted
}

async fn at(dir: &Path) -> Bench {
    let store: Arc<dyn ObjectWrite> = Arc::new(Directory::new(dir.to_owned()));
    let repository = Arc::new(Repository::open(store.clone(), "here", &unlock()).await.unwrap());
    Bench { store, clock: Arc::new(SystemClock::new()), repository }
}

/// A backup during which, once everything is read and stored, a prune marks and deletes what no snapshot uses.
async fn outlived(dir: &Path, bench: &Bench, files: &Files, base: Base) -> super::Result<Created> {
    let source = Bench::source(files, Parent::none());
    let end = async {
        assert!(pruned(dir).await > 0, "nothing was deleted");
        Ok(Ended { origin: about().origin, corrupt: Vec::new() })
    };
    create_then(bench.repository.clone(), bench.store.clone(), source, base, about(), Arc::default(), bench.clock.clone(), end).await
}

async fn refuses(bench: &Bench, made: super::Result<Created>) {
    let why = made.err().expect("a snapshot of what is deleted").to_string();
    assert!(why.contains("--grace") && why.contains("no snapshot was made"), "{why}");
    assert!(bench.repository.list(SNAPSHOTS).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_own_packs_are_deleted_meanwhile_makes_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let base = Base::load(&bench.repository, None, &*bench.clock).await.unwrap();
    let made = outlived(dir.path(), &bench, &files(1), base).await;
    refuses(&bench, made).await;
    // Nothing of it is in the way of the next one.
    let again = bench.backup(&files(1)).await;
    assert!(bench.content(&again.snapshot).await == content(&files(1)));
    assert!(bench.is_whole().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_relies_on_what_is_deleted_meanwhile_makes_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let old = bench.backup(&files(1)).await;
    // What it finds here it does not store.
    let base = Base::load(&bench.repository, None, &*bench.clock).await.unwrap();
    prune::forget(&*bench.store, &[old.id]).await.unwrap();
    let made = outlived(dir.path(), &bench, &files(1), base).await;
    refuses(&bench, made).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_beside_which_others_packs_are_deleted_is_none_the_worse() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let (kept, gone) = (bench.backup(&files(1)).await, bench.backup(&files(20)).await);
    let base = Base::load(&bench.repository, None, &*bench.clock).await.unwrap();
    prune::forget(&*bench.store, &[gone.id]).await.unwrap();
    let source = Bench::source(&files(1), Parent::none());
    let pruning = dir.path().to_owned();
    let end = async move {
        assert!(pruned(&pruning).await > 0, "nothing was deleted");
        Ok(Ended { origin: about().origin, corrupt: Vec::new() })
    };
    let made = create_then(bench.repository.clone(), bench.store.clone(), source, base, about(), Arc::default(), bench.clock.clone(), end);
    let made = made.await.unwrap();
    assert_eq!(made.snapshot.stats.bytes_new, 0, "all of it was held");
    assert!(bench.content(&made.snapshot).await == bench.content(&kept.snapshot).await);
    assert!(bench.is_whole().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_while_a_backup_looks_what_there_is_is_not_relied_on() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let old = bench.backup(&files(1)).await;
    prune::forget(&*bench.store, &[old.id]).await.unwrap();
    bench.prune(0).await;
    // The packs and their mark go when it is about to look for marks.
    let pruning = dir.path().to_owned();
    let (store, happened) = Wrapped::between(dir.path(), MARKS, 0, async move { assert!(pruned(&pruning).await > 0) });
    let repository = Arc::new(Repository::open(store.clone(), "here", &unlock()).await.unwrap());
    let base = Base::load(&repository, None, &*bench.clock).await.unwrap();
    assert!(happened.load(SeqCst));
    let source = Bench::source(&files(1), Parent::none());
    let made = create(repository, bench.store.clone(), source, base, about(), Arc::default(), bench.clock.clone()).await.unwrap();
    assert_eq!(made.snapshot.stats.bytes_new, 800 << 10, "it is stored anew");
    assert!(bench.content(&made.snapshot).await == content(&files(1)));
    assert!(bench.is_whole().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_beside_a_prune_misses_nothing_that_nobody_needs() {
    for depth in [Depth::Structure, Depth::All] {
        let dir = tempfile::tempdir().unwrap();
        let bench = Bench::new(dir.path()).await;
        let (kept, gone) = (bench.backup(&files(1)).await, bench.backup(&files(20)).await);
        prune::forget(&*bench.store, &[gone.id]).await.unwrap();
        bench.prune(0).await;
        // It has read the index, and is about to see which packs are there.
        let pruning = dir.path().to_owned();
        let (store, happened) = Wrapped::between(dir.path(), PACKS, 0, async move { assert!(pruned(&pruning).await > 0) });
        let repository = Arc::new(Repository::open(store, "here", &unlock()).await.unwrap());
        let found = verify(repository.clone(), None, depth, [1; 32], Arc::default()).await.unwrap();
        assert!(happened.load(SeqCst) && found.is_good(), "{found:?}");
        // What is really missing is told.
        let lost = repository.index().await.unwrap().whole.find(&kept.snapshot.list[0]).unwrap().0.key(PACKS);
        std::fs::remove_file(dir.path().join(&lost)).unwrap();
        let found = verify(repository, None, depth, [1; 32], Arc::default()).await.unwrap();
        assert!(found.problems.iter().any(|problem| problem.contains(&lost)) && !found.touched.is_empty(), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_beside_prunes_that_delete_lose_nothing_that_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let until = bench.clock.monotonic() + Duration::from_secs(8);
    // Of each the newest two stay. What one forgets the other one may be about to use, and both come back to what is gone.
    let writes = async |seed: u8| {
        let (mut finished, mut round) = (Vec::new(), 0);
        while bench.clock.monotonic() < until {
            round = (round + 1) % 6;
            let files = files(seed + 2 * round);
            match bench.try_backup(&files).await {
                Ok(made) => finished.push((made, files)),
                // It was overtaken, and says so.
                Err(super::RepositoryError::Refused(why)) => assert!(why.contains("--grace"), "{why}"),
                Err(error) => panic!("{error}"),
            }
            if finished.len() > 2 {
                prune::forget(&*bench.store, &[finished.remove(0).0.id]).await.unwrap();
            }
        }
        finished
    };
    let prunes = async {
        let mut deleted = 0;
        while bench.clock.monotonic() < until {
            // Between the last look of a writer and the deletion of what it saw young lie two seconds at least. What is
            // forgotten between two looks of one prune makes it begin again.
            if let Ok(look) = prune::look(&bench.repository, bench.clock.now()).await {
                deleted += prune::prune(bench.repository.clone(), bench.store.clone(), look, 3, Arc::default()).await.unwrap().deleted;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        deleted
    };
    let (one, two, deleted) = tokio::join!(writes(1), writes(2), prunes);
    assert!(deleted > 0, "no prune deleted anything");
    assert!(!one.is_empty() && !two.is_empty());
    for (made, files) in one.into_iter().chain(two) {
        assert!(bench.content(&made.snapshot).await == content(&files));
    }
    assert!(bench.is_whole().await);
}

// ---------------------------------------------------------------- the index in several objects

/// So many packs that the index is several objects, each of which names a few.
fn many_files() -> Files {
    (0..60u8).map(|n| (&*Box::leak(format!("{n:03}").into_boxed_str()), (noise(n, 40 << 10), 1))).collect()
}

async fn indexes(repository: &Repository) -> Vec<ObjectMeta> {
    let listed = repository.list(INDEX).await.unwrap();
    // None is longer than the bound for an index object and what seals it.
    assert!(listed.iter().all(|meta| meta.size < 600), "{listed:?}");
    listed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_index_is_written_and_put_together_in_several_objects() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::new(dir.path()).await;
    let mut files = many_files();
    let first = bench.backup(&files).await;
    assert!(indexes(&bench.repository).await.len() > 3);
    files.retain(|name, _| *name < "040");
    let second = bench.backup(&files).await;
    prune::forget(&*bench.store, &[first.id]).await.unwrap();
    bench.prune(0).await;
    let before = indexes(&bench.repository).await;
    assert!(bench.prune(0).await.deleted > 0);
    let folded = indexes(&bench.repository).await;
    let kept: Vec<&ObjectMeta> = folded.iter().filter(|meta| before.iter().any(|old| old.key == meta.key)).collect();
    assert!(folded.len() > 1 && kept.is_empty(), "{folded:?}");
    let packs = bench.repository.packs().await.unwrap().whole;
    assert_eq!(folded.len(), index::parts(&packs).len(), "in as few as it takes");
    assert!(bench.content(&second.snapshot).await == content(&files));
    assert!(bench.is_whole().await);
    assert_eq!(bench.prune(0).await, prune::Pruned::default(), "there is an end to it");

    let copied = copied(&bench, other.path(), &*bench.clock).await.unwrap();
    assert_eq!((copied.snapshots, copied.damaged.len()), (1, 0), "{copied:?}");
    let there = at(other.path()).await;
    assert!(indexes(&there.repository).await.len() > 1);
    assert!(there.content(&second.snapshot).await == content(&files));
    assert!(there.is_whole().await);
}

// ---------------------------------------------------------------- copying beside a prune, and to what is damaged

async fn copied(bench: &Bench, to: &Path, clock: &dyn Clock) -> super::Result<Copied> {
    copied_to(bench, Arc::new(Directory::new(to.to_owned())), clock).await
}

async fn copied_to(bench: &Bench, to: Arc<dyn ObjectWrite>, clock: &dyn Clock) -> super::Result<Copied> {
    let snapshots = bench.repository.snapshots().await.unwrap().whole;
    copy::copy(&bench.repository, to, "there", &snapshots, Arc::default(), clock).await
}

/// A repository with one snapshot, and another with its copy.
async fn both(dir: &Path, other: &Path) -> (Bench, Created, Bench) {
    let bench = Bench::new(dir).await;
    let made = bench.backup(&files(1)).await;
    assert_eq!(copied(&bench, other, &*bench.clock).await.unwrap().there, [made.id]);
    (bench, made, at(other).await)
}

fn cut(dir: &Path, key: &str) {
    let file = std::fs::OpenOptions::new().write(true).open(dir.join(key)).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_short_at_the_place_to_copy_to_is_told_and_made_good_once_it_is_gone() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (bench, made, there) = both(dir.path(), other.path()).await;
    let pack = there.repository.list(PACKS).await.unwrap().remove(0).key;
    for key in [pack, made.id.key(SNAPSHOTS)] {
        cut(other.path(), &key);
        let again = copied(&bench, other.path(), &*bench.clock).await.unwrap();
        assert!(again.there.is_empty() && again.snapshots == 0, "{key}: {again:?}");
        assert!(again.damaged.iter().any(|why| why.contains(&key) && why.contains("delete it there")), "{again:?}");
        std::fs::remove_file(other.path().join(&key)).unwrap();
        let good = copied(&bench, other.path(), &*bench.clock).await.unwrap();
        assert_eq!((good.there, good.damaged.len()), (vec![made.id], 0), "{key}");
        assert!(at(other.path()).await.content(&made.snapshot).await == content(&files(1)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_stores_anew_what_is_about_to_be_deleted_there() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (bench, made, there) = both(dir.path(), other.path()).await;
    prune::forget(&*there.store, &[made.id]).await.unwrap();
    there.prune(24 * 3600).await;
    let later = Ahead(SystemClock::new(), HOUR * 13);
    let again = copied(&bench, other.path(), &later).await.unwrap();
    assert_eq!((again.snapshots, again.packs, again.damaged.len()), (1, 0, 0), "{again:?}");
    // A prune that looked before the snapshot was there.
    let before = there.repository.list(SNAPSHOTS).await.unwrap();
    std::fs::rename(other.path().join(&before[0].key), other.path().join("aside")).unwrap();
    let mut look = prune::look(&there.repository, there.clock.now() + HOUR * 25).await.unwrap();
    std::fs::rename(other.path().join("aside"), other.path().join(&before[0].key)).unwrap();
    look.plan.mark.clear();
    let done = prune::prune(there.repository.clone(), there.store.clone(), look, 24 * 3600, Arc::default()).await.unwrap();
    assert!(done.deleted > 0, "{done:?}");
    assert!(there.content(&made.snapshot).await == content(&files(1)));
    assert!(there.is_whole().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_may_rely_on_a_young_mark() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (bench, made, there) = both(dir.path(), other.path()).await;
    prune::forget(&*there.store, &[made.id]).await.unwrap();
    there.prune(24 * 3600).await;
    let again = copied(&bench, other.path(), &*bench.clock).await.unwrap();
    assert_eq!((again.snapshots, again.packs, again.damaged.len()), (1, 0, 0), "{again:?}");
    // Whoever deletes sees the snapshot.
    let look = prune::look(&there.repository, there.clock.now() + HOUR * 25).await.unwrap();
    let done = prune::prune(there.repository.clone(), there.store.clone(), look, 24 * 3600, Arc::default()).await.unwrap();
    assert_eq!(done.deleted, 0, "{done:?}");
    assert!(there.content(&made.snapshot).await == content(&files(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_packs_are_deleted_meanwhile_makes_no_snapshot_there() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::new(dir.path()).await;
    let made = bench.backup(&files(1)).await;
    // Marks are looked at when it begins, and before it commits.
    let pruning = other.path().to_owned();
    let (store, happened) =
        Wrapped::between(other.path(), MARKS, 1, async move { assert!(pruned(&pruning).await > 0, "nothing was deleted") });
    let done = copied_to(&bench, store.clone(), &*bench.clock).await.unwrap();
    assert!(happened.load(SeqCst));
    assert!(done.there.is_empty() && done.snapshots == 0 && done.packs > 0, "{done:?}");
    assert!(done.damaged.iter().any(|why| why.contains("copy again")), "{done:?}");
    let there = at(other.path()).await;
    assert!(there.repository.list(SNAPSHOTS).await.unwrap().is_empty());
    assert_eq!(copied(&bench, other.path(), &*bench.clock).await.unwrap().there, [made.id]);
    assert!(there.content(&made.snapshot).await == content(&files(1)));
}

/// Each place is pruned by itself, so the same chunks come to lie in other packs there.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_been_moved_into_other_packs_there_is_not_carried_again() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::new(dir.path()).await;
    let mut files = many_files();
    let first = bench.backup(&files).await;
    files.retain(|name, _| name.ends_with('0'));
    let second = bench.backup(&files).await;
    copied(&bench, other.path(), &*bench.clock).await.unwrap();
    let there = at(other.path()).await;
    prune::forget(&*there.store, &[first.id]).await.unwrap();
    assert!(there.prune(0).await.repacked > 0);
    assert!(there.prune(0).await.deleted > 0);
    prune::forget(&*bench.store, &[first.id]).await.unwrap();
    let again = copied(&bench, other.path(), &*bench.clock).await.unwrap();
    assert_eq!((again.there, again.packs, again.damaged.len()), (vec![second.id], 0, 0));
    assert!(there.content(&second.snapshot).await == content(&files));
}

// ---------------------------------------------------------------- a bucket whose parent is damaged

fn objects_of(snapshot: &BTreeMap<String, Vec<u8>>) -> Vec<&str> {
    snapshot.keys().map(String::as_str).collect()
}

async fn backed_up(bench: &Bench, objects: &Path, reread: bool) -> super::Result<Created> {
    let parent: Option<(Id, Snapshot)> = bench.repository.snapshots().await.unwrap().whole.pop();
    let base = Base::load(&bench.repository, parent, &*bench.clock).await.unwrap();
    let objects: Arc<dyn ObjectRead> = Arc::new(Directory::new(objects.to_owned()));
    let source = Box::new(super::bucket::Bucket::new(objects, base.entries(&bench.repository), reread));
    create(bench.repository.clone(), bench.store.clone(), source, base, about(), Arc::default(), bench.clock.clone()).await
}

/// Flips a bit of the first chunk of a snapshot's list, where it lies.
async fn flip_list(dir: &Path, bench: &Bench, snapshot: &Snapshot) {
    let index: Index = bench.repository.index().await.unwrap().whole;
    let (pack, piece) = index.find(&snapshot.list[0]).unwrap();
    let path = dir.join(pack.key(PACKS));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[piece.offset as usize + 3] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_parents_list_costs_a_bucket_reading_again_and_no_more() {
    let (dir, bucket) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::new(dir.path()).await;
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        std::fs::write(bucket.path().join(name), noise(n as u8, 3000)).unwrap();
    }
    let first = backed_up(&bench, bucket.path(), false).await.unwrap();
    assert_eq!(backed_up(&bench, bucket.path(), false).await.unwrap().snapshot.stats.bytes_read, 0, "nothing has changed");
    for reread in [false, true] {
        let newest = bench.repository.snapshots().await.unwrap().whole.pop().unwrap().1;
        flip_list(dir.path(), &bench, &newest).await;
        std::fs::write(bucket.path().join("c"), noise(9 + u8::from(reread), 3000)).unwrap();
        let made = backed_up(&bench, bucket.path(), reread).await.unwrap();
        assert_eq!(made.snapshot.stats.bytes_read, 9000);
        let content = bench.content(&made.snapshot).await;
        assert_eq!((objects_of(&content), &content["c"]), (vec!["a", "b", "c"], &noise(9 + u8::from(reread), 3000)));
    }
    assert_eq!(first.snapshot.stats.files, 3);

    // The same list again is the same chunk: what is damaged of it does not count as held.
    let newest = bench.repository.snapshots().await.unwrap().whole.pop().unwrap().1;
    flip_list(dir.path(), &bench, &newest).await;
    let made = backed_up(&bench, bucket.path(), false).await.unwrap();
    assert_eq!(made.snapshot.list, newest.list);
    assert_eq!(objects_of(&bench.content(&made.snapshot).await), ["a", "b", "c"]);
}
