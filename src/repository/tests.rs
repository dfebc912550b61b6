//! The repository as a whole, over a real directory: what is written is read, what is damaged is named, and whatever
//! is left behind by who was interrupted, what is finished restores.

use super::{
    create::{About, Base, Created, create},
    entry::{Entry, Instant, Meta, Node},
    index::Index,
    keys::Unlock,
    list,
    open::Repository,
    progress::Progress,
    prune,
    snapshot::Source as Origin,
    source::{Body, Item, Parent, Reading, Source, Unreadable, unread},
    verify::{Depth, verify},
};
use crate::providers::{
    clock::{Clock, SystemClock},
    directory::Directory,
    port::ObjectWrite,
};
use secrecy::SecretBox;
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Files in memory: their content, and a number that changes when they do.
pub(super) type Files = BTreeMap<&'static str, (Vec<u8>, u32)>;

struct Memory {
    files: std::vec::IntoIter<(&'static str, (Vec<u8>, u32))>,
    parent: Parent,
}

struct Bytes(std::io::Cursor<Vec<u8>>);
impl Body for Bytes {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        std::io::Read::read(&mut self.0, into)
    }
    fn hole(&mut self) -> std::io::Result<u64> {
        Ok(0)
    }
    fn changed(&mut self) -> std::io::Result<bool> {
        Ok(false)
    }
}

impl Source for Memory {
    fn next(&mut self) -> Option<super::Result<std::result::Result<Item, Unreadable>>> {
        let (path, (content, version)) = self.files.next()?;
        let ctime = Instant { seconds: i64::from(version), nanos: 0 };
        let node = |content| Node::File { meta: Meta::default(), ctime, inode: 1, content };
        let path = path.as_bytes().to_vec();
        let found = match self.parent.at(&path) {
            Ok(found) => found,
            Err(error) => return Some(Err(error)),
        };
        Some(Ok(Ok(match found {
            Some(Entry { node: Node::File { ctime: before, content: held, .. }, .. }) if before == ctime => {
                Item { entry: Entry { path, node: node(held) }, reading: Reading::Same }
            }
            _ => {
                let entry = Entry { path, node: node(unread(content.len() as u64)) };
                Item { entry, reading: Reading::Read(Box::new(Bytes(std::io::Cursor::new(content)))) }
            }
        })))
    }
}

pub(super) struct Bench {
    pub store: Arc<dyn ObjectWrite>,
    pub clock: Arc<dyn Clock>,
    pub repository: Arc<Repository>,
}

pub(super) fn unlock() -> Unlock {
    // A key file: nothing to stretch.
    Unlock::KeyFile(Arc::new(SecretBox::new(Box::new(vec![7; 64]))))
}

impl Bench {
    pub async fn new(dir: &Path) -> Self {
        let store: Arc<dyn ObjectWrite> = Arc::new(Directory::new(dir.to_owned()));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        Repository::make(&*store, "here", &unlock(), "test", clock.now()).await.unwrap();
        let repository = Arc::new(Repository::open(store.clone(), "here", &unlock()).await.unwrap());
        Self { store, clock, repository }
    }
    pub async fn backup(&self, files: &Files) -> Created {
        self.try_backup(files).await.unwrap()
    }
    pub fn source(files: &Files, parent: Parent) -> Box<dyn Source> {
        let files: Vec<_> = files.clone().into_iter().collect();
        Box::new(Memory { files: files.into_iter(), parent })
    }
    pub async fn size(&self) -> u64 {
        self.repository.list("").await.unwrap().iter().map(|meta| meta.size).sum()
    }
    pub async fn try_backup(&self, files: &Files) -> super::Result<Created> {
        let parent = self.repository.snapshots().await.unwrap().whole.pop();
        let base = Base::load(&self.repository, parent, &*self.clock).await.unwrap();
        let source = Self::source(files, base.entries(&self.repository));
        let about = About {
            origin: Origin::Stream { name: "test".to_owned(), of: None },
            host: String::new(),
            user: String::new(),
            tags: Vec::new(),
            run: None,
        };
        create(self.repository.clone(), self.store.clone(), source, base, about, Arc::default(), self.clock.clone()).await
    }
    /// Everything that a snapshot holds.
    pub async fn content(&self, snapshot: &super::snapshot::Snapshot) -> BTreeMap<String, Vec<u8>> {
        let index: Index = self.repository.index().await.unwrap().whole;
        let mut files = BTreeMap::new();
        for chunk in &snapshot.list {
            for entry in list::entries(chunk, &self.repository.chunk(&index, chunk).await.unwrap()).unwrap() {
                let content = entry.node.content().unwrap();
                let mut bytes = Vec::new();
                for extent in self.repository.extents(&index, &entry.path, content).await.unwrap() {
                    bytes.extend(self.repository.extent(&index, &extent).await.unwrap());
                }
                assert_eq!(*blake3::hash(&bytes).as_bytes(), content.digest.0, "{}", entry.shown());
                files.insert(entry.shown(), bytes);
            }
        }
        files
    }
    pub async fn is_whole(&self) -> bool {
        let found = verify(self.repository.clone(), None, Depth::All, [1; 32], Arc::new(Progress::default())).await.unwrap();
        assert_eq!(found.problems.is_empty(), found.is_good(), "{found:?}");
        found.is_good()
    }
    pub async fn prune(&self, grace_s: u64) -> prune::Pruned {
        let look = prune::look(&self.repository, self.clock.now()).await.unwrap();
        prune::prune(self.repository.clone(), self.store.clone(), look, grace_s, Arc::default()).await.unwrap()
    }
}

/// Bytes that nothing compresses.
pub(super) fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    bytes
}

pub(super) fn some_files() -> Files {
    let mut sparse = vec![0; 6 << 20];
    sparse[5 << 20] = 1;
    Files::from([
        ("a/large", (noise(1, 2 << 20), 1)),
        ("a/same", (noise(1, 2 << 20), 1)),
        ("b", (b"a short one".to_vec(), 1)),
        ("c/empty", (Vec::new(), 1)),
        ("d", (sparse, 1)),
        ("e", (noise(2, 300 << 10), 1)),
    ])
}

fn expected(files: &Files) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(path, (content, _))| ((*path).to_owned(), content.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_backed_up_comes_back_and_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let mut files = some_files();
    let first = bench.backup(&files).await;
    let stats = &first.snapshot.stats;
    let new: usize = (2 << 20) + 11 + (300 << 10);
    assert!(stats.bytes_new as usize >= new && (stats.bytes_new as usize) < new + (5 << 20), "{stats:?}");
    assert!((stats.bytes_stored as usize) < new + (1 << 20), "{stats:?}");
    assert_eq!(bench.content(&first.snapshot).await, expected(&files));

    let second = bench.backup(&files).await;
    let stats = &second.snapshot.stats;
    assert_eq!((stats.bytes_read, stats.bytes_new, stats.chunks_new), (0, 0, 0));
    assert!(stats.bytes_stored == 0 || stats.bytes_stored < 2000, "{stats:?}");
    assert_eq!(second.snapshot.list, first.snapshot.list);

    files.insert("b", (b"another".to_vec(), 2));
    files.remove("e");
    let third = bench.backup(&files).await;
    assert_eq!((third.snapshot.stats.bytes_read, third.snapshot.stats.bytes_new), (7, 7));
    assert_eq!(bench.content(&third.snapshot).await, expected(&files));
    assert!(bench.is_whole().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_is_made_good_from_the_packs() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let files = some_files();
    let made = bench.backup(&files).await;
    for meta in bench.repository.list("index/").await.unwrap() {
        std::fs::write(dir.path().join(&meta.key), b"gone").unwrap();
    }
    assert!(!bench.is_whole().await, "a damaged index is damage");
    assert_eq!(bench.content(&made.snapshot).await, expected(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_made_good_by_the_next_backup() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let files = some_files();
    bench.backup(&files).await;
    // Everything but the list, which stands in the last pack: that one says so by its size.
    let packs = bench.repository.list("packs/").await.unwrap();
    let largest = packs.iter().max_by_key(|meta| meta.size).unwrap();
    std::fs::remove_file(dir.path().join(&largest.key)).unwrap();
    assert!(!bench.is_whole().await);
    let again = bench.backup(&files).await;
    assert!(again.snapshot.stats.bytes_new > 100 << 10, "{:?}", again.snapshot.stats);
    assert_eq!(bench.content(&again.snapshot).await, expected(&files));
    // A prune keeps what is there, not what is missing.
    bench.prune(0).await;
    bench.prune(0).await;
    assert_eq!(bench.content(&again.snapshot).await, expected(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_data_go_in_two_phases_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let mut files = some_files();
    let first = bench.backup(&files).await;
    files.remove("a/large");
    files.remove("a/same");
    let second = bench.backup(&files).await;
    prune::forget(&*bench.store, &[first.id]).await.unwrap();
    let marked = bench.prune(3600).await;
    assert!(marked.marked > 0 && marked.deleted == 0, "{marked:?}");
    assert_eq!(bench.prune(3600).await.deleted, 0, "within the grace");

    // Whoever writes now takes nothing from what is marked, but stores it anew.
    let files = some_files();
    let third = bench.backup(&files).await;
    assert!(third.snapshot.stats.bytes_new > 1 << 20, "{:?}", third.snapshot.stats);
    assert_eq!(bench.content(&third.snapshot).await, expected(&files));
    assert_eq!(bench.content(&second.snapshot).await.len(), 4);
    assert!(bench.is_whole().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_grace_space_comes_back_at_the_second_run() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let mut files = some_files();
    let first = bench.backup(&files).await;
    files.remove("a/large");
    files.remove("a/same");
    let second = bench.backup(&files).await;
    prune::forget(&*bench.store, &[first.id]).await.unwrap();
    bench.prune(0).await;
    let done = bench.prune(0).await;
    assert!(done.deleted > 0 && done.deleted_bytes > 1 << 20, "{done:?}");
    let size = bench.size().await;
    assert!(size < 500 << 10, "{size} bytes are left");
    assert_eq!(bench.content(&second.snapshot).await, expected(&files));
    assert!(bench.is_whole().await);
    assert_eq!(bench.prune(0).await, prune::Pruned::default());
}

/// Gives these items, as a tree would.
struct Given(std::vec::IntoIter<Item>);
impl Source for Given {
    fn next(&mut self) -> Option<super::Result<std::result::Result<Item, Unreadable>>> {
        self.0.next().map(|item| Ok(Ok(item)))
    }
}

/// A bad sector after the first few bytes.
struct BreaksOff(bool);
impl Body for BreaksOff {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if std::mem::replace(&mut self.0, true) { Err(std::io::Error::other("a bad sector")) } else { Ok(into.len().min(3)) }
    }
    fn hole(&mut self) -> std::io::Result<u64> {
        Ok(0)
    }
    fn changed(&mut self) -> std::io::Result<bool> {
        Ok(false)
    }
}

/// Else the snapshot would have a link to what is not in it, and only a restore would find out.
#[tokio::test(flavor = "multi_thread")]
async fn other_names_of_a_file_that_cannot_be_read_are_told_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path()).await;
    let now = Instant { seconds: 1, nanos: 0 };
    let node = || Node::File { meta: Meta::default(), ctime: now, inode: 1, content: unread(5000) };
    let link = |to: &str| Node::HardLink { meta: Meta::default(), to: to.into() };
    let item = |path: &str, node, reading| Item { entry: Entry { path: path.into(), node }, reading };
    let items = vec![
        item("bad", node(), Reading::Read(Box::new(BreaksOff(false)))),
        item("good", node(), Reading::Read(Box::new(Bytes(std::io::Cursor::new(noise(1, 5000)))))),
        item("third", link("bad"), Reading::Nothing),
        item("twin", link("good"), Reading::Nothing),
    ];
    let base = Base::load(&bench.repository, None, &*bench.clock).await.unwrap();
    let origin = Origin::Stream { name: "test".to_owned(), of: None };
    let about = About { origin, host: String::new(), user: String::new(), tags: Vec::new(), run: None };
    let (repository, store) = (bench.repository.clone(), bench.store.clone());
    let source = Box::new(Given(items.into_iter()));
    let made = create(repository, store, source, base, about, Arc::default(), bench.clock.clone()).await.unwrap();
    let told: Vec<(&[u8], &str)> = made.unreadable.iter().map(|lost| (lost.path.as_slice(), lost.why.as_str())).collect();
    assert_eq!(told, [(&b"bad"[..], "a bad sector"), (b"third", "it is another name of bad, which cannot be read")]);
    assert_eq!((made.snapshot.stats.unreadable, made.snapshot.stats.files), (2, 2));
    let target = tempfile::tempdir().unwrap();
    let options = super::restore::RestoreOptions {
        include: super::globs::Globs::none(),
        into: super::restore::Into::Empty,
        owner: false,
        dry_run: false,
    };
    let done = super::restore::restore(bench.repository.clone(), &made.snapshot, target.path(), options, Arc::default()).await.unwrap();
    assert_eq!((done.files, done.damaged.len()), (2, 0), "{done:?}");
    // A bucket knows no links, but what has several names is content all the same.
    for wanted in [&["good", "twin"][..], &["twin"]] {
        let bucket = tempfile::tempdir().unwrap();
        let to = super::wrapped::Wrapped::new(bucket.path(), |_, _| Ok(()));
        let wants = move |path: &[u8]| wanted.iter().any(|name| name.as_bytes() == path);
        let how = super::restore_bucket::How::default();
        let done = super::restore_bucket::restore(bench.repository.clone(), &made.snapshot, to, wants, how, Arc::default()).await.unwrap();
        assert_eq!((done.objects, done.lost.len()), (wanted.len() as u64, 0), "{done:?}");
        assert!(wanted.iter().all(|name| std::fs::read(bucket.path().join(name)).unwrap() == noise(1, 5000)));
    }
}
