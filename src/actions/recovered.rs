//! What the actions that bring a PostgreSQL cluster back share: from a base backup and the log to a server of Muster's own
//! that answers, and what it says of itself. It knows no single action.

use super::{contract::*, vault::*};
use crate::providers::{
    port::{Lsn, PortError},
    servers::{Running, ServerSpec, Servers},
};
use crate::repository::{
    RepositoryError,
    globs::Globs,
    names::Id,
    open::Repository,
    recovery::{self, Cluster, Recovery, Settings, Until},
    restore::{Into as Over, RestoreOptions, Restored, restore},
    snapshot::Snapshot,
    wal_fill,
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{path::Path, path::PathBuf, sync::Arc, time::Duration};

/// How long a server may recover.
pub(crate) const RECOVERY: Duration = Duration::from_secs(4 * 3600);
const ASK: Duration = Duration::from_secs(30);

/// The base backup that is meant: the newest, of one source if one is named, or that of an identifier.
pub(crate) async fn choose_base(repository: &Repository, snapshot: &str, source: Option<&str>) -> Result<(Id, Snapshot, Cluster), Refusal> {
    let (id, snapshot) = if snapshot == LATEST {
        let fits = |one: &(Id, Snapshot)| Cluster::of(&one.1).is_some() && source.is_none_or(|source| one.1.source.shown() == source);
        let newest = repository.snapshots().await?.whole.into_iter().rfind(fits);
        newest.ok_or_else(|| {
            Refusal::no("no_snapshot", format!("{} has no base backup of PostgreSQL{}", repository.place, of(source)))
                .remedy("`muster backup create postgres://…` makes one; `muster backup list` shows what there is")
        })?
    } else {
        repository.snapshot(snapshot).await?
    };
    let cluster = Cluster::of(&snapshot).ok_or_else(|| {
        Refusal::no(
            "no_base_backup",
            format!("snapshot {} is of {}, and no base backup of PostgreSQL", id.short(), snapshot.source.shown()),
        )
    })?;
    Ok((id, snapshot, cluster))
}

fn of(source: Option<&str>) -> String {
    source.map(|source| format!(" of {source}")).unwrap_or_default()
}

pub(crate) fn until(text: Option<&str>) -> Result<Until, Refusal> {
    text.map_or(Ok(Until::Latest), |text| text.parse().map_err(|why| Refusal::no("input", format!("`until`: {why}"))))
}

/// A name for this step's own things outside the run's folder: the same for the same step, and nobody else's.
fn own_name(cx: &ReadCx) -> String {
    let whole = blake3::hash(format!("{}/{}", cx.scratch.display(), cx.key).as_bytes());
    whole.to_hex().chars().take(12).collect()
}

/// Where a server's socket lies: a path that is short enough for one.
pub(crate) fn run_folder(cx: &ReadCx) -> PathBuf {
    // Tests start no real server, and leave nothing outside their own folder.
    let place = if cfg!(test) { cx.scratch.clone() } else { std::env::temp_dir() };
    place.join(format!("muster-{}", own_name(cx)))
}

/// A folder that the server's user can get to: among the run's own, or, for root, where everybody may go.
pub(crate) fn scratch_folder(cx: &ReadCx, said: Option<&Path>) -> PathBuf {
    let name = format!("muster-restored-{}", own_name(cx));
    match said {
        Some(folder) => folder.join(name),
        None if rustix::process::geteuid().is_root() && !cfg!(test) => std::env::temp_dir().join(name),
        None => cx.scratch.join(name),
    }
}

/// What brings it back, and what came of it.
pub(crate) struct Brought {
    pub restored: Restored,
    pub segments: u64,
}

/// Why there is no answer: the backup's own fault, or this machine's or the place's.
pub(crate) enum Stuck {
    /// It does not come back.
    Backup(String),
    Other(ApplyError),
}

impl From<RepositoryError> for Stuck {
    fn from(error: RepositoryError) -> Self {
        match error {
            RepositoryError::Damaged { .. }
            | RepositoryError::Missing { .. }
            | RepositoryError::NoChunk { .. }
            | RepositoryError::Refused(_) => Self::Backup(error.to_string()),
            other => Self::Other(other.into()),
        }
    }
}

impl From<PortError> for Stuck {
    fn from(error: PortError) -> Self {
        match error {
            PortError::Refused(why) => Self::Backup(why),
            other => Self::Other(other.into()),
        }
    }
}

/// Brings the files and the log back into `data`, ready to be started.
pub(crate) async fn bring(
    repository: &Arc<Repository>,
    (id, snapshot, cluster): (&Id, &Snapshot, &Cluster),
    recovery: &Recovery,
    servers: &dyn Servers,
    data: &Path,
) -> Result<Brought, Stuck> {
    recovery::begin(data, id)?;
    let watched = Watched::new();
    let options = RestoreOptions { include: Globs::none(), into: Over::Place { delete: true }, owner: false, dry_run: false };
    let restored = restore(repository.clone(), snapshot, data, options, watched.0.clone()).await?;
    if let Some(lost) = restored.damaged.first() {
        return Err(Stuck::Backup(format!("{} files do not come back; the first is {}: {}", restored.damaged.len(), lost.path, lost.why)));
    }
    let segments = wal_fill::fill(repository, cluster, recovery, data).await?;
    let settings = Settings {
        // All of it is there already.
        restore_command: "false".to_owned(),
        until: recovery.until,
        timeline: recovery.reach.timeline,
        more: Vec::new(),
    };
    recovery::finish(data, &settings)?;
    servers.own(data).await?;
    Ok(Brought { restored, segments })
}

/// What a recovered server says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Came {
    /// The last of the log that was replayed.
    #[schemars(with = "String")]
    pub position: Lsn,
    /// When the last transaction was committed that came back; `null` when none was since the base backup.
    #[schemars(with = "Option<String>")]
    pub last_commit: Option<Timestamp>,
    /// The timeline that it is on now.
    pub timeline: u32,
}

const CAME: &str = "SELECT coalesce(pg_last_wal_replay_lsn(), pg_current_wal_lsn()), \
     to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), \
     ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int";

/// Starts it, and asks how far it came.
pub(crate) async fn answer(servers: &dyn Servers, spec: &ServerSpec) -> Result<(Running, Came), Stuck> {
    let running = servers.start(spec, RECOVERY).await?;
    let came = came(servers, &running).await?;
    Ok((running, came))
}

pub(crate) async fn came(servers: &dyn Servers, running: &Running) -> Result<Came, Stuck> {
    let rows = servers.query(running, "postgres", CAME, ASK).await?;
    let cell = |at: usize| rows.first().and_then(|row| row.get(at)?.clone());
    let odd = || Stuck::Backup("the server answers, and does not say how far it came".to_owned());
    Ok(Came {
        position: cell(0).and_then(|text| text.parse().ok()).ok_or_else(odd)?,
        last_commit: cell(1).and_then(|text| text.parse().ok()),
        timeline: cell(2).and_then(|text| text.parse().ok()).ok_or_else(odd)?,
    })
}
