//! A directory for tests that asks before each request whether it may, and so can refuse some, or have something happen
//! just before; or one that retains objects as a bucket with Object Lock does.

use crate::providers::{directory::Directory, port::*};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
    },
};

/// What is asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    List,
    Read,
    /// An object that must not be there yet.
    Add,
    /// Anything else that writes over what is there, or takes it away.
    Change,
}

type Before = Box<dyn Fn(Asked, &str) -> BoxFuture<'static, PortResult<()>> + Send + Sync>;

pub(super) type Locked = BTreeMap<String, (jiff::Timestamp, LockMode)>;

pub(super) struct Wrapped {
    inner: Directory,
    before: Before,
    locked: Option<Mutex<Locked>>,
}

impl Wrapped {
    pub fn new(dir: &Path, before: impl Fn(Asked, &str) -> PortResult<()> + Send + Sync + 'static) -> Arc<Self> {
        Self::of(dir, Box::new(move |asked, key| ready(before(asked, key)).boxed()))
    }
    /// Something happens, once, before that prefix is listed, so many listings of it later. Tells whether it has.
    pub fn between(
        dir: &Path,
        prefix: &'static str,
        later: i64,
        then: impl Future<Output = ()> + Send + 'static,
    ) -> (Arc<Self>, Arc<AtomicBool>) {
        let (left, then, happened) = (AtomicI64::new(later), Mutex::new(Some(then.boxed())), Arc::new(AtomicBool::new(false)));
        let told = happened.clone();
        let before = move |asked: Asked, key: &str| {
            let now = asked == Asked::List && key == prefix && left.fetch_sub(1, SeqCst) == 0;
            let then = if now { then.lock().unwrap().take() } else { None };
            let happened = happened.clone();
            async move {
                if let Some(then) = then {
                    then.await;
                    happened.store(true, SeqCst);
                }
                Ok(())
            }
            .boxed()
        };
        (Self::of(dir, Box::new(before)), told)
    }
    fn of(dir: &Path, before: Before) -> Arc<Self> {
        Arc::new(Self { inner: Directory::new(dir.to_owned()), before, locked: None })
    }
    /// It retains what it is told to.
    pub fn locking(dir: &Path) -> Arc<Self> {
        let (inner, before): (_, Before) = (Directory::new(dir.to_owned()), Box::new(|_, _| ready(Ok(())).boxed()));
        Arc::new(Self { inner, before, locked: Some(Mutex::default()) })
    }
    /// The same, but for those.
    pub fn locking_all_but(dir: &Path, refused: impl Fn(&str) -> bool + Send + Sync + 'static) -> Arc<Self> {
        let before: Before = Box::new(move |asked, key| {
            let refuses = asked == Asked::Change && refused(key);
            ready(if refuses { Err(PortError::Refused("access denied".to_owned())) } else { Ok(()) }).boxed()
        });
        Arc::new(Self { inner: Directory::new(dir.to_owned()), before, locked: Some(Mutex::default()) })
    }
    pub fn locked(&self) -> Locked {
        self.locked.as_ref().map(|locked| locked.lock().unwrap().clone()).unwrap_or_default()
    }
    async fn may(&self, asked: Asked, key: &str) -> PortResult<()> {
        (self.before)(asked, key).await
    }
}

#[async_trait]
impl ObjectRead for Wrapped {
    async fn list(&self, prefix: &str, after: Option<&str>) -> PortResult<ObjectPage> {
        self.may(Asked::List, prefix).await?;
        self.inner.list(prefix, after).await
    }
    async fn head(&self, key: &str) -> PortResult<Option<ObjectMeta>> {
        self.may(Asked::Read, key).await?;
        self.inner.head(key).await
    }
    async fn get(&self, key: &str) -> PortResult<ObjectBody> {
        self.may(Asked::Read, key).await?;
        self.inner.get(key).await
    }
    async fn get_if(&self, key: &str, etag: &str) -> PortResult<ObjectBody> {
        self.may(Asked::Read, key).await?;
        self.inner.get_if(key, etag).await
    }
    async fn range(&self, key: &str, from: u64, length: u64) -> PortResult<Vec<u8>> {
        self.may(Asked::Read, key).await?;
        self.inner.range(key, from, length).await
    }
    fn place(&self, key: &str) -> Option<ObjectPlace> {
        self.inner.place(key)
    }
    async fn provider(&self) -> PortResult<Option<String>> {
        self.inner.provider().await
    }
    async fn locks(&self) -> PortResult<bool> {
        Ok(self.locked.is_some())
    }
    async fn retention(&self, key: &str) -> PortResult<Option<jiff::Timestamp>> {
        Ok(self.retained(key).await?.map(|(until, _)| until))
    }
    async fn retained(&self, key: &str) -> PortResult<Option<(jiff::Timestamp, Option<LockMode>)>> {
        Ok(self.locked().get(key).map(|(until, mode)| (*until, Some(*mode))))
    }
}

#[async_trait]
impl ObjectWrite for Wrapped {
    async fn put(&self, key: &str, body: Bytes, _metadata: &BTreeMap<String, String>, only_if_absent: bool) -> PortResult<ObjectMeta> {
        self.may(if only_if_absent { Asked::Add } else { Asked::Change }, key).await?;
        // A directory has nowhere to keep them.
        self.inner.put(key, body, &BTreeMap::new(), only_if_absent).await
    }
    async fn delete(&self, key: &str) -> PortResult<()> {
        self.may(Asked::Change, key).await?;
        self.inner.delete(key).await
    }
    async fn put_file(
        &self,
        key: &str,
        file: &Path,
        sha256: &str,
        metadata: &BTreeMap<String, String>,
        absent: bool,
    ) -> PortResult<ObjectMeta> {
        self.may(if absent { Asked::Add } else { Asked::Change }, key).await?;
        self.inner.put_file(key, file, sha256, metadata, absent).await
    }
    async fn put_stream(&self, key: &str, body: Chunks, metadata: &BTreeMap<String, String>, absent: bool) -> PortResult<ObjectMeta> {
        self.may(if absent { Asked::Add } else { Asked::Change }, key).await?;
        self.inner.put_stream(key, body, metadata, absent).await
    }
    async fn copy_from(&self, key: &str, from: &ObjectPlace, meta: &ObjectMeta) -> PortResult<ObjectMeta> {
        self.may(Asked::Change, key).await?;
        self.inner.copy_from(key, from, meta).await
    }
    async fn retain(&self, key: &str, until: jiff::Timestamp, mode: LockMode) -> PortResult<()> {
        self.may(Asked::Change, key).await?;
        let Some(locked) = &self.locked else { return self.inner.retain(key, until, mode).await };
        let mut locked = locked.lock().unwrap();
        if let Some((before, LockMode::Compliance)) = locked.get(key)
            && (*before > until || mode != LockMode::Compliance)
        {
            return Err(PortError::Refused(format!("{key}: access denied")));
        }
        locked.insert(key.to_owned(), (until, mode));
        Ok(())
    }
    async fn swap(&self, key: &str, body: Vec<u8>, etag: Option<&str>) -> PortResult<()> {
        self.may(Asked::Change, key).await?;
        self.inner.swap(key, body, etag).await
    }
}
