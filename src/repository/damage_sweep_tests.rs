//! One bit at a time, and one end cut off at a time, in every object of a repository that has one of each kind: what is
//! found names that object and no other, touches the files whose chunks lie there and no other, and a restore brings
//! back all the rest, bit for bit, and says what it does not.

use super::{
    RepositoryError,
    damage_tests::{another_key, contents, overwrite, quick_dir, restored, stray, verified},
    index::PackEntry,
    list,
    marks::Marked,
    names::{CONFIG, INDEX, Id, KEYS, MARKS, PACKS, PROOFS, SNAPSHOTS, WAL},
    open::{Repository, put_sealed},
    proof::{self, Level, Proof},
    rekey,
    seal::{HEADER, Kind},
    snapshot::Snapshot,
    tests::{Bench, Files, noise, unlock},
    verify::Depth,
    wal::WalStore,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug)]
enum Change {
    Bit(usize),
    Cut(usize),
}

/// A snapshot, and of what its files are made.
struct Kept {
    id: Id,
    snapshot: Snapshot,
    contents: BTreeMap<String, Vec<u8>>,
    chunks: BTreeMap<String, BTreeSet<Id>>,
}

struct Yard {
    dir: TempDir,
    bench: Bench,
    kept: Vec<Kept>,
    packs: Vec<PackEntry>,
    stray: Id,
    /// The key slot that the other secret opens.
    second: String,
}

impl Yard {
    /// One of each kind, of some two: keys, packs, index objects, snapshots; and a pack that no index names.
    async fn new() -> Self {
        let dir = quick_dir();
        let bench = Bench::new(dir.path()).await;
        let mut files = Files::from([("a", (noise(1, 3000), 1)), ("b", (noise(2, 5000), 1))]);
        let mut kept = vec![Self::keep(&bench, &files).await];
        files.insert("c", (noise(3, 2000), 1));
        kept.push(Self::keep(&bench, &files).await);
        let (repository, store) = (&bench.repository, &*bench.store);
        let slot = rekey::add(repository, store, &another_key(), "ben", bench.clock.now()).await.unwrap();
        let marked = Marked { packs: vec![Id([9; 32])], wal: Vec::new(), grace_s: 3600 };
        put_sealed(store, &repository.keyring, Kind::Marks, &serde_json::to_vec(&marked).unwrap()).await.unwrap();
        let proof = Proof {
            snapshot: kept[0].id,
            time: jiff::Timestamp::UNIX_EPOCH,
            ok: true,
            level: Level::Restored,
            files: 2,
            bytes: 8000,
            duration_ms: 3,
            host: "bridge".to_owned(),
            run: None,
            why: None,
            found: None,
        };
        proof::write(repository, store, &proof).await.unwrap();
        let wal = WalStore::new(repository.clone(), bench.store.clone(), "7".to_owned()).unwrap();
        wal.put(&"000000010000000000000003".parse().unwrap(), noise(5, 300).into()).await.unwrap();
        let packs = repository.packs().await.unwrap().whole;
        let stray = stray(&bench, &noise(9, 800)).await;
        Self { packs, stray, second: slot.stored().unwrap().0, dir, bench, kept }
    }

    async fn keep(bench: &Bench, files: &Files) -> Kept {
        let made = bench.backup(files).await;
        let index = bench.repository.index().await.unwrap().whole;
        assert_eq!(made.snapshot.list.len(), 1);
        let list = made.snapshot.list[0];
        let mut chunks = BTreeMap::new();
        for entry in list::entries(&list, &bench.repository.chunk(&index, &list).await.unwrap()).unwrap() {
            let extents = bench.repository.extents(&index, &entry.path, entry.node.content().unwrap()).await.unwrap();
            chunks.insert(entry.shown(), extents.iter().flat_map(|extent| extent.chunks().to_vec()).collect());
        }
        Kept { id: made.id, snapshot: made.snapshot, contents: contents(files), chunks }
    }

    /// The chunks of which nothing is left by that change: as a verification counts (a pack that is cut counts as gone),
    /// and as a restore does, which takes what is there.
    fn cost(&self, key: &str, change: Change) -> (BTreeSet<Id>, BTreeSet<Id>) {
        let Some(entry) = self.packs.iter().find(|entry| entry.pack.key(PACKS) == key) else { return Default::default() };
        let chunks = |lost: &dyn Fn(usize, usize) -> bool| -> BTreeSet<Id> {
            let lost = |piece: &&super::pack::Piece| lost(piece.offset as usize, (piece.offset + piece.stored) as usize);
            entry.pieces.iter().filter(lost).map(|piece| piece.chunk).collect()
        };
        match change {
            Change::Bit(at) if at < HEADER => (chunks(&|_, _| true), chunks(&|_, _| true)),
            Change::Bit(at) => (chunks(&|from, to| (from..to).contains(&at)), chunks(&|from, to| (from..to).contains(&at))),
            Change::Cut(length) => (chunks(&|_, _| true), chunks(&|_, to| length < HEADER || to > length)),
        }
    }

    /// Verifies: the object is named and no other, and so are the files.
    async fn look(&self, key: &str, change: Change) {
        let at = format!("{key}, {change:?}");
        let mut opened = Vec::new();
        for unlock in [unlock(), another_key()] {
            opened.push(Repository::open(self.bench.store.clone(), "here", &unlock).await);
        }
        let (second, mut first) = (opened.remove(1), opened.remove(0));
        if key == CONFIG {
            for opened in [first, second] {
                match opened.map(|_| ()).unwrap_err() {
                    RepositoryError::Damaged { object, .. } => assert!(object.ends_with("config"), "{at}: {object}"),
                    error @ RepositoryError::WrongKey { .. } => {
                        assert!(error.to_string().contains("`config` was changed"), "{at}: {error}")
                    }
                    RepositoryError::Version { found } => assert_ne!(found, 1, "{at}"),
                    error => panic!("{at}: {error}"),
                }
            }
            return;
        }
        if key.starts_with(KEYS) {
            // One of them opens nothing and is named; the other opens everything.
            let (opens, closed) = if key == self.second { (first, second) } else { (second, first) };
            let error = closed.map(|_| ()).unwrap_err();
            assert!(matches!(error, RepositoryError::WrongKey { slots: 1, .. }) && error.to_string().contains(key), "{at}: {error}");
            first = opens;
        }
        let found = verified(&Arc::new(first.unwrap()), Depth::All).await;
        if key == self.stray.key(PACKS) {
            assert!(found.is_good() && found.notices.iter().any(|notice| notice.contains(key)), "{at}: {found:?}");
            return;
        }
        assert!(!found.problems.is_empty() && found.problems.iter().all(|problem| problem.contains(key)), "{at}: {found:?}");
        let (gone, unreadable) = self.cost(key, change);
        let mut expected = BTreeSet::new();
        for kept in self.kept.iter().filter(|kept| key != kept.id.key(SNAPSHOTS)) {
            let list = kept.snapshot.list[0];
            if unreadable.contains(&list) {
                expected.insert((kept.id, format!("all entries in list chunk {}", list.short())));
            } else {
                let touched = kept.chunks.iter().filter(|(_, chunks)| !chunks.is_disjoint(&gone));
                expected.extend(touched.map(|(path, _)| (kept.id, path.clone())));
            }
        }
        let touched: BTreeSet<(Id, String)> = found.touched.iter().map(|one| (one.snapshot, one.path.clone())).collect();
        assert_eq!(touched, expected, "{at}: {found:?}");
    }

    /// Restores every snapshot: what cannot be had is named, and all the rest is what it was.
    async fn restore(&self, key: &str, change: Change) {
        let at = format!("{key}, {change:?}");
        let opened = match Repository::open(self.bench.store.clone(), "here", &unlock()).await {
            Err(_) => Repository::open(self.bench.store.clone(), "here", &another_key()).await,
            opened => opened,
        };
        let Ok(repository) = opened.map(Arc::new) else { return assert_eq!(key, CONFIG) };
        let (_, unreadable) = self.cost(key, change);
        for kept in &self.kept {
            let snapshot = match repository.snapshot(&kept.id.to_string()).await {
                Ok((_, snapshot)) => snapshot,
                Err(RepositoryError::Damaged { object, .. }) => {
                    assert!(object == key && key == kept.id.key(SNAPSHOTS), "{at}: {object}");
                    continue;
                }
                Err(error) => panic!("{at}: {error}"),
            };
            let (done, back) = restored(&repository, &snapshot).await;
            let list = kept.snapshot.list[0];
            let lost: Vec<String> = if unreadable.contains(&list) {
                vec![format!("entries in chunk {} of the list", list.short())]
            } else {
                kept.chunks.iter().filter(|(_, chunks)| !chunks.is_disjoint(&unreadable)).map(|(path, _)| path.clone()).collect()
            };
            assert_eq!(done.damaged.iter().map(|lost| lost.path.clone()).collect::<Vec<_>>(), lost, "{at}: {done:?}");
            assert!(done.damaged.iter().all(|lost| lost.why.contains(key)), "{at}: {done:?}");
            let mut expected = kept.contents.clone();
            expected.retain(|path, _| !lost.contains(path) && !unreadable.contains(&list));
            assert!(back == expected, "{at}: {:?} came back", back.keys());
        }
    }
}

/// Every byte of both ends, where a header and a directory stand, and a spread of what lies between; ends of all kinds.
fn changes(length: usize) -> Vec<Change> {
    let step = length.div_ceil(150);
    let bits = (0..length).filter(|at| *at < HEADER + 8 || at + 24 >= length || at % step == 0).map(Change::Bit);
    let cuts = BTreeSet::from([0, 1, HEADER - 1, HEADER, length / 2, length * 3 / 4, length - 1]);
    bits.chain(cuts.into_iter().filter(|cut| *cut < length).map(Change::Cut)).collect()
}

async fn sweep(folders: &[&str], at_least: usize) {
    let yard = Yard::new().await;
    let listed = yard.bench.repository.list("").await.unwrap();
    let keys: Vec<String> = listed.into_iter().map(|meta| meta.key).filter(|key| folders.iter().any(|f| key.starts_with(f))).collect();
    assert!(keys.len() >= at_least, "{keys:?}");
    for key in &keys {
        let path = yard.dir.path().join(key);
        let whole = fs::read(&path).unwrap();
        for (number, change) in changes(whole.len()).into_iter().enumerate() {
            let mut bytes = whole.clone();
            match change {
                Change::Bit(at) => bytes[at] ^= 1 << (at % 8),
                Change::Cut(length) => bytes.truncate(length),
            }
            overwrite(&path, &bytes);
            yard.look(key, change).await;
            // A restore takes longer: some of them, and of packs more.
            let each = if key.starts_with(PACKS) { 7 } else { 31 };
            if number % each == 0 || matches!(change, Change::Cut(_)) {
                yard.restore(key, change).await;
            }
        }
        overwrite(&path, &whole);
    }
    let found = verified(&yard.bench.repository, Depth::All).await;
    assert!(found.is_good() && found.notices.len() == 1, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flipped_bit_and_every_cut_of_a_pack_is_named_and_costs_what_lies_there() {
    sweep(&[PACKS], 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flipped_bit_and_every_cut_of_index_and_snapshots_is_named_and_costs_no_more() {
    sweep(&[INDEX, SNAPSHOTS], 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flipped_bit_and_every_cut_of_config_and_keys_is_named() {
    sweep(&[CONFIG, KEYS], 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flipped_bit_and_every_cut_of_marks_proofs_and_logs_is_named() {
    sweep(&[MARKS, PROOFS, WAL], 3).await;
}
