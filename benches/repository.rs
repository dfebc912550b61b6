//! The backup repository in this process, on data that it makes itself: model weights in bf16, a variant of them that
//! shares 95 %, and 500 small files; into a directory.
//!
//! Each piece of work stands beside its limit in the same round, in turns: BLAKE3 of the same bytes, a file of as many
//! bytes written and synced, or a walk that looks at every file. What counts is the ratio: the machine may be busy.
//! `benches/peers/artifacts` compares the program itself with others, on more data.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use muster::{
    providers::{
        clock::{Clock, SystemClock},
        directory::Directory,
        port::ObjectWrite,
    },
    repository::{
        create::{About, Base, Created, create},
        globs::Globs,
        keys::Unlock,
        open::Repository,
        restore::{Into, RestoreOptions, Restored, restore},
        snapshot::Source,
        tree::{Options, Tree},
        verify::{Depth, verify},
    },
};
use secrecy::SecretBox;
use std::{
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const ROUNDS: u8 = 7;
const TENSORS: usize = 20;
const TENSOR: usize = 1638 * 1024 * 2;
const SMALL: usize = 500;

struct Depot {
    store: Arc<dyn ObjectWrite>,
    repository: Arc<Repository>,
    clock: Arc<dyn Clock>,
}

impl Depot {
    async fn new(dir: &Path) -> Self {
        // A key file: nothing to stretch, which would be the same tenth of a second everywhere.
        let unlock = Unlock::KeyFile(Arc::new(SecretBox::new(Box::new(vec![7; 64]))));
        let store: Arc<dyn ObjectWrite> = Arc::new(Directory::new(dir.to_owned()));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        Repository::make(&*store, "here", &unlock, "bench", clock.now()).await.unwrap();
        let repository = Arc::new(Repository::open(store.clone(), "here", &unlock).await.unwrap());
        Self { store, repository, clock }
    }
    async fn backup(&self, root: &Path) -> Created {
        let parent = self.repository.snapshots().await.unwrap().whole.pop();
        let base = Base::load(&self.repository, parent, &*self.clock).await.unwrap();
        let source = Tree::new(root, base.entries(&self.repository), Options::default()).unwrap();
        let origin = Source::Tree { path: root.to_string_lossy().into_owned() };
        let about = About { origin, host: String::new(), user: String::new(), tags: Vec::new(), run: None };
        create(self.repository.clone(), self.store.clone(), Box::new(source), base, about, Arc::default(), self.clock.clone())
            .await
            .unwrap()
    }
    async fn verify(&self) -> u64 {
        let found = verify(self.repository.clone(), None, Depth::All, [1; 32], Arc::default()).await.unwrap();
        assert!(found.is_good(), "{:?}", found.problems);
        found.bytes_read
    }
    async fn restore(&self, created: &Created, to: &Path, into: Into) -> Restored {
        let options = RestoreOptions { include: Globs::none(), into, owner: false, dry_run: false };
        let restored = restore(self.repository.clone(), &created.snapshot, to, options, Arc::default()).await.unwrap();
        assert!(restored.damaged.is_empty(), "{:?}", restored.damaged);
        restored
    }
}

// ---------------------------------------------------------------- data

fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Weights as training leaves them: about normal, in bf16.
fn weights(seed: u8) -> Vec<u8> {
    let bell = |four: &[u8]| (four.iter().map(|byte| f32::from(*byte)).sum::<f32>() - 510.0) * 0.0002;
    let noise = noise(seed, TENSOR * 2);
    // The lower bits of the sum are few: some of the noise makes the mantissa as full as a real one.
    let element = |four: &[u8]| (bell(four) * (1.0 + f32::from(four[0] ^ four[3]) / 300.0)).to_bits() >> 16;
    noise.chunks_exact(4).flat_map(|four| (element(four) as u16).to_le_bytes()).collect()
}

fn header() -> Vec<u8> {
    let mut tensors = serde_json::Map::new();
    for n in 0..TENSORS {
        let at = n * TENSOR;
        let tensor = serde_json::json!({ "dtype": "BF16", "shape": [1638, 1024], "data_offsets": [at, at + TENSOR] });
        tensors.insert(format!("layers.{n:02}.weight"), tensor);
    }
    let text = serde_json::to_vec(&tensors).unwrap();
    [(text.len() as u64).to_le_bytes().to_vec(), text].concat()
}

fn data(root: &Path) {
    std::fs::create_dir_all(root.join("configs")).unwrap();
    let base: Vec<Vec<u8>> = (0..TENSORS as u8).map(weights).collect();
    let mut variant = base.clone();
    variant[7] = weights(200);
    for (name, tensors) in [("base.safetensors", base), ("variant.safetensors", variant)] {
        std::fs::write(root.join(name), [header(), tensors.concat()].concat()).unwrap();
    }
    for n in 0..SMALL {
        let text = serde_json::json!({ "name": format!("model-{n}"), "layers": n, "note": "a small file among many ".repeat(n % 40) });
        std::fs::write(root.join(format!("configs/{n:03}.json")), text.to_string()).unwrap();
    }
}

/// One percent of all: a part of one tensor.
fn change(root: &Path, round: u8) {
    let file = std::fs::OpenOptions::new().write(true).open(root.join("variant.safetensors")).unwrap();
    let at = header().len() + 3 * TENSOR;
    file.write_all_at(&weights(100 + round)[..1_300_000], at as u64).unwrap();
}

// ---------------------------------------------------------------- limits

fn files(root: &Path) -> Vec<(PathBuf, u64)> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                found.push((entry.path(), meta.len()));
            }
        }
    }
    found
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let begin = Instant::now();
    std::hint::black_box(work());
    begin.elapsed()
}

/// Every byte read and hashed, on one thread.
fn hash(files: &[(PathBuf, u64)]) -> Duration {
    timed(|| files.iter().map(|(path, _)| blake3::hash(&std::fs::read(path).unwrap())).collect::<Vec<_>>())
}

/// So many bytes written and synced.
fn write(dir: &Path, bytes: u64) -> Duration {
    let block = noise(9, 1 << 20);
    let path = dir.join("written");
    let took = timed(|| {
        let mut file = std::fs::File::create(&path).unwrap();
        let mut left = bytes as usize;
        while left > 0 {
            let part = left.min(block.len());
            file.write_all(&block[..part]).unwrap();
            left -= part;
        }
        file.sync_data().unwrap();
    });
    std::fs::remove_file(path).unwrap();
    took
}

// ---------------------------------------------------------------- figures

/// Our work and its limit, round by round.
#[derive(Default)]
struct Beside {
    rounds: Vec<(Duration, Duration)>,
}

fn quartiles(mut all: Vec<f64>) -> [f64; 3] {
    all.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| all[(all.len() - 1) * quarter / 4])
}

impl Beside {
    fn add(&mut self, ours: Duration, limit: Duration) {
        self.rounds.push((ours, limit));
    }
    fn print(&self, what: &str, limit: &str) {
        let millis = |d: &Duration| d.as_secs_f64() * 1000.0;
        let ours = quartiles(self.rounds.iter().map(|(ours, _)| millis(ours)).collect());
        let bound = quartiles(self.rounds.iter().map(|(_, limit)| millis(limit)).collect());
        let ratio = quartiles(self.rounds.iter().map(|(ours, limit)| millis(ours) / millis(limit)).collect());
        println!(
            "{what:<30} {:>9.1} ms   {limit:<34} {:>8.1} ms   ratio {:>6.2} ({:.2} to {:.2})",
            ours[1], bound[1], ratio[1], ratio[0], ratio[2]
        );
    }
}

struct Bench<'d> {
    dir: &'d Path,
    root: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Bench<'_> {
    fn first(&self) -> (Depot, Created) {
        let (mut hashed, mut written) = (Beside::default(), Beside::default());
        let files = files(&self.root);
        let mut kept = None;
        for round in 0..ROUNDS {
            let depot = self.runtime.block_on(Depot::new(&self.dir.join(format!("repository-{round}"))));
            let begin = Instant::now();
            let created = self.runtime.block_on(depot.backup(&self.root));
            let took = begin.elapsed();
            hashed.add(took, hash(&files));
            written.add(took, write(self.dir, created.snapshot.stats.bytes_stored));
            kept = Some((depot, created));
        }
        let (depot, created) = kept.unwrap();
        let stats = &created.snapshot.stats;
        println!(
            "{} files, {} bytes; stored {} bytes, {:.1} %",
            stats.files,
            stats.bytes,
            stats.bytes_stored,
            100.0 * stats.bytes_stored as f64 / stats.bytes as f64
        );
        hashed.print("first backup", "read and BLAKE3 of all");
        written.print("first backup", "write and fdatasync what is stored");
        (depot, created)
    }

    fn again(&self, depot: &Depot) -> Created {
        let (mut same, mut changed) = (Beside::default(), Beside::default());
        let touched = [(self.root.join("variant.safetensors"), 0)];
        let mut last = None;
        for round in 0..ROUNDS {
            let begin = Instant::now();
            let created = self.runtime.block_on(depot.backup(&self.root));
            same.add(begin.elapsed(), timed(|| files(&self.root)));
            assert!(round == 0 || created.snapshot.stats.bytes_read == 0);
            change(&self.root, round);
            let begin = Instant::now();
            let created = self.runtime.block_on(depot.backup(&self.root));
            changed.add(begin.elapsed(), hash(&touched));
            // What was written just now is read once more if it might have changed since: let it settle.
            std::thread::sleep(Duration::from_millis(50));
            last = Some(self.runtime.block_on(depot.backup(&self.root))).or(Some(created));
        }
        same.print("nothing changed", "walk and stat");
        changed.print("1 % changed", "read and BLAKE3 of the touched file");
        last.unwrap()
    }

    fn verify(&self, depot: &Depot, place: &Path) {
        let mut beside = Beside::default();
        let files = files(place);
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            self.runtime.block_on(depot.verify());
            beside.add(begin.elapsed(), hash(&files));
        }
        beside.print("verify --read-data", "read and BLAKE3 of the repository");
    }

    fn back(&self, depot: &Depot, first: &Created, last: &Created) {
        let (mut whole, mut in_place) = (Beside::default(), Beside::default());
        let to = self.dir.join("back");
        for _ in 0..ROUNDS {
            let _ = std::fs::remove_dir_all(&to);
            let begin = Instant::now();
            let restored = self.runtime.block_on(depot.restore(first, &to, Into::Empty));
            whole.add(begin.elapsed(), write(self.dir, restored.bytes));
            self.runtime.block_on(depot.restore(last, &to, Into::Place { delete: true }));
            let begin = Instant::now();
            let restored = self.runtime.block_on(depot.restore(first, &to, Into::Place { delete: true }));
            assert!(restored.bytes_written < 10 << 20, "{restored:?}");
            in_place.add(begin.elapsed(), hash(&files(&to)));
        }
        whole.print("restore", "write and fdatasync as much");
        in_place.print("restore 1 % in place", "read and BLAKE3 of the tree");
    }
}

fn main() {
    let dir = tempfile::Builder::new().prefix("muster-bench-").tempdir().unwrap();
    let root = dir.path().join("data");
    data(&root);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let bench = Bench { dir: dir.path(), root, runtime };
    let (depot, first) = bench.first();
    let last = bench.again(&depot);
    bench.verify(&depot, &dir.path().join(format!("repository-{}", ROUNDS - 1)));
    bench.back(&depot, &first, &last);
}
