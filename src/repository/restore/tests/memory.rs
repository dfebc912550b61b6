//! A store in memory that says what was asked of it, and lets a test do something just before an answer.

use super::super::data::lock;
use crate::providers::port::{ObjectBody, ObjectMeta, ObjectPage, ObjectPlace, ObjectRead, PortError, PortResult};
use async_trait::async_trait;
use std::{collections::BTreeMap, sync::Mutex};

pub(super) type Objects = BTreeMap<String, Vec<u8>>;
pub(super) type Hook = Box<dyn FnMut(&str, &mut Objects) + Send>;

/// A store in memory, which says what was asked of it.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) objects: Mutex<Objects>,
    pub(super) asked: Mutex<Vec<String>>,
    pub(super) before_range: Mutex<Option<Hook>>,
}

#[async_trait]
impl ObjectRead for Memory {
    async fn list(&self, prefix: &str, _: Option<&str>) -> PortResult<ObjectPage> {
        let objects = lock(&self.objects);
        let found = objects.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, bytes)| meta(key, bytes));
        Ok(ObjectPage { objects: found.collect(), next: None })
    }
    async fn head(&self, key: &str) -> PortResult<Option<ObjectMeta>> {
        Ok(lock(&self.objects).get(key).map(|bytes| meta(key, bytes)))
    }
    async fn get(&self, key: &str) -> PortResult<ObjectBody> {
        let bytes = lock(&self.objects).get(key).cloned().ok_or_else(|| PortError::NotFound(key.to_owned()))?;
        let meta = meta(key, &bytes);
        Ok(ObjectBody { meta, chunks: Box::pin(futures::stream::iter([Ok(bytes)])) })
    }
    async fn get_if(&self, key: &str, _: &str) -> PortResult<ObjectBody> {
        self.get(key).await
    }
    async fn range(&self, key: &str, from: u64, length: u64) -> PortResult<Vec<u8>> {
        let mut objects = lock(&self.objects);
        if let Some(hook) = &mut *lock(&self.before_range) {
            hook(key, &mut objects);
        }
        lock(&self.asked).push(key.to_owned());
        let bytes = objects.get(key).ok_or_else(|| PortError::NotFound(key.to_owned()))?;
        let part = bytes.get(from as usize..(from + length) as usize);
        part.map(<[u8]>::to_vec).ok_or_else(|| PortError::Refused(format!("{key} ends sooner")))
    }
    fn place(&self, _: &str) -> Option<ObjectPlace> {
        None
    }
    async fn provider(&self) -> PortResult<Option<String>> {
        Ok(None)
    }
    async fn locks(&self) -> PortResult<bool> {
        Ok(false)
    }
    async fn retention(&self, _: &str) -> PortResult<Option<jiff::Timestamp>> {
        Ok(None)
    }
}

fn meta(key: &str, bytes: &[u8]) -> ObjectMeta {
    ObjectMeta {
        key: key.to_owned(),
        size: bytes.len() as u64,
        etag: None,
        version: None,
        modified: None,
        metadata: BTreeMap::new(),
        checksum: None,
    }
}
