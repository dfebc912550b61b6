//! `backup restore` of a base backup: a data directory that a server can be started on, told to replay the log from the
//! repository up to the instant that is asked for.
//!
//! Whatever can be known before is checked before: is the log there, without a gap, up to the target? Would the target
//! folder be damaged? Then the tree is restored by the same means as any other, so an interrupted restore goes on, and on
//! the old directory of the same cluster only what differs is written. Last come the settings for the recovery.

use super::{
    super::{Muster, ServiceError, wal::fetch::quoted},
    place::{Opened, Where},
    restore::{Restore, RestoreReport},
    watch::Watch,
};
use crate::providers::port::Lsn;
use crate::repository::{
    RepositoryError,
    globs::Globs,
    names::Id,
    recovery::{self, Cluster, Settings, Standing, Until},
    restore::{Into, RestoreOptions, Restored, restore},
    snapshot::{Snapshot, Source},
    tablespaces::{self, Places},
    wal_name::{Segment, SegmentName, WalName},
};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

const GO_ON: &str = "the restore was stopped; the same command goes on from there";

/// What is asked of a base backup beyond what is asked of any snapshot.
#[derive(Clone, Debug, Default)]
pub struct Recover {
    pub until: Option<Until>,
    pub timeline: Option<u32>,
    pub port: Option<u16>,
    /// Where tablespaces go; beside the data directory, if nothing is said.
    pub tablespaces: Places,
    /// The target holds another cluster: replace it.
    pub other_cluster: bool,
    /// The target's `pg_wal` holds log that the repository lacks: let it go.
    pub discard_wal: bool,
}

impl Recover {
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.until.is_some()
            || self.timeline.is_some()
            || self.port.is_some()
            || !self.tablespaces.is_empty()
            || self.other_cluster
            || self.discard_wal
    }
}

/// How the restored server will recover.
#[derive(Clone, Debug, Serialize)]
pub struct RecoveryReport {
    pub system_identifier: String,
    pub server_version: u32,
    pub until: Until,
    pub timeline: u32,
    /// Of the log.
    pub from: Lsn,
    pub consistent_at: Lsn,
    /// What there is of it, or is needed of it, ends here.
    pub log_end: Lsn,
    pub segments: u64,
    pub restore_command: String,
    /// An interrupted restore was gone on with, or an old directory was changed where it differed.
    pub in_place: bool,
}

impl Muster {
    pub(super) async fn backup_restore_cluster(
        &self,
        ask: &Restore,
        cluster: &Cluster,
        opened: Opened,
        (id, snapshot): (Id, &Snapshot),
        watch: &Watch,
    ) -> Result<RestoreReport, ServiceError> {
        let recover = &ask.recover;
        let until = recover.until.unwrap_or_default();
        let to = std::path::absolute(&ask.to).map_err(|e| ServiceError::Usage(format!("--to {}: {e}", ask.to)))?;
        let standing = recovery::standing(&to, &id)?;
        allowed(ask, cluster, &to, &standing)?;
        known(&recover.tablespaces, snapshot)?;
        let places = tablespaces::places(snapshot, &recover.tablespaces, &to);
        tablespaces::check(&places, &to, standing != Standing::Empty)?;
        let planned = recovery::plan(&opened.repository, cluster, until, recover.timeline).await?;
        if !recover.discard_wal && matches!(standing, Standing::Cluster(_)) {
            nothing_lost(&opened, cluster, &to).await?;
        }
        let restore_command = self.restore_command(&ask.at, &cluster.system)?;
        let in_place = standing != Standing::Empty;
        if !ask.dry_run {
            recovery::begin(&to, &id)?;
        }
        let _heed = self.heed(watch);
        let into = Into::Place { delete: true };
        let include = Globs::none().but(&tablespaces::elsewhere(&places))?;
        let options = RestoreOptions { include, into, owner: true, dry_run: ask.dry_run };
        let restored = restore(opened.repository.clone(), snapshot, &to, options, watch.progress.clone()).await;
        let mut restored = restored.map_err(|error| watch.failed(error, GO_ON))?;
        if !ask.dry_run {
            elsewhere(&opened, snapshot, &places, &to, &mut restored, watch).await?;
        }
        if !ask.dry_run && restored.damaged.is_empty() {
            let more = recover.port.map(|port| ("port".to_owned(), port.to_string())).into_iter().collect();
            let settings = Settings { restore_command: restore_command.clone(), until, timeline: planned.reach.timeline, more };
            recovery::finish(&to, &settings)?;
        }
        let report = RecoveryReport {
            system_identifier: cluster.system.clone(),
            server_version: cluster.version,
            until,
            timeline: planned.reach.timeline,
            from: cluster.base.start,
            consistent_at: cluster.base.stop,
            log_end: planned.reach.end,
            segments: planned.reach.needed.len() as u64,
            restore_command,
            in_place,
        };
        Ok(RestoreReport { snapshot: id, to: to.display().to_string(), dry_run: ask.dry_run, restored, recovery: Some(report) })
    }

    /// What a server is to call for its log: this very program, on this very repository.
    fn restore_command(&self, at: &Where, system: &str) -> Result<String, ServiceError> {
        let (url, file) = self.backup_secret_file(at)?;
        let program = std::env::current_exe().map_err(|e| ServiceError::Usage(format!("where this program lies is not known: {e}")))?;
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|e| ServiceError::Usage(format!("{}: {e}", path.display()))).map(|path| quoted(&path))
        };
        let repo = match &url {
            RepoWord::Path(path) => absolute(path)?,
            RepoWord::Word(word) => quoted(Path::new(word)),
        };
        let estate = match &url {
            RepoWord::Word(word) if !word.contains('/') => format!(" --estate {}", absolute(&self.estate_file)?),
            _ => String::new(),
        };
        let secret = match &file {
            SecretFile::Password(path) => format!("--password-file {}", absolute(path)?),
            SecretFile::Key(path) => format!("--key-file {}", absolute(path)?),
        };
        // PostgreSQL reads % as the beginning of what it puts in.
        let escaped = |text: String| text.replace('%', "%%");
        let (program, rest) = (escaped(absolute(&program)?), escaped(format!("--repo {repo} {secret} --system {system}{estate}")));
        Ok(format!("{program} wal fetch \"%f\" \"%p\" {rest}"))
    }
}

/// How a repository is named on a command line that is run elsewhere and later.
pub(super) enum RepoWord {
    Path(PathBuf),
    Word(String),
}

/// The file that opens it.
pub(super) enum SecretFile {
    Password(PathBuf),
    Key(PathBuf),
}

/// May this target be written to, as the person has asked for it?
fn allowed(ask: &Restore, cluster: &Cluster, to: &Path, standing: &Standing) -> Result<(), ServiceError> {
    let refuse = |why: String| Err(RepositoryError::File { path: to.to_owned(), why }.into());
    match standing {
        Standing::Empty | Standing::Begun => Ok(()),
        Standing::Cluster(system) if system.to_string() != cluster.system && !ask.recover.other_cluster => refuse(format!(
            "it is the data directory of another cluster ({system}, and the snapshot is of {}): restore elsewhere, or give \
             --in-place --other-cluster to replace it",
            cluster.system
        )),
        Standing::Cluster(_) if !ask.in_place => refuse(
            "it is a data directory already: restore elsewhere, or give --in-place to turn it back to what the snapshot and the log say"
                .to_owned(),
        ),
        Standing::Cluster(_) => Ok(()),
    }
}

/// A number that no tablespace has is a mistake.
fn known(places: &Places, snapshot: &Snapshot) -> Result<(), ServiceError> {
    let Source::Postgres { tablespaces, .. } = &snapshot.source else { return Ok(()) };
    match places.keys().find(|number| !tablespaces.contains_key(&number.to_string())) {
        None => Ok(()),
        Some(number) => {
            let known: Vec<String> = tablespaces.iter().map(|(number, path)| format!("{number} ({path})")).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Err(ServiceError::Usage(format!("the base backup has no tablespace {number}; it has: {known}")))
        }
    }
}

/// Tablespaces that go to places of their own.
async fn elsewhere(
    opened: &Opened,
    snapshot: &Snapshot,
    places: &Places,
    to: &Path,
    all: &mut Restored,
    watch: &Watch,
) -> Result<(), ServiceError> {
    for (number, place) in places {
        tablespaces::move_down(*number, place)?;
        let include = Globs::new(&[tablespaces::pattern(*number)])?;
        let options = RestoreOptions { include, into: Into::Place { delete: true }, owner: true, dry_run: false };
        let restored = restore(opened.repository.clone(), snapshot, place, options, watch.progress.clone()).await;
        let restored = restored.map_err(|error| watch.failed(error, GO_ON))?;
        all.files += restored.files;
        all.bytes += restored.bytes;
        all.bytes_written += restored.bytes_written;
        all.bytes_in_place += restored.bytes_in_place;
        all.damaged.extend(restored.damaged);
        all.without.extend(restored.without);
        tablespaces::move_up(*number, place, to)?;
    }
    Ok(())
}

/// The end of the old server's log may be nowhere but in its own folder: then replacing it would lose what was committed.
async fn nothing_lost(opened: &Opened, cluster: &Cluster, to: &Path) -> Result<(), ServiceError> {
    let there = recovery::log_in(to);
    if there.is_empty() || recovery::control_system(to).map(|system| system.to_string()).as_ref() != Some(&cluster.system) {
        return Ok(());
    }
    let listed = crate::repository::wal::list(&opened.repository, &crate::repository::wal_name::folder(&cluster.system)).await?;
    let whole = |name: &WalName| if let WalName::File(SegmentName::Whole(segment)) = name { Some(*segment) } else { None };
    let archived: BTreeSet<Segment> = listed.iter().filter_map(|one| whole(&one.name)).collect();
    // What is older than the base backup is not lost with it.
    let from = Segment::at(1, cluster.base.start, cluster.segment_size).number(cluster.segment_size);
    let newer = |segment: &&Segment| segment.number(cluster.segment_size) >= from;
    let lacking: Vec<&Segment> = there.iter().filter(newer).filter(|segment| !archived.contains(segment)).collect();
    let Some(first) = lacking.first() else { return Ok(()) };
    Err(RepositoryError::Refused(format!(
        "{0}/pg_wal holds {1} of the log that the repository lacks, from {first} on: what was committed last may be nowhere else. Put \
         them there first (`muster wal archive {0}/pg_wal/{first} --repo …`, each), or give --discard-wal",
        to.display(),
        if lacking.len() == 1 { "a segment".to_owned() } else { format!("{} segments", lacking.len()) },
    ))
    .into())
}
