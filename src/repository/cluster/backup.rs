//! One base backup: two connections, one for the files and one for the log, and the snapshot when both are here.
//!
//! The server verifies the checksums of pages as well, reads a page that seems wrong a second time, and says in the end
//! whether any was; only then do the pages count that were found wrong here, so that one which was written at the very
//! moment is no false alarm. A corrupt page does not end the backup: what there is is kept, and every such page is named.

use super::{
    stream::{Came, ClusterStream, Learnt, MANIFEST, Shared, WAITING, lock},
    wal::{Line, receive},
};
use crate::providers::{
    clock::Clock,
    port::{Lsn, ObjectWrite},
    replication::{Archived, Dial, PgResult, Purpose, Reply, Session, wire},
};
use crate::repository::{
    RepositoryError, Result,
    create::{About, Base, Created, Ended, create_then},
    entry::shown,
    names::Id,
    open::Repository,
    pages::PAGE,
    progress::Progress,
    recovery,
    snapshot::{Snapshot, Source},
    wal::WalStore,
    wal_keep, wal_line,
    wal_name::SegmentName,
};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

/// How long a checkpoint may take that a backup waits for.
const CHECKPOINT: Duration = Duration::from_mins(15);
/// How long the server may take between two pieces.
const PIECE: Duration = Duration::from_mins(5);
/// How soon a stop is noticed while the server says nothing.
const WATCH: Duration = Duration::from_millis(200);

/// Who makes the backup, and how it is found again.
#[derive(Clone, Debug, Default)]
pub struct Who {
    pub host: String,
    pub user: String,
    pub tags: Vec<String>,
    pub run: Option<String>,
}

/// What is known of a cluster before its backup.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub url: String,
    pub system_identifier: String,
    pub version: u32,
    pub timeline: u32,
    pub segment_size: u32,
    pub from_standby: bool,
    /// Pages have checksums, and are as long as they are nearly everywhere.
    pub checksums: bool,
}

impl Cluster {
    /// Asks the server; `session` is a replication connection.
    pub async fn of(session: &mut Session, url: String) -> Result<Self> {
        let version = session.version();
        if version < 150_000 {
            return Err(RepositoryError::Refused(format!(
                "{} runs PostgreSQL {}: a base backup is streamed from 15 on",
                session.at(),
                session.parameter("server_version").unwrap_or("of an unknown version")
            )));
        }
        let identity = session.identify().await?;
        let segment_size = session.segment_size().await?;
        let checksums = session.show("data_checksums").await? == "on" && session.show("block_size").await? == PAGE.to_string();
        Ok(Self {
            url,
            system_identifier: identity.system_identifier,
            version,
            timeline: identity.timeline,
            segment_size: u32::try_from(segment_size).unwrap_or(u32::MAX),
            from_standby: session.parameter("in_hot_standby") == Some("on"),
            checksums,
        })
    }

    /// What a snapshot says of it.
    #[must_use]
    pub fn source(&self, start: Lsn, stop: Lsn, learnt: &Learnt) -> Source {
        Source::Postgres {
            url: self.url.clone(),
            system_identifier: self.system_identifier.clone(),
            version: self.version,
            timeline: self.timeline,
            start,
            stop,
            wal_segment_size: self.segment_size,
            from_standby: self.from_standby,
            tablespaces: learnt.links.clone(),
        }
    }
}

/// The newest snapshot of the same cluster, wherever it was made.
pub async fn parent(repository: &Repository, system: &str) -> Result<Option<(Id, Snapshot)>> {
    let of = |snapshot: &Snapshot| matches!(&snapshot.source, Source::Postgres { system_identifier, .. } if system_identifier == system);
    Ok(repository.snapshots().await?.whole.into_iter().rfind(|(_, snapshot)| of(snapshot)))
}

/// A task that ends with whoever waits for it.
pub(super) struct Task<T>(JoinHandle<Result<T>>);

impl<T: Send + 'static> Task<T> {
    pub fn spawn(work: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }
    pub async fn done(mut self) -> Result<T> {
        (&mut self.0).await.map_err(|e| RepositoryError::Interrupted(e.to_string()))?
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The connection on which the log comes.
pub(super) struct Log {
    session: Session,
    slot: String,
    wal: WalStore,
    line: Line,
}

impl Log {
    /// From now on the server keeps its log, for as long as this connection lasts.
    pub async fn begin(dial: &dyn Dial, cluster: &Cluster, repository: &Arc<Repository>, store: &Arc<dyn ObjectWrite>) -> Result<Self> {
        let mut session = dial.dial(Purpose::Replication).await?;
        let slot = format!("muster_backup_{}", session.process().unwrap_or_default());
        session.create_slot(&slot, true).await?;
        let wal = WalStore::new(repository.clone(), store.clone(), cluster.system_identifier.clone())?;
        if cluster.timeline > 1 {
            let (_, history) = session.timeline_history(cluster.timeline).await?;
            wal.put(&SegmentName::History(cluster.timeline), history.into()).await?;
        }
        let line = Line { timeline: cluster.timeline, segment_size: cluster.segment_size, fills_up: !cluster.from_standby };
        Ok(Self { session, slot, wal, line })
    }

    /// Receives it from where the backup begins to where it stops, once that is known.
    pub fn receive(self, from: oneshot::Receiver<Lsn>, stop: watch::Receiver<Option<Lsn>>, clock: Arc<dyn Clock>) -> Task<()> {
        Task::spawn(async move {
            let from = from.await.map_err(|_| RepositoryError::Interrupted("the backup never began".to_owned()))?;
            receive(self.session, &self.slot, self.wal, self.line, from, stop, clock).await
        })
    }
}

/// Backs the cluster up. It counts when this returns: files, log and snapshot.
pub async fn backup(
    repository: Arc<Repository>,
    store: Arc<dyn ObjectWrite>,
    dial: &dyn Dial,
    who: Who,
    progress: Arc<Progress>,
    clock: Arc<dyn Clock>,
) -> Result<Created> {
    let mut files = dial.dial(Purpose::Replication).await?;
    let cluster = Cluster::of(&mut files, dial.url()).await?;
    let log = Log::begin(dial, &cluster, &repository, &store).await?;
    let parent = parent(&repository, &cluster.system_identifier).await?;
    let base = Base::load(&repository, parent, &*clock).await?;
    let learnt = Shared::default();
    let (come, coming) = mpsc::channel(WAITING);
    let ((start, started), (stop, stops)) = (oneshot::channel(), watch::channel(None));
    let source = ClusterStream::new(coming, base.entries(&repository), cluster.checksums, learnt.clone());
    let pump = Task::spawn(pump(files, come, start, progress.clone()));
    let log = log.receive(started, stops, clock.clone());
    let about = who.about(cluster.source(Lsn(0), Lsn(0), &Learnt::default()));
    let (kept, now) = (repository.clone(), clock.clone());
    let end = async move {
        let stopped = pump.done().await?;
        stop.send_replace(Some(stopped.stop));
        log.done().await?;
        has_its_log(&kept, &cluster, (stopped.start, stopped.stop), now.now()).await?;
        let learnt = std::mem::take(&mut *lock(&learnt));
        check_manifest(&learnt)?;
        let corrupt = if stopped.corrupt { corrupt_pages(&learnt) } else { Vec::new() };
        Ok(Ended { origin: cluster.source(stopped.start, stopped.stop, &learnt), corrupt })
    };
    create_then(repository, store, Box::new(source), base, about, progress, clock, end).await
}

/// All of the log that came along is still there. Of a backup that took longer than a prune waits it may not be.
pub(super) async fn has_its_log(repository: &Repository, cluster: &Cluster, (start, stop): (Lsn, Lsn), now: jiff::Timestamp) -> Result<()> {
    let base = wal_line::Base { timeline: cluster.timeline, start, stop };
    let (system, version, segment_size) = (cluster.system_identifier.clone(), cluster.version, cluster.segment_size);
    match wal_keep::lacks(repository, &recovery::Cluster { system, version, segment_size, base }, now).await? {
        None => Ok(()),
        Some(why) => Err(RepositoryError::Refused(format!(
            "no snapshot was made: {why}. A prune deletes what no base backup needs once its --grace is over, and a base backup may take \
             half of that: give prune a longer --grace, and back up again"
        ))),
    }
}

impl Who {
    #[must_use]
    pub fn about(self, origin: Source) -> About {
        About { origin, host: self.host, user: self.user, tags: self.tags, run: self.run }
    }
}

/// Each once, for people: `base/5/16384 block 7`.
pub(super) fn corrupt_pages(learnt: &Learnt) -> Vec<String> {
    let mut pages = learnt.corrupt.clone();
    pages.sort();
    pages.dedup();
    let each = pages.iter().map(|(path, block)| format!("{} block {block}", shown(path)));
    // The server's word for it.
    let unnamed = "a page that the server alone has seen: its log names it".to_owned();
    if pages.is_empty() { vec![unnamed] } else { each.collect() }
}

// ---------------------------------------------------------------- the connection for the files

/// How the stream ended.
#[derive(Debug, Default)]
struct Stopped {
    start: Lsn,
    stop: Lsn,
    /// The server has found pages whose checksums are wrong.
    corrupt: bool,
}

/// Carries what comes on the connection to whoever reads it.
async fn pump(session: Session, come: mpsc::Sender<Came>, start: oneshot::Sender<Lsn>, progress: Arc<Progress>) -> Result<Stopped> {
    match carry(session, &come, start, &progress).await {
        Ok(stopped) => Ok(stopped),
        Err(error) => {
            let why = RepositoryError::Interrupted(error.to_string());
            // The reader tells it; if it is gone, it has its own reason.
            let _ = come.send(Came::Failed(error)).await;
            Err(why)
        }
    }
}

async fn carry(mut session: Session, come: &mpsc::Sender<Came>, start: oneshot::Sender<Lsn>, progress: &Progress) -> Result<Stopped> {
    const ASK: &str = "BASE_BACKUP (LABEL 'muster', CHECKPOINT 'fast', WAIT false, PROGRESS true, MANIFEST 'yes')";
    session.set_patience(CHECKPOINT);
    session.ask(ASK).await?;
    let (mut stopped, mut start, mut results, mut total) = (Stopped::default(), Some(start), 0, 0);
    loop {
        let reply = match watched(&mut session, ASK, progress).await? {
            Ok(reply) => reply,
            // After all of it is here: what the server thinks of its pages.
            Err(error) if error.code() == Some("XX001") && stopped.stop > Lsn(0) => {
                stopped.corrupt = true;
                break;
            }
            Err(error) => return Err(error.into()),
        };
        match reply {
            Reply::Columns => results += 1,
            Reply::Row(row) if results == 1 => {
                stopped.start = row.get(0).map_err(|e| session.protocol(ASK, e))?;
                session.set_patience(PIECE);
                if let Some(start) = start.take() {
                    let _ = start.send(stopped.start);
                }
                send(come, Came::Started(stopped.start)).await?;
            }
            Reply::Row(row) if results == 2 => {
                total += row.get::<u64>(2).unwrap_or(0) * 1024;
                progress.total_bytes.store(total, Relaxed);
            }
            Reply::Row(row) => stopped.stop = row.get(0).map_err(|e| session.protocol(ASK, e))?,
            Reply::Data(data) => match wire::archived(data).map_err(|e| session.protocol(ASK, e))? {
                Archived::New { name, tablespace } => {
                    let number = name.strip_suffix(".tar").unwrap_or(&name).to_owned();
                    send(come, Came::Archive(tablespace.map(|_| number))).await?;
                }
                Archived::Manifest => send(come, Came::Manifest).await?,
                Archived::Data(data) => send(come, Came::Data(data)).await?,
                Archived::Progress(_) => {}
            },
            Reply::Ready => break,
            Reply::CopyOut | Reply::CopyDone | Reply::Complete => {}
            Reply::CopyBoth => return Err(session.protocol(ASK, "a stream in both directions").into()),
        }
    }
    if stopped.stop == Lsn(0) {
        return Err(session.protocol(ASK, "the backup ends without saying where").into());
    }
    send(come, Came::End).await?;
    session.close().await;
    Ok(stopped)
}

/// The next piece, unless somebody asks for an end.
async fn watched(session: &mut Session, ask: &str, progress: &Progress) -> Result<PgResult<Reply>> {
    loop {
        tokio::select! {
            reply = session.reply(ask) => return Ok(reply),
            () = tokio::time::sleep(WATCH), if !progress.is_stopped() => {}
            () = std::future::ready(()), if progress.is_stopped() => {
                return Err(RepositoryError::Interrupted("the backup was stopped".to_owned()));
            }
        }
    }
}

async fn send(come: &mpsc::Sender<Came>, what: Came) -> Result<()> {
    come.send(what).await.map_err(|_| RepositoryError::Interrupted("nobody reads the backup any more".to_owned()))
}

// ---------------------------------------------------------------- the manifest

#[derive(serde::Deserialize)]
struct Manifest {
    #[serde(rename = "Files")]
    files: Vec<Listed>,
}

#[derive(serde::Deserialize)]
struct Listed {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// In hexadecimal, of one that is no UTF-8.
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
}

/// Is everything here that the server says it has sent, and nothing else?
fn check_manifest(learnt: &Learnt) -> Result<()> {
    let wrong = |what: String| RepositoryError::Refused(format!("the backup is not what the server's manifest says: {what}"));
    let manifest: Manifest = serde_json::from_slice(&learnt.manifest).map_err(|e| wrong(format!("it cannot be read: {e}")))?;
    let mut listed: HashMap<Vec<u8>, u64> = HashMap::new();
    for one in manifest.files {
        let path = match (one.path, one.encoded) {
            (Some(path), _) => path.into_bytes(),
            (None, Some(hex)) => hex::decode(hex).map_err(|e| wrong(e.to_string()))?,
            (None, None) => return Err(wrong("a file without a path".to_owned())),
        };
        listed.insert(path, one.size);
    }
    for (path, size) in &learnt.files {
        match listed.remove(path) {
            Some(said) if said == *size => {}
            Some(said) => return Err(wrong(format!("{} has {size} bytes, and should have {said}", shown(path)))),
            None if path == MANIFEST => {}
            None => return Err(wrong(format!("it does not know {}", shown(path)))),
        }
    }
    match listed.keys().next() {
        Some(path) => Err(wrong(format!("{} is missing", shown(path)))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_what_its_manifest_says() {
        let manifest = br#"{ "PostgreSQL-Backup-Manifest-Version": 1, "Files": [
            { "Path": "PG_VERSION", "Size": 3, "Checksum": "x" }, { "Encoded-Path": "ff", "Size": 1 }], "Manifest-Checksum": "y" }"#;
        let with = |files: &[(&[u8], u64)]| Learnt {
            manifest: manifest.to_vec(),
            files: files.iter().map(|(path, size)| (path.to_vec(), *size)).collect(),
            ..Learnt::default()
        };
        assert!(check_manifest(&with(&[(b"PG_VERSION", 3), (b"\xff", 1)])).is_ok());
        for (files, says) in [
            (&[(&b"PG_VERSION"[..], 3)][..], "is missing"),
            (&[(b"PG_VERSION", 4), (b"\xff", 1)], "should have 3"),
            (&[(b"PG_VERSION", 3), (b"\xff", 1), (b"more", 0)], "does not know more"),
        ] {
            let text = check_manifest(&with(files)).unwrap_err().to_string();
            assert!(text.contains(says), "{text}");
        }
    }
}
