//! `backup create`: from a source to a snapshot. What can be wrong with the source is found before anything is made.

use super::{
    super::{Muster, ServiceError},
    place::{Opened, Place, Where},
    postgres::Postgres,
    watch::{Told, Watch},
};
use crate::model::{
    estate::Compression,
    time::{Span, rfc3339_ms},
};
use crate::providers::{
    port::{LockMode, ObjectWrite},
    replication, who,
};
use crate::repository::{
    RepositoryError,
    bucket::Bucket,
    create::{About, Base, Created, create},
    entry::shown,
    globs::Globs,
    lock::lock,
    names::Id,
    open::Repository,
    snapshot::{Snapshot, Source as Origin},
    source::Source,
    stream::{self, Stream},
    tree::{Options, Tree},
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// How long what is under way may take to come to an end by itself, after Ctrl-C.
const PATIENCE: Duration = Duration::from_secs(3);
const GO_ON: &str = "no snapshot was made. The same command goes on from what is stored already";

/// What a person asks for.
#[derive(Clone, Debug, Default)]
pub struct Create {
    /// A path, `s3://BUCKET/PREFIX`, `postgres://…`, or `-`.
    pub source: String,
    pub postgres: Postgres,
    pub at: Where,
    pub tags: Vec<String>,
    pub exclude: Vec<String>,
    pub one_file_system: bool,
    /// Read everything, also what seems not to have changed.
    pub read_all: bool,
    pub stdin_name: String,
    /// Nobody deletes what the snapshot needs for so long.
    pub lock: Option<Lock>,
}

/// Object Lock.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    pub length: Span,
    /// Not even the account's root can shorten it.
    pub compliance: bool,
}

/// What came of it. The first six are the ones that everybody reads.
#[derive(Clone, Debug, Serialize)]
pub struct BackupReport {
    pub snapshot: Id,
    pub files: u64,
    pub bytes_read: u64,
    pub bytes_new: u64,
    pub bytes_stored: u64,
    pub duration_ms: u64,
    pub bytes: u64,
    pub folders: u64,
    pub source: String,
    pub host: String,
    pub tags: Vec<String>,
    pub parent: Option<Id>,
    pub repository: String,
    /// How much work went into making smaller what was stored.
    pub compression: Compression,
    /// There was none before.
    pub initialised: bool,
    /// Until when what it needs can be deleted by nobody.
    pub locked_until: Option<String>,
    pub unreadable: Vec<Lost>,
    /// Changed while they were read: what is in the snapshot is no state that they ever had.
    pub changed: Vec<String>,
    /// Pages of a database whose checksums are wrong. They are in the snapshot as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub corrupt: Vec<String>,
    /// Of a database: which, and what of its log it takes to restore it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Origin>,
}

/// A repository that is there now.
pub(super) struct Made {
    pub opened: Opened,
    pub name: String,
    /// It was not there before.
    pub initialised: bool,
}

/// A file that is not in the snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct Lost {
    pub path: String,
    pub why: String,
}

impl BackupReport {
    /// Is everything in it, as it was?
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.unreadable.is_empty() && self.changed.is_empty() && self.corrupt.is_empty()
    }
}

/// A source that was looked at.
enum Sought {
    Tree(PathBuf),
    Bucket(String, Arc<dyn ObjectWrite>),
    Stream(String),
}

impl Sought {
    fn origin(&self) -> Origin {
        match self {
            Self::Tree(path) => Origin::Tree { path: path.to_string_lossy().into_owned() },
            Self::Bucket(url, _) => Origin::Bucket { url: url.clone() },
            Self::Stream(name) => Origin::Stream { name: name.clone(), of: None },
        }
    }
}

impl Muster {
    pub async fn backup_create(&self, ask: &Create, watch: &Watch) -> Result<BackupReport, ServiceError> {
        if replication::is_url(&ask.source) {
            return self.backup_create_postgres(ask, watch).await;
        }
        if ask.postgres.logical || ask.postgres.data_dir.is_some() || ask.postgres.database.is_some() || ask.postgres.bin.is_some() {
            return Err(ServiceError::Usage("--logical, --data-dir, --database and --bin are for a source postgres://…".to_owned()));
        }
        let sought = self.backup_sought(ask)?;
        let globs = Globs::new(&ask.exclude)?;
        if let Sought::Tree(path) = &sought {
            not_within(&self.backup_place(&ask.at)?, path, &globs)?;
        }
        let _heed = self.heed(watch);
        let made = self.backup_made(ask, watch).await?;
        let opened = &made.opened;
        let about = About { origin: sought.origin(), host: who::host(), user: who::person(), tags: ask.tags.clone(), run: None };
        let parent = self.backup_parent(&opened.repository, &about, watch).await?;
        expect(watch, parent.as_ref().map(|(_, snapshot)| snapshot), &sought);
        let base = Base::load(&opened.repository, parent, &*self.clock).await?;
        let source = source(&sought, &base, &opened.repository, ask, globs, self.clock.now())?;
        let (repository, store) = (opened.repository.clone(), opened.store.clone());
        let work = create(repository, store, source, base, about, watch.progress.clone(), self.clock.clone());
        let created = match sought {
            // Nobody can stop waiting for what never comes: it is let go.
            Sought::Stream(_) => tokio::select! {
                created = work => created,
                () = self.interrupted_for(PATIENCE) => Err(RepositoryError::Interrupted(String::new())),
            },
            _ => work.await,
        };
        let created = created.map_err(|error| watch.failed(error, GO_ON))?;
        let locked_until = self.backup_locked(ask, &made, &created).await?;
        Ok(BackupReport { locked_until, ..report(created, made) })
    }

    /// The repository, made if the place is empty. What it cannot do is said before.
    pub(super) async fn backup_made(&self, ask: &Create, watch: &Watch) -> Result<Made, ServiceError> {
        let place = self.backup_place(&ask.at)?;
        if ask.lock.is_some() && !place.store.locks().await? {
            return Err(ServiceError::Usage(format!(
                "{} cannot lock anything: make the bucket with Object Lock, or leave out --lock",
                place.name
            )));
        }
        let label = format!("{}@{}", who::person(), who::host());
        let initialised = Repository::make(&*place.store, &place.name, &place.unlock, &label, self.clock.now()).await?;
        if initialised {
            watch.tell(&Told::Initialised { place: place.name.clone() });
        }
        let name = place.name.clone();
        Ok(Made { opened: place.open().await?, name, initialised })
    }

    pub(super) async fn backup_locked(&self, ask: &Create, made: &Made, created: &Created) -> Result<Option<String>, ServiceError> {
        match ask.lock {
            Some(lock) => self.backup_lock(&made.opened, created, lock).await.map(Some),
            None => Ok(None),
        }
    }

    /// The snapshot is there whether or not this succeeds, and says so.
    async fn backup_lock(&self, opened: &Opened, created: &Created, lock_for: Lock) -> Result<String, ServiceError> {
        let until = self.clock.now() + lock_for.length.signed();
        let mode = if lock_for.compliance { LockMode::Compliance } else { LockMode::Governance };
        match lock(&opened.repository, &*opened.store, (&created.id, &created.snapshot), until, mode).await {
            Ok(_) => Ok(rfc3339_ms(until)),
            Err(error) => {
                Err(ServiceError::Usage(format!("snapshot {} is there, but not all of it is locked: {error}", created.id.short())))
            }
        }
    }

    /// Ends when somebody has asked for an end, and so long has passed since.
    async fn interrupted_for(&self, length: Duration) {
        let asked = self.interrupt.clone().wait_for(|interrupted| *interrupted).await.is_ok();
        if !asked {
            // There is nobody who could ask.
            std::future::pending::<()>().await;
        }
        self.clock.sleep(length).await;
    }

    /// Looks whether there is anything to back up.
    fn backup_sought(&self, ask: &Create) -> Result<Sought, ServiceError> {
        let source = &ask.source;
        if source == "-" {
            stream::named(&ask.stdin_name)?;
            return Ok(Sought::Stream(ask.stdin_name.clone()));
        }
        if source.starts_with("s3:") {
            if ask.one_file_system || !ask.exclude.is_empty() {
                return Err(ServiceError::Usage(
                    "--exclude and --one-file-system are for folders: name a prefix of the bucket instead".to_owned(),
                ));
            }
            let objects = self.backup_objects(source)?;
            return Ok(Sought::Bucket(source.trim_end_matches('/').to_owned(), objects));
        }
        if source.contains("://") {
            return Err(ServiceError::Usage(format!(
                "{source} cannot be backed up: write a path, s3://BUCKET/PREFIX, postgres://USER@HOST/, or - for standard input"
            )));
        }
        path(source).map(Sought::Tree)
    }

    /// The newest snapshot of the same source; of files, on the same host.
    async fn backup_parent(&self, repository: &Repository, about: &About, watch: &Watch) -> Result<Option<(Id, Snapshot)>, ServiceError> {
        let mut snapshots = repository.snapshots().await?;
        snapshots.damaged.iter().for_each(|damaged| watch.warn(damaged));
        // A bucket is the same from everywhere.
        let anywhere = matches!(about.origin, Origin::Bucket { .. });
        snapshots.whole.retain(|(_, snapshot)| snapshot.source == about.origin && (anywhere || snapshot.host == about.host));
        let parent = snapshots.whole.pop();
        if let Some((id, _)) = &parent {
            watch.tell(&Told::Parent { snapshot: id.to_string() });
        }
        Ok(parent)
    }
}

/// A path that is there, by the name that people know it by.
fn path(source: &str) -> Result<PathBuf, ServiceError> {
    let fail = |why: std::io::Error| ServiceError::Usage(format!("{source} cannot be backed up: {why}"));
    let path = Path::new(source);
    let real = path.canonicalize().map_err(fail)?;
    // One folder has one name, however one got there; a link keeps its own.
    let winding = path.components().any(|part| part == std::path::Component::ParentDir);
    Ok(if winding { real } else { std::path::absolute(path).map_err(fail)?.components().collect() })
}

/// A repository within what it backs up would grow with every backup of itself.
fn not_within(place: &Place, source: &Path, exclude: &Globs) -> Result<(), ServiceError> {
    let local = place.name.strip_prefix("file://").unwrap_or(&place.name);
    if place.name.starts_with("s3:") {
        return Ok(());
    }
    // It need not be there yet; then the first folder above it that is.
    let wanted = std::path::absolute(local).unwrap_or_else(|_| local.into());
    let Some(there) = wanted.ancestors().find_map(|above| above.canonicalize().ok().map(|real| (above, real))) else { return Ok(()) };
    let real = there.1.join(wanted.strip_prefix(there.0).unwrap_or(Path::new("")));
    let Ok(source) = source.canonicalize() else { return Ok(()) };
    match real.strip_prefix(&source) {
        Ok(within) if !exclude.fits_within(within.to_string_lossy().as_bytes()) => Err(ServiceError::Usage(format!(
            "the repository {} lies within {}, which it is to hold: put it elsewhere, or write --exclude '/{}'",
            place.name,
            source.display(),
            within.display()
        ))),
        _ => Ok(()),
    }
}

/// How much there is to do: as much as last time, or what a walk beside it counts.
fn expect(watch: &Watch, parent: Option<&Snapshot>, sought: &Sought) {
    let progress = watch.progress.clone();
    match (parent, sought) {
        (Some(parent), _) => {
            progress.total_files.store(parent.stats.files, Relaxed);
            progress.total_bytes.store(parent.stats.bytes, Relaxed);
        }
        (None, Sought::Tree(path)) if watch.counts => {
            let path = path.clone();
            tokio::task::spawn_blocking(move || {
                let (files, bytes) = count(&path, &|| progress.is_stopped());
                progress.total_files.store(files, Relaxed);
                progress.total_bytes.store(bytes, Relaxed);
            });
        }
        _ => {}
    }
}

/// Files below a path, and their bytes; links are not followed. A guess: what cannot be read is left out.
fn count(root: &Path, stopped: &dyn Fn() -> bool) -> (u64, u64) {
    let (mut files, mut bytes) = (0, 0);
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop().filter(|_| !stopped()) {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.filter_map(Result::ok) {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) if meta.is_file() => (files, bytes) = (files + 1, bytes + meta.len()),
                _ => {}
            }
        }
    }
    (files, bytes)
}

fn source(
    sought: &Sought,
    base: &Base,
    repository: &Arc<Repository>,
    ask: &Create,
    exclude: Globs,
    now: jiff::Timestamp,
) -> Result<Box<dyn Source>, ServiceError> {
    match sought {
        Sought::Tree(path) => {
            let options = Options { one_file_system: ask.one_file_system, exclude, reread: ask.read_all };
            Ok(Box::new(Tree::new(path, base.entries(repository), options)?))
        }
        Sought::Bucket(_, objects) => Ok(Box::new(Bucket::new(objects.clone(), base.entries(repository), ask.read_all))),
        Sought::Stream(name) => Ok(Box::new(Stream::new(name, Box::new(std::io::stdin()), now)?)),
    }
}

pub(super) fn report(created: Created, made: Made) -> BackupReport {
    let Created { id, snapshot, stored, unreadable, changed, corrupt } = created;
    let cluster = matches!(snapshot.source, Origin::Postgres { .. }).then(|| snapshot.source.clone());
    let stats = &snapshot.stats;
    BackupReport {
        snapshot: id,
        files: stats.files,
        bytes_read: stats.bytes_read,
        bytes_new: stats.bytes_new,
        bytes_stored: stored,
        duration_ms: snapshot.duration_ms,
        bytes: stats.bytes,
        folders: stats.folders,
        source: snapshot.source.shown().to_owned(),
        host: snapshot.host,
        tags: snapshot.tags,
        parent: snapshot.parent,
        compression: made.opened.repository.compression,
        repository: made.name,
        initialised: made.initialised,
        locked_until: None,
        unreadable: unreadable.into_iter().map(|lost| Lost { path: shown(&lost.path), why: lost.why }).collect(),
        changed: changed.iter().map(|path| shown(path)).collect(),
        corrupt,
        cluster,
    }
}
