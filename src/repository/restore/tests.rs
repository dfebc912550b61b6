//! Restoring: bit for bit, in place only what differs, damage by name, and never outside the target.

mod memory;

use super::{plan::coalesce, *};
use crate::repository::{
    codec::{Compression, Encoder, Hint},
    entry::{Content, Entry, Extent, Extents, Instant, Meta, Node, ObjectInfo},
    index::{self, PackEntry},
    keys::Keyring,
    names::{INDEX, Id, PACKS},
    pack::{self, Packer},
    seal::{self, Kind},
    snapshot::{Source as Origin, Stats},
    source::{Parent, Reading, Source},
    tree::{self, Tree},
};
use memory::Memory;
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::PathBuf,
    time::Duration,
};
use tempfile::TempDir;

const CHUNK: usize = 64 * 1024;

/// A repository that is written by hand.
struct Bench {
    memory: Arc<Memory>,
    repository: Arc<Repository>,
    packs: Vec<PackEntry>,
    home: TempDir,
}

impl Bench {
    fn new() -> Self {
        let memory = Arc::new(Memory::default());
        let keyring = Keyring::new().unwrap();
        let (config, opened_by) = (Id::of(b"config"), String::new());
        let (place, id, compression) = ("memory".to_owned(), "r".to_owned(), Compression::default());
        let repository = Repository { store: memory.clone(), place, id, config, keyring, opened_by, compression };
        Self { memory, repository: Arc::new(repository), packs: Vec::new(), home: tempfile::tempdir().unwrap() }
    }
    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// One pack of these chunks; each chunk once in the whole repository.
    fn pack(&mut self, contents: &[Vec<u8>]) -> Vec<Id> {
        let mut packer = Packer::new(&self.repository.keyring).unwrap();
        let mut ids = Vec::new();
        for content in contents {
            let id = self.repository.keyring.chunk_id(content);
            let known = self.packs.iter().flat_map(|entry| &entry.pieces).any(|piece| piece.chunk == id) || ids.contains(&id);
            if !known {
                packer.add(id, content, Hint::None, &mut Encoder::new()).unwrap();
            }
            ids.push(id);
        }
        if !packer.is_empty() {
            let pack = packer.finish().unwrap();
            self.packs.push(PackEntry { pack: pack.id, size: pack.bytes.len() as u64, pieces: pack.pieces });
            lock(&self.memory.objects).insert(pack.id.key(PACKS), pack.bytes);
        }
        ids
    }

    /// The content of a file, in chunks of 64 KiB; those that are zero are a run.
    fn content(&mut self, bytes: &[u8]) -> Content {
        let chunks: Vec<Vec<u8>> = bytes.chunks(CHUNK).map(<[u8]>::to_vec).collect();
        let data: Vec<Vec<u8>> = chunks.iter().filter(|chunk| chunk.iter().any(|byte| *byte != 0)).cloned().collect();
        let mut ids = self.pack(&data).into_iter();
        let extent = |chunk: &Vec<u8>| match chunk.iter().all(|byte| *byte == 0) {
            true => Extent::Zeros(chunk.len() as u64),
            false => Extent::Chunk { id: ids.next().unwrap(), length: chunk.len() as u32 },
        };
        let extents = Extents::Here(chunks.iter().map(extent).collect());
        Content { size: bytes.len() as u64, changed: false, digest: Id::of(bytes), extents }
    }

    /// The snapshot of these entries, with its index. Each part of the list is a chunk.
    fn snapshot(&mut self, parts: &[Vec<Entry>]) -> Snapshot {
        let chunks: Vec<Vec<u8>> = parts
            .iter()
            .map(|entries| {
                let mut bytes = Vec::new();
                entries.iter().for_each(|entry| entry.encode(&mut bytes));
                bytes
            })
            .collect();
        let list = chunks.iter().flat_map(|chunk| self.pack(std::slice::from_ref(chunk))).collect();
        self.index();
        Snapshot {
            time: jiff::Timestamp::UNIX_EPOCH,
            duration_ms: 0,
            host: String::new(),
            user: String::new(),
            program: String::new(),
            source: Origin::Tree { path: "/".to_owned() },
            tags: Vec::new(),
            parent: None,
            run: None,
            list,
            stats: Stats::default(),
        }
    }
    fn index(&self) {
        let (id, stored) = seal::whole(&self.repository.keyring, Kind::Index, &pack::squeeze(&index::encode(&self.packs))).unwrap();
        lock(&self.memory.objects).retain(|key, _| !key.starts_with(INDEX));
        lock(&self.memory.objects).insert(id.key(INDEX), stored);
    }

    fn backup(&mut self, root: &Path) -> Snapshot {
        let mut tree = Tree::new(root, Parent::none(), tree::Options::default()).unwrap();
        let mut entries = Vec::new();
        while let Some(given) = tree.next() {
            let mut item = given.unwrap().unwrap();
            if let Node::File { content, .. } = &mut item.entry.node {
                *content = self.content(&fs::read(root.join(OsStr::from_bytes(&item.entry.path))).unwrap());
                assert!(matches!(item.reading, Reading::Read(_)));
            }
            entries.push(item.entry);
        }
        self.snapshot(&[entries])
    }

    /// The pack of a file's chunk, by the chunk's content.
    fn pack_of(&self, content: &[u8]) -> (String, pack::Piece) {
        let id = self.repository.keyring.chunk_id(content);
        let entry = self.packs.iter().find(|entry| entry.pieces.iter().any(|piece| piece.chunk == id)).unwrap();
        (entry.pack.key(PACKS), *entry.pieces.iter().find(|piece| piece.chunk == id).unwrap())
    }

    async fn restore(&self, snapshot: &Snapshot, name: &str, options: &RestoreOptions) -> Result<Restored> {
        restore(self.repository.clone(), snapshot, &self.at(name), options.clone(), Arc::default()).await
    }
}

fn options() -> RestoreOptions {
    RestoreOptions { include: Globs::none(), into: Into::Empty, owner: true, dry_run: false }
}
fn in_place() -> RestoreOptions {
    RestoreOptions { into: Into::Place { delete: false }, ..options() }
}
fn including(patterns: &[&str]) -> RestoreOptions {
    RestoreOptions { include: Globs::new(patterns).unwrap(), ..options() }
}

/// Bytes that nothing else has.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

/// Everything about a tree that a restore brings back.
fn described(root: &Path) -> Vec<(String, Node, Vec<u8>)> {
    let mut tree = Tree::new(root, Parent::none(), tree::Options::default()).unwrap();
    let mut all = Vec::new();
    while let Some(given) = tree.next() {
        let Entry { path, mut node } = given.unwrap().unwrap().entry;
        let mut bytes = Vec::new();
        if let Node::File { ctime, inode, .. } = &mut node {
            (*ctime, *inode) = (Instant::default(), 0);
            bytes = fs::read(root.join(OsStr::from_bytes(&path))).unwrap();
        }
        all.push((String::from_utf8_lossy(&path).into_owned(), node, bytes));
    }
    all
}

fn assert_same(one: &Path, other: &Path) {
    for (a, b) in described(one).into_iter().zip(described(other)) {
        assert!(a == b, "{} differs from {}: {:?} and {:?}", a.0, b.0, a.1, b.1);
    }
    assert_eq!(described(one).len(), described(other).len());
}

/// It can be awaited by a task of its own.
fn sent<F: Future + Send>(future: F) -> F {
    future
}

fn damaged(restored: &Restored) -> Vec<&str> {
    restored.damaged.iter().map(|lost| lost.path.as_str()).collect()
}

/// A tree of all kinds.
fn plant(root: &Path) {
    fs::create_dir_all(root.join("models/small")).unwrap();
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::write(root.join("models/base.bin"), noise(1, 10 * CHUNK + 17)).unwrap();
    // Shares half of its chunks with the base.
    fs::write(root.join("models/variant.bin"), [noise(1, 5 * CHUNK), noise(2, 5 * CHUNK)].concat()).unwrap();
    (0..40).for_each(|n| fs::write(root.join(format!("models/small/{n}.json")), noise(100 + n, 200)).unwrap());
    fs::write(root.join("models.txt"), b"before what is in models").unwrap();
    fs::write(root.join("none"), b"").unwrap();
    // Names as long as they can be, and such as are given to what is not whole yet.
    fs::write(root.join("n".repeat(255)), b"long").unwrap();
    fs::write(root.join("models/variant.bin.muster-incomplete"), b"from another restore").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"\xff\xfe\n")), b"odd").unwrap();
    fs::hard_link(root.join("models/base.bin"), root.join("models/small/same.bin")).unwrap();
    let mut sparse = File::create(root.join("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(64 * CHUNK as u64)).unwrap();
    sparse.write_all(&noise(3, CHUNK)).unwrap();
    sparse.set_len(100 * CHUNK as u64).unwrap();
    symlink("models/base.bin", root.join("link")).unwrap();
    rustix::fs::mkfifoat(CWD, root.join("pipe"), Mode::from_raw_mode(0o620)).unwrap();
    drop(UnixListener::bind(root.join("socket")).unwrap());
    if rustix::process::geteuid().is_root() {
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, root.join("null"), rustix::fs::FileType::CharacterDevice, Mode::from_raw_mode(0o600), device).unwrap();
        std::os::unix::fs::chown(root.join("models.txt"), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::lchown(root.join("link"), Some(1234), Some(4321)).unwrap();
    }
    let _ = rustix::fs::setxattr(root.join("none"), "user.note", b"kept", rustix::fs::XattrFlags::empty());
    fs::set_permissions(root.join("models.txt"), fs::Permissions::from_mode(0o4711)).unwrap();
    let old = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for name in ["models.txt", "models/base.bin", "models", "empty"] {
        File::open(root.join(name)).unwrap().set_modified(old).unwrap();
    }
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o500)).unwrap();
}

fn planted() -> (Bench, PathBuf, Snapshot) {
    let mut bench = Bench::new();
    let source = bench.at("source");
    plant(&source);
    let snapshot = bench.backup(&source);
    (bench, source, snapshot)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_bit_for_bit() {
    let (bench, source, snapshot) = planted();
    let (progress, target) = (Arc::new(Progress::default()), bench.at("new/target"));
    let restoring = restore(bench.repository.clone(), &snapshot, &target, options(), progress.clone());
    let restored = sent(restoring).await.unwrap();
    assert_same(&source, &target);
    assert!(restored.damaged.is_empty() && restored.without.is_empty(), "{restored:?}");
    assert_eq!((restored.files, restored.folders), (49, 4));
    assert_eq!(progress.done_bytes.load(Relaxed), progress.total_bytes.load(Relaxed));
    assert_eq!(progress.done_files.load(Relaxed), progress.total_files.load(Relaxed));
    let blocks = |root: &Path| fs::metadata(root.join("sparse")).unwrap().blocks();
    assert!(blocks(&bench.at("new/target")) <= blocks(&source).max(3 * CHUNK as u64 / 512), "holes stay holes");
    assert_eq!(restored.bytes_written, restored.bytes - 99 * CHUNK as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_is_fetched_once_however_often_it_is_used() {
    let mut bench = Bench::new();
    let (source, content) = (bench.at("source"), noise(1, 4 * CHUNK));
    fs::create_dir(&source).unwrap();
    (0..50).for_each(|n| fs::write(source.join(format!("copy-{n}")), &content).unwrap());
    let snapshot = bench.backup(&source);
    lock(&bench.memory.asked).clear();
    bench.restore(&snapshot, "target", &options()).await.unwrap();
    assert_same(&source, &bench.at("target"));
    let (pack, _) = bench.pack_of(&content[..CHUNK]);
    assert_eq!(lock(&bench.memory.asked).iter().filter(|key| **key == pack).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_place_only_what_differs_is_written() {
    let (bench, source, snapshot) = planted();
    bench.restore(&snapshot, "target", &options()).await.unwrap();
    let target = bench.at("target");
    let again = bench.restore(&snapshot, "target", &in_place()).await.unwrap();
    assert_eq!((again.bytes_written, again.bytes_in_place), (0, again.bytes));

    write_at(&target.join("models/base.bin"), 3 * CHUNK as u64 + 5, b"x");
    write_at(&target.join("sparse"), 10 * CHUNK as u64, b"not zero");
    File::options().write(true).open(target.join("models/variant.bin")).unwrap().set_len(9 * CHUNK as u64 + 1).unwrap();
    fs::write(target.join("none"), b"grown").unwrap();
    fs::write(target.join("models/extra"), b"ours").unwrap();
    fs::remove_file(target.join("pipe")).unwrap();
    fs::write(target.join("pipe"), b"a file").unwrap();
    fs::remove_file(target.join("models.txt")).unwrap();
    symlink("/etc/passwd", target.join("models.txt")).unwrap();
    fs::remove_file(target.join("models/small/1.json")).unwrap();
    fs::create_dir(target.join("models/small/1.json")).unwrap();
    let planned = bench.restore(&snapshot, "target", &RestoreOptions { dry_run: true, ..in_place() }).await.unwrap();
    let restored = bench.restore(&snapshot, "target", &in_place()).await.unwrap();
    assert!(restored.damaged.is_empty(), "{restored:?}");
    assert_eq!(fs::read(target.join("models/extra")).unwrap(), b"ours");
    // The base has a second name, so it is written anew; of the others one chunk each.
    let anew = fs::metadata(source.join("models/base.bin")).unwrap().len();
    assert_eq!(restored.bytes_written, anew + CHUNK as u64 + 24 + 200);
    assert_eq!(planned.bytes_written, restored.bytes_written);

    let delete = RestoreOptions { into: Into::Place { delete: true }, ..options() };
    let restored = bench.restore(&snapshot, "target", &delete).await.unwrap();
    assert_eq!((restored.deleted, restored.bytes_written), (1, 0));
    assert_same(&source, &target);
    assert!(fs::metadata(target.join("sparse")).unwrap().blocks() < 50 * CHUNK as u64 / 512, "what was cleared is a hole again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_name_does_not_change_with_the_file() {
    let (bench, source, snapshot) = planted();
    bench.restore(&snapshot, "target", &options()).await.unwrap();
    let target = bench.at("target");
    fs::hard_link(target.join("models/small/7.json"), bench.at("foreign")).unwrap();
    write_at(&bench.at("foreign"), 0, b"mine");
    let mine = fs::read(bench.at("foreign")).unwrap();
    bench.restore(&snapshot, "target", &in_place()).await.unwrap();
    assert_eq!(fs::read(bench.at("foreign")).unwrap(), mine);
    assert_same(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_costs_the_files_that_it_is_in_and_no_other() {
    let (bench, source, snapshot) = planted();
    let shared = noise(1, CHUNK);
    let (pack, piece) = bench.pack_of(&shared);
    lock(&bench.memory.objects).get_mut(&pack).unwrap()[piece.offset as usize + 20] ^= 4;
    let restored = bench.restore(&snapshot, "target", &options()).await.unwrap();
    assert_eq!(damaged(&restored), ["models/base.bin", "models/small/same.bin", "models/variant.bin"]);
    assert!(restored.damaged[0].why.contains("is damaged"), "{restored:?}");
    let target = bench.at("target");
    assert!(!target.join("models/base.bin").exists() && !target.join("models/small/same.bin").exists());
    let saved = fs::read(target.join("models/variant.bin.muster-incomplete~")).unwrap();
    assert!(saved[CHUNK..] == fs::read(source.join("models/variant.bin")).unwrap()[CHUNK..], "the rest of it is had");
    assert_eq!(fs::read(target.join("models/small/7.json")).unwrap(), noise(107, 200));
    // In place, what stands there under the name is not what was backed up.
    fs::write(target.join("models/base.bin"), b"another").unwrap();
    let restored = bench.restore(&snapshot, "target", &in_place()).await.unwrap();
    assert_eq!(damaged(&restored).len(), 3);
    assert!(!target.join("models/base.bin").exists() && target.join("models/base.bin.muster-incomplete").exists());
    // Once it is repaired, the same goes on where it was.
    lock(&bench.memory.objects).get_mut(&pack).unwrap()[piece.offset as usize + 20] ^= 4;
    let restored = bench.restore(&snapshot, "target", &in_place()).await.unwrap();
    assert_eq!((damaged(&restored).len(), restored.bytes_written), (0, 2 * CHUNK as u64));
    assert_same(&source, &target);
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_are_cut_or_gone_and_chunks_that_nobody_knows_are_named() {
    let (mut bench, _, snapshot) = planted();
    let (variant, piece) = bench.pack_of(&noise(2, 5 * CHUNK)[4 * CHUNK..]);
    lock(&bench.memory.objects).get_mut(&variant).unwrap().truncate(piece.offset as usize + 10);
    let (small, _) = bench.pack_of(&noise(103, 200));
    lock(&bench.memory.objects).remove(&small);
    let restored = bench.restore(&snapshot, "cut", &options()).await.unwrap();
    assert_eq!(damaged(&restored), ["models/small/3.json", "models/variant.bin"]);
    assert!(restored.damaged[0].why.contains("is missing from the repository"), "{restored:?}");
    assert!(restored.damaged[1].why.contains("cut short"), "{restored:?}");

    bench.packs.retain(|entry| entry.pack.key(PACKS) != small);
    bench.index();
    let restored = bench.restore(&snapshot, "unknown", &options()).await.unwrap();
    assert_eq!(damaged(&restored), ["models/small/3.json", "models/variant.bin"]);
    assert!(restored.damaged[0].why.contains("no pack that the index names"), "{restored:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_part_of_the_list_costs_its_entries() {
    let mut bench = Bench::new();
    let file = |bench: &mut Bench, path: &str| {
        let content = bench.content(path.as_bytes());
        Entry {
            path: path.into(),
            node: Node::File { meta: Meta { mode: 0o600, ..Meta::default() }, ctime: Instant::default(), inode: 1, content },
        }
    };
    let parts = [vec![file(&mut bench, "a")], vec![file(&mut bench, "b/x")], vec![file(&mut bench, "c/d/y")]];
    let snapshot = bench.snapshot(&parts);
    let pack = bench.packs.iter().find(|entry| entry.pieces[0].chunk == snapshot.list[1]).unwrap().pack.key(PACKS);
    lock(&bench.memory.objects).get_mut(&pack).unwrap()[60] ^= 1;
    fs::create_dir_all(bench.at("target/b")).unwrap();
    fs::write(bench.at("target/b/x"), b"who knows").unwrap();
    let delete = RestoreOptions { into: Into::Place { delete: true }, ..options() };
    let restored = bench.restore(&snapshot, "target", &delete).await.unwrap();
    assert_eq!(damaged(&restored), [format!("entries in chunk {} of the list", snapshot.list[1].short())]);
    assert_eq!(fs::read(bench.at("target/c/d/y")).unwrap(), b"c/d/y");
    assert!(bench.at("target/b/x").exists(), "it may be in the part that is damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_list_stays_within_the_target() {
    let mut bench = Bench::new();
    fs::create_dir(bench.at("outside")).unwrap();
    let content = bench.content(b"owned");
    let meta = Meta { mode: 0o4777, ..Meta::default() };
    let file = |path: &[u8]| Entry {
        path: path.to_vec(),
        node: Node::File { meta: meta.clone(), ctime: Instant::default(), inode: 1, content: content.clone() },
    };
    let outside = bench.at("outside").into_os_string().as_bytes().to_vec();
    let link = |path: &str| Entry { path: path.into(), node: Node::Symlink { meta: meta.clone(), target: outside.clone() } };
    let hard = |path: &str, to: &str| Entry { path: path.into(), node: Node::HardLink { meta: meta.clone(), to: to.into() } };
    let folder = |path: &str| Entry { path: path.into(), node: Node::Folder { meta: meta.clone() } };
    let entries = vec![
        file(b"../escaped"),
        file(b"/etc/escaped"),
        link("a"),
        file(b"a/x"),
        file(b"b/../../escaped"),
        file(b"c//x"),
        file(b"c/./x"),
        folder("d"),
        file(b"e\0f"),
        link("f"),
        hard("f2", "f"),
        hard("g", "../outside/secret"),
        hard("h", "a/x"),
        folder("i/.."),
        file(b"j"),
        file(b"j"),
        file(b"b"),
        link("k/"),
    ];
    fs::write(bench.at("outside/secret"), b"secret").unwrap();
    let snapshot = bench.snapshot(&[entries]);
    let restored = bench.restore(&snapshot, "target", &options()).await.unwrap();
    assert_eq!(fs::read_dir(bench.at("outside")).unwrap().count(), 1);
    assert!(!bench.at("escaped").exists());
    assert_eq!(fs::read(bench.at("target/a/x")).unwrap(), b"owned");
    assert!(fs::symlink_metadata(bench.at("target/f2")).unwrap().is_symlink());
    assert_eq!(fs::metadata(bench.at("target/h")).unwrap().nlink(), 2);
    let lost = damaged(&restored);
    assert_eq!(lost, ["../escaped", "/etc/escaped", "a", "b", "b/../../escaped", "c/./x", "c//x", "d", "e\0f", "g", "i/..", "j", "k/"]);

    // What stands in the target leads nowhere either.
    fs::create_dir(bench.at("second")).unwrap();
    symlink(bench.at("outside"), bench.at("second/a")).unwrap();
    symlink(bench.at("outside/secret"), bench.at("second/j")).unwrap();
    symlink(bench.at("outside/new"), bench.at("second/j.muster-incomplete")).unwrap();
    bench.restore(&snapshot, "second", &in_place()).await.unwrap();
    assert_eq!(fs::read(bench.at("outside/secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(bench.at("outside")).unwrap().count(), 1);
    assert_eq!(fs::read(bench.at("second/j")).unwrap(), b"owned");
    assert_eq!(fs::read(bench.at("second/a/x")).unwrap(), b"owned");
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_choose_what_is_restored() {
    let (bench, source, snapshot) = planted();
    let target = bench.at("target");
    let restored = bench.restore(&snapshot, "target", &including(&["same.bin", "/models/small/1*.json", "/link"])).await.unwrap();
    assert!(restored.damaged.is_empty(), "{restored:?}");
    assert_eq!((restored.files, restored.folders, restored.others), (12, 3, 1));
    // The first name of the hard link is not chosen: the second has the content.
    assert_eq!(fs::read(target.join("models/small/same.bin")).unwrap(), fs::read(source.join("models/base.bin")).unwrap());
    assert!(!target.join("models/base.bin").exists());
    let modified = |root: &Path| fs::metadata(root.join("models")).unwrap().modified().unwrap();
    assert_eq!(modified(&target), modified(&source), "folders on the way are as they were");
    // What is not chosen is not deleted.
    fs::write(target.join("other"), b"x").unwrap();
    fs::write(target.join("models/small/12.json.bak"), b"x").unwrap();
    fs::write(target.join("models/small/199.json"), b"x").unwrap();
    let delete = RestoreOptions { into: Into::Place { delete: true }, ..including(&["/models/small/1*.json"]) };
    assert_eq!(bench.restore(&snapshot, "target", &delete).await.unwrap().deleted, 1);
    assert!(target.join("other").exists() && target.join("models/small/12.json.bak").exists() && target.join("link").is_symlink());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_interrupted_goes_on() {
    let (bench, source, snapshot) = planted();
    let progress = Arc::new(Progress::default());
    let (stop, mut left) = (progress.clone(), 12);
    *lock(&bench.memory.before_range) = Some(Box::new(move |_, _| {
        left -= 1;
        if left == 0 {
            stop.stop();
        }
    }));
    let ended = restore(bench.repository.clone(), &snapshot, &bench.at("target"), options(), progress).await;
    let why = ended.unwrap_err().to_string();
    assert!(why.contains("interrupted") && why.contains("--in-place"), "{why}");
    *lock(&bench.memory.before_range) = None;
    for (name, _, bytes) in described(&bench.at("target")) {
        if !name.ends_with("incomplete~") && (!name.ends_with(".muster-incomplete") || source.join(&name).exists()) && !bytes.is_empty() {
            assert!(bytes == fs::read(source.join(&name)).unwrap(), "{name} looks whole and is not");
        }
    }
    let restored = bench.restore(&snapshot, "target", &in_place()).await.unwrap();
    assert!(restored.bytes_in_place > 0 && restored.bytes_written > 0, "{restored:?}");
    assert_same(&source, &bench.at("target"));
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_were_folded_meanwhile_are_found_again() {
    let (mut bench, source, snapshot) = planted();
    let old: Vec<PackEntry> = std::mem::take(&mut bench.packs);
    let before = lock(&bench.memory.objects).clone();
    // A prune puts the chunks of all small files together, and deletes their packs when the restore has begun.
    let folded: Vec<Vec<u8>> = (0..40).map(|n| noise(100 + n, 200)).collect();
    bench.pack(&folded);
    let chunks: Vec<Id> = bench.packs[0].pieces.iter().map(|piece| piece.chunk).collect();
    let (gone, kept): (Vec<_>, Vec<_>) = old.into_iter().partition(|entry| chunks.contains(&entry.pieces[0].chunk));
    bench.packs.extend(kept);
    bench.index();
    let mut after = lock(&bench.memory.objects).clone();
    for entry in &gone {
        after.remove(&entry.pack.key(PACKS)).unwrap();
    }
    *lock(&bench.memory.objects) = before;
    let gone: Vec<String> = gone.iter().map(|entry| entry.pack.key(PACKS)).collect();
    *lock(&bench.memory.before_range) = Some(Box::new(move |key, objects| {
        if gone.iter().any(|gone| gone == key) {
            *objects = after.clone();
        }
    }));
    let restored = bench.restore(&snapshot, "target", &options()).await.unwrap();
    assert!(restored.damaged.is_empty(), "{restored:?}");
    assert_same(&source, &bench.at("target"));
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_become_files_where_their_keys_allow_it() {
    let mut bench = Bench::new();
    let mut object = |key: &str, bytes: &[u8]| {
        let content = bench.content(bytes);
        let mtime = Instant { seconds: 1_700_000_000, nanos: 5 };
        let info = ObjectInfo { mtime, etag: Vec::new(), version: Vec::new(), metadata: Vec::new() };
        Entry { path: key.into(), node: Node::Object { info, content } }
    };
    let entries =
        vec![object("/abs", b"1"), object("a", b"2"), object("a/x", b"3"), object("b/", b""), object("c/", b"4"), object("d/e/f", b"5")];
    let snapshot = bench.snapshot(&[entries]);
    let restored = bench.restore(&snapshot, "target", &options()).await.unwrap();
    assert_eq!(damaged(&restored), ["/abs", "a", "c/"]);
    assert_eq!(fs::read(bench.at("target/a/x")).unwrap(), b"3");
    assert_eq!(fs::read(bench.at("target/d/e/f")).unwrap(), b"5");
    assert_eq!(fs::metadata(bench.at("target/d/e/f")).unwrap().mtime_nsec(), 5);
    assert!(bench.at("target/b").is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cannot_be_one_is_refused_with_a_remedy() {
    let (bench, _, snapshot) = planted();
    fs::write(bench.at("file"), b"x").unwrap();
    for (target, remedy) in [("file", "restore into another"), ("file/below", "restore into another"), ("source", "--in-place")] {
        let why = bench.restore(&snapshot, target, &options()).await.unwrap_err().to_string();
        assert!(why.contains(target) && why.contains(remedy), "{why}");
    }
    let planned = bench.restore(&snapshot, "not-there", &RestoreOptions { dry_run: true, ..options() }).await.unwrap();
    assert!(planned.files > 0 && !bench.at("not-there").exists());
}

#[test]
fn parts_that_lie_close_are_fetched_as_one() {
    let parts = [0..44, 44..1000, 5000..6000, 400_000..500_000, 700_000..700_001, 2_000_000..2_000_001];
    assert_eq!(coalesce(parts.into_iter()), [0..6000, 400_000..700_001, 2_000_000..2_000_001]);
    let parts = (0..10).map(|n: u64| n << 20..(n + 1) << 20);
    assert_eq!(coalesce(parts), [0..6 << 20, 6 << 20..10 << 20], "not more at once than each thread may hold");
}
