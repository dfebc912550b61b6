//! What is damaged, lost or planted in a repository, and what comes back all the same: slots that are none, an index
//! that is gone, chunks that lie twice and are whole once, packs that nobody names.

use super::{
    RepositoryError,
    codec::{Encoder, Hint},
    create::{About, Base, create},
    globs::Globs,
    index::{self, PackEntry},
    keys::{Slot, Stretch, Unlock},
    names::{INDEX, Id, KEYS, PACKS},
    open::{Repository, put},
    pack::{Packer, Piece},
    rekey,
    restore::{Into, RestoreOptions, Restored, restore},
    seal::Kind,
    slots::slots,
    snapshot::{Snapshot, Source as Origin},
    tests::{Bench, Files, noise, unlock},
    verify::{Depth, Verified, verify},
    wrapped::{Asked, Wrapped},
};
use crate::providers::{
    clock::{Clock, SystemClock},
    port::{ObjectWrite, PortError},
};
use secrecy::{SecretBox, SecretString};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};
use tempfile::TempDir;

/// In memory, if there is such a place: a restore ends with a flush of the whole file system.
pub(super) fn quick_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Writes over a stored object, which is read-only.
pub(super) fn overwrite(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

pub(super) fn another_key() -> Unlock {
    Unlock::KeyFile(Arc::new(SecretBox::new(Box::new(vec![9; 64]))))
}

pub(super) async fn verified(repository: &Arc<Repository>, depth: Depth) -> Verified {
    verify(repository.clone(), None, depth, [1; 32], Arc::default()).await.unwrap()
}

/// A restore, and the files that it brought back under their own names.
pub(super) async fn restored(repository: &Arc<Repository>, snapshot: &Snapshot) -> (Restored, BTreeMap<String, Vec<u8>>) {
    let target = quick_dir();
    let options = RestoreOptions { include: Globs::none(), into: Into::Empty, owner: false, dry_run: false };
    let done = restore(repository.clone(), snapshot, target.path(), options, Arc::default()).await.unwrap();
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(target.path()).unwrap().map(|entry| entry.unwrap()) {
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600)).unwrap();
        files.insert(entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    }
    files.retain(|name, _| !name.ends_with(".muster-incomplete"));
    (done, files)
}

fn few() -> Files {
    Files::from([("a", (noise(1, 3000), 1)), ("b", (noise(2, 5000), 1))])
}

pub(super) fn contents(files: &Files) -> BTreeMap<String, Vec<u8>> {
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

/// Two who back up the same at once: neither sees what the other stores, so all of it is there twice.
async fn twice(bench: &Bench, files: &Files) -> [Snapshot; 2] {
    let mut bases = Vec::new();
    for _ in 0..2 {
        bases.push(Base::load(&bench.repository, None, &*bench.clock).await.unwrap());
    }
    let mut made = Vec::new();
    for base in bases {
        let source = Bench::source(files, base.entries(&bench.repository));
        let created = create(bench.repository.clone(), bench.store.clone(), source, base, about(), Arc::default(), bench.clock.clone());
        made.push(created.await.unwrap().snapshot);
    }
    assert_eq!(made[0].list, made[1].list);
    made.try_into().unwrap()
}

async fn packs(bench: &Bench) -> Vec<PackEntry> {
    bench.repository.packs().await.unwrap().whole
}

/// The objects of the index, and which packs each names.
async fn indexes(bench: &Bench) -> Vec<(Id, Vec<Id>)> {
    let mut all = Vec::new();
    for (id, plain) in bench.repository.load(Kind::Index).await.unwrap().whole {
        all.push((id, index::decode(&id, &plain).unwrap().iter().map(|entry| entry.pack).collect()));
    }
    all
}

// ---------------------------------------------------------------- keys

/// The slot, changed by that and put into the store so that it is listed before the one of this name.
fn plant(dir: &Path, first: &str, slot: &Slot, change: impl Fn(&mut serde_json::Value)) -> PathBuf {
    let bytes = (0..).find_map(|n| {
        let mut value = serde_json::to_value(slot).unwrap();
        value["label"] = format!("planted {n}").into();
        change(&mut value);
        let bytes = serde_json::to_vec(&value).unwrap();
        (Id::of(&bytes).key(KEYS).as_str() < first).then_some(bytes)
    });
    let bytes = bytes.unwrap();
    let path = dir.join(Id::of(&bytes).key(KEYS));
    fs::write(&path, bytes).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_none_keeps_no_other_from_opening() {
    let dir = quick_dir();
    let bench = Bench::new(dir.path()).await;
    let password = Unlock::Passphrase(SecretString::from("tide".to_owned()));
    rekey::add(&bench.repository, &*bench.store, &password, "ana", bench.clock.now()).await.unwrap();
    let all = slots(&*bench.store).await.unwrap().whole;
    let slot = |of_password: bool| {
        let of = |slot: &&Slot| matches!(slot.stretch, Stretch::Argon2id { .. }) == of_password;
        all.iter().map(|(_, slot)| slot).find(of).unwrap().clone()
    };
    let changes: [fn(&mut serde_json::Value); 6] = [
        |slot| slot["salt"] = "zz".into(),
        |slot| slot["keyring"] = "not hexadecimal".into(),
        |slot| slot["nonce"] = "00".into(),
        |slot| slot["stretch"] = serde_json::json!({ "name": "argon2id", "memory_kib": u32::MAX, "passes": 3, "lanes": 4 }),
        |slot| slot["stretch"] = serde_json::json!({ "name": "argon2id", "memory_kib": 65536, "passes": 3, "lanes": 0 }),
        |slot| slot["label"] = format!("{}{}", slot["label"], "x".repeat(100_000)).into(),
    ];
    let mut planted = Vec::new();
    for change in changes {
        planted.push(plant(dir.path(), &all[0].0, &slot(true), change));
        planted.push(plant(dir.path(), &all[0].0, &slot(false), change));
    }
    // What is not named like an object is none, there as elsewhere.
    fs::write(dir.path().join("keys/readme"), b"hello").unwrap();
    for unlock in [unlock(), password] {
        assert!(Repository::open(bench.store.clone(), "here", &unlock).await.is_ok());
    }
    let wrong = Unlock::Passphrase(SecretString::from("ebb".to_owned()));
    let Err(error) = Repository::open(bench.store.clone(), "here", &wrong).await else { panic!("it opened") };
    let told = error.to_string();
    assert!(matches!(error, RepositoryError::WrongKey { slots: 2, .. }), "{told}");
    assert!(told.contains("none of the repository's 2 keys") && told.contains("keys/") && told.contains("and 9 more"), "{told}");

    let found = verified(&bench.repository, Depth::Structure).await;
    let named = |path: &PathBuf| found.problems.iter().any(|p| p.contains(path.file_name().unwrap().to_str().unwrap()));
    assert!(found.problems.len() == planted.len() && planted.iter().all(named), "{found:?}");
    // One of them is taken away by its name, the rest go with a rotation.
    let name = planted[0].file_name().unwrap().to_str().unwrap();
    let gone = rekey::remove(&*bench.store, &name[..20]).await.unwrap();
    assert!(matches!(gone, rekey::Removed::Damaged(place) if place == format!("keys/{name}")));
    let mut owned = Repository::open(bench.store.clone(), "here", &unlock()).await.unwrap();
    rekey::rotate(&mut owned, &*bench.store, &unlock(), "ana", bench.clock.now()).await.unwrap();
    let left = slots(&*bench.store).await.unwrap();
    assert_eq!((left.whole.len(), left.damaged.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_would_take_minutes_is_tried_last() {
    let dir = quick_dir();
    let bench = Bench::new(dir.path()).await;
    let password = Unlock::Passphrase(SecretString::from("tide".to_owned()));
    let slot = rekey::add(&bench.repository, &*bench.store, &password, "ana", bench.clock.now()).await.unwrap();
    // As much as a slot may ask for.
    let dear = serde_json::json!({ "name": "argon2id", "memory_kib": 1 << 20, "passes": 64, "lanes": 4 });
    let first = slots(&*bench.store).await.unwrap().whole.remove(0).0;
    plant(dir.path(), &first, &slot, |slot| slot["stretch"] = dear.clone());
    assert_eq!(slots(&*bench.store).await.unwrap().whole.len(), 3);
    let opening = Repository::open(bench.store.clone(), "here", &password);
    assert!(tokio::time::timeout(Duration::from_secs(20), opening).await.unwrap().is_ok());
}

// ---------------------------------------------------------------- the index

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_gone_is_made_again_from_the_packs() {
    let dir = quick_dir();
    let bench = Bench::new(dir.path()).await;
    let mut files = few();
    let first = bench.backup(&files).await;
    let before = contents(&files);
    files.insert("c", (noise(3, 2000), 1));
    let second = bench.backup(&files).await;
    let all = indexes(&bench).await;
    let count = packs(&bench).await.len();
    assert!(all.len() == 2 && count >= 4, "{all:?}");
    // A part of it, and all of it.
    for lost in [vec![all[0].0], vec![all[1].0], vec![all[0].0, all[1].0]] {
        let kept: Vec<(PathBuf, Vec<u8>)> =
            lost.iter().map(|id| dir.path().join(id.key(INDEX))).map(|p| (p.clone(), fs::read(p).unwrap())).collect();
        kept.iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
        for (made, expected) in [(&first, &before), (&second, &contents(&files))] {
            let (done, back) = restored(&bench.repository, &made.snapshot).await;
            assert!(done.damaged.is_empty() && back == *expected, "{done:?}");
            assert_eq!(&bench.content(&made.snapshot).await, expected);
        }
        let (done, _) = restored(&bench.repository, &second.snapshot).await;
        assert!(done.notes.iter().any(|note| note.contains("index is lost")), "{done:?}");
        for depth in [Depth::Structure, Depth::All] {
            let found = verified(&bench.repository, depth).await;
            assert!(found.touched.is_empty() && found.problems.len() == 1, "{found:?}");
            assert!(found.problems[0].contains("index/") && found.files == 5, "{found:?}");
            assert_eq!(found.packs, if depth == Depth::All { count as u64 } else { 0 });
        }
        kept.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        assert!(bench.is_whole().await);
    }
    // A prune writes anew what is lost, and marks nothing that is needed.
    all.iter().for_each(|(id, _)| fs::remove_file(dir.path().join(id.key(INDEX))).unwrap());
    assert_eq!(bench.prune(3600).await.marked, 0);
    let named: usize = indexes(&bench).await.iter().map(|(_, packs)| packs.len()).sum();
    assert_eq!(named, count);
    assert!(bench.is_whole().await);
    let (done, back) = restored(&bench.repository, &second.snapshot).await;
    assert!(done.notes.is_empty() && back == contents(&files), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_after_the_index_is_gone_restores() {
    let dir = quick_dir();
    let bench = Bench::new(dir.path()).await;
    let mut files = few();
    bench.backup(&files).await;
    for (id, _) in indexes(&bench).await {
        fs::remove_file(dir.path().join(id.key(INDEX))).unwrap();
    }
    files.insert("c", (noise(3, 2000), 1));
    let second = bench.backup(&files).await;
    assert_eq!(bench.content(&second.snapshot).await, contents(&files));
    bench.prune(0).await;
    bench.prune(0).await;
    assert_eq!(bench.content(&second.snapshot).await, contents(&files));
    assert!(bench.is_whole().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_folded_while_it_is_read_is_read_again() {
    let dir = quick_dir();
    let bench = Bench::new(dir.path()).await;
    let files = few();
    let made = bench.backup(&files).await;
    let (old, _) = indexes(&bench).await.remove(0);
    let plain = index::encode(&packs(&bench).await);
    let (new, stored) = super::seal::whole(&bench.repository.keyring, Kind::Index, &super::pack::squeeze(&plain)).unwrap();
    let (folder, reads) = (dir.path().to_owned(), Arc::new(AtomicU32::new(0)));
    let seen = reads.clone();
    // Just before it is read, a prune has put another in its place.
    let store = Wrapped::new(dir.path(), move |asked, key| {
        if asked == Asked::Read && key.starts_with(INDEX) && seen.fetch_add(1, SeqCst) == 0 {
            fs::write(folder.join(new.key(INDEX)), &stored).unwrap();
            fs::remove_file(folder.join(old.key(INDEX))).unwrap();
        }
        Ok(())
    });
    let repository = Repository::open(store, "here", &unlock()).await.unwrap();
    let index = repository.index().await.unwrap().whole;
    assert!(index.contains(&made.snapshot.list[0]) && reads.load(SeqCst) > 1);
}

// ---------------------------------------------------------------- packs

/// What lies twice, with one pack after another changed, if there is something to change in it: everything comes back, and
/// the pack is named.
async fn one_of_two(change: impl Fn(&Path, &PackEntry) -> bool) {
    let dir = quick_dir();
    let bench = Bench::new(dir.path()).await;
    let files = few();
    let made = twice(&bench, &files).await;
    let all = packs(&bench).await;
    let (mut changed, mut notes) = (0, 0);
    for entry in &all {
        let path = dir.path().join(entry.pack.key(PACKS));
        let whole = fs::read(&path).unwrap();
        if !change(&path, entry) {
            continue;
        }
        changed += 1;
        for snapshot in &made {
            let (done, back) = restored(&bench.repository, snapshot).await;
            assert!(done.damaged.is_empty() && back == contents(&files), "{done:?}");
            notes += done.notes.len();
            assert_eq!(bench.content(snapshot).await, contents(&files));
        }
        let found = verified(&bench.repository, Depth::All).await;
        assert!(found.touched.is_empty() && !found.problems.is_empty(), "{found:?}");
        assert!(found.problems.iter().all(|problem| problem.contains(&entry.pack.to_string())), "{found:?}");
        overwrite(&path, &whole);
    }
    assert!(changed >= 2 && notes > 0, "{changed} packs were changed, and {notes} notes told of it");
    // In both it is lost.
    for entry in &all {
        change(&dir.path().join(entry.pack.key(PACKS)), entry);
    }
    assert!(!verified(&bench.repository, Depth::All).await.touched.is_empty());
    assert!(!restored(&bench.repository, &made[0]).await.0.damaged.is_empty());
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 4;
    overwrite(path, &bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_damaged_in_one_pack_is_had_from_another() {
    let flip_in = |wanted: fn(u32) -> bool| {
        move |path: &Path, entry: &PackEntry| {
            let piece = entry.pieces.iter().find(|piece| wanted(piece.length));
            piece.map(|piece| flip(path, piece.offset as usize + 20)).is_some()
        }
    };
    // Of a file, of the list, and all chunks of a pack at once.
    one_of_two(flip_in(|length| length == 5000)).await;
    one_of_two(flip_in(|length| length < 1000)).await;
    one_of_two(|path, _| {
        flip(path, 20);
        true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_no_index_names_stands_in_for_one_that_is_gone() {
    let dir = quick_dir();
    let bench = Bench::new(dir.path()).await;
    let files = few();
    let made = twice(&bench, &files).await;
    let all = indexes(&bench).await;
    fs::remove_file(dir.path().join(all[0].0.key(INDEX))).unwrap();
    let named: Vec<PathBuf> = all[1].1.iter().map(|pack| dir.path().join(pack.key(PACKS))).collect();
    named.iter().for_each(|path| flip(path, 20));
    for gone in [false, true] {
        if gone {
            named.iter().for_each(|path| fs::remove_file(path).unwrap());
        }
        let (done, back) = restored(&bench.repository, &made[0]).await;
        assert!(done.damaged.is_empty() && back == contents(&files), "{gone}: {done:?}");
        assert!(done.notes.len() == 1 && done.notes[0].contains("that no index names"), "{gone}: {done:?}");
        let found = verified(&bench.repository, Depth::All).await;
        let told = |path: &PathBuf| found.problems.iter().any(|p| p.contains(path.file_name().unwrap().to_str().unwrap()));
        assert!(found.touched.is_empty() && named.iter().all(told), "{gone}: {found:?}");
        assert!(found.problems.iter().any(|p| p.contains("that no index names")) && found.notices.is_empty(), "{gone}: {found:?}");
        assert_eq!(bench.content(&made[1]).await, contents(&files));
    }
    // What is damaged is taken away: so a prune takes in what is whole, and deletes none of it.
    bench.prune(0).await;
    bench.prune(0).await;
    assert!(bench.is_whole().await);
    assert_eq!(bench.content(&made[1]).await, contents(&files));
}

/// A pack that no index names, as a backup leaves that was cut off.
pub(super) async fn stray(bench: &Bench, content: &[u8]) -> Id {
    let mut packer = Packer::new(&bench.repository.keyring).unwrap();
    packer.add(bench.repository.keyring.chunk_id(content), content, Hint::None, &mut Encoder::new()).unwrap();
    let pack = packer.finish().unwrap();
    put(&*bench.store, &pack.id.key(PACKS), pack.bytes.into()).await.unwrap();
    pack.id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_nobody_names_is_read_and_what_is_wrong_with_it_told() {
    let dir = quick_dir();
    let bench = Bench::new(dir.path()).await;
    bench.backup(&few()).await;
    let count = packs(&bench).await.len() as u64;
    let pack = stray(&bench, &noise(9, 800)).await;
    let path = dir.path().join(pack.key(PACKS));
    for (depth, read) in [(Depth::Structure, 0), (Depth::Share(1), 2), (Depth::All, count + 1)] {
        let found = verified(&bench.repository, depth).await;
        assert!(found.is_good() && found.packs == read && found.notices.len() == 1, "{found:?}");
        assert!(found.notices[0].starts_with("1 packs are named by no index"), "{found:?}");
    }
    flip(&path, 60);
    let found = verified(&bench.repository, Depth::All).await;
    assert!(found.is_good() && found.notices.iter().any(|notice| notice.contains(&pack.to_string())), "{found:?}");
    fs::remove_file(&path).unwrap();
    assert!(verified(&bench.repository, Depth::All).await.notices.is_empty());
}

/// What a second prune would delete, and where what is still needed of it is kept: a pack, and a piece in it.
async fn kept_copy(bench: &Bench) -> (PackEntry, Piece, super::prune::Look) {
    let look = super::prune::look(&bench.repository, bench.clock.now()).await.unwrap();
    let all = packs(bench).await;
    let (goes, stays): (Vec<&PackEntry>, Vec<&PackEntry>) = all.iter().partition(|entry| look.plan.delete.contains(&entry.pack));
    let held = |piece: &Piece| goes.iter().any(|entry| entry.pieces.iter().any(|other| other.chunk == piece.chunk));
    let found = stays.iter().find_map(|entry| Some(((*entry).clone(), *entry.pieces.iter().find(|piece| held(piece))?)));
    let (entry, piece) = found.expect("nothing that is to be deleted is kept elsewhere");
    (entry, piece, look)
}

/// Two writers at once, and a prune that lets one of two copies go: not the one that is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_prune_keeps_no_damaged_copy_and_deletes_the_whole_one() {
    let dir = quick_dir();
    let bench = Bench::new(dir.path()).await;
    let files = few();
    let made = twice(&bench, &files).await;
    assert!(bench.prune(0).await.marked > 0);
    let (entry, piece, look) = kept_copy(&bench).await;
    let path = dir.path().join(entry.pack.key(PACKS));
    flip(&path, piece.offset as usize + 20);
    let before = bench.repository.list("").await.unwrap();
    let refused = super::prune::prune(bench.repository.clone(), bench.store.clone(), look, 0, Arc::default()).await;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("nothing is pruned") && why.contains(&entry.pack.to_string()), "{why}");
    let keys = |all: Vec<crate::providers::port::ObjectMeta>| all.into_iter().map(|meta| meta.key).collect::<Vec<_>>();
    assert_eq!(keys(bench.repository.list("").await.unwrap()), keys(before));
    for snapshot in &made {
        assert_eq!(bench.content(snapshot).await, contents(&files), "the other copy is still there");
    }
    // Taken away, as the documentation says, the other copy is what is kept.
    fs::remove_file(&path).unwrap();
    bench.prune(0).await;
    bench.prune(0).await;
    assert!(bench.is_whole().await);
    assert_eq!(bench.content(&made[0]).await, contents(&files));
    // Where nothing is damaged it goes on.
    let (dir, other) = (quick_dir(), files);
    let bench = Bench::new(dir.path()).await;
    let made = twice(&bench, &other).await;
    bench.prune(0).await;
    assert!(bench.prune(0).await.deleted > 0);
    assert_eq!(bench.content(&made[1]).await, contents(&other));
}

/// What that costs: what of the deleted packs is still needed is read once more where it is kept, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_prune_reads_of_what_it_keeps_only_what_the_deleted_packs_held() {
    let dir = quick_dir();
    let bench = Bench::new(dir.path()).await;
    let name = |n: u8| &*Box::leak(format!("{n:02}").into_boxed_str());
    let mut files: Files = (0..40).map(|n| (name(n), (noise(n, 20 << 10), 1))).collect();
    let first = bench.backup(&files).await;
    // Of every pack there is something that is needed, and something that is not.
    files.retain(|name, _| !name.ends_with(['1', '4', '7']));
    let second = bench.backup(&files).await;
    super::prune::forget(&*bench.store, &[first.id]).await.unwrap();
    let mut deleted = super::prune::Pruned::default();
    for _ in 0..4 {
        let look = super::prune::look(&bench.repository, bench.clock.now()).await.unwrap();
        let all = packs(&bench).await;
        let goes = all.iter().filter(|entry| look.plan.delete.contains(&entry.pack));
        let of_goes: std::collections::BTreeSet<Id> = goes.flat_map(|entry| &entry.pieces).map(|piece| piece.chunk).collect();
        let stays = all.iter().filter(|entry| !look.plan.delete.contains(&entry.pack));
        let mut kept: BTreeMap<Id, u64> = BTreeMap::new();
        for piece in stays.flat_map(|entry| &entry.pieces).filter(|piece| of_goes.contains(&piece.chunk)) {
            kept.insert(piece.chunk, u64::from(piece.stored));
        }
        let needed: u64 = kept.values().sum();
        let done = super::prune::prune(bench.repository.clone(), bench.store.clone(), look, 0, Arc::default()).await.unwrap();
        // A header for each pack, and little that lies between.
        let bound = if kept.is_empty() { 0 } else { needed + kept.len() as u64 * 300 };
        assert!((needed..=bound).contains(&done.checked_bytes), "{needed} of {done:?}");
        if done.deleted > 0 {
            deleted = done;
        }
    }
    assert!(deleted.deleted > 0 && deleted.checked_bytes > 0 && deleted.checked_bytes < deleted.deleted_bytes, "{deleted:?}");
    assert!(bench.is_whole().await);
    assert_eq!(bench.content(&second.snapshot).await, contents(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_heals_once_it_is_taken_away() {
    let dir = quick_dir();
    let bench = Bench::new(dir.path()).await;
    let mut files = few();
    let first = bench.backup(&files).await;
    let all = packs(&bench).await;
    let found = all.iter().find_map(|entry| Some((entry.pack, *entry.pieces.iter().find(|piece| piece.length == 5000)?)));
    let (pack, piece) = found.unwrap();
    let path = dir.path().join(pack.key(PACKS));
    flip(&path, piece.offset as usize + 20);
    // As long as it lies there it counts as held: a backup stores nothing anew, also where the file is read again.
    files.insert("b", (noise(2, 5000), 2));
    let again = bench.backup(&files).await;
    assert_eq!((again.snapshot.stats.bytes_read, again.snapshot.stats.bytes_new), (5000, 0));
    assert_eq!(verified(&bench.repository, Depth::All).await.touched.len(), 2);
    fs::remove_file(&path).unwrap();
    let healed = bench.backup(&files).await;
    assert!(healed.snapshot.stats.bytes_new >= 5000, "{:?}", healed.snapshot.stats);
    for made in [first, again, healed] {
        assert_eq!(bench.content(&made.snapshot).await, contents(&files));
    }
    let left = verified(&bench.repository, Depth::All).await;
    assert!(left.touched.is_empty() && left.problems.len() == 1 && left.problems[0].contains("missing"), "{left:?}");
}

/// Whoever may read and add may back up; nothing is ever changed or taken away for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_needs_neither_deletion_nor_overwriting() {
    let dir = quick_dir();
    let adds = Arc::new(AtomicU32::new(0));
    let count = adds.clone();
    let store: Arc<dyn ObjectWrite> = Wrapped::new(dir.path(), move |asked, key| match asked {
        Asked::Change => Err(PortError::Refused(format!("{key}: access denied"))),
        Asked::Add => {
            count.fetch_add(1, SeqCst);
            Ok(())
        }
        _ => Ok(()),
    });
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let now = clock.now();
    assert!(Repository::make(&*store, "here", &unlock(), "test", now).await.unwrap());
    assert!(!Repository::make(&*store, "here", &unlock(), "test", now).await.unwrap());
    let repository = Arc::new(Repository::open(store.clone(), "here", &unlock()).await.unwrap());
    let bench = Bench { store: store.clone(), clock, repository };
    let mut files = few();
    let first = bench.backup(&files).await;
    // With a parent, beside another writer, and against marks that are about to be carried out.
    files.insert("c", (noise(3, 400 << 10), 1));
    bench.backup(&files).await;
    twice(&bench, &files).await;
    let marked = super::marks::Marked { packs: packs(&bench).await.iter().map(|entry| entry.pack).collect(), wal: Vec::new(), grace_s: 0 };
    super::open::put_sealed(&*store, &bench.repository.keyring, Kind::Marks, &serde_json::to_vec(&marked).unwrap()).await.unwrap();
    let last = bench.backup(&files).await;
    assert!(last.snapshot.stats.bytes_stored > 400 << 10, "all of it was stored anew: {:?}", last.snapshot.stats);
    rekey::add(&bench.repository, &*store, &another_key(), "ana", now).await.unwrap();
    let wal = super::wal::WalStore::new(bench.repository.clone(), store.clone(), "7".to_owned()).unwrap();
    let segment = "000000010000000000000003".parse().unwrap();
    for put in [super::wal::Put::New, super::wal::Put::Same] {
        assert_eq!(wal.put(&segment, noise(5, 300).into()).await.unwrap(), put);
    }
    assert!(adds.load(SeqCst) > 12 && bench.is_whole().await);
    assert_eq!(bench.content(&last.snapshot).await, contents(&files));
    // And such credentials let nothing go.
    assert!(super::prune::forget(&*store, &[first.id]).await.is_err());
    let look = super::prune::look(&bench.repository, now).await.unwrap();
    assert!(!look.plan.is_empty() && super::prune::prune(bench.repository.clone(), store, look, 0, Arc::default()).await.is_err());
    assert_eq!(bench.content(&first.snapshot).await.len(), 2);
}
