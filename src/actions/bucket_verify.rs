//! `bucket.verify`: is the copy of a bucket complete and equal?
//!
//! **Against a manifest** (where `bucket.backup` left one): the copies are compared with it, and with the source's
//! listing where the source answers. With `against: manifest` it therefore needs nothing of the source's region, and a failover
//! out of it may use it; without, it may have to ask the source. Content is read and hashed up to 1 GiB in all, unless told otherwise; beyond that,
//! the digests in the metadata are compared.
//!
//! **Against the source** (`against: source`, and where there is no manifest, as with the provider's own replication):
//! both buckets are listed side by side. The listings' etags are compared where they are digests; what they do not decide,
//! the checksums that both servers keep, or the digest that `bucket.backup` left, or the checksums of an upload's parts, put
//! together; at last the content is read, up to 1 GiB unless told otherwise. What was compared by what is in the output. Each difference is looked at a second time on
//! both sides, so that what is written meanwhile is none.
//!
//! Either way what is compared is merged key by key, whatever its size, in bounded memory (a manifest is sorted on this
//! machine's disk); a verification that is killed goes on at the last thousand keys. Each difference is a line of a file.
//!
//! *missing* is what should be there and is not, *corrupt* what has other content and is no older state, *stale* an older
//! state, *extra* what nobody expects, *not deleted* what was deleted at the source; with `versions`, *lacking versions*.
//! It changes nothing; a difference is a failure that names the objects.

pub use super::set_tally::{Backlog, By, Found, Kind};
use super::{contract::*, manifest, manifest_verify, set_verify, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub bucket: BucketName,
    /// The region that was copied.
    pub from: RegionName,
    /// The region that holds the copies.
    pub to: RegionName,
    /// What the copies are compared with; a manifest if there is one when left out.
    #[serde(default)]
    pub against: Option<Against>,
    /// Read every object and hash it (against the source: on both sides); `false`: none at all. When left out, up to 1 GiB
    /// in all: every copy (manifest), what cannot be compared otherwise (source).
    #[serde(default)]
    pub read_data: Option<bool>,
    /// Only objects whose key begins with this (against the source).
    #[serde(default)]
    pub prefix: String,
    /// Compare older versions and the markers of what was deleted too (against the source).
    #[serde(default)]
    pub versions: bool,
    /// Ask for the checksums of every object, not only where the etags do not decide (against the source).
    #[serde(default)]
    pub checksums: bool,
    /// Read this share of all objects on both sides, 0 to 1, other ones in each run (against the source).
    #[serde(default)]
    pub sample: f64,
    /// What waits for its replication for no longer than this is no difference (against the source).
    #[serde(default)]
    pub max_backlog_age: Option<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// The latest that `bucket.backup` left in the receiving bucket.
    Manifest,
    /// The other bucket, as it is now.
    Source,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub objects: u64,
    pub bytes: u64,
    /// Whether the source could be asked too; if not, the copies equal the manifest.
    pub source_asked: bool,
    /// Whether all content was read, or digests were compared.
    pub read_data: bool,
    /// The manifest that was compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Where an earlier process had stopped (against a manifest).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<String>,
    /// What was compared with the source, and how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<Compared>,
}

/// Two buckets, compared as sets.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Compared {
    /// At the source.
    pub objects: u64,
    pub copies: u64,
    pub bytes: u64,
    /// Older versions and markers at the source; 0 unless `versions` was asked for.
    pub older_versions: u64,
    /// How many objects were the same by what.
    pub same_by: BTreeMap<By, u64>,
    /// Of the source; as much was read of the copy.
    pub read_bytes: u64,
    /// Not copied yet, and for no longer than `max_backlog_age`.
    pub waiting: u64,
    /// Deleted at the source and kept at the copy, as its replication rule says.
    pub kept: u64,
    pub differences: u64,
    #[serde(skip)]
    pub told: String,
    pub found: BTreeMap<Kind, Found>,
    pub backlog: Backlog,
    /// The source's replication rules for this destination.
    pub rules: Vec<Rule>,
    /// By what the listings were merged: `bytes`, `folders` (the server lists folder by folder), `sorted here`.
    pub order: String,
    /// Where an earlier process had stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<String>,
    /// Of this process.
    pub objects_per_s: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    pub id: String,
    pub enabled: bool,
    pub prefix: String,
    /// Only for objects with certain tags.
    pub tagged: bool,
    /// Whether deletions are carried over.
    pub delete_markers: bool,
}

pub struct Verify;

impl Action for Verify {
    type Input = Input;
    type Intent = Input;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "bucket.verify",
            version: 1,
            summary: "Check that the copy of a bucket is complete and equal",
            effect: Effect::Read,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(3600),
            example: "id: verify\nuses: bucket.verify\nwith: { bucket: models, from: east, to: west }\n",
        }
    }
    /// Only a manifest makes it independent of the source: where none is found, the source is what it compares with.
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        let fields: &[&str] = if text(with, "against") == Some("manifest") { &["to"] } else { &["from", "to"] };
        fields.iter().filter_map(|field| reach(with, field, Plane::Data)).collect()
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }
    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Input>, Refusal> {
        cx.world.objects(input.bucket.as_str(), input.to.as_str())?;
        if !(0.0..=1.0).contains(&input.sample) {
            return Err(Refusal::no("input", format!("sample: {} is no share; write a number from 0 to 1", input.sample)));
        }
        Ok(Prepared { intent: input, change: Vec::new(), notes: Vec::new() })
    }
    async fn apply(cx: &WriteCx, intent: &Input) -> Result<Output, ApplyError> {
        let target = cx.world.objects(intent.bucket.as_str(), intent.to.as_str())?;
        let found = match intent.against {
            Some(Against::Source) => None,
            _ => manifest::latest(&*target, &intent.bucket, &intent.from, None).await.map_err(ApplyError::Definite)?,
        };
        match found {
            Some(found) => manifest_verify::verify(&cx.read, intent, found).await,
            None if intent.against == Some(Against::Manifest) => {
                let message = format!("bucket `{}` in `{}` holds no manifest of copies from `{}`", intent.bucket, intent.to, intent.from);
                Err(ApplyError::Definite(Failure::new("no_manifest", message).remedy("run `bucket.backup` first")))
            }
            None => set(&cx.read, intent).await,
        }
    }
    async fn observe(_cx: &ReadCx, _intent: &Input) -> Seen<Output> {
        Seen::Absent
    }
    async fn undo(_cx: &WriteCx, _intent: &Input, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

/// Against the source.
async fn set(cx: &ReadCx, input: &Input) -> Result<Output, ApplyError> {
    let compared = set_verify::verify(cx, input).await?;
    if compared.differences > 0 {
        return Err(set_verify::differs(cx, input, &compared));
    }
    let (objects, bytes) = (compared.objects, compared.bytes);
    Ok(Output {
        objects,
        bytes,
        source_asked: true,
        read_data: input.read_data == Some(true),
        manifest: None,
        resumed_at: None,
        set: Some(compared),
    })
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    use sha2::{Digest, Sha256};
    super::contract_tests::Fixture::new(serde_json::json!({ "bucket": "models", "from": "east", "to": "west" })).set(|world| {
        let now = crate::providers::clock::Clock::now(&*world.time());
        let source = [("model.onnx", "weights"), ("empty", ""), ("golden.json", "{}")];
        let entries = source.map(|(key, body)| {
            world.lock().object("models", "east", key, body.as_bytes(), now);
            world.lock().object("models", "west", key, body.as_bytes(), now);
            let sha256 = hex::encode(Sha256::digest(body));
            let etag = Some(sha256.clone());
            manifest::Entry { key: key.into(), size: body.len() as u64, sha256, copy_etag: etag.clone(), etag, version: None }
        });
        let body = manifest::old(&manifest::Head { at: now, ..manifest::tests::head() }, &entries);
        world.lock().object("models", "west", ".muster/manifests/x.json", &body, now);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;

    #[tokio::test]
    async fn every_kind_of_difference_is_named() {
        let bench = Bench::new(&fixture());
        let now = bench.read.world.clock().now();
        {
            let mut state = bench.world.lock();
            state.object("models", "west", "model.onnx", b"weighty", now);
            state.object("models", "west", "stray", b"", now);
            state.object("models", "east", "golden.json", b"{ }", now);
            state.objects.remove(&("models".into(), "west".into(), "empty".into()));
        }
        let failure = bench.failed::<Verify>().await;
        assert_eq!(failure.code, "replica_differs");
        for part in ["1 corrupt: model.onnx", "1 extra: stray", "1 stale: golden.json", "1 missing: empty"] {
            assert!(failure.message.contains(part), "{failure}");
        }
    }

    #[tokio::test]
    async fn against_the_source_every_kind_is_named_too() {
        let with = serde_json::json!({ "bucket": "models", "from": "east", "to": "west", "against": "source" });
        let mut against = fixture();
        against.with = with;
        let bench = Bench::new(&against);
        let same = bench.run::<Verify>().await.expect("equal").set.expect("against the source");
        assert_eq!((same.objects, same.copies, same.same_by.get(&By::Etag)), (3, 3, Some(&3)));
        bench.world.time().advance(std::time::Duration::from_secs(1));
        let now = bench.read.world.clock().now();
        {
            let mut state = bench.world.lock();
            state.object("models", "west", "model.onnx", b"weighty", now);
            state.object("models", "west", "stray", b"", now);
            state.object("models", "east", "golden.json", b"{ }", now);
            state.object("models", "east", "z", b"", now);
        }
        let failure = bench.failed::<Verify>().await;
        for part in ["1 missing: z", "1 stale: golden.json", "1 corrupt: model.onnx", "1 extra: stray", "differences.jsonl"] {
            assert!(failure.message.contains(part), "{failure}");
        }
        let file = std::fs::read_to_string(set_verify::folder(&bench.read).join("differences.jsonl")).expect("a file");
        assert!(file.lines().count() == 4 && file.contains("the content differs") && file.contains("3 bytes, 2"), "{file}");
    }

    /// A store that tells whole seconds says of both that they are as old.
    #[tokio::test]
    async fn of_two_manifests_of_one_second_the_later_run_counts() {
        let bench = Bench::new(&fixture());
        let now = bench.read.world.clock().now();
        let key = |name: &str| ("models".to_owned(), "west".to_owned(), format!(".muster/manifests/{name}.json"));
        let body = bench.world.lock().objects[&key("x")].body.clone();
        let mut older: serde_json::Value = serde_json::from_slice(&body).expect("a manifest");
        older["at"] = (now - jiff::SignedDuration::from_millis(10)).to_string().into();
        older["objects"] = serde_json::json!([]);
        let older = serde_json::to_vec(&older).expect("json");
        for name in ["a", "z"] {
            bench.world.lock().object("models", "west", &key(name).2, &older, now);
        }
        assert_eq!(bench.run::<Verify>().await.expect("equal").objects, 3);
    }

    #[tokio::test]
    async fn a_sample_of_all_objects_is_read_on_both_sides() {
        for (sample, least, most) in [(1.0, 400, 400), (0.25, 60, 140), (0.0, 0, 0)] {
            let mut against = fixture();
            against.with = serde_json::json!({ "bucket": "models", "from": "east", "to": "west", "against": "source", "sample": sample, "prefix": "many/" });
            let bench = Bench::new(&against);
            let now = bench.read.world.clock().now();
            for (n, region) in (0..400).flat_map(|n| ["east", "west"].map(|region| (n, region))) {
                bench.world.lock().object("models", region, &format!("many/{n}"), b"12345", now);
            }
            let set = bench.run::<Verify>().await.expect("equal").set.expect("against the source");
            let read = set.same_by.get(&By::Content).copied().unwrap_or(0);
            assert!((least..=most).contains(&read) && set.read_bytes == 5 * read, "{sample}: {read} read, {} bytes", set.read_bytes);
            assert_eq!((set.objects, set.same_by.values().sum::<u64>()), (400, 400));
        }
    }

    #[tokio::test]
    async fn without_the_source_the_manifest_decides() {
        let bench = Bench::new(&fixture()).down("east");
        assert!(!bench.run::<Verify>().await.expect("equal").source_asked);
    }
}
