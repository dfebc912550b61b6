//! A directory as an object store: a local disk, a mounted volume, a stick in a safe.
//!
//! Keys are paths below the root. An object is written to `tmp/`, made durable, and then renamed to its key, so that
//! under a key there is the whole object or nothing, whatever crashes. What a crash leaves in `tmp/` is removed by
//! the next writer: each temporary file is locked by who writes it, for as long as he lives.
//!
//! A directory keeps bytes alone: no metadata, no versions, no retention, and no copies of its own making.

use super::directory_files::{Reading, Root, Write, check};
use super::port::{Chunks, LockMode, ObjectBody, ObjectMeta, ObjectPage, ObjectPlace, ObjectRead, ObjectWrite, PortError, PortResult};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;

/// The disk may take so long for a piece of reading, or for a small change.
const STALL: Duration = Duration::from_secs(30);
/// A write may take so long, and longer by its size at this many bytes a second.
const WRITE: Duration = Duration::from_mins(2);
const SLOWEST: u64 = 4 * 1024 * 1024;
/// The longest pause within a body that is still being made.
const BODY: Duration = Duration::from_mins(10);
/// A large listing may take so long.
const LIST: Duration = Duration::from_mins(5);
/// A body is read in pieces of this size.
const PIECE: u64 = 1024 * 1024;
/// So many chunks of a body wait for the disk.
const AHEAD: usize = 4;

pub struct Directory {
    root: Arc<Root>,
}

impl Directory {
    /// Nothing is touched yet: the directory is made when the first object is written.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root: Arc::new(Root::new(root)) }
    }

    /// Runs what blocks where it may; after the limit `late` says what is known.
    async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        late: fn(String) -> PortError,
        work: impl FnOnce(&Root) -> PortResult<T> + Send + 'static,
    ) -> PortResult<T> {
        let root = Arc::clone(&self.root);
        let place = root.path.clone();
        answer(tokio::task::spawn_blocking(move || work(&root)), limit, late, &place).await
    }

    async fn write(
        &self,
        key: &str,
        size: u64,
        work: impl FnOnce(&Root, &str) -> PortResult<Write> + Send + 'static,
    ) -> PortResult<ObjectMeta> {
        let key = key.to_owned();
        let limit = WRITE + Duration::from_secs(size / SLOWEST);
        self.run(limit, PortError::Unknown, move |root| work(root, &key)?.finish(root, &key)).await
    }
}

/// What work on another thread has come to.
async fn answer<T>(
    work: tokio::task::JoinHandle<PortResult<T>>,
    limit: Duration,
    late: fn(String) -> PortError,
    place: &Path,
) -> PortResult<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(done)) => done,
        Ok(Err(e)) => Err(late(format!("{}: {e}", place.display()))),
        Err(_) => {
            Err(late(format!("{}: no answer within {} s; is the disk, or the network before it, alive?", place.display(), limit.as_secs())))
        }
    }
}

/// A promise to keep metadata that is not kept would be found out when they are needed.
fn bare(metadata: &BTreeMap<String, String>) -> PortResult<()> {
    match metadata.keys().next() {
        Some(name) => Err(PortError::Refused(format!("a directory keeps no metadata (`{name}`): take an S3 bucket for what needs them"))),
        None => Ok(()),
    }
}

#[async_trait]
impl ObjectRead for Directory {
    /// Everything in one page.
    async fn list(&self, prefix: &str, after: Option<&str>) -> PortResult<ObjectPage> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let mut objects = self.run(LIST, PortError::Unreachable, move |root| root.list(&prefix)).await?;
        objects.retain(|object| after.as_ref().is_none_or(|after| object.key > *after));
        Ok(ObjectPage { objects, next: None })
    }

    async fn head(&self, key: &str) -> PortResult<Option<ObjectMeta>> {
        let key = key.to_owned();
        self.run(STALL, PortError::Unreachable, move |root| root.head(&key)).await
    }

    async fn get(&self, key: &str) -> PortResult<ObjectBody> {
        let key = key.to_owned();
        let (meta, reading) = self.run(STALL, PortError::Unreachable, move |root| root.open(&key)).await?;
        Ok(ObjectBody { meta, chunks: pieces(reading) })
    }

    async fn get_if(&self, key: &str, etag: &str) -> PortResult<ObjectBody> {
        let body = self.get(key).await?;
        match &body.meta.etag {
            Some(found) if found == etag => Ok(body),
            found => Err(PortError::Conflict {
                found: format!("{key}, {} bytes, etag {}", body.meta.size, found.as_deref().unwrap_or("unknown")),
            }),
        }
    }

    async fn range(&self, key: &str, from: u64, length: u64) -> PortResult<Vec<u8>> {
        let key = key.to_owned();
        self.run(STALL + Duration::from_secs(length / SLOWEST), PortError::Unreachable, move |root| root.open(&key)?.1.at(from, length))
            .await
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

/// A file as a stream. It stays the same object, also when another takes its place meanwhile.
fn pieces(reading: Reading) -> Chunks {
    let reading = Arc::new(reading);
    let next = move |from: u64| {
        let reading = Arc::clone(&reading);
        async move {
            let length = PIECE.min(reading.size.checked_sub(from).filter(|left| *left > 0)?);
            let place = reading.path.clone();
            let piece = tokio::task::spawn_blocking(move || reading.at(from, length));
            let piece = answer(piece, STALL, PortError::Unreachable, &place).await;
            // Nothing comes after an error.
            let from = if piece.is_ok() { from + length } else { u64::MAX };
            Some((piece, from))
        }
    };
    stream::unfold(0, next).boxed()
}

/// Hands a body to its writer, to its end or until the writer is gone.
async fn feed(key: &str, body: &mut Chunks, writer: &mpsc::Sender<Option<Vec<u8>>>, size: &mut u64) -> PortResult<()> {
    let stalled = || PortError::Refused(format!("{key}: no more of the body within {} s", BODY.as_secs()));
    while let Some(chunk) = tokio::time::timeout(BODY, body.next()).await.map_err(|_| stalled())? {
        let chunk = chunk?;
        *size += chunk.len() as u64;
        if writer.send_timeout(Some(chunk), WRITE).await.is_err() {
            break;
        }
    }
    Ok(())
}

#[async_trait]
impl ObjectWrite for Directory {
    async fn put(&self, key: &str, body: Bytes, metadata: &BTreeMap<String, String>, only_if_absent: bool) -> PortResult<ObjectMeta> {
        bare(metadata)?;
        self.write(key, body.len() as u64, move |root, key| {
            if only_if_absent {
                root.absent(key)?;
            }
            let mut write = root.begin(key, only_if_absent)?;
            write.add(&body)?;
            Ok(write)
        })
        .await
    }

    async fn put_file(
        &self,
        key: &str,
        file: &Path,
        sha256: &str,
        metadata: &BTreeMap<String, String>,
        only_if_absent: bool,
    ) -> PortResult<ObjectMeta> {
        bare(metadata)?;
        let (file, sha256) = (file.to_owned(), sha256.to_owned());
        let size = tokio::fs::metadata(&file).await.map_or(0, |found| found.len());
        self.write(key, size, move |root, key| {
            if only_if_absent {
                root.absent(key)?;
            }
            let mut write = root.begin(key, only_if_absent)?;
            write.add_file(&file, &sha256)?;
            Ok(write)
        })
        .await
    }

    async fn put_stream(
        &self,
        key: &str,
        mut body: Chunks,
        metadata: &BTreeMap<String, String>,
        only_if_absent: bool,
    ) -> PortResult<ObjectMeta> {
        bare(metadata)?;
        // `None` says that the body is whole. When the channel closes without it, what was written is removed, also
        // when this future was dropped.
        let (chunks, mut arriving) = mpsc::channel::<Option<Vec<u8>>>(AHEAD);
        let mut size = 0;
        let (root, at) = (Arc::clone(&self.root), key.to_owned());
        let work = tokio::task::spawn_blocking(move || {
            let mut write = root.begin(&at, only_if_absent)?;
            while let Some(chunk) = arriving.blocking_recv() {
                match chunk {
                    Some(chunk) => write.add(&chunk)?,
                    None => return write.finish(&root, &at),
                }
            }
            Err(PortError::Refused(format!("{at}: the body broke off")))
        });
        let fed = feed(key, &mut body, &chunks, &mut size).await;
        if fed.is_ok() {
            // A writer that is gone has its reason, which it tells below.
            let _ = chunks.send_timeout(None, WRITE).await;
        }
        drop(chunks);
        let done = answer(work, WRITE + Duration::from_secs(size / SLOWEST), PortError::Unknown, &self.root.path).await;
        fed.and(done)
    }

    async fn copy_from(&self, key: &str, from: &ObjectPlace, _listed: &ObjectMeta) -> PortResult<ObjectMeta> {
        Err(PortError::Refused(format!(
            "{key}: a directory cannot copy from s3://{}/{} by itself: read and write it",
            from.bucket, from.key
        )))
    }

    async fn retain(&self, key: &str, _until: jiff::Timestamp, _mode: LockMode) -> PortResult<()> {
        Err(PortError::Refused(format!("{key}: a directory has no Object Lock: take an S3 bucket that has it")))
    }

    async fn swap(&self, key: &str, body: Vec<u8>, expect: Option<&str>) -> PortResult<()> {
        let expect = expect.map(str::to_owned);
        let replace = expect.is_some();
        let swapped = self.write(key, body.len() as u64, move |root, key| {
            let mut write = root.begin(key, !replace)?;
            write.add(&body)?;
            Ok(write.instead_of(expect))
        });
        swapped.await.map(|_| ())
    }

    async fn delete(&self, key: &str) -> PortResult<()> {
        check(key)?;
        let key = key.to_owned();
        self.run(STALL, PortError::Unknown, move |root| root.delete(&key)).await
    }
}
