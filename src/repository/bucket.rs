//! The objects of a bucket as a source: the current version of each. Listed, compared with the parent by etag, size and time,
//! and by version where a listing tells it (S3's does not), so that what did not change is not asked for at all; the next few
//! objects are on their way while one is stored.
//!
//! The whole listing is held and sorted, some 250 bytes an object, since not every server lists in the order of keys
//! (SeaweedFS goes folder by folder, and so do Amazon's directory buckets).
//!
//! An object is read as the one that was listed. If another stands there by then, that one is read; if it changes
//! between two parts of a large one, the entry says so.

use super::{
    RepositoryError, Result,
    entry::{Entry, Instant, Node, ObjectInfo},
    open::{listed, retried},
    source::{Body, Item, Parent, Reading, Source, Unreadable, unread},
};
use crate::providers::port::{ObjectMeta, ObjectRead, PortError};
use futures::TryStreamExt;
use std::{
    collections::VecDeque,
    io::{Error, Read},
    sync::Arc,
};
use tokio::{runtime::Handle, task::JoinHandle};

/// Objects up to this size are fetched whole, ahead of time.
const SMALL: u64 = 1024 * 1024;
/// Larger ones in parts of this size.
const PART: u64 = 8 * 1024 * 1024;
/// So many objects, and so many parts of one, are under way at once.
const AHEAD: usize = 16;
const PARTS: usize = 3;

enum Ahead {
    Same(Entry),
    Fetched(JoinHandle<std::result::Result<Item, Unreadable>>),
}

pub struct Bucket {
    objects: Arc<dyn ObjectRead>,
    parent: Parent,
    reread: bool,
    handle: Handle,
    /// What is to come, once it has been asked for.
    listed: Option<std::vec::IntoIter<ObjectMeta>>,
    ahead: VecDeque<Ahead>,
}

impl Bucket {
    /// All objects that the store shows. Must be made inside a runtime.
    #[must_use]
    pub fn new(objects: Arc<dyn ObjectRead>, parent: Parent, reread: bool) -> Self {
        let handle = Handle::current();
        Self { objects, parent, reread, handle, listed: None, ahead: VecDeque::new() }
    }

    fn listed(&mut self) -> Result<Option<ObjectMeta>> {
        if self.listed.is_none() {
            let mut all = self.handle.block_on(listed(&*self.objects, ""))?;
            all.sort_by(|a, b| a.key.as_bytes().cmp(b.key.as_bytes()));
            self.listed = Some(all.into_iter());
        }
        Ok(self.listed.as_mut().and_then(Iterator::next))
    }

    /// Looks at the next object and has it fetched if it is not the parent's.
    fn look_ahead(&mut self) -> Result<bool> {
        let Some(meta) = self.listed()? else { return Ok(false) };
        let before = if self.reread { None } else { self.parent.at(meta.key.as_bytes())? };
        self.ahead.push_back(match before {
            Some(before) if is_same(&before, &meta) => Ahead::Same(before),
            _ => Ahead::Fetched(self.handle.spawn(fetch(self.objects.clone(), meta, self.handle.clone()))),
        });
        Ok(true)
    }
}

impl Source for Bucket {
    fn next(&mut self) -> Option<Result<std::result::Result<Item, Unreadable>>> {
        while self.ahead.len() < AHEAD {
            match self.look_ahead() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Some(Err(error)),
            }
        }
        match self.ahead.pop_front()? {
            Ahead::Same(entry) => Some(Ok(Ok(Item { entry, reading: Reading::Same }))),
            Ahead::Fetched(task) => Some(self.handle.block_on(task).map_err(|e| RepositoryError::Interrupted(e.to_string()))),
        }
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        for ahead in &self.ahead {
            if let Ahead::Fetched(task) = ahead {
                task.abort();
            }
        }
    }
}

/// An etag alone is no proof: one made of parts differs by how it was uploaded, never by less than its content.
fn is_same(before: &Entry, meta: &ObjectMeta) -> bool {
    let Node::Object { info, content } = &before.node else { return false };
    !info.etag.is_empty()
        && !content.changed
        && content.size == meta.size
        && info.etag == bytes(meta.etag.as_deref())
        && (meta.version.is_none() || info.version == bytes(meta.version.as_deref()))
        && info.mtime == instant(meta)
}

fn bytes(text: Option<&str>) -> Vec<u8> {
    text.unwrap_or_default().as_bytes().to_vec()
}

fn instant(meta: &ObjectMeta) -> Instant {
    meta.modified.map_or_else(Instant::default, |at| {
        // Before 1970 nanoseconds are negative; no object is.
        Instant { seconds: at.as_second(), nanos: at.subsec_nanosecond().unsigned_abs() }
    })
}

fn entry(meta: &ObjectMeta, listed: &ObjectMeta) -> Entry {
    let pairs = meta.metadata.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes()));
    let info = ObjectInfo {
        // As the listing has it: what it is compared with the next time.
        mtime: instant(if listed.etag == meta.etag { listed } else { meta }),
        etag: bytes(meta.etag.as_deref()),
        version: bytes(meta.version.as_deref()),
        metadata: pairs.collect(),
    };
    Entry { path: meta.key.clone().into_bytes(), node: Node::Object { info, content: unread(meta.size) } }
}

async fn fetch(objects: Arc<dyn ObjectRead>, listed: ObjectMeta, handle: Handle) -> std::result::Result<Item, Unreadable> {
    let lost = |why: String| Unreadable { path: listed.key.clone().into_bytes(), why };
    if listed.size <= SMALL {
        let whole = retried(&listed.key, || whole(&*objects, &listed)).await;
        let (meta, content) = whole.map_err(|e| lost(e.to_string()))?;
        let body = Box::new(Whole(std::io::Cursor::new(content)));
        return Ok(Item { entry: entry(&meta, &listed), reading: Reading::Read(body) });
    }
    let meta =
        retried(&listed.key, || async { objects.head(&listed.key).await?.ok_or_else(|| PortError::NotFound(listed.key.clone())) }).await;
    let meta = meta.map_err(|e| lost(e.to_string()))?;
    let entry = entry(&meta, &listed);
    Ok(Item { entry, reading: Reading::Read(Box::new(Parts::new(objects, meta, handle))) })
}

/// The object that was listed, or the one that took its place.
async fn whole(objects: &dyn ObjectRead, listed: &ObjectMeta) -> std::result::Result<(ObjectMeta, Vec<u8>), PortError> {
    let body = match &listed.etag {
        Some(etag) => match objects.get_if(&listed.key, etag).await {
            Err(PortError::Conflict { .. }) => objects.get(&listed.key).await?,
            other => other?,
        },
        None => objects.get(&listed.key).await?,
    };
    let content = body.chunks.try_concat().await?;
    if content.len() as u64 != body.meta.size {
        return Err(PortError::Unreachable(format!("{}: the body broke off", listed.key)));
    }
    Ok((body.meta, content))
}

struct Whole(std::io::Cursor<Vec<u8>>);

impl Body for Whole {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(into)
    }
    fn hole(&mut self) -> std::io::Result<u64> {
        Ok(0)
    }
    fn changed(&mut self) -> std::io::Result<bool> {
        Ok(false)
    }
}

/// A large object, a few parts ahead.
struct Parts {
    objects: Arc<dyn ObjectRead>,
    meta: ObjectMeta,
    handle: Handle,
    /// How far it is asked for.
    asked: u64,
    ahead: VecDeque<JoinHandle<Result<Vec<u8>>>>,
    part: std::io::Cursor<Vec<u8>>,
}

impl Parts {
    fn new(objects: Arc<dyn ObjectRead>, meta: ObjectMeta, handle: Handle) -> Self {
        Self { objects, meta, handle, asked: 0, ahead: VecDeque::new(), part: std::io::Cursor::default() }
    }
    fn ask(&mut self) {
        let (objects, key, from) = (self.objects.clone(), self.meta.key.clone(), self.asked);
        let length = PART.min(self.meta.size - from);
        self.asked += length;
        self.ahead.push_back(self.handle.spawn(async move { retried(&key, || objects.range(&key, from, length)).await }));
    }
}

impl Body for Parts {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let got = self.part.read(into)?;
            if got > 0 || into.is_empty() {
                return Ok(got);
            }
            while self.ahead.len() < PARTS && self.asked < self.meta.size {
                self.ask();
            }
            let Some(part) = self.ahead.pop_front() else { return Ok(0) };
            let part = self.handle.block_on(part).map_err(Error::other)?;
            self.part = std::io::Cursor::new(part.map_err(Error::other)?);
        }
    }
    fn hole(&mut self) -> std::io::Result<u64> {
        Ok(0)
    }
    fn changed(&mut self) -> std::io::Result<bool> {
        let now = self.handle.block_on(retried(&self.meta.key, || self.objects.head(&self.meta.key))).map_err(Error::other)?;
        Ok(now.is_none_or(|now| now.etag != self.meta.etag || now.size != self.meta.size))
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.ahead.iter().for_each(JoinHandle::abort);
    }
}
