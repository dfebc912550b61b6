//! The write-ahead log of PostgreSQL clusters, segment by segment, beside the base backups that it leads on from.
//!
//! Segments are objects of their own, and not chunks in packs: each is written once, is asked for by its name, is to be
//! durable the moment that `archive_command` answers, and shares nothing with anything. So one `put` is all it takes, and
//! a restore needs no index. What an object holds is authenticated together with its key.
//!
//! An object is written only if it is absent. The same content again is [`Put::Same`]: a server that has not heard that
//! its segment is safe sends it again. Other content under the same name is never written over and never passed over:
//! then two servers write one history, and one of them must be stopped.

use super::{
    RepositoryError, Result,
    names::WAL,
    open::{AT_ONCE, Repository, retried},
    pack,
    seal::{self, Kind},
    wal_name::{self, Piece, Segment, SegmentName, WalName},
};
use crate::providers::port::{ObjectWrite, PortError};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What writing came to. Either way the content is durable under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    New,
    /// It was there already, the same to the byte.
    Same,
}

/// An object of the log, as the store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub system: String,
    pub name: WalName,
    /// As it is stored.
    pub size: u64,
    pub modified: Option<jiff::Timestamp>,
}

/// The log of one cluster.
#[derive(Clone)]
pub struct WalStore {
    repository: Arc<Repository>,
    store: Arc<dyn ObjectWrite>,
    system: String,
}

impl WalStore {
    pub fn new(repository: Arc<Repository>, store: Arc<dyn ObjectWrite>, system_identifier: String) -> Result<Self> {
        wal_name::check_system(&system_identifier).map_err(RepositoryError::Refused)?;
        Ok(Self { repository, store, system: system_identifier })
    }

    #[must_use]
    pub fn system_identifier(&self) -> &str {
        &self.system
    }

    #[must_use]
    pub fn key(&self, name: &WalName) -> String {
        wal_name::key(&self.system, name)
    }

    /// Writes a file of the log. When this returns it is durable.
    pub async fn put(&self, name: &SegmentName, content: Bytes) -> Result<Put> {
        self.put_object(&WalName::File(*name), content).await
    }

    /// Writes a part of a segment that is not complete yet.
    pub async fn put_piece(&self, segment: Segment, from: u32, content: Bytes) -> Result<Put> {
        let to = u32::try_from(content.len()).ok().and_then(|length| from.checked_add(length)).filter(|to| *to > from);
        let to = to.ok_or_else(|| RepositoryError::Refused(format!("a piece of {segment} has no bytes, or more than a segment")))?;
        self.put_object(&WalName::Piece(Piece { segment, from, to }), content).await
    }

    async fn put_object(&self, name: &WalName, content: Bytes) -> Result<Put> {
        let key = self.key(name);
        let (repository, place, plain) = (self.repository.clone(), key.clone(), content.clone());
        let sealing = move || seal::bound(&repository.keyring, Kind::Wal, &place, &pack::squeeze_by(repository.compression, &plain));
        let sealed = tokio::task::spawn_blocking(sealing).await.map_err(|e| RepositoryError::Interrupted(e.to_string()))??;
        let (sealed, nothing) = (Bytes::from(sealed), BTreeMap::new());
        match retried(&key, || self.store.put(&key, sealed.clone(), &nothing, true)).await {
            Ok(_) => Ok(Put::New),
            // Written before, by another writer, or by a try whose answer was lost: it may be this very content.
            Err(RepositoryError::Store { error: PortError::Conflict { .. }, .. }) => self.compare(&key, &content).await,
            Err(error) => Err(error),
        }
    }

    async fn compare(&self, key: &str, content: &[u8]) -> Result<Put> {
        let there = open(&self.repository, key).await.map_err(|error| match error {
            RepositoryError::Damaged { object, why } => RepositoryError::Damaged {
                object,
                why: format!("{why}. What should be written there is at hand: delete that object, and it is written anew"),
            },
            error => error,
        })?;
        if there == content {
            return Ok(Put::Same);
        }
        let same = there.iter().zip(content).take_while(|(a, b)| a == b).count();
        Err(RepositoryError::Diverged {
            object: key.to_owned(),
            why: format!(
                "from byte {same} on it differs ({} bytes there, {} here). Two servers write one history: a restored copy that archives, \
                 or an old primary that still runs. What is there stays. Stop the wrong one, or give the copy a repository of its own",
                there.len(),
                content.len()
            ),
        })
    }

    /// A file of the log; `None`: it is not there.
    pub async fn get(&self, name: &SegmentName) -> Result<Option<Vec<u8>>> {
        self.get_object(&WalName::File(*name)).await
    }

    pub async fn get_object(&self, name: &WalName) -> Result<Option<Vec<u8>>> {
        match open(&self.repository, &self.key(name)).await {
            Ok(content) => Ok(Some(content)),
            Err(RepositoryError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What pieces give of a segment, from its beginning up to the first byte that none has; `None`: no piece has its
    /// first byte. A damaged piece is made up for by others that have the same bytes, if there are any.
    pub async fn get_pieces(&self, segment: Segment) -> Result<Option<Vec<u8>>> {
        let listed = list(&self.repository, &self.key(&WalName::File(SegmentName::Whole(segment)))).await?;
        let mut pieces: Vec<Piece> =
            listed.iter().filter_map(|one| if let WalName::Piece(piece) = one.name { Some(piece) } else { None }).collect();
        pieces.retain(|piece| piece.segment == segment);
        let mut contents: BTreeMap<Piece, Vec<u8>> = BTreeMap::new();
        let mut damaged = None;
        loop {
            let chosen = wal_name::cover(&pieces);
            let missing: Vec<Piece> = chosen.iter().filter(|piece| !contents.contains_key(piece)).copied().collect();
            let reading = stream::iter(missing).map(|piece| async move { (piece, self.get_object(&WalName::Piece(piece)).await) });
            let before = pieces.len();
            for (piece, content) in reading.buffered(AT_ONCE).collect::<Vec<_>>().await {
                match content {
                    Ok(Some(content)) if content.len() as u64 == u64::from(piece.to - piece.from) => drop(contents.insert(piece, content)),
                    // Deleted just now, since the whole segment is there: who asks looks for that first, and again.
                    Ok(None) => pieces.retain(|other| *other != piece),
                    Ok(Some(_)) => {
                        damaged = Some((
                            piece.to,
                            RepositoryError::damaged(self.key(&WalName::Piece(piece)), "it has another length than its name says"),
                        ));
                        pieces.retain(|other| *other != piece);
                    }
                    Err(error @ RepositoryError::Damaged { .. }) => {
                        damaged = Some((piece.to, error));
                        pieces.retain(|other| *other != piece);
                    }
                    Err(error) => return Err(error),
                }
            }
            if pieces.len() < before {
                continue;
            }
            let end = chosen.last().map_or(0, |piece| piece.to);
            return match damaged {
                Some((to, error)) if to > end => Err(error),
                _ if chosen.is_empty() => Ok(None),
                _ => Ok(Some(put_together(&chosen, &contents))),
            };
        }
    }

    /// Everything there is of this cluster's log, in the order of names.
    pub async fn list(&self) -> Result<Vec<Listed>> {
        list(&self.repository, &wal_name::folder(&self.system)).await
    }
}

fn put_together(chosen: &[Piece], contents: &BTreeMap<Piece, Vec<u8>>) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in chosen {
        let skip = all.len().saturating_sub(piece.from as usize);
        all.extend_from_slice(contents.get(piece).and_then(|content| content.get(skip..)).unwrap_or_default());
    }
    all
}

/// What the object of the log under this key holds, if it is what was written there.
pub async fn open(repository: &Repository, key: &str) -> Result<Vec<u8>> {
    unsealed(repository, key, repository.read(key).await?)
}

/// The same of what was read already.
pub(super) fn unsealed(repository: &Repository, key: &str, stored: Vec<u8>) -> Result<Vec<u8>> {
    let plain = seal::open_bound(&repository.keyring, Kind::Wal, key, stored)?;
    pack::expand(&plain).map_err(|why| RepositoryError::damaged(key, why))
}

/// The objects of logs whose keys begin so.
pub async fn list(repository: &Repository, prefix: &str) -> Result<Vec<Listed>> {
    let found = repository.list(prefix).await?;
    let ours = found.into_iter().filter_map(|meta| {
        let (system, name) = wal_name::in_key(&meta.key)?;
        Some(Listed { system: system.to_owned(), name, size: meta.size, modified: meta.modified })
    });
    let mut ours: Vec<Listed> = ours.collect();
    ours.sort_by(|a, b| (&a.system, a.name).cmp(&(&b.system, b.name)));
    Ok(ours)
}

/// The clusters whose logs are here.
pub async fn systems(repository: &Repository) -> Result<BTreeSet<String>> {
    Ok(list(repository, WAL).await?.into_iter().map(|one| one.system).collect())
}

/// Reads every one of these objects. Gives what is wrong with those that are not what was written.
pub async fn check(repository: &Repository, listed: &[Listed]) -> Result<Vec<RepositoryError>> {
    let keys: Vec<String> = listed.iter().map(|one| wal_name::key(&one.system, &one.name)).collect();
    check_keys(repository, &keys).await
}

pub(super) async fn check_keys(repository: &Repository, keys: &[String]) -> Result<Vec<RepositoryError>> {
    let each = stream::iter(keys.to_vec()).map(|key| async move {
        match open(repository, &key).await {
            // Gone since it was listed.
            Ok(_) | Err(RepositoryError::Missing { .. }) => Ok(None),
            Err(error @ RepositoryError::Damaged { .. }) => Ok(Some(error)),
            Err(error) => Err(error),
        }
    });
    each.buffered(4).try_filter_map(|found| async move { Ok(found) }).try_collect().await
}
