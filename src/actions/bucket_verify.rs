//! `bucket.verify`: is the copy of a bucket complete and equal?
//!
//! It compares the receiving bucket with its latest manifest, and with the source's listing where the source
//! answers. *missing* is what should be there and is not, *corrupt* what is there with other content than the
//! manifest's digest says, *stale* what changed at the source since, *extra* what nobody expects. Content is
//! read and hashed up to 1 GiB in all, unless told otherwise; beyond that, the digests in the metadata are
//! compared. It changes nothing; a difference is a failure that names the objects.

use super::{contract::*, manifest, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use futures::StreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub bucket: BucketName,
    /// The region that was copied.
    pub from: RegionName,
    /// The region that holds the copies.
    pub to: RegionName,
    /// Read every copy and hash it; done up to 1 GiB in all when left out.
    #[serde(default)]
    pub read_data: Option<bool>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub objects: u64,
    pub bytes: u64,
    /// Whether the source could be asked too; if not, the copies equal the manifest.
    pub source_asked: bool,
    /// Whether the content was read, or only the digests in the metadata were compared.
    pub read_data: bool,
    pub manifest: String,
}

const GIB: u64 = 1024 * 1024 * 1024;

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
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        reach(with, "to", Plane::Data).into_iter().collect()
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }
    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Input>, Refusal> {
        cx.world.objects(input.bucket.as_str(), input.to.as_str())?;
        Ok(Prepared { intent: input, change: Vec::new(), notes: Vec::new() })
    }
    async fn apply(cx: &WriteCx, intent: &Input) -> Result<Output, ApplyError> {
        check(&cx.read, intent).await
    }
    async fn observe(_cx: &ReadCx, _intent: &Input) -> Seen<Output> {
        Seen::Absent
    }
    async fn undo(_cx: &WriteCx, _intent: &Input, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

async fn check(cx: &ReadCx, input: &Input) -> Result<Output, ApplyError> {
    let target = cx.world.objects(input.bucket.as_str(), input.to.as_str())?;
    let found = manifest::latest(&*target, &input.bucket, &input.from, None).await.map_err(ApplyError::Definite)?;
    let Some((manifest_key, manifest)) = found else {
        let message = format!("bucket `{}` in `{}` holds no manifest of copies from `{}`", input.bucket, input.to, input.from);
        return Err(ApplyError::Definite(Failure::new("no_manifest", message).remedy("run `bucket.backup` first")));
    };
    let bytes: u64 = manifest.objects.iter().map(|e| e.size).sum();
    let read_data = input.read_data.unwrap_or(bytes <= GIB);
    let copies = by_key(list_all(&*target, &manifest.prefix).await?);
    let source = async { list_all(&*cx.world.objects(input.bucket.as_str(), input.from.as_str())?, &manifest.prefix).await };
    let source = within(cx, cx.deadline / 2, source).await.ok().map(by_key);

    let mut wrong: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let entries: BTreeMap<&str, &manifest::Entry> = manifest.objects.iter().map(|e| (e.key.as_str(), e)).collect();
    for entry in &manifest.objects {
        let now = source.as_ref().map(|s| s.get(&entry.key));
        let kind = match copies.get(&entry.key) {
            // Deleted at the source since: then the copy need not be there.
            None => (now != Some(None)).then_some("missing"),
            Some(copy) if !intact(&*target, entry, copy, read_data).await? => Some("corrupt"),
            Some(_) => match now {
                Some(None) => Some("extra"),
                Some(Some(now)) if now.etag != entry.etag || now.size != entry.size => Some("stale"),
                _ => None,
            },
        };
        if let Some(kind) = kind {
            wrong.entry(kind).or_default().push(entry.key.clone());
        }
    }
    for key in source.iter().flat_map(BTreeMap::keys).filter(|k| !entries.contains_key(k.as_str())) {
        wrong.entry(if copies.contains_key(key) { "stale" } else { "missing" }).or_default().push(key.clone());
    }
    let expected = |key: &String| entries.contains_key(key.as_str()) || source.as_ref().is_some_and(|s| s.contains_key(key));
    for key in copies.keys().filter(|key| !expected(key)) {
        wrong.entry("extra").or_default().push(key.clone());
    }
    if wrong.is_empty() {
        return Ok(Output { objects: entries.len() as u64, bytes, source_asked: source.is_some(), read_data, manifest: manifest_key });
    }
    Err(differs(input, &wrong))
}

fn by_key(objects: Vec<ObjectMeta>) -> BTreeMap<String, ObjectMeta> {
    objects.into_iter().map(|o| (o.key.clone(), o)).collect()
}

async fn intact(target: &dyn ObjectRead, entry: &manifest::Entry, copy: &ObjectMeta, read_data: bool) -> Result<bool, ApplyError> {
    if copy.size != entry.size {
        return Ok(false);
    }
    if read_data {
        let mut chunks = target.get(&entry.key).await?.chunks;
        let mut digest = Sha256::new();
        while let Some(chunk) = chunks.next().await {
            digest.update(&chunk?);
        }
        return Ok(hex::encode(digest.finalize()) == entry.sha256);
    }
    let meta = target.head(&entry.key).await?;
    Ok(meta.is_some_and(|m| m.metadata.get("muster-sha256") == Some(&entry.sha256)))
}

/// Names the first hundred of each kind and counts all.
fn differs(input: &Input, wrong: &BTreeMap<&str, Vec<String>>) -> ApplyError {
    let each = wrong.iter().map(|(kind, keys)| {
        let more = if keys.len() > 100 { ", ..." } else { "" };
        let named: Vec<&str> = keys.iter().take(100).map(String::as_str).collect();
        format!("{} {kind}: {}{more}", keys.len(), named.join(", "))
    });
    let message = format!("bucket `{}` in `{}` differs: {}", input.bucket, input.to, each.collect::<Vec<_>>().join("; "));
    ApplyError::Definite(Failure::new("replica_differs", message).remedy("run `bucket.backup` again, and find out what changed the copies"))
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
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
        let manifest = manifest::Manifest {
            run: "r".into(),
            bucket: "models".into(),
            from: "east".into(),
            prefix: String::new(),
            at: now,
            copied: 3,
            skipped: 0,
            bytes_copied: 9,
            objects: entries.into(),
        };
        let body = serde_json::to_vec(&manifest).expect("json");
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
    async fn without_the_source_the_manifest_decides() {
        let bench = Bench::new(&fixture()).down("east");
        assert!(!bench.run::<Verify>().await.expect("equal").source_asked);
    }
}
