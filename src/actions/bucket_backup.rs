//! `bucket.backup`: copy a bucket's objects into another region's bucket, each verified, and write a
//! manifest of them last.
//!
//! **What it does.** Every object is read, its SHA-256 taken while it is read, written under the same key with
//! the digest in its metadata, and looked at again. Objects of more than 4 MiB pass through a file in the
//! run's own directory; more than 5 GiB, which one upload cannot take, is copied in parts: by the provider itself where
//! both buckets lie at one (UploadPartCopy), else as a stream. What the latest manifest holds with the same etag and size, and what is still there as that manifest left it, is not copied again. Nothing is deleted.
//! The latest manifest and both listings are merged key by key, and the new manifest is written on this machine's disk until it
//! is whole: how much memory it takes does not depend on how many objects there are.
//!
//! **Half-done** it is when some objects are copied and the manifest is missing. The manifest's name comes
//! from the step's key and is written only if it is not there, on that condition, however large it is: it is there, so it
//! happened; it is not, so it did not, and doing it again copies only what is not there yet (the source's etag is in the copy's
//! metadata). It is not undone: what it wrote is what the source held.

use super::{
    contract::*,
    manifest::{self, Entry, Figures, Head, MANIFESTS},
    set_rows::{Row, Rows, Sides},
    set_walk::{Broken, Item, Listing, Order},
    shared::*,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use futures::{StreamExt, TryStreamExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::io::AsyncWriteExt;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub bucket: BucketName,
    /// The region that is copied.
    pub from: RegionName,
    /// The region whose bucket receives the copies.
    pub to: RegionName,
    /// Only objects whose key begins with this.
    #[serde(default)]
    pub prefix: String,
    /// Objects of more bytes than this are copied by the provider itself, in parts, where both buckets lie at one; 5 GiB
    /// when left out.
    #[serde(default)]
    pub server_copy_above: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    input: Input,
    manifest: String,
    /// The manifest that it goes on from.
    base: Option<String>,
    at: jiff::Timestamp,
    /// In which the source lists.
    #[serde(default)]
    order: Order,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub objects: u64,
    pub copied: u64,
    pub skipped: u64,
    pub bytes_copied: u64,
    /// The manifest's key in the receiving bucket.
    pub manifest: String,
}

const SHA: &str = "muster-sha256";
const SOURCE_ETAG: &str = "muster-source-etag";

const MIB: u64 = 1024 * 1024;
/// The most that one upload takes in S3; larger objects need one in parts.
const LARGEST: u64 = 5 * 1024 * MIB;
/// Objects up to this size are held in memory, four at a time.
const IN_MEMORY: u64 = 4 * MIB;
/// So many objects are begun before the first of the next so many is.
const BATCH: usize = 512;

pub struct Backup;

impl Action for Backup {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "bucket.backup",
            version: 2,
            summary: "Copy a bucket into another region, verified by digest, with a manifest",
            effect: Effect::Repeatable,
            danger: Danger::Reversible,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(3600),
            example: "id: backup\nuses: bucket.backup\nwith: { bucket: models, from: east, to: west }\n",
        }
    }
    fn measured() -> &'static [&'static str] {
        &["at"]
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        [reach(with, "from", Plane::Data), reach(with, "to", Plane::Data)].into_iter().flatten().collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "bucket", "bucket")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        if input.from == input.to {
            return Err(Refusal::no("same_region", format!("`{}` is copied to another region, not to itself", input.from)));
        }
        let source = cx.world.objects(input.bucket.as_str(), input.from.as_str())?;
        let target = cx.world.objects(input.bucket.as_str(), input.to.as_str())?;
        let base = manifest::latest(&*target, &input.bucket, &input.from, Some(&input.prefix))
            .await
            .map_err(|failure| Refusal { failure, retry: false })?;
        let sides = Sides {
            manifest: base.as_ref().map(|(key, _)| (target.clone(), key.clone())),
            source: Some(Listing::of(source, &input.prefix)),
            copy: None,
        };
        let order = base.as_ref().and_then(|(_, head)| head.order).unwrap_or_default();
        let (found, order) = counted(&sides, order, &folder(cx)).await.map_err(refused)?;
        let what = format!("bucket {} in {}", input.bucket, input.to);
        let to = format!("{} of {} objects from {} ({} bytes), and a manifest", found.new, found.all, input.from, found.bytes);
        let intent = Intent {
            manifest: format!("{MANIFESTS}{}.json", cx.key),
            base: base.map(|(key, _)| key),
            at: cx.world.clock().now(),
            order,
            input,
        };
        Ok(Prepared { intent, change: vec![change(what, None, Some(to))], notes: Vec::new() })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let input = &intent.input;
        let source = cx.read.world.objects(input.bucket.as_str(), input.from.as_str())?;
        let target = cx.world()?.objects_mut(input.bucket.as_str(), input.to.as_str())?;
        if target.head(&intent.manifest).await?.is_some() {
            let there = manifest::head(&*target, &intent.manifest).await.map_err(ApplyError::Definite)?;
            return Ok(output(intent, &there));
        }
        let (here, elsewhere) = (source.provider().await?, target.provider().await?);
        let at_one = here.is_some() && here == elsewhere;
        let above = input.server_copy_above.unwrap_or(LARGEST).min(LARGEST);
        let ways = Ways { source: &*source, target: &*target, by_provider: at_one.then_some(above) };
        let seen: Arc<dyn ObjectRead> = cx.read.world.objects(input.bucket.as_str(), input.to.as_str())?;
        let sides = Sides {
            manifest: intent.base.as_ref().map(|key| (seen.clone(), key.clone())),
            source: Some(Listing::of(source.clone(), &input.prefix)),
            copy: Some(Listing::of(seen.clone(), &input.prefix)),
        };
        let folder = folder(cx);
        // What an attempt before this one had listed may be another by now.
        let _ = tokio::fs::remove_dir_all(&folder).await;
        let (book, order) = copied(cx, &ways, &sides, intent.order, &folder).await?;
        let head = head(cx, intent, order);
        let written = tokio::task::spawn_blocking(move || book.finish(head)).await.map_err(|e| fail("manifest", e.to_string()))?;
        let written = written.map_err(|e| fail("manifest", format!("{}: {e}", folder.display())))?;
        let target = cx.world()?.objects_mut(input.bucket.as_str(), input.to.as_str())?;
        written.put(&*target, &intent.manifest, LARGEST).await?;
        let _ = tokio::fs::remove_dir_all(&folder).await;
        Ok(output(intent, &written.head))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let look = async {
            let target = cx.world.objects(intent.input.bucket.as_str(), intent.input.to.as_str())?;
            Ok::<_, PortError>((target.head(&intent.manifest).await?.is_some(), target))
        };
        match look.await {
            Err(e) => cannot_tell(&e),
            Ok((false, _)) => Seen::Absent,
            Ok((true, target)) => match manifest::head(&*target, &intent.manifest).await {
                Ok(there) => Seen::Done(output(intent, &there)),
                Err(why) => Seen::CannotTell { why: why.message },
            },
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

fn output(intent: &Intent, m: &Head) -> Output {
    let (copied, skipped, bytes_copied) = (m.copied, m.skipped, m.bytes_copied);
    Output { objects: m.count.unwrap_or(0), copied, skipped, bytes_copied, manifest: intent.manifest.clone() }
}

/// What the manifest will say of itself, once all of it is counted.
fn head(cx: &WriteCx, intent: &Intent, order: Order) -> impl FnOnce(Figures) -> Head + Send + use<> {
    let (run, at, input) = (cx.run.clone(), intent.at, intent.input.clone());
    move |Figures { count, bytes, copied, skipped, bytes_copied }| Head {
        run,
        bucket: input.bucket,
        from: input.from,
        prefix: input.prefix,
        at,
        copied,
        skipped,
        bytes_copied,
        order: Some(order),
        count: Some(count),
        bytes: Some(bytes),
    }
}

/// Where one step keeps what it needs: what is sorted, and the manifest that is being written.
fn folder(cx: &ReadCx) -> PathBuf {
    cx.scratch.join(format!("bucket-backup-{}", short_key(cx)))
}

fn refused(broken: Broken) -> Refusal {
    match broken {
        Broken::Port(e) | Broken::Source(e) => e.into(),
        Broken::Unreadable(failure) => Refusal { failure, retry: false },
        Broken::Disk(why) => Refusal::no("scratch", why),
        Broken::Order => Refusal::no("scratch", "a listing that was sorted here is not"),
    }
}

#[derive(Default)]
struct Counted {
    all: u64,
    /// What the latest manifest does not hold as it is now.
    new: u64,
    bytes: u64,
}

/// And in which order the source lists.
async fn counted(sides: &Sides, mut order: Order, folder: &Path) -> Result<(Counted, Order), Broken> {
    // What an earlier look left, which was cut off, may be of another bucket.
    let _ = tokio::fs::remove_dir_all(folder).await;
    loop {
        match counted_in(sides, order, folder).await {
            Err(Broken::Order) => order = order.next().ok_or(Broken::Order)?,
            end => {
                let _ = tokio::fs::remove_dir_all(folder).await;
                return end.map(|found| (found, order));
            }
        }
    }
}

async fn counted_in(sides: &Sides, order: Order, folder: &Path) -> Result<Counted, Broken> {
    let mut rows = Rows::begin(sides, order, None, folder).await?;
    let mut found = Counted::default();
    while let Some(row) = next(&mut rows, sides).await? {
        let Some(object) = row.source.as_ref().and_then(Item::latest) else { continue };
        found.all += 1;
        if !row.entry.as_ref().is_some_and(|e| e.etag == object.etag && e.size == object.size) {
            found.new += 1;
            found.bytes += object.size;
        }
    }
    Ok(found)
}

/// The next key that the source has, and that is not Muster's own.
async fn next(rows: &mut Rows, sides: &Sides) -> Result<Option<Row>, Broken> {
    let own_too = sides.source.as_ref().is_some_and(|source| source.prefix.starts_with(OWN));
    while let Some(row) = rows.next().await? {
        if row.source.is_some() && (own_too || !row.key().starts_with(OWN)) {
            return Ok(Some(row));
        }
    }
    Ok(None)
}

/// Copies what has to be; answers the manifest's objects and in which order they stand.
async fn copied(
    cx: &WriteCx,
    ways: &Ways<'_>,
    sides: &Sides,
    mut order: Order,
    folder: &Path,
) -> Result<(manifest::Writer, Order), ApplyError> {
    loop {
        match copied_in(cx, ways, sides, order, folder).await {
            Ok(book) => return Ok((book, order)),
            // What was copied until then is found there.
            Err(Stopped::Order) => order = order.next().ok_or(Broken::Order)?,
            Err(Stopped::Error(error)) => return Err(error),
        }
    }
}

/// Why copying ended before its end.
enum Stopped {
    Order,
    Error(ApplyError),
}

impl From<Broken> for Stopped {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Order => Self::Order,
            other => Self::Error(other.into()),
        }
    }
}

async fn copied_in(cx: &WriteCx, ways: &Ways<'_>, sides: &Sides, order: Order, folder: &Path) -> Result<manifest::Writer, Stopped> {
    let disk = |e: std::io::Error| Stopped::Error(fail("manifest", format!("{}: {e}", folder.display())));
    let mut book = manifest::Writer::begin(folder).map_err(disk)?;
    let mut rows = Rows::begin(sides, order, None, folder).await?;
    loop {
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(row) = next(&mut rows, sides).await?
        {
            let object = |item: &Option<Item>| item.as_ref().and_then(Item::object);
            if let Some(source) = object(&row.source) {
                batch.push((source, row.entry, object(&row.copy)));
            }
        }
        if batch.is_empty() {
            return Ok(book);
        }
        let mut each = Vec::new();
        for (object, base, there) in &batch {
            each.push(one(cx, ways, object, base.as_ref(), there.as_ref()));
        }
        let done: Vec<(Entry, bool)> = futures::stream::iter(each).buffered(4).try_collect().await.map_err(Stopped::Error)?;
        for (entry, was_copied) in &done {
            book.add(entry, *was_copied).map_err(disk)?;
        }
    }
}

/// From where to where, and which objects the provider copies by itself: those larger than this.
struct Ways<'a> {
    source: &'a dyn ObjectRead,
    target: &'a dyn ObjectWrite,
    by_provider: Option<u64>,
}

/// One object: its entry, and whether it had to be copied.
async fn one(
    cx: &WriteCx,
    ways: &Ways<'_>,
    object: &ObjectMeta,
    base: Option<&Entry>,
    there: Option<&ObjectMeta>,
) -> Result<(Entry, bool), ApplyError> {
    let Ways { source, target, by_provider } = *ways;
    if let (Some(base), Some(there)) = (base, there)
        && object.etag.is_some()
        && base.etag == object.etag
        && base.size == object.size
        && there.size == object.size
        && base.copy_etag == there.etag
    {
        return Ok((base.clone(), false));
    }
    if there.is_some_and(|t| t.size == object.size)
        && let Some(meta) = target.head(&object.key).await?
        && let (Some(sha256), Some(etag)) = (meta.metadata.get(SHA), meta.metadata.get(SOURCE_ETAG))
        && object.etag.as_ref() == Some(etag)
    {
        return Ok((entry(object, sha256.clone(), meta.etag.clone()), false));
    }
    let spool = cx.scratch.join(format!("spool-{}", hex::encode(Sha256::digest(format!("{}\0{}", cx.key, object.key)))));
    let copied = if by_provider.is_some_and(|above| object.size > above) || object.size > LARGEST {
        copy_large(cx, ways, object).await
    } else {
        copy(cx, source, target, object, &spool).await
    };
    let _ = tokio::fs::remove_file(&spool).await;
    let (read, sha256) = copied?;
    let copy = target.head(&object.key).await?;
    match copy.filter(|c| c.size == read.size && c.metadata.get(SHA) == Some(&sha256)) {
        Some(copy) => Ok((entry(&read, sha256, copy.etag), true)),
        None => Err(fail("copy_differs", format!("the copy of object {} is not what was written", object.key))),
    }
}

/// Reads the object, and writes it: small ones by way of memory, others by way of a file, so that how much
/// memory a run needs does not depend on how large the models are.
async fn copy(
    cx: &WriteCx,
    source: &dyn ObjectRead,
    target: &dyn ObjectWrite,
    object: &ObjectMeta,
    spool: &Path,
) -> Result<(ObjectMeta, String), ApplyError> {
    let disk = |e: std::io::Error| fail("spool", format!("{}: {e}", spool.display()));
    let ObjectBody { meta: read, mut chunks } = source.get(&object.key).await?;
    let mut file = if read.size > IN_MEMORY { Some(tokio::fs::File::create(spool).await.map_err(disk)?) } else { None };
    let (mut digest, mut size, mut bytes) = (Sha256::new(), 0, Vec::new());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        digest.update(&chunk);
        size += chunk.len() as u64;
        match &mut file {
            Some(file) => file.write_all(&chunk).await.map_err(disk)?,
            None => bytes.extend_from_slice(&chunk),
        }
    }
    let sha256 = hex::encode(digest.finalize());
    if size != read.size || read.metadata.get(SHA).is_some_and(|s| *s != sha256) {
        return Err(fail("source_corrupt", format!("object {} does not have the size and digest that its bucket states", object.key)));
    }
    let mut metadata = BTreeMap::from([(SHA.to_owned(), sha256.clone())]);
    metadata.extend(read.etag.clone().map(|etag| (SOURCE_ETAG.to_owned(), etag)));
    cx.world()?;
    match file {
        Some(mut file) => {
            file.flush().await.map_err(disk)?;
            target.put_file(&object.key, spool, &sha256, &metadata, false).await?
        }
        None => target.put(&object.key, bytes.into(), &metadata, false).await?,
    };
    Ok((read, sha256))
}

/// Reads the object for its digest, and then has it copied in parts. What the provider copied by itself nobody has seen:
/// its checksum must be the source's, or it is read.
async fn copy_large(cx: &WriteCx, ways: &Ways<'_>, object: &ObjectMeta) -> Result<(ObjectMeta, String), ApplyError> {
    let Ways { source, target, by_provider } = *ways;
    let (read, sha256) = digest(source, &object.key).await?;
    if read.metadata.get(SHA).is_some_and(|s| *s != sha256) {
        return Err(fail("source_corrupt", format!("object {} does not have the digest that its bucket states", object.key)));
    }
    let mut metadata = BTreeMap::from([(SHA.to_owned(), sha256.clone())]);
    metadata.extend(read.etag.clone().map(|etag| (SOURCE_ETAG.to_owned(), etag)));
    cx.world()?;
    match (by_provider, source.place(&object.key)) {
        (Some(above), Some(place)) => {
            let listed = ObjectMeta { metadata, ..read.clone() };
            target.copy_in_parts(&object.key, &place, &listed, above.clamp(5 * MIB, 1024 * MIB)).await?;
        }
        _ => {
            let body = source.get_if(&object.key, read.etag.as_deref().unwrap_or_default()).await?;
            target.put_stream(&object.key, body.chunks, &metadata, false).await?;
        }
    }
    if !known_same(source, target, &read).await? && digest(target, &object.key).await?.1 != sha256 {
        return Err(fail("copy_differs", format!("the copy of object {} does not hold what the source does", object.key)));
    }
    Ok((read, sha256))
}

/// Do the servers' checksums of the whole say that the copy holds what was read? If not, that says nothing.
async fn known_same(source: &dyn ObjectRead, target: &dyn ObjectRead, read: &ObjectMeta) -> Result<bool, ApplyError> {
    let copy = target.head(&read.key).await?.and_then(|copy| copy.checksum);
    if copy.as_ref().is_some_and(|copy| !copy.contains('-') && read.checksum.as_ref() == Some(copy)) {
        return Ok(true);
    }
    let (Some(one), Some(other)) = (source.sums(&read.key).await?, target.sums(&read.key).await?) else { return Ok(false) };
    let (read_is, one) = (one.etag.is_some() && one.etag == read.etag, one.and_of_head(read.checksum.as_deref()));
    Ok(read_is && one.same(&other.and_of_head(copy.as_deref())) == Some(true))
}

async fn digest(store: &dyn ObjectRead, key: &str) -> Result<(ObjectMeta, String), ApplyError> {
    let ObjectBody { meta, mut chunks } = store.get(key).await?;
    let mut digest = Sha256::new();
    while let Some(chunk) = chunks.next().await {
        digest.update(&chunk?);
    }
    Ok((meta, hex::encode(digest.finalize())))
}

fn entry(source: &ObjectMeta, sha256: String, copy_etag: Option<String>) -> Entry {
    let (key, etag, version) = (source.key.clone(), source.etag.clone(), source.version.clone());
    Entry { key, size: source.size, sha256, etag, version, copy_etag }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "bucket": "models", "from": "east", "to": "west" }))
}

#[cfg(test)]
#[path = "bucket_flat_tests.rs"]
mod flat_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;

    #[tokio::test]
    async fn the_second_backup_copies_only_what_changed() {
        let mut bench = Bench::new(&fixture());
        let first = bench.run::<Backup>().await.expect("copied");
        assert_eq!((first.objects, first.copied, first.skipped), (3, 3, 0));
        let now = bench.read.world.clock().now();
        bench.world.lock().object("models", "east", "model.onnx", b"new weights", now);
        bench.again("b");
        let second = bench.run::<Backup>().await.expect("copied");
        assert_eq!((second.objects, second.copied, second.bytes_copied), (3, 1, 11));
    }
}
