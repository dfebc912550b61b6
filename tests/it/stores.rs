//! One contract for every object store, held against a directory and against three S3 servers. What a server does
//! differently is said in its [`Habits`], one by one; everything else must be the same.

use crate::{
    stores_once::{made_firmer, one_of_many_however_they_write},
    stores_servers::{Server, ministack, s3s_fs, seaweedfs},
};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use muster::{
    model::estate::Estate,
    providers::{clock::Clock, directory::Directory, port::*, s3::S3Bucket, sim::SimWorld, store},
};
use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

pub const MIB: usize = 1024 * 1024;

/// What not every store does alike.
struct Habits {
    /// Keeps user metadata.
    metadata: bool,
    /// Keys that it refuses, or stores under another name.
    unfit: &'static [&'static str],
    /// A body whose checksum is not the one that was sent leaves what was there, and a new body has no old checksum.
    checks: bool,
    /// Lists in the order of whole keys, not folder by folder.
    in_order: bool,
    /// Of several uploads in parts that are completed at once, it tells all but one that they lost.
    parts_at_once: bool,
}

pub fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// No two blocks are alike, so that a part in the wrong place is found out.
pub fn noise(size: usize, seed: u32) -> Vec<u8> {
    let block: Vec<u8> = (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect();
    let mut body = block.repeat(size.div_ceil(block.len()));
    for (n, block) in body.chunks_mut(block.len()).enumerate() {
        block[..8].copy_from_slice(&n.to_le_bytes());
    }
    body.truncate(size);
    body
}

pub async fn whole(body: ObjectBody) -> Vec<u8> {
    body.chunks.try_concat().await.unwrap()
}

async fn listed(store: &dyn ObjectRead, prefix: &str) -> (Vec<ObjectMeta>, usize) {
    let (mut objects, mut pages, mut after) = (Vec::new(), 0, None);
    loop {
        let page = store.list(prefix, after.as_deref()).await.unwrap();
        objects.extend(page.objects);
        pages += 1;
        after = page.next;
        if after.is_none() {
            return (objects, pages);
        }
    }
}

pub async fn keys(store: &dyn ObjectRead, prefix: &str) -> Vec<String> {
    listed(store, prefix).await.0.into_iter().map(|object| object.key).collect()
}

/// A body in chunks of odd sizes.
pub fn chunks(body: Vec<u8>) -> Chunks {
    let pieces: Vec<PortResult<Vec<u8>>> = body.chunks(777_777).map(|chunk| Ok(chunk.to_vec())).collect();
    stream::iter(pieces).boxed()
}

/// The whole contract. `store` is empty.
async fn conforms(store: &dyn ObjectWrite, habits: &Habits) {
    let begin = Instant::now();
    let said = |part: &str| println!("{part}: {} ms since the start", begin.elapsed().as_millis());
    once_and_whole(store, habits).await;
    said("put, get, conflict");
    one_of_many_writers(store).await;
    one_of_many_however_they_write(store, habits.parts_at_once).await;
    said("writers at once");
    ranges(store).await;
    said("ranges");
    the_very_object(store).await;
    said("get_if, swap");
    odd_keys(store, habits).await;
    said("odd keys");
    streams(store, habits).await;
    said("streams");
    order(store, habits).await;
    said("1,020 keys");
}

async fn once_and_whole(store: &dyn ObjectWrite, habits: &Habits) {
    assert!(keys(store, "").await.is_empty());
    assert!(store.head("a/none").await.unwrap().is_none());
    assert!(matches!(store.get("a/none").await, Err(PortError::NotFound(_))));
    let metadata = if habits.metadata { BTreeMap::from([("kind".to_owned(), "pack".to_owned())]) } else { none() };
    let body = noise(3_000_001, 1);
    let put = store.put("a/pack", body.clone().into(), &metadata, true).await.unwrap();
    let head = store.head("a/pack").await.unwrap().unwrap();
    assert_eq!((put.size, head.size, &head.metadata), (3_000_001, 3_000_001, &metadata));
    assert!(head.etag.is_some() && head.etag == put.etag && head.modified.is_some(), "{head:?} {put:?}");
    let got = store.get("a/pack").await.unwrap();
    assert_eq!(got.meta.etag, head.etag);
    assert!(whole(got).await == body);
    // The second is told what is there, and changes nothing.
    let again = store.put("a/pack", b"other".to_vec().into(), &none(), true).await;
    assert!(matches!(&again, Err(PortError::Conflict { found }) if found.contains("3000001 bytes")), "{again:?}");
    assert_eq!(store.head("a/pack").await.unwrap().unwrap().etag, head.etag);
    store.put("a/pack", b"other".to_vec().into(), &none(), false).await.unwrap();
    assert_eq!(whole(store.get("a/pack").await.unwrap()).await, b"other");
    store.put("a/empty", Vec::new().into(), &none(), true).await.unwrap();
    assert!(whole(store.get("a/empty").await.unwrap()).await.is_empty());

    let (file, hash) = (tempfile::NamedTempFile::new().unwrap(), "486ea46224d1bb4fb680f34f7c9ad96a8f24ec88be73ea8e5a6c65260e9cb8a7");
    std::fs::write(file.path(), b"world").unwrap();
    store.put_file("a/file", file.path(), hash, &none(), false).await.unwrap();
    assert_eq!(whole(store.get("a/file").await.unwrap()).await, b"world");
    std::fs::write(file.path(), b"changed").unwrap();
    let changed = store.put_file("a/file", file.path(), hash, &none(), false).await;
    assert!(matches!(changed, Err(PortError::Refused(_))), "{changed:?}");
    if habits.checks {
        assert_eq!(whole(store.get("a/file").await.unwrap()).await, b"world");
    } else {
        // It is refused and takes the place of what was there; who reads it is told by its checksum.
        torn(store, "a/file").await;
    }

    assert_eq!(keys(store, "a/p").await, ["a/pack"]);
    for key in ["a/pack", "a/pack", "a/empty", "a/file", "a/never"] {
        store.delete(key).await.unwrap();
    }
    assert!(store.head("a/pack").await.unwrap().is_none() && keys(store, "").await.is_empty());
}

async fn torn(store: &dyn ObjectRead, key: &str) {
    let read: PortResult<Vec<u8>> = store.get(key).await.unwrap().chunks.try_concat().await;
    assert!(matches!(&read, Err(PortError::Unreachable(m)) if m.contains("checksum")), "{:?}", read.map(|body| body.len()));
}

async fn one_of_many_writers(store: &dyn ObjectWrite) {
    for round in 0..8 {
        let key = format!("race/{round}");
        let bodies: Vec<Vec<u8>> = (0..4).map(|n| noise(100_000, n)).collect();
        let none = none();
        let writers = bodies.iter().map(|body| store.put(&key, body.clone().into(), &none, true));
        let answers = futures::future::join_all(writers).await;
        let won: Vec<usize> = (0..4).filter(|n| answers[*n].is_ok()).collect();
        assert_eq!(won.len(), 1, "{answers:?}");
        let lost = |answer: &PortResult<ObjectMeta>| matches!(answer, Err(PortError::Conflict { .. } | PortError::Throttled { .. }));
        assert_eq!(answers.iter().filter(|answer| lost(answer)).count(), 3, "{answers:?}");
        assert!(whole(store.get(&key).await.unwrap()).await == bodies[won[0]]);
        store.delete(&key).await.unwrap();
    }
}

async fn ranges(store: &dyn ObjectWrite) {
    let body = noise(2_500_000, 2);
    store.put("r", body.clone().into(), &none(), true).await.unwrap();
    for (from, length) in [(0, 1), (0, 2_500_000), (1_000_000, 1_400_001), (2_499_999, 1), (17, 0)] {
        let want = &body[from..from + length];
        assert!(store.range("r", from as u64, length as u64).await.unwrap() == want, "{from} {length}");
    }
    for (from, length) in [(2_499_999, 2), (2_500_000, 1), (5_000_000, 10), (0, u64::MAX - 1), (u64::MAX - 1, 10)] {
        let answer = store.range("r", from, length).await;
        assert!(matches!(answer, Err(PortError::Refused(_))), "{from} {length}: {:?}", answer.map(|bytes| bytes.len()));
    }
    assert!(matches!(store.range("r2", 0, 1).await, Err(PortError::NotFound(_))));
    store.delete("r").await.unwrap();
}

async fn the_very_object(store: &dyn ObjectWrite) {
    store.put("v", b"first".to_vec().into(), &none(), true).await.unwrap();
    let first = listed(store, "v").await.0.remove(0).etag.unwrap();
    assert_eq!(whole(store.get_if("v", &first).await.unwrap()).await, b"first");
    store.swap("v", b"other".to_vec(), Some(&first)).await.unwrap();
    let late = store.get_if("v", &first).await.map(|body| body.meta);
    assert!(matches!(&late, Err(PortError::Conflict { found }) if found.contains("5 bytes")), "{late:?}");
    let late = store.swap("v", b"third".to_vec(), Some(&first)).await;
    assert!(matches!(late, Err(PortError::Conflict { .. })), "{late:?}");
    assert!(matches!(store.swap("v", b"third".to_vec(), None).await, Err(PortError::Conflict { .. })));
    assert_eq!(whole(store.get("v").await.unwrap()).await, b"other");
    store.delete("v").await.unwrap();
    assert!(matches!(store.get_if("v", &first).await, Err(PortError::NotFound(_))));
    let gone = store.swap("v", b"third".to_vec(), Some(&first)).await;
    assert!(matches!(gone, Err(PortError::Conflict { .. })), "{gone:?}");
    store.swap("v", b"third".to_vec(), None).await.unwrap();
    store.delete("v").await.unwrap();
}

const ODD: [&str; 14] = [
    "odd/a b",
    "odd/a+b",
    "odd/a%2Fb",
    "odd/ä/☃",
    "odd/'\"&<>",
    "odd/a=b&c?d#e",
    "odd/~!@$^()*;:,|",
    "odd/back\\slash",
    "odd/.hidden",
    "odd/...",
    "odd/ lead",
    "odd/{}[]`",
    "odd/tmp",
    "odd/tab\there",
];

async fn odd_keys(store: &dyn ObjectWrite, habits: &Habits) {
    let mut want = Vec::new();
    for key in ODD {
        if habits.unfit.contains(&key) {
            continue;
        }
        let put = store.put(key, key.as_bytes().to_vec().into(), &none(), true).await;
        put.unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!(whole(store.get(key).await.unwrap()).await, key.as_bytes());
        want.push(key);
    }
    want.sort_unstable();
    assert_eq!(keys(store, "odd/").await, want);
    for key in want {
        store.delete(key).await.unwrap();
    }
    assert!(keys(store, "odd/").await.is_empty());
}

async fn streams(store: &dyn ObjectWrite, habits: &Habits) {
    for size in [0, 1, 5_000_000, 8 * MIB, 8 * MIB + 1, 20 * MIB] {
        let (key, body) = (format!("s/{size}"), noise(size, 3));
        let put = store.put_stream(&key, chunks(body.clone()), &none(), false).await.unwrap();
        let got = store.get(&key).await.unwrap();
        assert_eq!((put.size, got.meta.size, &put.etag), (size as u64, size as u64, &got.meta.etag));
        assert!(whole(got).await == body, "{size}");
    }
    // In place of another, which was not sent in parts.
    store.put_stream("s/1", chunks(noise(9 * MIB, 4)), &none(), false).await.unwrap();
    if habits.checks {
        assert!(whole(store.get("s/1").await.unwrap()).await == noise(9 * MIB, 4));
    } else {
        torn(store, "s/1").await;
    }
    let there = keys(store, "s/").await;
    assert_eq!(there.len(), 6);
    // Broken off early, late, and by who waits for it: nothing appears.
    for good in [1, 25] {
        let broken = || Err(PortError::Unreachable("the source is gone".into()));
        let body = stream::iter((0..good).map(|_| Ok(noise(MIB, 4))).chain(std::iter::once_with(broken))).boxed();
        let answer = store.put_stream("s/broken", body, &none(), false).await;
        assert_eq!(answer.map(|_| ()), Err(PortError::Unreachable("the source is gone".into())));
    }
    let endless = stream::iter((0..20).map(|_| Ok(noise(MIB, 5)))).chain(stream::pending()).boxed();
    let none = none();
    assert!(tokio::time::timeout(Duration::from_millis(500), store.put_stream("s/broken", endless, &none, false)).await.is_err());
    assert_eq!(keys(store, "s/").await, there);
    for key in there {
        store.delete(&key).await.unwrap();
    }
}

/// Where bytes of keys, not names of folders, decide; and over more than one page of S3's.
async fn order(store: &dyn ObjectWrite, habits: &Habits) {
    let mut want: Vec<String> = (0..1_016).map(|n| format!("o/{:02}/{n:05}", n % 3)).collect();
    want.extend(["o/00-x", "o/00.x", "o/000", "o/00~"].map(str::to_owned));
    let none = none();
    let puts = want.iter().map(|key| store.put(key, b"x".to_vec().into(), &none, false));
    stream::iter(puts).buffer_unordered(16).try_for_each(|_| async { Ok(()) }).await.unwrap();
    want.sort_unstable();
    let (objects, pages) = listed(store, "o/").await;
    println!("{} objects in {pages} pages", objects.len());
    assert!(objects.iter().all(|object| object.size == 1 && object.etag.is_some()));
    let mut found: Vec<String> = objects.into_iter().map(|object| object.key).collect();
    assert_eq!(found.is_sorted(), habits.in_order);
    found.sort_unstable();
    assert!(found == want, "{} objects were written", want.len());
    assert_eq!(keys(store, "o/00-").await, ["o/00-x"]);
    assert_eq!(keys(store, "o/01/0000").await, ["o/01/00001", "o/01/00004", "o/01/00007"]);
    assert!(keys(store, "p").await.is_empty() && keys(store, "o/01/0000/").await.is_empty());
}

// ---------------------------------------------------------------- a world in memory, for tests

#[tokio::test]
async fn the_simulated_store_keeps_the_contract() {
    let estate: Estate = serde_json::from_value(serde_json::json!({ "repositories": { "vault": { "url": "s3://vault" } } })).unwrap();
    let world = SimWorld::new(std::sync::Arc::new(estate));
    let store = world.store_mut("vault").unwrap();
    conforms(&*store, &Habits { metadata: true, unfit: &[], checks: true, in_order: true, parts_at_once: true }).await;
    assert!(matches!(world.store("other"), Err(PortError::Config(m)) if m.contains("`other`")));
    store.put("k", b"x".to_vec().into(), &none(), true).await.unwrap();
    let until = world.time().now() + SignedDuration::from_hours(1);
    store.retain("k", until, LockMode::default()).await.unwrap();
    assert_eq!((store.locks().await, store.retention("k").await), (Ok(true), Ok(Some(until))));
    assert!(matches!(store.delete("k").await, Err(PortError::Refused(_))));
    let meta = store.head("k").await.unwrap().unwrap();
    store.copy_from("copy", &store.place("k").unwrap(), &meta).await.unwrap();
    assert_eq!(whole(store.get("copy").await.unwrap()).await, b"x");
}

// ---------------------------------------------------------------- a directory

fn below(path: &Path) -> usize {
    std::fs::read_dir(path).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_directory_is_an_object_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("made/on/first/use");
    let store = store::open(&format!("file://{}", root.display()), None).unwrap();
    assert!(keys(&*store, "").await.is_empty() && !root.exists(), "looking makes nothing");
    conforms(&*store, &Habits { metadata: false, unfit: &[], checks: true, in_order: true, parts_at_once: true }).await;
    assert_eq!(below(&root.join("tmp")), 1, "the lock alone is left");
    assert_eq!((store.locks().await, store.provider().await), (Ok(false), Ok(None)));
    let metadata = BTreeMap::from([("kind".to_owned(), "pack".to_owned())]);
    assert!(matches!(store.put("m", Vec::new().into(), &metadata, false).await, Err(PortError::Refused(m)) if m.contains("`kind`")));
    for key in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "a/./b", "tmp/x", "lost+found", "nul\0", &"x".repeat(256)] {
        let put = store.put(key, b"x".to_vec().into(), &none(), false).await;
        assert!(matches!(&put, Err(PortError::Refused(m)) if m.contains("cannot be a key")), "{key:?}: {put:?}");
        assert!(store.get(key).await.is_err() && store.delete(key).await.is_err());
    }
    // An object where a folder would be, and the other way round.
    store.put("f", b"x".to_vec().into(), &none(), false).await.unwrap();
    for (key, other) in [("f/g", "f"), ("o", "o/00/00000")] {
        let put = store.put(key, b"x".to_vec().into(), &none(), false).await;
        assert!(matches!(&put, Err(PortError::Refused(_))), "{put:?}");
        assert!(store.head(key).await.unwrap().is_none() && store.head(other).await.unwrap().is_some());
    }
    assert!(keys(&*store, "f/").await.is_empty());
    assert_eq!(below(&root.join("tmp")), 1, "what failed has left nothing");
}

#[tokio::test]
async fn what_a_dead_writer_left_is_removed_and_what_a_live_one_writes_is_not() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let tmp = dir.path().join("tmp");
    let (live, fresh) = (Directory::new(dir.path().to_owned()), Directory::new(dir.path().to_owned()));
    let (send, body) = futures::channel::mpsc::unbounded();
    let writing = tokio::spawn(async move { live.put_stream("k", body.boxed(), &none(), false).await });
    while below(&tmp) < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::write(tmp.join("1-1"), b"torn").unwrap();
    fresh.put("other", b"x".to_vec().into(), &none(), true).await.unwrap();
    assert!(!tmp.join("1-1").exists());
    send.unbounded_send(Ok(b"whole".to_vec())).unwrap();
    drop(send);
    writing.await.unwrap().unwrap();
    assert_eq!(whole(fresh.get("k").await.unwrap()).await, b"whole");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&tmp), mode(&dir.path().join("k"))), (0o700, 0o600));
}

/// Runs one of the ignored tests below where a small file system can be mounted that goes with it.
fn in_a_room_of_its_own(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=4m tmpfs \"$ROOM\" && exec \"$0\" --exact --ignored \"$1\"";
    for flags in ["-rm", "-m"] {
        let unshare = |script: &str| {
            let mut command = Command::new("unshare");
            command.args([flags, "sh", "-c", script]).arg(std::env::current_exe().unwrap()).arg(test).env("ROOM", dir.path());
            command.stdin(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        if unshare("mount -t tmpfs -o size=4m tmpfs \"$ROOM\"") {
            assert!(unshare(script));
            return;
        }
    }
    println!("NOT POSSIBLE HERE: no file system can be mounted (neither as root nor by `unshare -rm`), so a full disk was not tried");
}

#[test]
fn a_full_disk_is_a_definite_no_and_leaves_nothing() {
    in_a_room_of_its_own("stores::on_a_disk_of_four_mebibytes");
}

#[tokio::test]
#[ignore = "the test above runs it on a small disk"]
async fn on_a_disk_of_four_mebibytes() {
    let root = std::path::PathBuf::from(std::env::var_os("ROOM").unwrap());
    let store = Directory::new(root.clone());
    store.put("a", noise(2 * MIB, 1).into(), &none(), true).await.unwrap();
    for _ in 0..3 {
        let put = store.put("b", noise(3 * MIB, 1).into(), &none(), true).await;
        assert!(matches!(&put, Err(PortError::Refused(m)) if m.contains("make room") && m.contains("/tmp/")), "{put:?}");
        let put = store.put_stream("b", chunks(noise(9 * MIB, 1)), &none(), false).await;
        assert!(matches!(&put, Err(PortError::Refused(m)) if m.contains("make room")), "{put:?}");
    }
    assert_eq!((below(&root.join("tmp")), keys(&store, "").await), (1, vec!["a".to_owned()]));
    store.delete("a").await.unwrap();
    store.put("b", noise(3 * MIB, 1).into(), &none(), true).await.unwrap();
}

// ---------------------------------------------------------------- S3

/// What not every server does alike, beyond the contract.
struct Extras {
    /// Tells which uploads are not completed.
    lists_uploads: bool,
    locks: bool,
    /// Another mode of retention takes the right to bypass governance, as at Amazon.
    guards_mode: bool,
    /// Makes a bucket that is missing when something is put into it.
    makes_buckets: bool,
}

/// Every key has a prefix, which nobody sees.
async fn s3_conforms(server: &Server, habits: &Habits, extras: &Extras) {
    server.bucket("models", false).await;
    let store = server.open("s3://models/scoring/v1");
    conforms(&*store, habits).await;
    let begin = Instant::now();
    left_over(server, extras).await;
    copies(server, habits).await;
    retained(server, extras).await;
    let gone = server.open("s3://nowhere");
    assert!(matches!(gone.list("", None).await, Err(PortError::NotFound(_))));
    let put = gone.put("k", Vec::new().into(), &none(), false).await.map(|_| ());
    let streamed = gone.put_stream("k", chunks(noise(9 * MIB, 1)), &none(), false).await.map(|_| ());
    for answer in [put, streamed] {
        assert!(if extras.makes_buckets { answer.is_ok() } else { matches!(answer, Err(PortError::NotFound(_))) }, "{answer:?}");
    }
    println!("uploads, copies, retention: {} ms", begin.elapsed().as_millis());
}

/// Broken uploads were aborted, also the one whose caller went away.
async fn left_over(server: &Server, extras: &Extras) {
    let clients = server.clients();
    let s3 = &clients.s3().await.unwrap().read;
    let (begin, mut left) = (Instant::now(), usize::MAX);
    while left > 0 && begin.elapsed() < Duration::from_secs(10) {
        let uploads = s3.list_multipart_uploads().bucket("models").send().await;
        assert_eq!(uploads.is_ok(), extras.lists_uploads, "{uploads:?}");
        left = uploads.map_or(0, |uploads| uploads.uploads().len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(left, 0);
}

async fn copies(server: &Server, habits: &Habits) {
    server.bucket("second", false).await;
    let (from, to) = (server.open("s3://models/a b"), server.open("s3://second/x"));
    let provider = from.provider().await.unwrap();
    assert!(provider.is_some() && provider == to.provider().await.unwrap());
    let metadata = if habits.metadata { BTreeMap::from([("kind".to_owned(), "pack".to_owned())]) } else { none() };
    let body = noise(12 * MIB + 5, 6);
    from.put("p/ä+1", body.clone().into(), &metadata, true).await.unwrap();
    let source = from.head("p/ä+1").await.unwrap().unwrap();
    let place = from.place("p/ä+1").unwrap();
    assert_eq!(place, ObjectPlace { bucket: "models".into(), key: "a b/p/ä+1".into() });
    let copy = to.copy_from("p/ä+1", &place, &source).await.unwrap();
    let there = to.get("p/ä+1").await.unwrap();
    assert_eq!((copy.size, &there.meta.metadata, &copy.etag), (source.size, &metadata, &there.meta.etag));
    assert!(whole(there).await == body);
    // As what is larger than 5 GiB is copied.
    let parts = S3Bucket::new(server.clients(), "second".into(), "x/".into());
    parts.copy_in_parts("parts", &place, &source, 5 * MIB as u64).await.unwrap();
    let there = to.get("parts").await.unwrap();
    assert_eq!(there.meta.metadata, metadata);
    assert!(whole(there).await == body);
    let missing = ObjectPlace { key: "a b/none".into(), ..place.clone() };
    assert!(matches!(to.copy_from("none", &missing, &source).await, Err(PortError::NotFound(_) | PortError::Conflict { .. })));
    from.put("p/ä+1", b"changed".to_vec().into(), &none(), false).await.unwrap();
    let stale = to.copy_from("stale", &place, &source).await;
    assert!(matches!(stale, Err(PortError::Conflict { .. })), "{stale:?}");
    assert!(to.head("stale").await.unwrap().is_none());
}

async fn retained(server: &Server, extras: &Extras) {
    let without = server.open("s3://models");
    without.put("free", b"x".to_vec().into(), &none(), false).await.unwrap();
    assert_eq!((without.locks().await, without.retention("free").await), (Ok(false), Ok(None)));
    let refused = without.retain("free", Timestamp::now() + SignedDuration::from_hours(1), LockMode::Governance).await;
    assert!(matches!(refused, Err(PortError::Refused(_))), "{refused:?}");
    if !extras.locks {
        return;
    }
    server.bucket("vault", true).await;
    let vault = server.open("s3://vault/v");
    assert_eq!(vault.locks().await, Ok(true));
    for mode in [LockMode::Governance, LockMode::Compliance] {
        let key = format!("{mode:?}");
        vault.put(&key, b"x".to_vec().into(), &none(), true).await.unwrap();
        assert_eq!(vault.retention(&key).await, Ok(None));
        let until = Timestamp::now() + SignedDuration::from_secs(3_600);
        vault.retain(&key, until, mode).await.unwrap();
        let kept = vault.retention(&key).await.unwrap().unwrap();
        assert!(kept >= until && kept < until + SignedDuration::from_secs(2), "{kept} {until}");
        // Renewed, for a newer snapshot that still needs it; and never shortened.
        vault.retain(&key, until + SignedDuration::from_secs(3_600), mode).await.unwrap();
        let shorter = vault.retain(&key, until, mode).await;
        assert!(matches!(&shorter, Err(PortError::Refused(m)) if m.contains("AccessDenied")), "{shorter:?}");
        let version = vault.head(&key).await.unwrap().unwrap().version;
        let version = version.expect("a bucket with Object Lock keeps versions");
        let clients = server.clients();
        let delete = clients.s3().await.unwrap().write.delete_object().bucket("vault").key(format!("v/{key}")).version_id(version);
        assert!(delete.send().await.is_err(), "{mode:?} does not hold");
    }
    made_firmer(server, &*vault, extras.guards_mode).await;
}

#[tokio::test]
async fn s3s_fs_keeps_the_contract() {
    let server = s3s_fs().await;
    let habits = Habits { metadata: true, unfit: &[], checks: false, in_order: true, parts_at_once: true };
    s3_conforms(&server, &habits, &Extras { lists_uploads: false, locks: false, guards_mode: false, makes_buckets: true }).await;
}

/// Without an estate the SDK's own configuration says how S3 is reached. A process cannot change its environment
/// safely, so each case is a process of its own.
#[tokio::test]
async fn without_an_estate_the_environment_says_how_s3_is_reached() {
    let server = s3s_fs().await;
    for endpoint in [Some(server.url()), None] {
        let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "--ignored", "stores::by_the_environment_alone"])
            .env_clear()
            .envs(endpoint.map(|url| ("AWS_ENDPOINT_URL_S3", url)));
        command.env("HOME", server.dir.path()).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "testtest").stdin(Stdio::null()).kill_on_drop(true);
        let ended = tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    }
}

#[tokio::test]
#[ignore = "the test above runs it in an environment that it makes"]
async fn by_the_environment_alone() {
    let store = store::open("s3://by-environment/x", None).unwrap();
    let put = store.put("k", b"body".to_vec().into(), &none(), true).await;
    if let Ok(url) = std::env::var("AWS_ENDPOINT_URL_S3") {
        put.unwrap();
        assert_eq!(whole(store.get("k").await.unwrap()).await, b"body");
        assert_eq!(store.provider().await, Ok(Some(url)), "no region is needed where an address is given");
    } else {
        assert!(matches!(&put, Err(PortError::Config(m)) if m.contains("AWS_REGION")), "{put:?}");
    }
}

#[tokio::test]
async fn seaweedfs_keeps_the_contract() {
    let server = seaweedfs().await;
    // It takes a backslash for a slash.
    let habits = Habits { metadata: true, unfit: &["odd/back\\slash"], checks: true, in_order: false, parts_at_once: false };
    s3_conforms(&server, &habits, &Extras { lists_uploads: true, locks: true, guards_mode: true, makes_buckets: true }).await;
}

#[tokio::test]
async fn ministack_keeps_the_contract() {
    let server = ministack().await;
    let habits = Habits { metadata: true, unfit: &[], checks: true, in_order: true, parts_at_once: true };
    s3_conforms(&server, &habits, &Extras { lists_uploads: true, locks: true, guards_mode: false, makes_buckets: false }).await;
}
