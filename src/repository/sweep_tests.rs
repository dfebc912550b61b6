//! Whoever dies, dies between two requests to the store or in the middle of one. So each piece of work is done again and
//! again, and its store dies at every request in turn: before it has an effect, and after. What was finished must be
//! whole each time, what comes after must succeed, and what is left over must go.

use super::{
    copy,
    create::{About, Base, create},
    keys::Unlock,
    open::Repository,
    prune,
    snapshot::Source as Origin,
    tests::{Bench, Files, noise, unlock},
};
use crate::providers::{
    clock::{Clock, SystemClock},
    directory::Directory,
    port::*,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

/// A store that dies at one request that writes.
struct Dying {
    inner: Directory,
    /// Writes that are left; at zero it dies.
    left: AtomicI64,
    /// Is the last one carried out, though nobody hears of it?
    late: bool,
}

impl Dying {
    /// Does this write happen, and is its answer heard?
    fn next(&self) -> (bool, bool) {
        let left = self.left.fetch_sub(1, SeqCst);
        (left > 0 || (left == 0 && self.late), left > 0)
    }
    fn alive(&self) -> PortResult<()> {
        if self.left.load(SeqCst) < 0 { Err(dead()) } else { Ok(()) }
    }
}

fn dead() -> PortError {
    // Definite: it is not tried again, as by a process that is gone.
    PortError::Refused("the process is dead".to_owned())
}

#[async_trait]
impl ObjectRead for Dying {
    async fn list(&self, prefix: &str, after: Option<&str>) -> PortResult<ObjectPage> {
        self.alive()?;
        self.inner.list(prefix, after).await
    }
    async fn head(&self, key: &str) -> PortResult<Option<ObjectMeta>> {
        self.alive()?;
        self.inner.head(key).await
    }
    async fn get(&self, key: &str) -> PortResult<ObjectBody> {
        self.alive()?;
        self.inner.get(key).await
    }
    async fn get_if(&self, key: &str, etag: &str) -> PortResult<ObjectBody> {
        self.inner.get_if(key, etag).await
    }
    async fn range(&self, key: &str, from: u64, length: u64) -> PortResult<Vec<u8>> {
        self.alive()?;
        self.inner.range(key, from, length).await
    }
    fn place(&self, key: &str) -> Option<ObjectPlace> {
        self.inner.place(key)
    }
    async fn provider(&self) -> PortResult<Option<String>> {
        self.inner.provider().await
    }
    async fn locks(&self) -> PortResult<bool> {
        self.inner.locks().await
    }
    async fn retention(&self, key: &str) -> PortResult<Option<jiff::Timestamp>> {
        self.inner.retention(key).await
    }
}

#[async_trait]
impl ObjectWrite for Dying {
    async fn put(&self, key: &str, body: Bytes, metadata: &BTreeMap<String, String>, only_if_absent: bool) -> PortResult<ObjectMeta> {
        let (happens, heard) = self.next();
        let answer = if happens { self.inner.put(key, body, metadata, only_if_absent).await } else { Err(dead()) };
        if heard { answer } else { Err(dead()) }
    }
    async fn delete(&self, key: &str) -> PortResult<()> {
        let (happens, heard) = self.next();
        if happens {
            self.inner.delete(key).await?;
        }
        if heard { Ok(()) } else { Err(dead()) }
    }
    async fn put_file(&self, _: &str, _: &Path, _: &str, _: &BTreeMap<String, String>, _: bool) -> PortResult<ObjectMeta> {
        Err(dead())
    }
    async fn put_stream(&self, _: &str, _: Chunks, _: &BTreeMap<String, String>, _: bool) -> PortResult<ObjectMeta> {
        Err(dead())
    }
    async fn copy_from(&self, _: &str, _: &ObjectPlace, _: &ObjectMeta) -> PortResult<ObjectMeta> {
        Err(dead())
    }
    async fn retain(&self, _: &str, _: jiff::Timestamp, _: LockMode) -> PortResult<()> {
        Err(dead())
    }
    async fn swap(&self, _: &str, _: Vec<u8>, _: Option<&str>) -> PortResult<()> {
        Err(dead())
    }
}

fn dying(dir: &Path, left: i64, late: bool) -> Arc<Dying> {
    Arc::new(Dying { inner: Directory::new(dir.to_owned()), left: AtomicI64::new(left), late })
}

fn files(version: u8) -> Files {
    // Three packs and some.
    let names = ["a", "b", "c", "d", "e"];
    names.into_iter().enumerate().map(|(n, name)| (name, (noise(n as u8 + version * 10, 160 << 10), u32::from(version)))).collect()
}

/// Does `work` with a store that dies at every write in turn, until it lives to the end. Says how often it died.
async fn sweep<F: Future<Output = bool>>(dir: &Path, mut work: impl FnMut(Arc<Dying>) -> F) -> i64 {
    let mut deaths = 0;
    for left in 0..200 {
        for late in [false, true] {
            if work(dying(dir, left, late)).await {
                return deaths;
            }
            deaths += 1;
        }
    }
    panic!("it never came to an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_killed_at_any_request_leaves_every_finished_snapshot_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(dir.path()).await;
    let small = Files::from([("z", (noise(99, 1000), 1))]);
    let first = bench.backup(&small).await;
    let real = bench.store.clone();
    let deaths = {
        let mut left = 0;
        let mut deaths = 0;
        loop {
            let late = left % 2 == 1;
            let dying = dying(dir.path(), left / 2, late);
            bench.store = dying.clone();
            // A new content each time: nothing is left over from the time before.
            let done = bench.try_backup(&files((left + 1) as u8)).await;
            bench.store = real.clone();
            assert!(bench.is_whole().await, "after death at write {left}");
            assert_eq!(bench.content(&first.snapshot).await.len(), 1);
            if done.is_ok() && dying.left.load(SeqCst) >= 0 {
                break;
            }
            (left, deaths) = (left + 1, deaths + 1);
        }
        deaths
    };
    assert!(deaths >= 8, "it died only {deaths} times");
    // What the dead left behind goes; what was finished stays.
    let snapshots = bench.repository.snapshots().await.unwrap().whole.len();
    let before: u64 = bench.size().await;
    bench.prune(0).await;
    bench.prune(0).await;
    assert!(bench.size().await < before && bench.is_whole().await);
    assert_eq!(bench.repository.snapshots().await.unwrap().whole.len(), snapshots);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_killed_at_any_request_loses_nothing_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let kept = bench.backup(&Files::from([("k", (noise(50, 100 << 10), 1))])).await;
    let (repository, clock) = (bench.repository.clone(), bench.clock.clone());
    for round in 0..2 {
        let gone = bench.backup(&files(20 + round)).await;
        prune::forget(&*bench.store, &[gone.id]).await.unwrap();
    }
    let (work, mut rounds) = (&bench, 0);
    // It takes two runs: one that marks and one that deletes.
    for _ in 0..2 {
        rounds += sweep(dir.path(), |store| {
            let (repository, clock) = (repository.clone(), clock.clone());
            async move {
                let look = prune::look(&repository, clock.now()).await.unwrap();
                let done = prune::prune(repository, store, look, 0, Arc::default()).await;
                assert!(work.is_whole().await, "{done:?}");
                done.is_ok()
            }
        })
        .await;
    }
    assert!(rounds >= 4, "it died only {rounds} times");
    assert_eq!(bench.content(&kept.snapshot).await.len(), 1);
    bench.prune(0).await;
    bench.prune(0).await;
    assert!(bench.size().await < 130 << 10, "{} bytes are left", bench.size().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_killed_at_any_request_is_never_half_a_snapshot() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::new(dir.path()).await;
    bench.backup(&files(1)).await;
    let snapshots = bench.repository.snapshots().await.unwrap().whole;
    let (repository, snapshots, bench, place) = (&bench.repository, &snapshots, &bench, other.path());
    let deaths = sweep(other.path(), |store| async move {
        let done = copy::copy(repository, store, "there", snapshots, Arc::default(), &*bench.clock).await;
        let there: Arc<dyn ObjectWrite> = Arc::new(Directory::new(place.to_owned()));
        if let Ok(copied) = Repository::open(there.clone(), "there", &unlock()).await {
            let copy = Bench { store: there, clock: bench.clock.clone(), repository: Arc::new(copied) };
            assert!(copy.is_whole().await);
        }
        done.is_ok()
    })
    .await;
    assert!(deaths >= 6, "it died only {deaths} times");
    let there: Arc<dyn ObjectWrite> = Arc::new(Directory::new(other.path().to_owned()));
    let copy = Repository::open(there.clone(), "there", &unlock()).await.unwrap();
    let copy = Bench { store: there, clock: bench.clock.clone(), repository: Arc::new(copy) };
    let snapshot = copy.repository.snapshots().await.unwrap().whole.pop().unwrap().1;
    assert_eq!(copy.content(&snapshot).await, bench.content(&snapshots[0].1).await);
}

/// A clock that is ahead of the store's.
pub(super) struct Ahead(pub SystemClock, pub Duration);

#[async_trait]
impl Clock for Ahead {
    fn now(&self) -> jiff::Timestamp {
        self.0.now() + self.1
    }
    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
    async fn sleep(&self, length: Duration) {
        self.0.sleep(length).await;
    }
    fn new_id(&self) -> String {
        self.0.new_id()
    }
    fn jitter(&self) -> f64 {
        self.0.jitter()
    }
}

pub(super) const HOUR: Duration = Duration::from_hours(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_relied_on_what_is_to_be_deleted_stores_it_anew() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let gone = bench.backup(&files(1)).await;
    // It looks, and is slow; meanwhile its parent is forgotten, and the packs are marked.
    let base = Base::load(&bench.repository, bench.repository.snapshots().await.unwrap().whole.pop(), &*bench.clock).await.unwrap();
    prune::forget(&*bench.store, &[gone.id]).await.unwrap();
    bench.prune(24 * 3600).await;
    let clock: Arc<dyn Clock> = Arc::new(Ahead(SystemClock::new(), HOUR * 13));
    let source = Bench::source(&files(1), base.entries(&bench.repository));
    let about = About {
        origin: Origin::Stream { name: "test".to_owned(), of: None },
        host: String::new(),
        user: String::new(),
        tags: Vec::new(),
        run: None,
    };
    let made = create(bench.repository.clone(), bench.store.clone(), source, base, about, Arc::default(), clock).await.unwrap();
    assert_eq!((made.snapshot.stats.bytes_read, made.snapshot.stats.bytes_new), (0, 0), "nothing was read");
    assert!(made.snapshot.stats.bytes_stored > 700 << 10, "all of it was stored anew: {:?}", made.snapshot.stats);
    let look = prune::look(&bench.repository, bench.clock.now() + HOUR * 25).await.unwrap();
    let done = prune::prune(bench.repository.clone(), bench.store.clone(), look, 24 * 3600, Arc::default()).await.unwrap();
    assert!(done.deleted > 0, "{done:?}");
    assert!(bench.is_whole().await);
    assert_eq!(bench.content(&made.snapshot).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_and_a_prune_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let old = bench.backup(&files(1)).await;
    prune::forget(&*bench.store, &[old.id]).await.unwrap();
    let (one, two) = (files(1), files(2));
    let prunes = async {
        for _ in 0..6 {
            bench.prune(3600).await;
        }
    };
    // The same content from two sides, beside others, while its packs are marked.
    let (a, b, c, ()) = tokio::join!(bench.backup(&one), bench.backup(&one), bench.backup(&two), prunes);
    assert!(bench.is_whole().await);
    for made in [a, b, c] {
        assert_eq!(bench.content(&made.snapshot).await.len(), 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_make_a_repository_in_one_place_share_it() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectWrite> = Arc::new(Directory::new(dir.path().to_owned()));
    let now = jiff::Timestamp::UNIX_EPOCH;
    let (key, other) = (unlock(), Unlock::KeyFile(Arc::new(secrecy::SecretBox::new(Box::new(vec![9; 64])))));
    let (a, b) = tokio::join!(Repository::make(&*store, "here", &key, "a", now), Repository::make(&*store, "here", &other, "b", now));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(a || b);
    let opens = [Repository::open(store.clone(), "here", &key).await.is_ok(), Repository::open(store, "here", &other).await.is_ok()];
    assert_eq!(opens.iter().filter(|opens| **opens).count(), 1, "the other one's key opens nothing");
}
