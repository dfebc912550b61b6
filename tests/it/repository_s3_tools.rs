//! For the tests of the repository on S3: a repository that is quick to open, eyes that see what is read of it, and
//! weather over the connections to a server.

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use muster::{
    providers::{
        clock::{Clock, SystemClock},
        port::*,
    },
    repository::{
        Result,
        bucket::Bucket,
        copy::{Copied, copy},
        create::{About, Base, Created, create},
        globs::Globs,
        keys::Unlock,
        names::Id,
        open::Repository,
        prune::{self, Pruned},
        restore::{Into as Onto, RestoreOptions, Restored, restore},
        restore_bucket,
        snapshot::{Snapshot, Source as Origin},
        tree::{Options, Tree},
        verify::{Depth, Verified, verify},
    },
};
use secrecy::SecretBox;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A key file: nothing to stretch.
pub const KEY: [u8; 64] = [7; 64];

/// Bytes that nothing compresses.
pub fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    bytes
}

pub fn chunks(body: Vec<u8>) -> Chunks {
    let pieces: Vec<PortResult<Vec<u8>>> = body.chunks(777_777).map(|chunk| Ok(chunk.to_vec())).collect();
    stream::iter(pieces).boxed()
}

pub async fn body(store: &dyn ObjectRead, key: &str) -> Vec<u8> {
    let got = store.get(key).await.unwrap_or_else(|e| panic!("{key}: {e}"));
    got.chunks.try_concat().await.unwrap_or_else(|e| panic!("{key}: {e}"))
}

/// In the order of their bytes.
pub async fn keys(store: &dyn ObjectRead, prefix: &str) -> Vec<String> {
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(prefix, after.as_deref()).await.unwrap();
        keys.extend(page.objects.into_iter().map(|object| object.key));
        after = page.next;
        if after.is_none() {
            keys.sort_unstable();
            return keys;
        }
    }
}

pub struct Depot {
    pub store: Arc<dyn ObjectWrite>,
    pub repository: Arc<Repository>,
    clock: Arc<dyn Clock>,
}

fn unlock() -> Unlock {
    Unlock::KeyFile(Arc::new(SecretBox::new(Box::new(KEY.to_vec()))))
}

impl Depot {
    /// Makes it.
    pub async fn new(store: Arc<dyn ObjectWrite>) -> Self {
        assert!(Repository::make(&*store, "here", &unlock(), "test", Timestamp::now()).await.unwrap());
        assert!(!Repository::make(&*store, "here", &unlock(), "test", Timestamp::now()).await.unwrap(), "it is there");
        Self::open(store).await
    }
    pub async fn open(store: Arc<dyn ObjectWrite>) -> Self {
        Self::try_open(store).await.unwrap()
    }
    pub async fn try_open(store: Arc<dyn ObjectWrite>) -> Result<Self> {
        let repository = Arc::new(Repository::open(store.clone(), "here", &unlock()).await?);
        Ok(Self { store, repository, clock: Arc::new(SystemClock::new()) })
    }

    /// Compared with the newest snapshot of the same source.
    async fn base(&self, origin: &Origin) -> Result<Base> {
        let mut snapshots = self.repository.snapshots().await?.whole;
        snapshots.retain(|(_, snapshot)| snapshot.source == *origin);
        Base::load(&self.repository, snapshots.pop(), &*self.clock).await
    }
    async fn create(&self, origin: Origin, base: Base, source: Box<dyn muster::repository::source::Source>) -> Result<Created> {
        let about = About { origin, host: "here".to_owned(), user: "somebody".to_owned(), tags: Vec::new(), run: None };
        create(self.repository.clone(), self.store.clone(), source, base, about, Arc::default(), self.clock.clone()).await
    }
    pub async fn backup_folder(&self, root: &Path) -> Result<Created> {
        let origin = Origin::Tree { path: root.to_str().unwrap().to_owned() };
        let base = self.base(&origin).await?;
        let source = Tree::new(root, base.entries(&self.repository), Options::default())?;
        self.create(origin, base, Box::new(source)).await
    }
    pub async fn backup_bucket(&self, objects: Arc<dyn ObjectWrite>) -> Result<Created> {
        let origin = Origin::Bucket { url: "s3://models/prod".to_owned() };
        let base = self.base(&origin).await?;
        let source = Bucket::new(objects, base.entries(&self.repository), false);
        self.create(origin, base, Box::new(source)).await
    }

    pub async fn verify(&self) -> Verified {
        verify(self.repository.clone(), None, Depth::All, [1; 32], Arc::default()).await.unwrap()
    }
    pub async fn is_whole(&self) {
        let found = self.verify().await;
        assert!(found.is_good(), "{:?} {:?}", found.problems, found.touched);
    }
    pub async fn restore(&self, snapshot: &Snapshot, to: &Path) -> Restored {
        let options = RestoreOptions { include: Globs::none(), into: Onto::Empty, owner: false, dry_run: false };
        restore(self.repository.clone(), snapshot, to, options, Arc::default()).await.unwrap()
    }
    pub async fn restore_objects(&self, snapshot: &Snapshot, to: Arc<dyn ObjectWrite>) -> restore_bucket::Restored {
        restore_bucket::restore(self.repository.clone(), snapshot, to, |_| true, restore_bucket::How::default(), Arc::default())
            .await
            .unwrap()
    }
    pub async fn copy(&self, to: Arc<dyn ObjectWrite>, snapshots: &[(Id, Snapshot)]) -> Copied {
        copy(&self.repository, to, "there", snapshots, Arc::default(), &SystemClock::new()).await.unwrap()
    }
    pub async fn forget(&self, snapshots: &[Id]) {
        prune::forget(&*self.store, snapshots).await.unwrap();
    }
    pub async fn prune(&self, grace_s: u64) -> Pruned {
        let look = prune::look(&self.repository, self.clock.now()).await.unwrap();
        prune::prune(self.repository.clone(), self.store.clone(), look, grace_s, Arc::default()).await.unwrap()
    }
    /// Puts other bytes in place of an object, as nobody should.
    pub async fn replace(&self, key: &str, bytes: Vec<u8>, at_once: bool) {
        if !at_once {
            self.store.delete(key).await.unwrap();
        }
        self.store.put(key, bytes.into(), &BTreeMap::new(), false).await.unwrap();
    }
}

/// A store, and what was read of it: packs as a whole, and how many bytes in ranges.
pub struct Eyes {
    store: Arc<dyn ObjectWrite>,
    whole: Mutex<Vec<String>>,
    ranges: AtomicU64,
}

impl Eyes {
    pub fn new(store: Arc<dyn ObjectWrite>) -> Self {
        Self { store, whole: Mutex::default(), ranges: AtomicU64::new(0) }
    }
    pub fn forget(&self) {
        self.whole.lock().unwrap().clear();
        self.ranges.store(0, Relaxed);
    }
    pub fn seen(&self) -> (Vec<String>, u64) {
        (self.whole.lock().unwrap().clone(), self.ranges.load(Relaxed))
    }
    fn see(&self, key: &str) {
        if key.starts_with("packs/") {
            self.whole.lock().unwrap().push(key.to_owned());
        }
    }
}

#[async_trait]
impl ObjectRead for Eyes {
    async fn list(&self, prefix: &str, after: Option<&str>) -> PortResult<ObjectPage> {
        self.store.list(prefix, after).await
    }
    async fn head(&self, key: &str) -> PortResult<Option<ObjectMeta>> {
        self.store.head(key).await
    }
    async fn get(&self, key: &str) -> PortResult<ObjectBody> {
        self.see(key);
        self.store.get(key).await
    }
    async fn get_if(&self, key: &str, etag: &str) -> PortResult<ObjectBody> {
        self.see(key);
        self.store.get_if(key, etag).await
    }
    async fn range(&self, key: &str, from: u64, length: u64) -> PortResult<Vec<u8>> {
        self.ranges.fetch_add(length, Relaxed);
        self.store.range(key, from, length).await
    }
    fn place(&self, key: &str) -> Option<ObjectPlace> {
        self.store.place(key)
    }
    async fn provider(&self) -> PortResult<Option<String>> {
        self.store.provider().await
    }
    async fn locks(&self) -> PortResult<bool> {
        self.store.locks().await
    }
    async fn retention(&self, key: &str) -> PortResult<Option<Timestamp>> {
        self.store.retention(key).await
    }
}

#[async_trait]
impl ObjectWrite for Eyes {
    async fn put(&self, key: &str, body: bytes::Bytes, metadata: &BTreeMap<String, String>, absent: bool) -> PortResult<ObjectMeta> {
        self.store.put(key, body, metadata, absent).await
    }
    async fn put_file(
        &self,
        key: &str,
        file: &Path,
        sha256: &str,
        metadata: &BTreeMap<String, String>,
        absent: bool,
    ) -> PortResult<ObjectMeta> {
        self.store.put_file(key, file, sha256, metadata, absent).await
    }
    async fn put_stream(&self, key: &str, body: Chunks, metadata: &BTreeMap<String, String>, absent: bool) -> PortResult<ObjectMeta> {
        self.store.put_stream(key, body, metadata, absent).await
    }
    async fn copy_from(&self, key: &str, from: &ObjectPlace, listed: &ObjectMeta) -> PortResult<ObjectMeta> {
        self.store.copy_from(key, from, listed).await
    }
    async fn retain(&self, key: &str, until: Timestamp, mode: LockMode) -> PortResult<()> {
        self.store.retain(key, until, mode).await
    }
    async fn swap(&self, key: &str, body: Vec<u8>, expect: Option<&str>) -> PortResult<()> {
        self.store.swap(key, body, expect).await
    }
    async fn delete(&self, key: &str) -> PortResult<()> {
        self.store.delete(key).await
    }
}

/// A small proxy. In bad weather every connection breaks after so many bytes, whichever way they go, by the seed.
pub struct Weather {
    pub port: u16,
    bad: Arc<AtomicBool>,
    cut: Arc<AtomicU64>,
}

/// Most bytes that a connection lives for.
const LONGEST: u64 = 5 * 1024 * 1024;

impl Weather {
    pub async fn over(server: u16, mut seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (bad, cut) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (is_bad, count) = (bad.clone(), cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                // Half of them break soon: within headers and short answers.
                let longest = if seed.is_multiple_of(2) { LONGEST } else { 20_000 };
                let life = if is_bad.load(Relaxed) { (seed >> 8) % longest } else { u64::MAX };
                tokio::spawn(carry(client, server, life, count.clone()));
            }
        });
        Self { port, bad, cut }
    }
    pub fn turn(&self, bad: bool) {
        self.bad.store(bad, Relaxed);
    }
    pub fn cut(&self) -> u64 {
        self.cut.load(Relaxed)
    }
}

async fn carry(mut client: TcpStream, server: u16, mut life: u64, cut: Arc<AtomicU64>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let (mut up, mut down) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    loop {
        let (got, upwards) = tokio::select! {
            got = client.read(&mut up) => (got, true),
            got = server.read(&mut down) => (got, false),
        };
        let Ok(got @ 1..) = got else { return };
        let fits = usize::try_from(life).map_or(got, |life| got.min(life));
        let sent = if upwards { server.write_all(&up[..fits]).await } else { client.write_all(&down[..fits]).await };
        life -= fits as u64;
        if fits < got {
            cut.fetch_add(1, Relaxed);
            return;
        }
        if sent.is_err() {
            return;
        }
    }
}
