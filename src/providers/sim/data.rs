//! What lives in a region: buckets, and the servers behind database instances (whose control plane is in `instances.rs`).

use super::{
    SimWorld,
    state::{SimObject, State},
};
use crate::providers::{clock::Clock, port::*};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// One bucket, control plane or server, in one region.
pub(super) struct Data {
    pub world: SimWorld,
    /// Of the bucket or the database.
    pub name: String,
    pub region: String,
}

impl Data {
    fn key(&self, key: &str) -> (String, String, String) {
        (self.name.clone(), self.region.clone(), key.to_owned())
    }
    pub(super) fn here(&self, id: &str) -> (String, String) {
        (self.region.clone(), id.to_owned())
    }
    fn server(&self) -> (String, String) {
        (self.name.clone(), self.region.clone())
    }
    pub(super) fn asked(&self, call: &'static str) {
        self.world.asked(call, &format!("{}@{}", self.name, self.region));
    }
    pub(super) fn write<T>(&self, change: impl FnOnce(&mut State, Timestamp) -> PortResult<T>) -> PortResult<T> {
        self.world.up(&self.region)?;
        self.world.write(change)
    }
}

fn meta(key: &str, object: &SimObject, metadata: bool) -> ObjectMeta {
    ObjectMeta {
        key: key.to_owned(),
        size: object.body.len() as u64,
        etag: Some(object.etag.clone()),
        version: Some(object.version.clone()),
        modified: Some(object.modified),
        metadata: if metadata { object.metadata.clone() } else { BTreeMap::new() },
        checksum: None,
    }
}

/// Something else stands there, or nothing does.
fn conflict(key: &str, found: Option<&SimObject>) -> PortError {
    let found = found.map_or("nothing".to_owned(), |o| format!("{} bytes, etag {}", o.body.len(), o.etag));
    PortError::Conflict { found: format!("object {key}: {found}") }
}

/// Small, so that every reader must turn the page.
const PAGE: usize = 2;

#[async_trait]
impl ObjectRead for Data {
    async fn list(&self, prefix: &str, after: Option<&str>) -> PortResult<ObjectPage> {
        self.asked("objects.list");
        self.world.up(&self.region)?;
        let state = self.world.lock();
        let mut objects: Vec<ObjectMeta> = state
            .objects
            .iter()
            .filter(|((b, r, k), _)| *b == self.name && *r == self.region && k.starts_with(prefix) && after.is_none_or(|a| k.as_str() > a))
            .map(|((_, _, k), o)| meta(k, o, false))
            .take(PAGE + 1)
            .collect();
        let more = objects.len() > PAGE;
        objects.truncate(PAGE);
        let next = objects.last().filter(|_| more).map(|o| o.key.clone());
        Ok(ObjectPage { objects, next })
    }
    async fn head(&self, key: &str) -> PortResult<Option<ObjectMeta>> {
        self.asked("objects.head");
        self.world.up(&self.region)?;
        Ok(self.world.lock().objects.get(&self.key(key)).map(|o| meta(key, o, true)))
    }
    async fn get(&self, key: &str) -> PortResult<ObjectBody> {
        self.asked("objects.get");
        self.world.up(&self.region)?;
        let state = self.world.lock();
        let object = state.objects.get(&self.key(key)).ok_or_else(|| PortError::NotFound(format!("object {key}")))?;
        let chunks: Vec<PortResult<Vec<u8>>> = object.body.chunks(object.body.len() / 8 + 4).map(|c| Ok(c.to_vec())).collect();
        Ok(ObjectBody { meta: meta(key, object, true), chunks: futures::stream::iter(chunks).boxed() })
    }
    async fn get_if(&self, key: &str, etag: &str) -> PortResult<ObjectBody> {
        let body = self.get(key).await?;
        if body.meta.etag.as_deref() == Some(etag) {
            return Ok(body);
        }
        Err(conflict(key, self.world.lock().objects.get(&self.key(key))))
    }
    async fn range(&self, key: &str, from: u64, length: u64) -> PortResult<Vec<u8>> {
        let whole = self.get(key).await?.chunks.try_concat().await?;
        let range = from as usize..from.saturating_add(length) as usize;
        whole.get(range).map(<[u8]>::to_vec).ok_or_else(|| PortError::Refused(format!("object {key} has {} bytes", whole.len())))
    }
    fn place(&self, key: &str) -> Option<ObjectPlace> {
        Some(ObjectPlace { bucket: format!("{}@{}", self.name, self.region), key: key.to_owned() })
    }
    async fn provider(&self) -> PortResult<Option<String>> {
        Ok(Some("sim".to_owned()))
    }
    async fn locks(&self) -> PortResult<bool> {
        self.asked("objects.locks");
        self.world.up(&self.region).map(|()| true)
    }
    async fn sums(&self, _key: &str) -> PortResult<Option<ObjectSums>> {
        self.asked("objects.sums");
        self.world.up(&self.region).map(|()| None)
    }
    async fn keeps_versions(&self) -> PortResult<bool> {
        self.asked("objects.keeps_versions");
        self.world.up(&self.region).map(|()| false)
    }
    async fn lock(&self) -> PortResult<BucketLock> {
        self.asked("objects.lock");
        self.world.up(&self.region).map(|()| BucketLock::Absent)
    }
    async fn replication_rules(&self) -> PortResult<Vec<ReplicationRule>> {
        self.asked("objects.replication_rules");
        self.world.up(&self.region).map(|()| Vec::new())
    }
    async fn retention(&self, key: &str) -> PortResult<Option<Timestamp>> {
        self.asked("objects.retention");
        self.world.up(&self.region)?;
        let state = self.world.lock();
        state.objects.get(&self.key(key)).map(|o| o.retained).ok_or_else(|| PortError::NotFound(format!("object {key}")))
    }
}

#[async_trait]
impl ObjectWrite for Data {
    async fn put(&self, key: &str, body: Bytes, metadata: &BTreeMap<String, String>, only_if_absent: bool) -> PortResult<ObjectMeta> {
        self.asked("objects.put");
        self.write(|state, now| {
            let at = self.key(key);
            let there = state.objects.get(&at);
            if only_if_absent && there.is_some() {
                return Err(conflict(key, there));
            }
            let object = state.make(body.to_vec(), metadata.clone(), now);
            let answer = meta(key, &object, true);
            state.objects.insert(at, object);
            Ok(answer)
        })
    }
    async fn put_file(
        &self,
        key: &str,
        file: &std::path::Path,
        sha256: &str,
        metadata: &BTreeMap<String, String>,
        only_if_absent: bool,
    ) -> PortResult<ObjectMeta> {
        let body = std::fs::read(file).map_err(|e| PortError::Refused(e.to_string()))?;
        if hex::encode(Sha256::digest(&body)) != sha256 {
            return Err(PortError::Refused(format!("{} is not {sha256}", file.display())));
        }
        self.put(key, body.into(), metadata, only_if_absent).await
    }
    async fn swap(&self, key: &str, body: Vec<u8>, expect: Option<&str>) -> PortResult<()> {
        self.asked("objects.swap");
        self.write(|state, now| {
            let at = self.key(key);
            let there = state.objects.get(&at);
            if there.map(|object| object.etag.as_str()) != expect {
                return Err(conflict(key, there));
            }
            let object = state.make(body, BTreeMap::new(), now);
            state.objects.insert(at, object);
            Ok(())
        })
    }
    async fn delete(&self, key: &str) -> PortResult<()> {
        self.asked("objects.delete");
        self.write(|state, now| {
            if state.objects.get(&self.key(key)).is_some_and(|object| object.retained.is_some_and(|until| until > now)) {
                return Err(PortError::Refused(format!("object {key} is retained")));
            }
            state.objects.remove(&self.key(key));
            Ok(())
        })
    }
    async fn put_stream(
        &self,
        key: &str,
        body: Chunks,
        metadata: &BTreeMap<String, String>,
        only_if_absent: bool,
    ) -> PortResult<ObjectMeta> {
        self.asked("objects.put_stream");
        self.put(key, body.try_concat().await?.into(), metadata, only_if_absent).await
    }
    async fn copy_from(&self, key: &str, from: &ObjectPlace, listed: &ObjectMeta) -> PortResult<ObjectMeta> {
        self.asked("objects.copy_from");
        let (name, region) = from.bucket.split_once('@').unwrap_or((&from.bucket, ""));
        self.write(|state, now| {
            let found = state.objects.get(&(name.to_owned(), region.to_owned(), from.key.clone()));
            let found = found.ok_or_else(|| PortError::NotFound(format!("object {}", from.key)))?.clone();
            if listed.etag.as_ref().is_some_and(|etag| *etag != found.etag) {
                return Err(conflict(&from.key, Some(&found)));
            }
            let object = state.make(found.body, found.metadata, now);
            let answer = meta(key, &object, true);
            state.objects.insert(self.key(key), object);
            Ok(answer)
        })
    }
    async fn retain(&self, key: &str, until: Timestamp, _mode: LockMode) -> PortResult<()> {
        self.asked("objects.retain");
        self.write(|state, _| {
            let object = state.objects.get_mut(&self.key(key)).ok_or_else(|| PortError::NotFound(format!("object {key}")))?;
            if object.retained.is_some_and(|before| before > until) {
                return Err(PortError::Refused(format!("object {key} is retained for longer")));
            }
            object.retained = Some(until);
            Ok(())
        })
    }
}

#[async_trait]
impl SqlRead for Data {
    async fn state(&self) -> PortResult<ServerState> {
        self.with(|server| server.state.clone()).map(|state| ServerState { now: self.world.clock.now(), ..state })
    }
    async fn newest(&self) -> PortResult<Newest> {
        let now = self.world.clock.now();
        self.with(|server| match &server.state {
            state if state.in_recovery => Err(PortError::Refused("recovery is in progress".into())),
            state => Ok(Newest { timeline: state.timeline, position: state.position, commit: Some(now), now }),
        })?
    }
    async fn standbys(&self) -> PortResult<Vec<Standby>> {
        self.world.up(&self.region)?;
        Ok(Vec::new())
    }
    async fn rows(&self) -> PortResult<Box<dyn RowRead>> {
        self.with(|_| ())?;
        Ok(Box::new(Data { world: self.world.clone(), name: self.name.clone(), region: self.region.clone() }))
    }
    async fn present(&self, _table: &str, _column: &str, _ids: &[String]) -> PortResult<Vec<String>> {
        Err(PortError::Refused("this world keeps no rows".into()))
    }
    async fn sessions(&self) -> PortResult<u64> {
        self.with(|server| server.sessions)
    }
    async fn wheel(&self) -> PortResult<Option<String>> {
        self.with(|_| ())?;
        Ok(self.world.lock().wheels.get(&self.name).cloned())
    }
}

#[async_trait]
impl RowRead for Data {
    async fn tables(&mut self, _names: &[String]) -> PortResult<Vec<TableFile>> {
        let name = "public.predictions".into();
        Ok(vec![TableFile { name, blocks: 1, unlogged: false, columns: Vec::new(), key: Vec::new(), sorted: None }])
    }
    async fn stretches(&mut self, table: &TableFile, _piece: Piece, _seed: i64, position: bool) -> PortResult<Look<Stretch>> {
        let look = self.versions(&table.name, &[], position).await?;
        let sum = look.seen.iter().map(|v| v.digest.as_str()).collect();
        let seen = vec![Stretch { number: 0, rows: look.seen.len() as u64, sum }];
        Ok(Look { at: look.at, horizon: look.horizon, busy: look.busy, shape: look.shape, seen })
    }
    async fn rows_at(&mut self, _table: &TableFile, _places: &[(u32, u32)]) -> PortResult<Vec<RowText>> {
        Ok(Vec::new())
    }
    async fn versions(&mut self, _table: &str, _ranges: &[(u32, u32)], _position: bool) -> PortResult<Look<Version>> {
        self.with(|server| Look { at: server.state.position, horizon: 1_000, busy: false, shape: String::new(), seen: server.rows.clone() })
    }
    async fn replayed(&mut self) -> PortResult<Lsn> {
        self.with(|server| server.state.position)
    }
}

impl Data {
    fn with<T>(&self, look: impl FnOnce(&super::Server) -> T) -> PortResult<T> {
        self.world.up(&self.region)?;
        let state = self.world.lock();
        state.listening(&self.server())?;
        state.servers.get(&self.server()).map(look).ok_or_else(|| PortError::Unreachable("no server listens".into()))
    }
    fn change<T>(&self, change: impl FnOnce(&mut super::Server) -> PortResult<T>) -> PortResult<T> {
        self.write(|state, _| {
            state.listening(&self.server())?;
            let server = state.servers.get_mut(&self.server()).ok_or_else(|| PortError::Unreachable("no server listens".into()))?;
            change(server)
        })
    }
}

#[async_trait]
impl SqlWrite for Data {
    async fn make_read_only(&self) -> PortResult<()> {
        self.change(|server| {
            server.state.read_only = true;
            server.sessions = 0;
            Ok(())
        })
    }
    async fn make_writable(&self) -> PortResult<()> {
        self.change(|server| {
            server.state.read_only = false;
            Ok(())
        })
    }
    async fn prove_writable(&self, mark: &str) -> PortResult<()> {
        self.change(|server| {
            if server.state.in_recovery || server.state.read_only {
                return Err(PortError::Refused("cannot execute INSERT in a read-only transaction".into()));
            }
            server.canaries.insert(mark.to_owned());
            Ok(())
        })
    }
    async fn swap_wheel(&self, expect: Option<&str>, wheel: &str) -> PortResult<()> {
        self.write(|state, _| {
            state.listening(&self.server())?;
            if state.servers.get(&self.server()).is_none_or(|server| server.state.in_recovery) {
                return Err(PortError::Refused("cannot execute UPDATE in a read-only transaction".into()));
            }
            if state.wheels.get(&self.name).map(String::as_str) != expect {
                return Err(PortError::Conflict { found: "another wheel".into() });
            }
            state.wheels.insert(self.name.clone(), wheel.to_owned());
            Ok(())
        })
    }
}
