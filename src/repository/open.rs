//! A repository as a whole: opened with its key, made where there is none, and its parts loaded.
//!
//! Reading tries again what may succeed (a server that is slow down, a connection that broke); what is not what was
//! written is told by name and never passed over in silence.

use super::{
    RepositoryError, Result,
    codec::Compression,
    entry::{Content, Extent},
    index,
    index::{ById, Ids, Index, PackEntry},
    keys::{Keyring, Slot, Unlock},
    list,
    names::{CONFIG, INDEX, Id, KEYS, PACKS, SNAPSHOTS, VERSION},
    pack,
    pack::Piece,
    places::Places,
    seal::{self, HEADER, Kind},
    slots,
    snapshot::Snapshot,
};
use crate::providers::port::{ObjectMeta, ObjectRead, ObjectWrite, PortError};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// So many objects are asked for at a time.
pub(super) const AT_ONCE: usize = 16;
/// How often something is asked for, and how long is waited before the second time; it doubles.
const TRIES: u32 = 5;
const WAIT: Duration = Duration::from_millis(200);

/// What stands in `config`: the only object that is not encrypted, and holds no secret.
#[doc(hidden)]
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    format: String,
    version: u64,
    id: String,
    created: jiff::Timestamp,
}

const FORMAT: &str = "muster-repository";

pub struct Repository {
    pub store: Arc<dyn ObjectRead>,
    /// For messages: the URL or path.
    pub place: String,
    pub id: String,
    /// The digest of `config`, to which key slots are bound.
    pub config: Id,
    pub keyring: Keyring,
    /// The place of the slot that it was opened by.
    pub opened_by: String,
    /// How much work goes into making smaller what is written here, content and logs. Whatever it was, it is read alike.
    pub compression: Compression,
}

/// Things of which some may be damaged: those that are whole, and what is wrong with the others.
pub struct Found<T> {
    pub whole: T,
    pub damaged: Vec<RepositoryError>,
}

/// The packs that are there.
pub struct Present {
    pub packs: Found<Vec<PackEntry>>,
    /// What else the index names: missing, or of another size than it says. Some of that may be had all the same.
    pub gone: Vec<PackEntry>,
    /// Packs that are there and that no index names, with their sizes: of a backup that was cut off or is under way, or
    /// left over where a part of the index was lost.
    pub strays: Vec<(Id, u64)>,
}

impl Repository {
    pub async fn open(store: Arc<dyn ObjectRead>, place: &str, unlock: &Unlock) -> Result<Self> {
        let config = read_config(&*store, place).await?.ok_or_else(|| RepositoryError::NoRepository { place: place.to_owned() })?;
        let (config, digest) = config;
        let (opened_by, keyring) = slots::open(&*store, &digest, unlock).await?;
        Ok(Self { store, place: place.to_owned(), id: config.id, config: digest, keyring, opened_by, compression: Compression::default() })
    }

    /// The same, for writing with so much work done.
    #[must_use]
    pub fn compressing(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// The same repository in another place.
    pub(super) fn at(&self, store: Arc<dyn ObjectRead>, place: &str) -> Self {
        let (id, opened_by) = (self.id.clone(), self.opened_by.clone());
        let (config, keyring, compression) = (self.config, self.keyring.again(), self.compression);
        Self { store, place: place.to_owned(), id, config, keyring, opened_by, compression }
    }

    /// Makes a repository in an empty place. False: there is one already.
    pub async fn make(store: &dyn ObjectWrite, place: &str, unlock: &Unlock, label: &str, now: jiff::Timestamp) -> Result<bool> {
        if read_config(store, place).await?.is_some() {
            return Ok(false);
        }
        let there = store.list("", None).await.map_err(RepositoryError::store(place))?;
        // A key slot without a `config` is what a crash in the middle of this leaves behind; it opens nothing.
        if let Some(other) = there.objects.iter().find(|o| !o.key.starts_with(KEYS)) {
            return Err(RepositoryError::Occupied { place: place.to_owned(), found: other.key.clone() });
        }
        let id = hex::encode(&super::keys::random()?[..16]);
        let config = Config { format: FORMAT.to_owned(), version: VERSION, id, created: now };
        let config = serde_json::to_vec_pretty(&config).map_err(|e| RepositoryError::Refused(e.to_string()))?;
        let (unlock, label, digest) = (unlock.clone(), label.to_owned(), Id::of(&config));
        let slot = tokio::task::spawn_blocking(move || Slot::make(&digest, &Keyring::new()?, &unlock, label, now));
        let slot = slot.await.map_err(|e| RepositoryError::Interrupted(e.to_string()))??;
        slots::write_slot(store, &slot).await?;
        match store.put(CONFIG, config.into(), &BTreeMap::new(), true).await {
            Ok(_) => Ok(true),
            // Somebody else was quicker; the repository is theirs, and our slot opens nothing.
            Err(PortError::Conflict { .. }) => Ok(false),
            Err(error) => Err(RepositoryError::Store { key: CONFIG.to_owned(), error }),
        }
    }

    /// All snapshots, oldest first.
    pub async fn snapshots(&self) -> Result<Found<Vec<(Id, Snapshot)>>> {
        let objects = self.load(Kind::Snapshot).await?;
        let mut whole = Vec::new();
        let mut damaged = objects.damaged;
        for (id, bytes) in objects.whole {
            match serde_json::from_slice(&bytes) {
                Ok(snapshot) => whole.push((id, snapshot)),
                Err(why) => damaged.push(RepositoryError::damaged(id.key(SNAPSHOTS), why)),
            }
        }
        whole.sort_by_key(|(id, snapshot): &(Id, Snapshot)| (snapshot.time, *id));
        Ok(Found { whole, damaged })
    }

    /// The snapshot of that name: `latest`, or the beginning of an identifier.
    pub async fn snapshot(&self, name: &str) -> Result<(Id, Snapshot)> {
        let snapshots = self.snapshots().await?;
        let mut fits: Vec<(Id, Snapshot)> = snapshots.whole;
        if name == "latest" {
            return fits.pop().ok_or_else(|| RepositoryError::NoSnapshot(name.to_owned()));
        }
        fits.retain(|(id, _)| !name.is_empty() && id.to_string().starts_with(name));
        if fits.len() > 1 {
            let found = fits.iter().map(|(id, _)| id.short()).collect();
            return Err(RepositoryError::Ambiguous { name: name.to_owned(), found });
        }
        let damaged = snapshots.damaged.into_iter().find(|e| e.to_string().contains(name));
        fits.pop().ok_or_else(|| damaged.unwrap_or_else(|| RepositoryError::NoSnapshot(name.to_owned())))
    }

    /// Where all chunks lie.
    pub async fn index(&self) -> Result<Found<Index>> {
        let Present { packs, gone, .. } = self.present().await?;
        Ok(Found { whole: Index::preferring(&packs.whole, &gone), damaged: packs.damaged })
    }

    /// The same, and what packs that no index names say of themselves: for when a snapshot needs what the index lacks.
    pub(super) async fn index_with_strays(&self) -> Result<Index> {
        let Present { packs, gone, strays } = self.present().await?;
        let mut all = packs.whole;
        all.extend(self.ask_packs(strays).await?.whole);
        Ok(Index::preferring(&all, &gone))
    }

    /// The packs that are there, with the size that the index says. One that is missing must not stand before another
    /// copy of what it held.
    pub async fn present(&self) -> Result<Present> {
        let mut found = self.look_for_packs().await?;
        if !found.gone.is_empty() {
            // Lost, or folded by a prune just now: then another index says where its chunks went.
            found = self.look_for_packs().await?;
        }
        Ok(found)
    }

    async fn look_for_packs(&self) -> Result<Present> {
        let (mut packs, there) = (self.packs().await?, self.sizes().await?);
        let is_there = |entry: &PackEntry| there.get(&entry.pack) == Some(&entry.size);
        let (whole, gone): (Vec<PackEntry>, Vec<PackEntry>) = packs.whole.into_iter().partition(is_there);
        let strays = not_named(&there, whole.iter().chain(&gone));
        packs.whole = whole;
        Ok(Present { packs, gone, strays })
    }

    /// The packs in the store, and their sizes.
    pub(super) async fn sizes(&self) -> Result<ById<u64>> {
        let listed = self.list(PACKS).await?;
        Ok(listed.iter().filter_map(|meta| Some((Id::in_key(&meta.key, PACKS)?, meta.size))).collect())
    }

    /// All packs and what is in them, each once. If a part of the index is damaged, the packs that it leaves out are
    /// asked themselves.
    pub async fn packs(&self) -> Result<Found<Vec<PackEntry>>> {
        let objects = self.index_objects().await?;
        let mut packs: ById<PackEntry> = ById::default();
        let mut damaged = objects.damaged;
        for (id, bytes) in objects.whole {
            match index::decode(&id, &bytes) {
                Ok(entries) => entries.into_iter().for_each(|entry| {
                    packs.entry(entry.pack).or_insert(entry);
                }),
                Err(error) => damaged.push(error),
            }
        }
        if !damaged.is_empty() {
            let left_out = self.list(PACKS).await?;
            let left_out = left_out.iter().filter_map(|meta| Some((Id::in_key(&meta.key, PACKS)?, meta.size)));
            let left_out = left_out.filter(|(id, _)| !packs.contains_key(id)).collect();
            let asked = self.ask_packs(left_out).await?;
            packs.extend(asked.whole.into_iter().map(|entry| (entry.pack, entry)));
            damaged.extend(asked.damaged);
        }
        let mut whole: Vec<PackEntry> = packs.into_values().collect();
        whole.sort_by_key(|entry| entry.pack);
        Ok(Found { whole, damaged })
    }

    /// All objects of the index. One that was there when they were listed and is gone when it is read was put into another
    /// by a prune just now: then they are listed once more, for what it named would be missing.
    async fn index_objects(&self) -> Result<Found<Vec<(Id, Vec<u8>)>>> {
        for _ in 1..TRIES {
            let listed = self.list(INDEX).await?;
            let found = self.load_listed(Kind::Index, &listed).await?;
            if found.whole.len() + found.damaged.len() == ids(Kind::Index, &listed).count() {
                return Ok(found);
            }
        }
        self.load(Kind::Index).await
    }

    /// What packs say of themselves, by their own directories.
    pub(super) async fn ask_packs(&self, packs: Vec<(Id, u64)>) -> Result<Found<Vec<PackEntry>>> {
        let asked = stream::iter(packs).map(|(id, size)| async move { (id, size, self.directory(&id, size).await) });
        let mut found = Found { whole: Vec::new(), damaged: Vec::new() };
        for (pack, size, pieces) in asked.buffered(AT_ONCE).collect::<Vec<_>>().await {
            match pieces {
                Ok(pieces) => found.whole.push(PackEntry { pack, size, pieces }),
                Err(error @ (RepositoryError::Damaged { .. } | RepositoryError::Missing { .. })) => found.damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// What a pack itself says that it holds.
    pub async fn directory(&self, pack: &Id, size: u64) -> Result<Vec<Piece>> {
        let key = pack.key(PACKS);
        let damaged = |why| RepositoryError::damaged(&key, why);
        if size < (HEADER + 4) as u64 {
            return Err(damaged("it is cut short"));
        }
        let header = self.range(&key, 0, HEADER as u64).await?;
        let last = self.range(&key, size - 4, 4).await?;
        let length = pack::directory_length(&last).filter(|l| *l as u64 <= size - HEADER as u64);
        let length = length.ok_or_else(|| damaged("its end does not lead to a directory"))? as u64;
        let end = self.range(&key, size - length, length).await?;
        pack::open_directory(&self.keyring, pack, &header, &end, size)
    }

    /// The content of one chunk. If it is not whole where the index says, it is sought wherever else it lies.
    pub async fn chunk(&self, index: &Index, chunk: &Id) -> Result<Vec<u8>> {
        let place = index.find(chunk);
        let why = match &place {
            None => RepositoryError::NoChunk { chunk: *chunk },
            Some((pack, piece)) => match self.piece(pack, piece).await {
                Err(why) if why.is_loss() => why,
                other => return other,
            },
        };
        let tried: Vec<Id> = place.iter().map(|(pack, _)| *pack).collect();
        self.others(index).await?.content(self, chunk, &tried).await?.ok_or(why)
    }

    /// The content of one chunk where the index says, and that it is damaged even where another pack has it whole. What a
    /// lost part of the index named is sought like everywhere.
    pub(super) async fn first_copy(&self, index: &Index, chunk: &Id) -> Result<Vec<u8>> {
        match index.find(chunk) {
            Some((pack, piece)) => self.piece(&pack, &piece).await,
            None => self.chunk(index, chunk).await,
        }
    }

    /// Where chunks lie besides where this index says: asked for once, when it is needed.
    pub(super) async fn others<'i>(&self, index: &'i Index) -> Result<&'i Places> {
        index.others.get_or_try_init(|| Places::load(self, index)).await
    }

    /// The content of a chunk from that place, by one request for the pack's header and one for itself.
    pub(super) async fn piece(&self, pack: &Id, piece: &Piece) -> Result<Vec<u8>> {
        let key = pack.key(PACKS);
        let header = self.range(&key, 0, HEADER as u64).await?;
        let mut sealed = self.range(&key, u64::from(piece.offset), u64::from(piece.stored)).await?;
        let damaged = |why| RepositoryError::damaged(format!("chunk {} in {key}", piece.chunk.short()), why);
        let object = seal::unlock(&self.keyring, Kind::Pack, &header).map_err(damaged)?;
        let mut opener = pack::Opener::default();
        opener.open(&self.keyring, &object, piece, &mut sealed).map_err(damaged)?;
        Ok(opener.content)
    }

    /// The content of an extent that fits into memory.
    pub async fn extent(&self, index: &Index, extent: &Extent) -> Result<Vec<u8>> {
        let patched = match extent {
            Extent::Zeros(length) => return Ok(vec![0; *length as usize]),
            Extent::Chunk { id, .. } => return self.chunk(index, id).await,
            Extent::Patched(patched) => patched,
        };
        let mut chunks = Vec::with_capacity(patched.chunks.len());
        for chunk in &patched.chunks {
            chunks.push(self.chunk(index, chunk).await?);
        }
        let wrong = |why| RepositoryError::damaged(format!("patched content {}", patched.id.short()), why);
        let mut content = Vec::with_capacity(patched.length as usize);
        for part in &patched.parts {
            let range = part.offset as usize..part.offset as usize + part.length as usize;
            let bytes = chunks.get(part.chunk as usize).and_then(|chunk| chunk.get(range));
            content.extend_from_slice(bytes.ok_or_else(|| wrong("a part is beyond the end of its chunk"))?);
        }
        if self.keyring.chunk_id(&content) == patched.id { Ok(content) } else { Err(wrong("its parts do not make what was stored")) }
    }

    /// The extents of a file, wherever they are.
    pub async fn extents(&self, index: &Index, path: &[u8], content: &Content) -> Result<Vec<Extent>> {
        let mut chunks = ById::default();
        for chunk in content.extents.elsewhere() {
            chunks.insert(*chunk, self.chunk(index, chunk).await?);
        }
        list::extents(path, content, |chunk| chunks.get(chunk).cloned().ok_or(RepositoryError::NoChunk { chunk: *chunk }))
    }

    /// All objects of a kind, opened; in no order.
    pub(super) async fn load(&self, kind: Kind) -> Result<Found<Vec<(Id, Vec<u8>)>>> {
        let listed = self.list(kind.folder()).await?;
        self.load_listed(kind, &listed).await
    }

    async fn load_listed(&self, kind: Kind, listed: &[ObjectMeta]) -> Result<Found<Vec<(Id, Vec<u8>)>>> {
        let ids: Vec<Id> = ids(kind, listed).collect();
        let each = stream::iter(ids).map(|id| async move { (id, self.open_object(kind, &id).await) });
        let mut found = Found { whole: Vec::new(), damaged: Vec::new() };
        for (id, object) in each.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
            match object {
                Ok(bytes) => found.whole.push((id, bytes)),
                // What was forgotten or folded into another since it was listed.
                Err(RepositoryError::Missing { .. }) => {}
                Err(error @ RepositoryError::Damaged { .. }) => found.damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    pub(super) async fn open_object(&self, kind: Kind, id: &Id) -> Result<Vec<u8>> {
        let stored = self.read(&id.key(kind.folder())).await?;
        let plain = seal::open_whole(&self.keyring, kind, id, stored)?;
        super::pack::expand(&plain).map_err(|why| RepositoryError::damaged(id.key(kind.folder()), why))
    }

    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        listed(&*self.store, prefix).await
    }

    /// The whole of one object.
    pub(super) async fn read(&self, key: &str) -> Result<Vec<u8>> {
        retried(key, || read_whole(&*self.store, key)).await
    }

    /// A part of one object. That the object is too short for it is damage, and not the store's refusal.
    pub(super) async fn range(&self, key: &str, from: u64, length: u64) -> Result<Vec<u8>> {
        let got = retried(key, || self.store.range(key, from, length)).await;
        if let Err(RepositoryError::Store { error: PortError::Refused(_), .. }) = &got
            && let Some(meta) = retried(key, || self.store.head(key)).await?
            && meta.size < from.saturating_add(length)
        {
            return Err(RepositoryError::damaged(key, format!("it is cut short: it has {} bytes", meta.size)));
        }
        got
    }
}

/// The objects of a kind among these.
fn ids(kind: Kind, listed: &[ObjectMeta]) -> impl Iterator<Item = Id> {
    listed.iter().filter_map(move |meta| Id::in_key(&meta.key, kind.folder()))
}

/// Those packs that none of these is, in the order of their names.
pub(super) fn not_named<'p>(there: &ById<u64>, named: impl Iterator<Item = &'p PackEntry>) -> Vec<(Id, u64)> {
    let named: Ids = named.map(|entry| entry.pack).collect();
    let mut strays: Vec<(Id, u64)> = there.iter().filter(|(pack, _)| !named.contains(pack)).map(|(pack, size)| (*pack, *size)).collect();
    strays.sort_unstable();
    strays
}

/// Writes an object that is named by its bytes. Doing it again is harmless, so it is, until it is certain.
pub async fn put(store: &dyn ObjectWrite, key: &str, body: Bytes) -> Result<()> {
    let once = || async {
        match store.put(key, body.clone(), &BTreeMap::new(), true).await {
            Ok(_) => Ok(()),
            // There already: by another writer, or by a try whose answer was lost. The name says that it is the same.
            Err(PortError::Conflict { .. }) => match store.head(key).await? {
                Some(meta) if meta.size == body.len() as u64 => Ok(()),
                _ => Err(PortError::Refused(format!("{key} is there with another size: `muster backup verify` tells more"))),
            },
            Err(error) => Err(error),
        }
    };
    retried(key, once).await
}

/// Writes a sealed object of one segment; gives its name and size.
pub async fn put_sealed(store: &dyn ObjectWrite, keyring: &Keyring, kind: Kind, plain: &[u8]) -> Result<(Id, u64)> {
    if plain.len() > pack::MOST_PLAIN {
        let (folder, length) = (kind.folder(), plain.len());
        return Err(RepositoryError::Refused(format!("an object of {folder} would have {length} bytes, which nobody could read again")));
    }
    let (id, stored) = seal::whole(keyring, kind, &super::pack::squeeze(plain))?;
    let size = stored.len() as u64;
    put(store, &id.key(kind.folder()), stored.into()).await?;
    Ok((id, size))
}

/// Writes what names these packs: as many index objects as it takes. Gives their names, and their size in all.
pub async fn put_index(store: &dyn ObjectWrite, keyring: &Keyring, packs: &[PackEntry]) -> Result<(Vec<Id>, u64)> {
    let (mut ids, mut size) = (Vec::new(), 0);
    for part in index::parts(packs) {
        let (id, stored) = put_sealed(store, keyring, Kind::Index, &index::encode(part)).await?;
        ids.push(id);
        size += stored;
    }
    Ok((ids, size))
}

/// Does it until it succeeds or is refused, a few times at most.
pub(super) async fn retried<T, F: Future<Output = std::result::Result<T, PortError>>>(key: &str, mut once: impl FnMut() -> F) -> Result<T> {
    let mut wait = WAIT;
    for _ in 1..TRIES {
        match once().await {
            Err(PortError::Unknown(_) | PortError::Unreachable(_)) => {}
            Err(PortError::Throttled { after, .. }) => wait = wait.max(after),
            other => return other.map_err(RepositoryError::store(key)),
        }
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
    once().await.map_err(RepositoryError::store(key))
}

pub(super) async fn listed(store: &dyn ObjectRead, prefix: &str) -> Result<Vec<ObjectMeta>> {
    let mut all = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = retried(prefix, || store.list(prefix, after.as_deref())).await?;
        all.extend(page.objects);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

pub(super) async fn read_whole(store: &dyn ObjectRead, key: &str) -> std::result::Result<Vec<u8>, PortError> {
    let body = store.get(key).await?;
    let size = body.meta.size;
    let bytes: Vec<u8> = body
        .chunks
        .try_fold(Vec::with_capacity(size.min(64 << 20) as usize), |mut all, chunk| async move {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(PortError::Unreachable(format!("{key}: the body broke off"))) }
}

/// The config and its digest.
async fn read_config(store: &dyn ObjectRead, place: &str) -> Result<Option<(Config, Id)>> {
    let bytes = match retried(CONFIG, || read_whole(store, CONFIG)).await {
        Ok(bytes) => bytes,
        Err(RepositoryError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some((parse_config(place, &bytes)?, Id::of(&bytes))))
}

/// Whatever stands in `config`. For its fuzzer it can be seen.
#[doc(hidden)]
pub fn parse_config(place: &str, bytes: &[u8]) -> Result<Config> {
    let damaged = |why: &str| RepositoryError::damaged(format!("{place}: {CONFIG}"), why);
    let config: Config = serde_json::from_slice(bytes).map_err(|e| damaged(&e.to_string()))?;
    if config.format != FORMAT {
        return Err(damaged("it is not that of a Muster repository"));
    }
    if config.version != VERSION {
        return Err(RepositoryError::Version { found: config.version });
    }
    Ok(config)
}
