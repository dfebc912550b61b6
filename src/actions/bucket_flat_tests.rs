//! Buckets of very many objects, which exist only while they are asked for: how much memory it takes to copy them, to write
//! their manifest and to compare them with it must not depend on how many they are; and a comparison that broke off goes on.

use super::*;
use crate::actions::{
    contract_tests::Bench,
    manifest_verify::Judge,
    set_tally::{By, Checkpoint},
    set_work::{self, Ended},
};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

/// As many objects as it says, each with its own key for its body. What Muster keeps of its own lies in files.
struct Many {
    count: u64,
    own: tempfile::TempDir,
    put: Mutex<u64>,
    looks: AtomicU64,
    /// So many looks are answered.
    answers: AtomicU64,
    /// The listing ends with an error at the page that begins here.
    lists: AtomicU64,
    /// It lists objects without their etags.
    bare: AtomicBool,
    /// It lists this one, which is gone when it is asked for.
    gone: Mutex<Option<String>>,
}

const MANIFEST: &str = ".muster/manifests/k.json";

fn key(n: u64) -> String {
    format!("m/{:03}/{n:07}", n / 1_000)
}

fn meta_of(key: &str) -> ObjectMeta {
    let digest = hex::encode(Sha256::digest(key));
    let metadata = BTreeMap::from([(SHA.to_owned(), digest.clone()), (SOURCE_ETAG.to_owned(), digest[..32].to_owned())]);
    let etag = Some(digest[..32].to_owned());
    ObjectMeta { key: key.to_owned(), size: key.len() as u64, etag, version: None, modified: None, metadata, checksum: None }
}

impl Many {
    fn of(count: u64) -> Arc<Self> {
        let own = tempfile::tempdir().unwrap();
        Arc::new(Self {
            count,
            own,
            put: Mutex::default(),
            looks: AtomicU64::default(),
            answers: u64::MAX.into(),
            lists: u64::MAX.into(),
            bare: AtomicBool::default(),
            gone: Mutex::default(),
        })
    }
    fn file(&self) -> PathBuf {
        self.own.path().join("manifest")
    }
    fn refused<T>(&self) -> PortResult<T> {
        Err(PortError::Refused(format!("a bucket of {} objects does not do that", self.count)))
    }
}

#[async_trait]
impl ObjectRead for Many {
    async fn list(&self, _prefix: &str, after: Option<&str>) -> PortResult<ObjectPage> {
        let begin = after.map_or(0, |key| key[6..].parse::<u64>().unwrap() + 1);
        if begin >= self.lists.load(SeqCst) {
            return Err(PortError::Unreachable("it is gone".into()));
        }
        let end = (begin + 1_000).min(self.count);
        let listed = |n: u64| {
            let meta = meta_of(&key(n));
            let etag = meta.etag.clone().filter(|_| !self.bare.load(SeqCst));
            ObjectMeta { metadata: BTreeMap::new(), etag, ..meta }
        };
        let objects = (begin..end).map(listed).collect();
        Ok(ObjectPage { objects, next: (end < self.count).then(|| key(end - 1)) })
    }
    async fn head(&self, key: &str) -> PortResult<Option<ObjectMeta>> {
        if key == MANIFEST {
            return Ok(self.file().exists().then(|| meta_of(key)));
        }
        if self.looks.fetch_add(1, SeqCst) >= self.answers.load(SeqCst) {
            return Err(PortError::Unreachable("it is tired".into()));
        }
        if self.gone.lock().unwrap().as_deref() == Some(key) {
            return Ok(None);
        }
        Ok(Some(meta_of(key)))
    }
    async fn get(&self, key: &str) -> PortResult<ObjectBody> {
        let chunks = if key.starts_with(".muster/manifests/") {
            let file = std::fs::File::open(self.file()).unwrap();
            let pieces = std::iter::from_fn(move || {
                let mut piece = Vec::new();
                std::io::Read::read_to_end(&mut std::io::Read::take(&file, 65_536), &mut piece).unwrap();
                (!piece.is_empty()).then_some(Ok(piece))
            });
            futures::stream::iter(pieces).boxed()
        } else {
            futures::stream::iter([Ok(key.as_bytes().to_vec())]).boxed()
        };
        Ok(ObjectBody { meta: meta_of(key), chunks })
    }
    async fn get_if(&self, key: &str, _etag: &str) -> PortResult<ObjectBody> {
        self.get(key).await
    }
    async fn range(&self, _key: &str, _from: u64, _length: u64) -> PortResult<Vec<u8>> {
        self.refused()
    }
    fn place(&self, _key: &str) -> Option<ObjectPlace> {
        None
    }
    async fn provider(&self) -> PortResult<Option<String>> {
        Ok(None)
    }
    async fn locks(&self) -> PortResult<bool> {
        Ok(false)
    }
    async fn retention(&self, _key: &str) -> PortResult<Option<jiff::Timestamp>> {
        Ok(None)
    }
}

#[async_trait]
impl ObjectWrite for Many {
    async fn put(&self, key: &str, body: Bytes, _metadata: &BTreeMap<String, String>, _absent: bool) -> PortResult<ObjectMeta> {
        if key == MANIFEST {
            std::fs::write(self.file(), &body).unwrap();
        }
        *self.put.lock().unwrap() += 1;
        Ok(meta_of(key))
    }
    async fn put_file(&self, key: &str, file: &Path, _sha256: &str, _: &BTreeMap<String, String>, _absent: bool) -> PortResult<ObjectMeta> {
        std::fs::copy(file, self.file()).unwrap();
        Ok(meta_of(key))
    }
    async fn put_stream(&self, _key: &str, _body: Chunks, _: &BTreeMap<String, String>, _absent: bool) -> PortResult<ObjectMeta> {
        self.refused()
    }
    async fn copy_from(&self, _key: &str, _from: &ObjectPlace, _listed: &ObjectMeta) -> PortResult<ObjectMeta> {
        self.refused()
    }
    async fn retain(&self, _key: &str, _until: jiff::Timestamp, _mode: LockMode) -> PortResult<()> {
        self.refused()
    }
    async fn swap(&self, _key: &str, _body: Vec<u8>, _expect: Option<&str>) -> PortResult<()> {
        self.refused()
    }
    async fn delete(&self, _key: &str) -> PortResult<()> {
        self.refused()
    }
}

/// Copies all of a bucket, or what a manifest does not hold, and writes the new manifest.
async fn backed_up(bench: &Bench, source: &Arc<Many>, target: &Arc<Many>, base: bool) -> Head {
    let listed = |store: &Arc<Many>| Some(Listing::of(store.clone(), ""));
    let sides = Sides {
        manifest: base.then(|| (target.clone() as Arc<dyn ObjectRead>, MANIFEST.to_owned())),
        source: listed(source),
        copy: if base { listed(target) } else { None },
    };
    let ways = Ways { source: &**source, target: &**target, by_provider: None };
    let folder = folder(&bench.read);
    let (book, order) = copied(&bench.write, &ways, &sides, Order::Bytes, &folder).await.unwrap_or_else(|e| panic!("{e:?}"));
    let count =
        |f: Figures| Head { copied: f.copied, order: Some(order), count: Some(f.count), bytes: Some(f.bytes), ..manifest::tests::head() };
    let written = book.finish(count).unwrap();
    let _ = std::fs::remove_file(target.file());
    written.put(&**target, MANIFEST, LARGEST).await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    written.head
}

async fn verified(bench: &Bench, source: &Arc<Many>, copy: &Arc<Many>) -> Result<Ended<Judge>, ApplyError> {
    verified_by(bench, source, copy, MANIFEST).await
}

async fn verified_by(bench: &Bench, source: &Arc<Many>, copy: &Arc<Many>, manifest: &str) -> Result<Ended<Judge>, ApplyError> {
    let sides = Sides {
        manifest: Some((copy.clone() as Arc<dyn ObjectRead>, manifest.to_owned())),
        source: Some(Listing::of(source.clone(), "")),
        copy: Some(Listing::of(copy.clone(), "")),
    };
    let begin = Checkpoint { manifest: Some(manifest.to_owned()), ..Checkpoint::default() };
    let opened = set_work::open(&bench.read.scratch.join("verify"), begin)?;
    let patience = (bench.read.world.clock(), std::time::Duration::from_secs(60));
    let judge = Judge { source: source.clone(), patience, copy: copy.clone(), read_data: false, read: 0.into() };
    set_work::compared(opened, bench.read.world.clock(), ("models", ""), sides, judge).await
}

/// The most that this process has held, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_manifest_of_a_hundred_thousand_objects_takes_no_more_memory_than_one_of_ten_thousand() {
    let mut peaks = Vec::new();
    // The first time each thread takes its own store of memory; that is not what is measured.
    for count in [10_000, 10_000, 100_000] {
        let bench = Bench::new(&fixture());
        let (source, target) = (Many::of(count), Many::of(count));
        let first = backed_up(&bench, &source, &target, false).await;
        assert_eq!((first.count, first.copied, *target.put.lock().unwrap() >= count), (Some(count), count, true));
        let second = backed_up(&bench, &source, &target, true).await;
        assert_eq!((second.count, second.copied), (Some(count), 0));
        let ended = verified(&bench, &source, &target).await.unwrap_or_else(|e| panic!("{e:?}"));
        let tally = ended.at.tally;
        assert_eq!((tally.objects, tally.copies, tally.differences()), (count, count, 0));
        assert_eq!(tally.same_by, BTreeMap::from([(By::Digest, count)]));
        peaks.push(peak());
    }
    println!("peak memory: {} KiB with 10,000 objects, {} KiB with 100,000", peaks[1], peaks[2]);
    // The manifest's entries alone would be more than 30 MiB more.
    assert!(peaks[2] - peaks[1] < 12 * 1024, "{peaks:?} KiB");
}

#[tokio::test]
async fn a_comparison_with_a_manifest_goes_on_where_it_broke_off() {
    let bench = Bench::new(&fixture());
    let (source, target) = (Many::of(2_000), Many::of(2_000));
    backed_up(&bench, &source, &target, false).await;
    target.looks.store(0, SeqCst);
    target.answers.store(700, SeqCst);
    assert!(matches!(verified(&bench, &source, &target).await, Err(ApplyError::Retry { .. })));
    target.looks.store(0, SeqCst);
    target.answers.store(u64::MAX, SeqCst);
    let ended = verified(&bench, &source, &target).await.unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(ended.resumed_at, Some(key(511)), "two batches of 256 were kept");
    assert_eq!(target.looks.load(SeqCst), 2_000 - 512, "and are not looked at again");
    assert_eq!((ended.at.tally.objects, ended.at.tally.differences()), (2_000, 0));
    // What is over begins anew.
    assert_eq!(verified(&bench, &source, &target).await.unwrap_or_else(|e| panic!("{e:?}")).resumed_at, None);
}

/// What was sorted of the first would name fewer objects than the second does.
#[tokio::test]
async fn a_newer_manifest_is_compared_anew_after_a_comparison_with_the_older_one_broke_off() {
    let bench = Bench::new(&fixture());
    let (source, target) = (Many::of(2_000), Many::of(2_000));
    backed_up(&bench, &source, &target, false).await;
    target.looks.store(0, SeqCst);
    target.answers.store(700, SeqCst);
    assert!(verified(&bench, &source, &target).await.is_err());
    let (source, target) = (Many::of(2_100), Many::of(2_100));
    backed_up(&bench, &source, &target, false).await;
    let ended = verified_by(&bench, &source, &target, ".muster/manifests/l.json").await.unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!((ended.resumed_at, ended.at.tally.objects, ended.at.tally.differences()), (None, 2_100, 0));
}

#[tokio::test]
async fn a_source_that_stops_answering_in_the_middle_is_left_out() {
    let bench = Bench::new(&fixture());
    let (source, target) = (Many::of(2_500), Many::of(2_500));
    backed_up(&bench, &source, &target, false).await;
    target.looks.store(0, SeqCst);
    source.lists.store(2_000, SeqCst);
    let ended = verified(&bench, &source, &target).await.unwrap_or_else(|e| panic!("{e:?}"));
    let (at, looks) = (ended.at, target.looks.load(SeqCst));
    assert_eq!((at.alone, at.tally.objects, at.tally.copies, at.tally.differences()), (true, 2_500, 2_500, 0));
    assert_eq!(at.tally.same_by, BTreeMap::from([(By::Digest, 2_500)]), "what was judged before is not counted twice");
    assert!(looks > 2_500, "{looks}: it was left out at once, and not in the middle");
}

/// Its listing has been read to the end by then, and says nothing of what an object is.
#[tokio::test]
async fn a_source_that_stops_answering_behind_its_listing_is_left_out_too() {
    let bench = Bench::new(&fixture());
    let (source, target) = (Many::of(2_500), Many::of(2_500));
    backed_up(&bench, &source, &target, false).await;
    source.bare.store(true, SeqCst);
    source.looks.store(0, SeqCst);
    let ended = verified(&bench, &source, &target).await.unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!((ended.at.alone, ended.at.tally.differences(), source.looks.load(SeqCst)), (false, 0, 2_500), "each is asked for");
    source.looks.store(0, SeqCst);
    source.answers.store(700, SeqCst);
    let ended = verified(&bench, &source, &target).await.unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!((ended.at.alone, ended.at.tally.objects, ended.at.tally.copies, ended.at.tally.differences()), (true, 2_500, 2_500, 0));
    assert_eq!(ended.at.tally.same_by, BTreeMap::from([(By::Digest, 2_500)]));
    // The copy's own silence is another matter.
    target.looks.store(0, SeqCst);
    target.answers.store(700, SeqCst);
    assert!(matches!(verified(&bench, &source, &target).await, Err(ApplyError::Retry { .. })));
}

#[tokio::test]
async fn what_goes_from_the_source_behind_its_listing_is_not_called_changed() {
    let bench = Bench::new(&fixture());
    let (source, target) = (Many::of(100), Many::of(100));
    backed_up(&bench, &source, &target, false).await;
    source.bare.store(true, SeqCst);
    *source.gone.lock().unwrap() = Some(key(7));
    let ended = verified(&bench, &source, &target).await.unwrap_or_else(|e| panic!("{e:?}"));
    let found: Vec<_> = ended.at.tally.found.iter().map(|(kind, found)| (*kind, found.count)).collect();
    assert_eq!(found, [(crate::actions::bucket_verify::Kind::Extra, 1)]);
}
