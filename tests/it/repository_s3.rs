//! The backup repository on S3 servers that nobody of Muster wrote: what is backed up comes back bit for bit, whatever
//! is damaged is named, writers do not hinder each other, and a connection that breaks loses nothing that was said to
//! be there. What a server does differently is said in its [`Habits`].

use crate::{
    repository_s3_tools::{Depot, Eyes, Weather, noise},
    stores_servers::{Server, ministack, s3s_fs, seaweedfs},
};
use muster::{
    providers::port::ObjectRead,
    repository::{
        create::Created,
        names::{Id, PACKS},
        restore::Restored,
        snapshot::Snapshot,
    },
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

const MIB: usize = 1024 * 1024;

/// What not every server does alike.
struct Habits {
    /// Object Lock.
    locks: bool,
    /// Keeps what is called by the characters of [`ODD`] under that name.
    unfit: &'static [&'static str],
    /// A key may be a folder of others as well: `a` and `a/b`.
    both: bool,
    /// A write in place of another leaves no old checksum behind.
    checks: bool,
}

const ODD: [&str; 9] =
    ["odd/a b+c", "odd/a%2Fb", "odd/ä/☃", "odd/'\"&<>", "odd/a=b&c?d#e", "odd/back\\slash", "odd/...", "odd/tab\there", "odd/ lead"];

type Objects = BTreeMap<String, Vec<u8>>;

fn objects(habits: &Habits) -> Objects {
    let mut all = Objects::from([
        ("large.bin".to_owned(), noise(1, 20 * MIB)),
        ("empty".to_owned(), Vec::new()),
        ("changes".to_owned(), noise(2, 700_000)),
        ("goes".to_owned(), noise(3, 50_000)),
    ]);
    all.extend((0..40).map(|n| (format!("small/{n:02}/model.json"), format!("{{\"n\": {n}}}").into_bytes())));
    all.extend(ODD.iter().filter(|key| !habits.unfit.contains(key)).map(|key| ((*key).to_owned(), key.as_bytes().to_vec())));
    if habits.both {
        all.extend([("both".to_owned(), b"a file".to_vec()), ("both/under".to_owned(), b"and a folder".to_vec())]);
    }
    all
}

/// The files below a folder, by their names.
fn below(root: &Path) -> Objects {
    let (mut found, mut folders) = (Objects::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Says where they differ, and not in 20 MiB of numbers.
fn same(found: &Objects, want: &Objects) {
    let (names, wanted): (Vec<_>, Vec<_>) = (found.keys().collect(), want.keys().collect());
    assert_eq!(names, wanted);
    let differs: Vec<_> = want.iter().filter(|(key, body)| found[*key] != **body).map(|(key, _)| key).collect();
    assert!(differs.is_empty(), "{differs:?}");
}

/// A folder of files, some large and some small.
fn folder(dir: &Path, seed: u8) -> PathBuf {
    let root = dir.join(format!("folder-{seed}"));
    std::fs::create_dir_all(root.join("deep/er")).unwrap();
    std::fs::write(root.join("weights"), noise(seed, 5 * MIB)).unwrap();
    std::fs::write(root.join("shared"), noise(100, 2 * MIB)).unwrap();
    std::fs::write(root.join("zeros"), vec![0; 3 * MIB]).unwrap();
    (0..20).for_each(|n| std::fs::write(root.join(format!("deep/er/{n}.json")), format!("{seed} {n}")).unwrap());
    // What changed just before a backup is read again by the next one.
    std::thread::sleep(Duration::from_millis(60));
    root
}

async fn restored(depot: &Depot, snapshot: &Snapshot) -> (Restored, Objects) {
    let dir = tempfile::tempdir().unwrap();
    let restored = depot.restore(snapshot, &dir.path().join("back")).await;
    (restored, below(&dir.path().join("back")))
}

async fn holds(server: &Server, habits: &Habits) {
    let dir = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    let said = |part: &str| println!("{part}: {} ms since the start", begin.elapsed().as_millis());
    for name in ["models", "back", "vault", "second"] {
        server.bucket(name, false).await;
    }
    a_folder(server, dir.path()).await;
    said("a folder");
    for place in ["s3://vault/of objects", dir.path().join("repository").to_str().unwrap()] {
        a_bucket(server, habits, place).await;
        said(place);
    }
    damage(server, habits, dir.path()).await;
    said("damage");
    together(server, dir.path()).await;
    said("two writers and a prune");
    copied(server, dir.path()).await;
    said("a copy");
    rolled_back(server, dir.path()).await;
    said("rolled back");
    bad_weather(server, dir.path()).await;
    said("bad weather");
    if habits.locks {
        locked(server, dir.path()).await;
        said("locks");
    }
}

async fn a_folder(server: &Server, dir: &Path) {
    let depot = Depot::new(server.open("s3://vault/of a folder")).await;
    let root = folder(dir, 10);
    let first = depot.backup_folder(&root).await.unwrap();
    assert_eq!((first.snapshot.stats.files, first.unreadable.len()), (23, 0));
    assert!((first.snapshot.stats.bytes_stored as usize) < 8 * MIB, "{:?}", first.snapshot.stats);
    std::fs::write(root.join("deep/er/3.json"), "changed").unwrap();
    let second = depot.backup_folder(&root).await.unwrap();
    assert_eq!(second.snapshot.stats.bytes_read, 7);
    let (restored, files) = restored(&depot, &second.snapshot).await;
    assert!(restored.damaged.is_empty(), "{:?}", restored.damaged);
    same(&files, &below(&root));
    // What is backed up from a folder may go into a bucket as well.
    let to = server.open("s3://back/folder");
    let done = depot.restore_objects(&second.snapshot, to.clone()).await;
    assert_eq!((done.objects, done.lost), (23, Vec::new()));
    same(&stored(&*to).await, &below(&root));
    depot.is_whole().await;
}

/// All objects of a store.
async fn stored(store: &dyn ObjectRead) -> Objects {
    let mut all = Objects::new();
    for key in crate::repository_s3_tools::keys(store, "").await {
        let body = crate::repository_s3_tools::body(store, &key).await;
        all.insert(key, body);
    }
    all
}

async fn a_bucket(server: &Server, habits: &Habits, place: &str) {
    let source = server.open("s3://models/prod");
    let mut want = objects(habits);
    let none = BTreeMap::new();
    if !habits.checks {
        // It is given no second content under one name.
        for key in want.keys() {
            let _ = source.delete(key).await;
        }
    }
    for (key, body) in &want {
        let metadata = BTreeMap::from([("stage".to_owned(), "prod".to_owned())]);
        let metadata = if key == "changes" { &metadata } else { &none };
        let put = source.put_stream(key, crate::repository_s3_tools::chunks(body.clone()), metadata, false).await;
        put.unwrap_or_else(|e| panic!("{key}: {e}"));
    }
    let depot = Depot::new(server.open(place)).await;
    let first = depot.backup_bucket(source.clone()).await.unwrap();
    let size = |all: &Objects| all.values().map(|body| body.len() as u64).sum::<u64>();
    let stats = &first.snapshot.stats;
    assert_eq!((stats.files, stats.bytes, stats.bytes_read), (want.len() as u64, size(&want), size(&want)));

    let unchanged = depot.backup_bucket(source.clone()).await.unwrap();
    assert_eq!((unchanged.snapshot.stats.bytes_read, unchanged.snapshot.stats.chunks_new), (0, 0));
    let old = want.clone();
    want.insert("changes".to_owned(), noise(4, 700_000));
    want.remove("goes");
    if !habits.checks {
        source.delete("changes").await.unwrap();
    }
    source.put("changes", want["changes"].clone().into(), &none, false).await.unwrap();
    source.delete("goes").await.unwrap();
    let second = depot.backup_bucket(source.clone()).await.unwrap();
    assert_eq!((second.snapshot.stats.bytes_read, second.snapshot.stats.bytes), (700_000, size(&want)));

    let name = if place.starts_with("s3:") { "s3" } else { "directory" };
    for (created, want) in [(&first, &old), (&second, &want)] {
        let to = server.open(&format!("s3://back/{name}/{}", created.id.short()));
        let done = depot.restore_objects(&created.snapshot, to.clone()).await;
        assert_eq!((done.objects, done.lost), (want.len() as u64, Vec::new()));
        same(&stored(&*to).await, want);
        let again = depot.restore_objects(&created.snapshot, to.clone()).await;
        assert_eq!((again.objects, again.skipped), (0, want.len() as u64), "what is there is not written again");
        into_a_folder(&depot, &created.snapshot, want).await;
    }
    let to = server.open(&format!("s3://back/{name}/{}", first.id.short()));
    let head = to.head("changes").await.unwrap().unwrap();
    assert_eq!(head.metadata.get("stage").map(String::as_str), Some("prod"));
    depot.is_whole().await;
}

/// In a folder nothing can be a file and a folder at once: then the file is named, and the rest is there.
async fn into_a_folder(depot: &Depot, snapshot: &Snapshot, want: &Objects) {
    let (restored, files) = restored(depot, snapshot).await;
    let mut want = want.clone();
    let named: Vec<&str> = restored.damaged.iter().map(|lost| lost.path.as_str()).collect();
    if want.contains_key("both/under") {
        assert_eq!(named.len(), 1, "{named:?}");
        want.remove(named[0]).expect("it is named as it is called");
    } else {
        assert!(named.is_empty(), "{named:?}");
    }
    same(&files, &want);
}

/// A byte of a stored pack changes: it is found by name, so are the files that it touches, and all the rest restores.
async fn damage(server: &Server, habits: &Habits, dir: &Path) {
    let depot = Depot::new(server.open("s3://vault/damaged")).await;
    let root = folder(dir, 20);
    let first = depot.backup_folder(&root).await.unwrap();
    std::fs::write(root.join("late"), noise(21, MIB)).unwrap();
    let second = depot.backup_folder(&root).await.unwrap();
    let sizes = depot.repository.list(PACKS).await.unwrap();
    let pack = sizes.iter().max_by_key(|meta| meta.size).unwrap().key.clone();
    let whole = crate::repository_s3_tools::body(&*depot.store, &pack).await;
    let mut flipped = whole.clone();
    flipped[1_000_000] ^= 0x10;
    for bytes in [flipped, whole[..whole.len() / 2].to_vec()] {
        depot.replace(&pack, bytes, habits.checks).await;
        let found = depot.verify().await;
        assert!(found.problems.iter().any(|problem| problem.contains(&pack)), "{pack}: {:?}", found.problems);
        assert!(found.touched.iter().any(|touched| touched.snapshot == second.id), "{:?}", found.touched);
        let (restored, files) = restored(&depot, &second.snapshot).await;
        assert!(!restored.damaged.is_empty());
        for (name, body) in below(&root) {
            let lost = restored.damaged.iter().any(|lost| lost.path == name);
            assert_ne!(files.get(&name) == Some(&body), lost, "{name} is either whole or named: {:?}", restored.damaged);
        }
    }
    depot.replace(&pack, whole, habits.checks).await;
    depot.is_whole().await;
    // What nobody needs any more goes, in two phases, and takes nothing else along.
    std::fs::remove_file(root.join("weights")).unwrap();
    let third = depot.backup_folder(&root).await.unwrap();
    depot.forget(&[first.id, second.id]).await;
    assert_eq!(depot.prune(0).await.deleted, 0);
    let pruned = depot.prune(0).await;
    assert!(pruned.deleted > 0, "{pruned:?}");
    same(&restored(&depot, &third.snapshot).await.1, &below(&root));
    depot.is_whole().await;
}

/// Two backups at once, with the same data in part, while somebody prunes.
async fn together(server: &Server, dir: &Path) {
    let depot = Arc::new(Depot::new(server.open("s3://vault/together")).await);
    let old = depot.backup_folder(&folder(dir, 30)).await.unwrap();
    depot.forget(&[old.id]).await;
    let backup = |seed| {
        let (depot, root) = (depot.clone(), folder(dir, seed));
        tokio::spawn(async move { (depot.backup_folder(&root).await.unwrap(), root) })
    };
    let (one, two) = (backup(31), backup(32));
    let prunes = async { (depot.prune(3600).await, depot.prune(3600).await) };
    let (one, two, pruned) = tokio::join!(one, two, prunes);
    let made: Vec<(Created, PathBuf)> = vec![one.unwrap(), two.unwrap()];
    assert_eq!((pruned.0.deleted, pruned.1.deleted), (0, 0));
    depot.is_whole().await;
    depot.prune(0).await;
    depot.prune(0).await;
    depot.is_whole().await;
    for (created, root) in made {
        same(&restored(&depot, &created.snapshot).await.1, &below(&root));
    }
}

/// Between two buckets of one provider packs do not pass through here.
async fn copied(server: &Server, dir: &Path) {
    let eyes = Arc::new(Eyes::new(server.open("s3://vault/a b/original")));
    let depot = Depot::new(eyes.clone()).await;
    let root = folder(dir, 40);
    let first = depot.backup_folder(&root).await.unwrap();
    let to = server.open("s3://second/copy");
    eyes.forget();
    let done = depot.copy(to.clone(), &[(first.id, first.snapshot.clone())]).await;
    assert!(done.server_side && done.snapshots == 1 && done.packs > 0 && done.bytes as usize > 7 * MIB, "{done:?}");
    let (packs, bytes) = eyes.seen();
    assert!(packs.is_empty() && bytes < 100_000, "{packs:?} were read, and {bytes} bytes of others");
    std::fs::write(root.join("late"), noise(41, MIB)).unwrap();
    let second = depot.backup_folder(&root).await.unwrap();
    let both = [(first.id, first.snapshot.clone()), (second.id, second.snapshot.clone())];
    let more = depot.copy(to.clone(), &both).await;
    assert!(more.snapshots == 1 && more.packs > 0 && (more.bytes as usize) < 2 * MIB, "{more:?}");
    assert_eq!(depot.copy(to.clone(), &both).await.packs, 0);
    let copy = Depot::open(to).await;
    copy.is_whole().await;
    same(&restored(&copy, &second.snapshot).await.1, &below(&root));
    // To another provider the bytes pass through here, each compared with its name.
    let elsewhere = server.open(dir.join("elsewhere").to_str().unwrap());
    assert!(!depot.copy(elsewhere.clone(), &both).await.server_side);
    Depot::open(elsewhere).await.is_whole().await;
}

/// Connections break after so and so many bytes, in the middle of requests and of answers. A backup makes it by trying
/// again, or says that it did not; what was finished before stays whole, and the next one in good weather succeeds.
async fn bad_weather(server: &Server, dir: &Path) {
    Depot::new(server.open("s3://vault/weather")).await;
    let weather = Weather::over(server.port(), 0x5eed).await;
    let root = folder(dir, 50);
    let mut whole: Vec<(Created, Objects)> = Vec::new();
    let (mut made, mut failed) = (0, 0);
    for round in 0..6 {
        std::fs::write(root.join("weights"), noise(60 + round, 2 * MIB)).unwrap();
        weather.turn(true);
        let answer = match Depot::try_open(server.open_through("s3://vault/weather", weather.port)).await {
            Ok(depot) => depot.backup_folder(&root).await,
            Err(error) => Err(error),
        };
        weather.turn(false);
        let clear = Depot::open(server.open("s3://vault/weather")).await;
        match answer {
            Ok(created) => {
                made += 1;
                whole.push((created, below(&root)));
            }
            Err(error) => {
                println!("round {round}: {error}");
                failed += 1;
            }
        }
        clear.is_whole().await;
        let there: Vec<Id> = clear.repository.snapshots().await.unwrap().whole.into_iter().map(|(id, _)| id).collect();
        assert!(whole.iter().all(|(created, _)| there.contains(&created.id)), "what was said to be there is not");
    }
    println!("{made} backups made it, {failed} said that they did not; {} connections were cut", weather.cut());
    assert!(weather.cut() > 3 && made > 0);
    let clear = Depot::open(server.open("s3://vault/weather")).await;
    whole.push((clear.backup_folder(&root).await.unwrap(), below(&root)));
    clear.prune(0).await;
    clear.prune(0).await;
    clear.is_whole().await;
    for (created, want) in [&whole[0], whole.last().unwrap()] {
        same(&restored(&clear, &created.snapshot).await.1, want);
    }
}

/// The program itself, as somebody calls it who keeps a bucket under Object Lock.
struct Program<'a> {
    server: &'a Server,
    repo: &'static str,
    key: PathBuf,
}

impl Program<'_> {
    async fn run(&self, args: &[&str]) -> (Option<i32>, serde_json::Value, String) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_muster"));
        command.arg("backup").args(args).args(["--repo", self.repo, "--json", "--key-file"]).arg(&self.key);
        command.env("AWS_ENDPOINT_URL_S3", self.server.url()).env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "testtest").stdin(Stdio::null()).kill_on_drop(true);
        command.current_dir(self.server.dir.path());
        let ended = tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap();
        let (out, err) = (String::from_utf8_lossy(&ended.stdout).into_owned(), String::from_utf8_lossy(&ended.stderr).into_owned());
        let last = out.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        (ended.status.code(), last, err)
    }
    async fn good(&self, args: &[&str]) -> serde_json::Value {
        let (code, last, err) = self.run(args).await;
        assert_eq!(code, Some(0), "{args:?}: {last} {err}");
        last
    }
}

/// A bucket is rolled back to a snapshot: said before, done then, and nothing that Muster keeps there is touched. And a copy
/// of a repository with a damaged pack.
async fn rolled_back(server: &Server, dir: &Path) {
    let program = Program { server, repo: "s3://vault/rolled", key: dir.join("key") };
    std::fs::write(&program.key, crate::repository_s3_tools::KEY).unwrap();
    let root = folder(dir, 50);
    program.good(&["create", root.to_str().unwrap()]).await;
    let back = server.open("s3://back/rolled");
    for key in ["stray", "deep/er/3.json", "deep/more", ".muster/wheel.json"] {
        back.put(key, b"x".to_vec().into(), &BTreeMap::new(), false).await.unwrap();
    }
    let restore = ["restore", "latest", "--to", "s3://back/rolled", "--in-place", "--delete"];
    let dry = program.good(&[&restore[..], &["--dry-run"]].concat()).await;
    assert_eq!((&dry["files"], &dry["deleted"], &dry["dry_run"]), (&23.into(), &2.into(), &true.into()), "{dry}");
    assert_eq!(stored(&*back).await.len(), 4, "a dry run writes and removes nothing");
    let done = program.good(&restore).await;
    assert_eq!((&done["files"], &done["deleted"], &done["bytes_written"]), (&23.into(), &2.into(), &dry["bytes_written"]), "{done}");
    let mut want = below(&root);
    want.insert(".muster/wheel.json".to_owned(), b"x".to_vec());
    same(&stored(&*back).await, &want);
    let again = program.good(&restore).await;
    assert_eq!((&again["bytes_written"], &again["deleted"]), (&0.into(), &0.into()), "{again}");
    // Where the repository itself lies, nothing is removed.
    for place in ["s3://vault", "s3://vault/rolled"] {
        let (code, _, said) = program.run(&["restore", "latest", "--to", place, "--in-place", "--delete"]).await;
        assert!(code == Some(2) && said.contains("would remove the repository"), "{place}: {code:?} {said}");
    }

    let store = server.open("s3://vault/rolled");
    let before = crate::repository_s3_tools::keys(&*store, PACKS).await;
    std::fs::write(root.join("late"), noise(51, MIB)).unwrap();
    program.good(&["create", root.to_str().unwrap()]).await;
    let mut new = store.list(PACKS, None).await.unwrap().objects;
    new.retain(|meta| !before.contains(&meta.key));
    let pack = new.into_iter().max_by_key(|meta| meta.size).unwrap().key;
    let whole = crate::repository_s3_tools::body(&*store, &pack).await;
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    store.put(&pack, flipped.into(), &BTreeMap::new(), false).await.unwrap();
    let second = dir.join("second-place");
    let copy = ["copy", "--to", second.to_str().unwrap()];
    let (code, report, said) = program.run(&copy).await;
    let named = report["damaged"].to_string();
    assert!(code == Some(1) && named.contains(&pack) && named.contains("is not copied"), "{code:?} {report} {said}");
    assert_eq!((&report["snapshots_copied"], report["snapshots"].as_array().unwrap().len()), (&1.into(), 1), "{report}");
    Depot::open(server.open(second.to_str().unwrap())).await.is_whole().await;
    store.put(&pack, whole.into(), &BTreeMap::new(), false).await.unwrap();
    let repaired = program.good(&copy).await;
    assert_eq!((&repaired["snapshots_copied"], &repaired["damaged"]), (&1.into(), &serde_json::json!([])), "{repaired}");
    Depot::open(server.open(second.to_str().unwrap())).await.is_whole().await;
}

async fn locked(server: &Server, dir: &Path) {
    server.bucket("locked", true).await;
    let program = Program { server, repo: "s3://locked/r", key: dir.join("key") };
    std::fs::write(&program.key, crate::repository_s3_tools::KEY).unwrap();
    let root = folder(dir, 70);
    let source = root.to_str().unwrap();
    let first = program.good(&["create", source, "--lock", "1h"]).await;
    let store = server.open("s3://locked/r");
    let packs = crate::repository_s3_tools::keys(&*store, PACKS).await;
    let until = |text: &serde_json::Value| text.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let mut retained = BTreeMap::new();
    for key in crate::repository_s3_tools::keys(&*store, "").await {
        let kept = store.retention(&key).await.unwrap().unwrap_or_else(|| panic!("{key} is not retained"));
        assert!(kept >= until(&first["locked_until"]), "{key}: {kept}");
        retained.insert(key, kept);
    }
    // A later backup renews what it still needs.
    let second = program.good(&["create", source, "--lock", "2h"]).await;
    assert_eq!(second["bytes_read"], 0);
    for pack in &packs {
        assert!(store.retention(pack).await.unwrap().unwrap() >= until(&second["locked_until"]), "{pack} is not renewed");
    }
    // Whoever hides the snapshots cannot have the packs deleted, nor a prune that knows no better.
    for snapshot in crate::repository_s3_tools::keys(&*store, "snapshots/").await {
        store.delete(&snapshot).await.unwrap();
    }
    program.good(&["prune", "--grace", "0s"]).await;
    let refused = program.good(&["prune", "--grace", "0s"]).await;
    assert_eq!((&refused["deleted"], &refused["retained"]), (&0.into(), &packs.len().into()), "{refused}");
    assert!(until(&refused["retained_until"]) >= until(&second["locked_until"]), "{refused}");
    assert_eq!(crate::repository_s3_tools::keys(&*store, PACKS).await, packs);
    program.good(&["verify", "--read-data"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_holds_a_repository() {
    // A key that is also the beginning of others is a file and a folder to it: if the other is written first, it is lost.
    holds(&seaweedfs().await, &Habits { locks: true, unfit: &["odd/back\\slash"], both: false, checks: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ministack_holds_a_repository() {
    holds(&ministack().await, &Habits { locks: true, unfit: &[], both: true, checks: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it answers slowly, and is in this process: the two above are what counts"]
async fn s3s_fs_holds_a_repository() {
    holds(&s3s_fs().await, &Habits { locks: false, unfit: &[], both: false, checks: false }).await;
}
