//! Two buckets compared as sets, on servers that nobody here wrote: every kind of difference is planted, all of them
//! must be found and nothing else, also when the verification is killed on the way. And what readiness says of buckets.

use crate::{
    fault_proxy::{Fault, FaultProxy},
    stores_servers::{Server, ministack, seaweedfs},
};
use aws_sdk_s3::types::{
    BucketVersioningStatus, DefaultRetention, DeleteMarkerReplication, DeleteMarkerReplicationStatus, Destination, ObjectLockConfiguration,
    ObjectLockEnabled, ObjectLockRetentionMode, ObjectLockRule, ReplicationConfiguration, ReplicationRuleFilter, VersioningConfiguration,
};
use futures::{StreamExt, stream};
use muster::providers::port::*;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub const EAST: &str = "models-east";
pub const WEST: &str = "models-west";

/// An estate whose two regions are one server, and the program in its folder.
pub struct Yard {
    pub server: Server,
    pub dir: tempfile::TempDir,
}

pub struct Ended {
    pub code: Option<i32>,
    last: Value,
    pub said: String,
}

impl Ended {
    /// The step's.
    pub fn output(&self) -> Value {
        self.last["steps"][0]["output"].clone()
    }
}

impl Yard {
    pub fn new(server: Server, extra: &str) -> Self {
        let url = server.url();
        Self::at(server, &url, extra)
    }

    /// The program reaches the server by this address.
    pub fn at(server: Server, url: &str, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = server.dir.path().display();
        let keys = format!("credentials: {{ access_key_id: {{ file: {home}/id }}, secret_access_key: {{ file: {home}/secret }} }}");
        let region = |name: &str| format!("{{ aws: {{ region: {name}, {keys}, endpoints: {{ s3: '{url}' }} }} }}");
        let estate = format!(
            "regions:\n  east: {}\n  west: {}\nbuckets:\n  models:\n    east: {{ bucket: {EAST}{extra} }}\n    west: {{ bucket: {WEST} }}\n",
            region("us-east-1"),
            region("us-east-1")
        );
        std::fs::write(dir.path().join("muster.yaml"), estate).unwrap();
        Self { server, dir }
    }

    pub fn runbook(&self, name: &str, uses: &str, with: &str) -> PathBuf {
        let path = self.dir.path().join(format!("{name}.yaml"));
        let text = format!("runbook: {name}\nsteps:\n  - id: look\n    uses: {uses}\n    with: {with}\n    on_failure: stop\n");
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command.args(args).args(["--json", "--state", "state", "--estate", "muster.yaml"]).current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        ended(self.command(args).spawn().unwrap())
    }

    pub fn look(&self, uses: &str, with: &str) -> Ended {
        let runbook = self.runbook("look", uses, with);
        self.run(&["run", runbook.to_str().unwrap(), "--live"])
    }

    pub fn verify(&self, more: &str) -> Ended {
        self.look("bucket.verify", &format!("{{ bucket: models, from: east, to: west, against: source{more} }}"))
    }

    /// The file of differences of the last run that left one.
    pub fn differences(&self) -> Vec<(String, String)> {
        let file = newest(&self.dir.path().join("state"), "differences.jsonl").expect("a file of differences");
        let text = std::fs::read_to_string(file).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let word = |v: &Value| v.as_str().unwrap().to_owned();
        lines.map(|line| (word(&line["kind"]), word(&line["key"]))).collect()
    }

    pub fn stores(&self) -> (std::sync::Arc<dyn ObjectWrite>, std::sync::Arc<dyn ObjectWrite>) {
        (self.server.open(&format!("s3://{EAST}")), self.server.open(&format!("s3://{WEST}")))
    }
}

fn ended(child: Child) -> Ended {
    let output = child.wait_with_output().unwrap();
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let last = out.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null);
    Ended { code: output.status.code(), last, said: format!("{out}\n{said}") }
}

fn newest(below: &Path, name: &str) -> Option<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![below.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() == name {
                found.push((entry.metadata().unwrap().modified().unwrap(), entry.path()));
            }
        }
    }
    found.into_iter().max().map(|(_, path)| path)
}

pub async fn put(store: &dyn ObjectWrite, key: &str, body: &str) {
    store.put(key, body.as_bytes().to_vec().into(), &BTreeMap::new(), false).await.unwrap_or_else(|e| panic!("{key}: {e}"));
}

/// Folders, and neighbours of folders that sort before their content by bytes and behind it by folders.
pub fn keys(count: usize) -> Vec<String> {
    let mut keys: Vec<String> = (0..count).map(|n| format!("m/{:02}/{n:05}.bin", n % 7)).collect();
    keys.extend(["m/00-notes", "m/03.txt", "m/05 x", "a", "z/z/z"].map(str::to_owned));
    keys
}

pub async fn fill(yard: &Yard, keys: &[String]) {
    let (east, west) = yard.stores();
    let puts = keys.iter().flat_map(|key| [(&east, key), (&west, key)]);
    stream::iter(puts.map(|(store, key)| put(&**store, key, key))).buffer_unordered(16).collect::<Vec<()>>().await;
}

/// One of each kind near the beginning, in the middle and at the end. Answers what must be found.
pub async fn plant(yard: &Yard, keys: &[String]) -> BTreeSet<(String, String)> {
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let (east, west) = yard.stores();
    let mut want = BTreeSet::new();
    let mut at = |kind: &str, key: &str| assert!(want.insert((kind.to_owned(), key.to_owned())));
    for place in [3, keys.len() / 2, keys.len() - 9] {
        let [missing, stale, corrupt, longer] = [0, 1, 2, 3].map(|n| keys[place + n].as_str());
        west.delete(missing).await.unwrap();
        at("missing", missing);
        // Of the same length, so that only the etag tells.
        put(&*west, corrupt, &corrupt.to_uppercase()).await;
        at("corrupt", corrupt);
        put(&*west, longer, "much longer than it was before").await;
        at("corrupt", longer);
        put(&*east, stale, &stale.to_uppercase()).await;
        at("stale", stale);
        let extra = format!("{missing}.more");
        put(&*west, &extra, "x").await;
        at("extra", &extra);
    }
    want
}

#[tokio::test]
async fn what_was_planted_is_found_and_nothing_else_where_folders_decide_the_order() {
    let yard = Yard::new(seaweedfs().await, "");
    yard.server.bucket(EAST, false).await;
    yard.server.bucket(WEST, false).await;
    let keys = keys(3_000);
    fill(&yard, &keys).await;
    let same = yard.verify("");
    assert_eq!(same.code, Some(0), "{}", same.said);
    let set = same.output()["set"].clone();
    let all = keys.len() as u64;
    assert_eq!(
        (&set["order"], set["same_by"]["etag"].as_u64(), set["objects"].as_u64()),
        (&"folders".into(), Some(all), Some(all)),
        "{set}"
    );

    // From any key on, as a verification that was killed goes on.
    let (east, _) = yard.stores();
    let page = east.list("m/", None).await.unwrap().objects;
    for n in [0, 41, 428, 429, 430, 997] {
        let next = east.list_behind("m/", &page[n].key).await.unwrap().objects;
        assert_eq!(next[0].key, page[n + 1].key, "behind {}", page[n].key);
    }

    let want = plant(&yard, &keys).await;
    let differs = yard.verify("");
    assert_eq!(differs.code, Some(1), "{}", differs.said);
    let found = yard.differences();
    assert_eq!((found.len(), found.into_iter().collect::<BTreeSet<_>>()), (want.len(), want.clone()), "{}", differs.said);
    for part in ["3 missing: ", "3 stale: ", "6 corrupt: ", "3 extra: "] {
        assert!(differs.said.contains(part), "{} lacks {part}", differs.said);
    }
    // Bytes that nobody's digests tell of are found by who reads them; a part of the bucket can be asked for alone.
    let read = yard.verify(", read_data: true, prefix: z/");
    assert_eq!(read.code, Some(0), "{}", read.said);
    assert_eq!(read.output()["set"]["same_by"], serde_json::json!({ "content": 1 }), "{}", read.said);
}

#[tokio::test]
async fn a_killed_verification_goes_on_and_finds_each_difference_once() {
    // Every object is asked for, so that it takes a while.
    killed("against: source, checksums: true").await;
}

#[tokio::test]
async fn a_killed_verification_against_the_manifest_goes_on_too() {
    killed("against: manifest, read_data: true").await;
}

async fn killed(against: &str) {
    let server = seaweedfs().await;
    server.bucket(EAST, false).await;
    server.bucket(WEST, false).await;
    let proxy = FaultProxy::before(server.port());
    let yard = Yard::at(server, &proxy.url(), "");
    let keys = keys(600);
    fill(&yard, &keys).await;
    let backup = yard.look("bucket.backup", "{ bucket: models, from: east, to: west }");
    assert_eq!(backup.code, Some(0), "{}", backup.said);
    let want = plant(&yard, &keys).await;
    for look in ["GET /models-west/m/", "HEAD /models-west/m/"] {
        proxy.fault(look, usize::MAX, Fault::Delay(Duration::from_millis(20)));
    }
    let runbook = yard.runbook("look", "bucket.verify", &format!("{{ bucket: models, from: east, to: west, {against} }}"));
    let mut child = yard.command(&["run", runbook.to_str().unwrap(), "--live"]).spawn().unwrap();
    let (begin, state) = (Instant::now(), yard.dir.path().join("state"));
    let after = loop {
        assert!(begin.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none(), "it ended before it was killed");
        let kept = newest(&state, "checkpoint.json").and_then(|path| std::fs::read(path).ok());
        let kept: Option<Value> = kept.and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(after) = kept.as_ref().and_then(|kept| kept["after"].as_str()) {
            break after.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    child.kill().unwrap();
    child.wait().unwrap();
    proxy.heal();
    let resumed = yard.run(&["resume"]);
    assert_eq!(resumed.code, Some(1), "{}", resumed.said);
    assert!(resumed.said.contains("where an earlier process had stopped") && !after.is_empty(), "{}", resumed.said);
    let found = yard.differences();
    assert_eq!((found.len(), found.into_iter().collect::<BTreeSet<_>>()), (want.len(), want), "{}", resumed.said);
}

/// Versioned, and replicated by the server itself.
async fn replicated(yard: &Yard, status: &str) {
    let clients = yard.server.clients();
    let s3 = &clients.s3().await.unwrap().write;
    for name in [EAST, WEST] {
        let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        s3.put_bucket_versioning().bucket(name).versioning_configuration(on).send().await.unwrap();
    }
    let to = Destination::builder().bucket(format!("arn:aws:s3:::{WEST}")).build().unwrap();
    let markers = DeleteMarkerReplication::builder().status(DeleteMarkerReplicationStatus::Disabled).build();
    let rule = aws_sdk_s3::types::ReplicationRule::builder().id("to-west").priority(1).status(status.into()).destination(to);
    let rule = rule.filter(ReplicationRuleFilter::builder().prefix("p/").build()).delete_marker_replication(markers).build().unwrap();
    let all = ReplicationConfiguration::builder().role("arn:aws:iam::000000000000:role/r").rules(rule).build().unwrap();
    s3.put_bucket_replication().bucket(EAST).replication_configuration(all).send().await.unwrap();
}

#[tokio::test]
async fn versions_markers_and_what_no_rule_covers_are_told_apart() {
    let server = ministack().await;
    told_apart(Yard::new(server, "")).await;
}

/// The same with every listing in pages of one or two, so that a key's versions lie on several.
#[tokio::test]
async fn they_are_told_apart_also_where_they_lie_on_several_pages() {
    for size in [1, 2] {
        let server = ministack().await;
        let proxy = FaultProxy::before(server.port());
        proxy.pages_of(size);
        told_apart(Yard::at(server, &proxy.url(), "")).await;
        assert!(proxy.asked("versions&") > 20, "{} pages of versions", proxy.asked("versions&"));
    }
}

async fn told_apart(yard: Yard) {
    yard.server.bucket(EAST, false).await;
    yard.server.bucket(WEST, false).await;
    replicated(&yard, "Enabled").await;
    let (east, west) = yard.stores();
    for key in ["p/a", "p/b", "p/c", "p/d"] {
        put(&*east, key, "first").await;
        put(&*east, key, "second").await;
    }
    let begin = Instant::now();
    while west.head("p/d").await.unwrap().is_none_or(|meta| meta.size != 6) {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing is replicated");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let same = yard.verify(", versions: true");
    assert_eq!(same.code, Some(0), "{}", same.said);
    let set = same.output()["set"].clone();
    assert_eq!((set["older_versions"].as_u64(), &set["rules"][0]["prefix"]), (Some(4), &"p/".into()), "{set}");

    // Outside of the rule; deleted at one side or the other; with a version that the copy has not.
    put(&*east, "q/new", "x").await;
    east.delete("p/a").await.unwrap();
    west.delete("p/b").await.unwrap();
    replicated(&yard, "Disabled").await;
    put(&*east, "p/c", "third").await;
    put(&*east, "p/c", "second").await;
    let differs = yard.verify(", versions: true");
    assert_eq!(differs.code, Some(1), "{}", differs.said);
    let found: BTreeSet<(String, String)> = yard.differences().into_iter().collect();
    let want = [("missing", "q/new"), ("delete_marker", "p/a"), ("missing", "p/b"), ("versions", "p/c")];
    assert_eq!(found, want.map(|(kind, key)| (kind.to_owned(), key.to_owned())).into(), "{}", differs.said);
    assert!(differs.said.contains("replication rule `to-west` is disabled"), "{}", differs.said);
    let file = std::fs::read_to_string(newest(&yard.dir.path().join("state"), "differences.jsonl").unwrap()).unwrap();
    for part in ["no enabled replication rule covers it", "a marker hides it", "which has a marker of it", "2 of 3 older versions"] {
        assert!(file.contains(part), "{file} lacks {part}");
    }
    // With the rule in force again, that deletions stay at the source is as agreed.
    replicated(&yard, "Enabled").await;
    let kept = yard.verify("");
    assert!(!kept.said.contains("not deleted"), "{}", kept.said);
}

#[tokio::test]
async fn readiness_names_what_a_bucket_lacks_of_what_the_estate_asks() {
    let yard = Yard::new(ministack().await, ", versioned: true, locked_for: 30d, replicates_to: west");
    let clients = yard.server.clients();
    let s3 = &clients.s3().await.unwrap().write;
    yard.server.bucket(EAST, false).await;
    yard.server.bucket(WEST, false).await;
    let look = || yard.look("readiness.check", "{ region: east }").said;
    let bare = look();
    for part in ["bucket/models versioning: off", "bucket/models object lock: absent", "replication from east to west: missing"] {
        assert!(bare.contains(part), "{bare} lacks {part}");
    }
    replicated(&yard, "Disabled").await;
    let off = look();
    assert!(off.contains("replication from east to west: disabled") && !off.contains("versioning: off"), "{off}");
    replicated(&yard, "Enabled").await;
    assert!(look().contains("replication from east to west: partial"), "only p/ is replicated");

    // Made with Object Lock, retained for less and then for as long as asked.
    s3.delete_bucket().bucket(EAST).send().await.unwrap();
    yard.server.bucket(EAST, true).await;
    assert!(look().contains("bucket/models object lock: no default"));
    for (days, want) in [(7, "bucket/models object lock: shorter"), (30, "")] {
        let by = DefaultRetention::builder().mode(ObjectLockRetentionMode::Compliance).days(days).build();
        let lock = ObjectLockConfiguration::builder().object_lock_enabled(ObjectLockEnabled::Enabled);
        let lock = lock.rule(ObjectLockRule::builder().default_retention(by).build()).build();
        s3.put_object_lock_configuration().bucket(EAST).object_lock_configuration(lock).send().await.unwrap();
        let said = look();
        assert!(if want.is_empty() { !said.contains("object lock: ") } else { said.contains(want) }, "{said}");
    }
}

/// As what is larger than 5 GiB is copied, where both buckets lie at one provider.
async fn copied_by_the_provider(server: Server) {
    let yard = Yard::new(server, "");
    yard.server.bucket(EAST, false).await;
    yard.server.bucket(WEST, false).await;
    let (east, west) = yard.stores();
    let body: Vec<u8> = (0..13_000_007u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    east.put("big/model.bin", body.clone().into(), &BTreeMap::new(), false).await.unwrap();
    put(&*east, "small", "small").await;
    let with = "{ bucket: models, from: east, to: west, server_copy_above: 5242880 }";
    let done = yard.look("bucket.backup", with);
    assert_eq!(done.code, Some(0), "{}", done.said);
    let got = west.get("big/model.bin").await.unwrap();
    assert!(got.meta.etag.as_ref().unwrap().ends_with("-3"), "in three parts: {:?}", got.meta.etag);
    assert!(got.meta.metadata.contains_key("muster-sha256"));
    let whole: Vec<Vec<u8>> = got.chunks.map(Result::unwrap).collect().await;
    assert!(whole.concat() == body);
    // Nothing is copied twice; the copy is equal by the manifest and by the source, by another digest each.
    let again = yard.look("bucket.backup", with);
    assert_eq!(again.output()["skipped"], 2, "{}", again.said);
    let by_manifest = yard.look("bucket.verify", "{ bucket: models, from: east, to: west }");
    assert_eq!(by_manifest.code, Some(0), "{}", by_manifest.said);
    let by_source = yard.verify("");
    assert_eq!(by_source.code, Some(0), "{}", by_source.said);
    let same = by_source.output()["set"]["same_by"].clone();
    let sum: u64 = same.as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert!(sum == 2 && same["etag"] == 1, "the etag of an upload in parts is another: {same}");
}

#[tokio::test]
async fn seaweedfs_copies_large_objects_by_itself() {
    copied_by_the_provider(seaweedfs().await).await;
}

#[tokio::test]
async fn ministack_copies_large_objects_by_itself() {
    copied_by_the_provider(ministack().await).await;
}
