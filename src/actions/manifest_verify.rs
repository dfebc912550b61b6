//! The copies of a bucket compared with the manifest that `bucket.backup` left, and with the source's listing where the
//! source answers: three sides key by key, in bounded memory, from where an earlier process stopped.

use super::{
    bucket_verify::{Input, Output},
    contract::*,
    manifest::{Entry, Head},
    set_rows::{Row, Sides},
    set_tally::{By, Checkpoint, Desk, Finding, Kind, Tally, Verdict},
    set_verify::gone_on,
    set_walk::{Broken, Item, Listing},
    set_work::{self, Ended, Judges},
    shared::*,
};
use crate::model::effect::Failure;
use crate::providers::{clock::Clock, port::*};
use async_trait::async_trait;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// What is read of all copies, unless told otherwise.
const GIB: u64 = 1024 * 1024 * 1024;

/// Where the comparison of one step keeps what it needs.
pub(crate) fn folder(cx: &ReadCx) -> PathBuf {
    cx.scratch.join(format!("bucket-manifest-{}", short_key(cx)))
}

pub(crate) async fn verify(cx: &ReadCx, input: &Input, (key, head): (String, Head)) -> Result<Output, ApplyError> {
    let copy = cx.world.objects(input.bucket.as_str(), input.to.as_str())?;
    let source = cx.world.objects(input.bucket.as_str(), input.from.as_str())?;
    let read_data = input.read_data.unwrap_or(head.bytes.unwrap_or(u64::MAX) <= GIB);
    let patience = (cx.world.clock(), cx.deadline / 2);
    let sides = Sides {
        manifest: Some((copy.clone(), key.clone())),
        source: Some(Listing { patience: Some(patience.clone()), ..Listing::of(source.clone(), &head.prefix) }),
        copy: Some(Listing::of(copy.clone(), &head.prefix)),
    };
    let begin = Checkpoint { order: head.order.unwrap_or_default(), manifest: Some(key.clone()), ..Checkpoint::default() };
    let opened = set_work::open(&folder(cx), begin)?;
    let judge = Judge { source, patience, copy, read_data, read: opened.at.tally.read_bytes.into() };
    let ended = set_work::compared(opened, cx.world.clock(), (input.bucket.as_str(), &head.prefix), sides, judge).await?;
    let Ended { at: Checkpoint { tally, alone, .. }, resumed_at, .. } = ended;
    if tally.differences() > 0 {
        return Err(differs(cx, input, &tally, resumed_at.as_deref()));
    }
    let (objects, bytes) = (tally.objects, tally.bytes);
    Ok(Output { objects, bytes, source_asked: !alone, read_data, manifest: Some(key), resumed_at, set: None })
}

/// Names the first hundred of each kind and counts all.
fn differs(cx: &ReadCx, input: &Input, tally: &Tally, resumed_at: Option<&str>) -> ApplyError {
    let file = Desk::differences(&folder(cx));
    let (told, resumed) = (tally.told(), gone_on(resumed_at));
    let message =
        format!("bucket `{}` in `{}` differs: {told}{resumed}; each with its reason in {}", input.bucket, input.to, file.display());
    ApplyError::Definite(Failure::new("replica_differs", message).remedy("run `bucket.backup` again, and find out what changed the copies"))
}

pub(crate) struct Judge {
    pub source: Arc<dyn ObjectRead>,
    /// For how long an answer of its may stay away.
    pub patience: (Arc<dyn Clock>, Duration),
    pub copy: Arc<dyn ObjectRead>,
    /// Read and hash every copy, or compare the digest that stands in its metadata.
    pub read_data: bool,
    /// Bytes of the copies that were read.
    pub read: AtomicU64,
}

#[async_trait]
impl Judges for Judge {
    fn listed(&self, row: &Row, tally: &mut Tally) -> Option<Verdict> {
        tally.objects += u64::from(row.entry.is_some());
        tally.copies += u64::from(row.copy.is_some());
        tally.bytes += row.entry.as_ref().map_or(0, |entry| entry.size);
        let object = |item: &Option<Item>| item.as_ref().and_then(Item::object);
        let (copy, now) = (object(&row.copy), object(&row.source));
        Some(match (&row.entry, &copy, &now) {
            // Deleted at the source since: then the copy need not be there.
            (Some(_), None, None) if row.asked => Verdict::Gone,
            (Some(_), None, _) => differs_by(row, Kind::Missing, "there is no copy"),
            (Some(entry), Some(copy), _) if entry.size != copy.size => {
                differs_by(row, Kind::Corrupt, format!("{} bytes, {} at the copy", entry.size, copy.size))
            }
            (Some(_), Some(_), _) => return None,
            (None, None, Some(_)) => differs_by(row, Kind::Missing, "it came to the source after the manifest was written"),
            (None, Some(_), Some(_)) => differs_by(row, Kind::Stale, "the manifest does not name it, and the source has it"),
            (None, Some(_), None) => differs_by(row, Kind::Extra, "nobody names it"),
            (None, None, None) => Verdict::Gone,
        })
    }

    async fn look(&self, row: &Row) -> Result<Vec<Verdict>, Broken> {
        let Some(entry) = &row.entry else { return Ok(Vec::new()) };
        let now = row.source.as_ref().and_then(Item::object);
        let by = match self.intact(entry).await? {
            Ok(by) => by,
            Err(why) => return Ok(vec![differs_by(row, Kind::Corrupt, why)]),
        };
        let now = match now {
            // What ails the source is no reason not to compare with the manifest.
            Some(now) => self.now(now).await.map_err(Broken::Source)?,
            None => None,
        };
        let is_same = |now: &ObjectMeta| now.size == entry.size && now.etag == entry.etag;
        Ok(vec![match now {
            None if row.asked => differs_by(row, Kind::Extra, "it was deleted at the source after the manifest was written"),
            Some(now) if !is_same(&now) => differs_by(row, Kind::Stale, "the source has another by now than was copied"),
            _ => Verdict::Same(by),
        }])
    }

    fn read(&self) -> &AtomicU64 {
        &self.read
    }
}

impl Judge {
    /// Whether the copy is what was copied: by what, or why not.
    async fn intact(&self, entry: &Entry) -> PortResult<Result<By, &'static str>> {
        if self.read_data {
            self.read.fetch_add(entry.size, Ordering::Relaxed);
            let mut chunks = self.copy.get(&entry.key).await?.chunks;
            let mut digest = Sha256::new();
            while let Some(chunk) = chunks.next().await {
                digest.update(&chunk?);
            }
            let same = hex::encode(digest.finalize()) == entry.sha256;
            return Ok(if same { Ok(By::Content) } else { Err("the content is not what was copied") });
        }
        let meta = self.copy.head(&entry.key).await?;
        let same = meta.is_some_and(|m| m.metadata.get("muster-sha256") == Some(&entry.sha256));
        Ok(if same { Ok(By::Digest) } else { Err("the digest in its metadata is not that of what was copied") })
    }

    /// The source's object, with its etag. Some stores list objects without, and have to be asked for each; it may be gone
    /// by then.
    async fn now(&self, listed: ObjectMeta) -> PortResult<Option<ObjectMeta>> {
        if listed.etag.is_some() {
            return Ok(Some(listed));
        }
        let (clock, limit) = &self.patience;
        in_time(&**clock, *limit, self.source.head(&listed.key)).await
    }
}

fn differs_by(row: &Row, kind: Kind, why: impl Into<String>) -> Verdict {
    let since = row.source.as_ref().and_then(|item| item.latest()).and_then(|latest| latest.modified);
    Verdict::Differs(Box::new(Finding { kind, key: row.key().to_owned(), why: why.into(), replication: None, since }))
}
