//! A base backup of a server that runs on this machine: it is told that one begins and ends, and its files are read where
//! they are. The session that told it must last: when it is lost, the server ends the backup, and there is none.

use super::{
    backup::{Cluster, Log, Task, Who, corrupt_pages, has_its_log, parent},
    files::{ClusterFiles, is_its_directory},
    stream::{Learnt, Shared, lock},
};
use crate::providers::{
    clock::Clock,
    port::{Lsn, ObjectWrite},
    replication::{Dial, Purpose, Session},
};
use crate::repository::{
    RepositoryError, Result,
    create::{Base, Created, Ended, create_then},
    open::Repository,
    progress::Progress,
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};

/// How long a checkpoint may take that a backup waits for.
const CHECKPOINT: Duration = Duration::from_mins(15);

const BEGIN: &str = "SELECT pg_backup_start('muster', true)";

/// Backs the cluster up whose data directory this is.
pub async fn backup_beside(
    repository: Arc<Repository>,
    store: Arc<dyn ObjectWrite>,
    dial: &dyn Dial,
    root: &Path,
    who: Who,
    progress: Arc<Progress>,
    clock: Arc<dyn Clock>,
) -> Result<Created> {
    let mut session = dial.dial(Purpose::Replication).await?;
    let cluster = Cluster::of(&mut session, dial.url()).await?;
    session.close().await;
    let mut sql = dial.dial(Purpose::Sql).await?;
    its_own(&mut sql, root, &cluster).await?;
    let log = Log::begin(dial, &cluster, &repository, &store).await?;
    let parent = parent(&repository, &cluster.system_identifier).await?;
    let base = Base::load(&repository, parent, &*clock).await?;
    sql.set_patience(CHECKPOINT);
    let start: Lsn = sql.one(BEGIN).await?.get(0).map_err(|e| sql.protocol(BEGIN, e))?;
    let ((begun, started), (stop, stops)) = (oneshot::channel(), watch::channel(None));
    let log: Task<()> = log.receive(started, stops, clock.clone());
    // It waits for it, or has failed, which is told in the end.
    let _ = begun.send(start);
    let learnt = Shared::default();
    let (told, stopped) = oneshot::channel();
    let handle = Handle::current();
    let end_it = Box::new(move || {
        let (at, label) = handle.block_on(end(sql))?;
        let _ = told.send(at);
        Ok(label)
    });
    let checked = cluster.checksums.then_some(start);
    let parents = (base.entries(&repository), base.entries(&repository));
    let (root, notes) = (root.to_owned(), learnt.clone());
    let source = tokio::task::spawn_blocking(move || ClusterFiles::new(&root, parents, checked, notes, end_it)).await;
    let source = source.map_err(|e| RepositoryError::Interrupted(e.to_string()))??;
    let about = who.about(cluster.source(Lsn(0), Lsn(0), &Learnt::default()));
    let (kept, now) = (repository.clone(), clock.clone());
    let end = async move {
        let at = stopped.await.map_err(|_| RepositoryError::Interrupted("the backup was never ended on the server".to_owned()))?;
        stop.send_replace(Some(at));
        log.done().await?;
        has_its_log(&kept, &cluster, (start, at), now.now()).await?;
        let learnt = std::mem::take(&mut *lock(&learnt));
        let corrupt = if learnt.corrupt.is_empty() { Vec::new() } else { corrupt_pages(&learnt) };
        Ok(Ended { origin: cluster.source(start, at, &learnt), corrupt })
    };
    create_then(repository, store, Box::new(source), base, about, progress, clock, end).await
}

/// The server in the URL is the one that runs on this directory.
async fn its_own(sql: &mut Session, root: &Path, cluster: &Cluster) -> Result<()> {
    const ASK: &str = "SELECT current_setting('port'), floor(extract(epoch FROM pg_postmaster_start_time()))::bigint";
    let row = sql.one(ASK).await?;
    let (port, started) = (row.text(0).map(str::to_owned), row.get(1));
    let (port, started) = (port.map_err(|e| sql.protocol(ASK, e))?, started.map_err(|e| sql.protocol(ASK, e))?);
    is_its_directory(root, &cluster.system_identifier, &port, started)
}

/// Ends the backup: where, and the label that a restore begins with.
async fn end(mut sql: Session) -> Result<(Lsn, String)> {
    const END: &str = "SELECT lsn, labelfile FROM pg_backup_stop(false)";
    let row = sql.one(END).await.map_err(|e| {
        // The server ends a backup with the session that began it.
        RepositoryError::Refused(format!("the backup could not be ended on the server, so there is none: back up again ({e})"))
    })?;
    let both = row.get(0).and_then(|at| Ok((at, row.text(1)?.to_owned()))).map_err(|e| sql.protocol(END, e))?;
    sql.close().await;
    Ok(both)
}
