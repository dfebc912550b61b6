//! `backup create postgres://…`: a base backup by the replication protocol, or with `logical` a dump by `pg_dump`.

use super::{
    super::{Muster, ServiceError},
    create::{BackupReport, Create, Made, report},
    watch::{Told, Watch},
};
use crate::providers::{
    pg_dump::Dump,
    replication::{Purpose, Session, Target},
    who,
};
use crate::repository::{
    RepositoryError,
    cluster::{
        backup::{Who, backup},
        beside::backup_beside,
    },
    create::{Base, Created, Ended, create_then},
    snapshot::Source as Origin,
    stream::Stream,
};
use std::path::PathBuf;

/// What else may be said of a PostgreSQL server as a source.
#[derive(Clone, Debug, Default)]
pub struct Postgres {
    /// Dump one database instead of copying the cluster.
    pub logical: bool,
    /// Which, if not the URL's.
    pub database: Option<String>,
    /// The server runs on this machine, and this is its data directory: its files are read where they are.
    pub data_dir: Option<PathBuf>,
    /// Where PostgreSQL's programs are.
    pub bin: Option<PathBuf>,
}

impl Muster {
    pub(super) async fn backup_create_postgres(&self, ask: &Create, watch: &Watch) -> Result<BackupReport, ServiceError> {
        if ask.one_file_system || !ask.exclude.is_empty() || ask.read_all {
            let what = "--exclude, --one-file-system and --read-all are for folders: a cluster is backed up whole, and read whole";
            return Err(ServiceError::Usage(what.to_owned()));
        }
        let more = &ask.postgres;
        if !more.logical && (more.database.is_some() || more.bin.is_some()) {
            return Err(ServiceError::Usage("--database and --bin go with --logical: a base backup has every database".to_owned()));
        }
        let target = Target::parse(&ask.source).map_err(RepositoryError::from)?;
        // Nothing is made for a server that does not answer.
        let purpose = if more.logical { Purpose::Sql } else { Purpose::Replication };
        let session = Session::open(&self.dumped(&target, ask), purpose).await.map_err(RepositoryError::from)?;
        let version = session.version();
        session.close().await;
        let _heed = self.heed(watch);
        let made = self.backup_made(ask, watch).await?;
        let created = if more.logical {
            self.dump(ask, &target, version, &made, watch).await
        } else {
            let who = Who { host: who::host(), user: who::person(), tags: ask.tags.clone(), run: None };
            let (repository, store) = (made.opened.repository.clone(), made.opened.store.clone());
            let (progress, clock) = (watch.progress.clone(), self.clock.clone());
            match &more.data_dir {
                Some(root) => backup_beside(repository, store, &target, root, who, progress, clock).await,
                None => backup(repository, store, &target, who, progress, clock).await,
            }
        };
        let created =
            created.map_err(|error| watch.failed(error, "no snapshot was made; what is stored already is used by the next one"))?;
        if let Some(parent) = &created.snapshot.parent {
            watch.tell(&Told::Parent { snapshot: parent.to_string() });
        }
        let locked_until = self.backup_locked(ask, &made, &created).await?;
        Ok(BackupReport { locked_until, ..report(created, made) })
    }

    #[allow(clippy::unused_self)]
    fn dumped(&self, target: &Target, ask: &Create) -> Target {
        match &ask.postgres.database {
            Some(name) => target.in_database(name),
            None => target.clone(),
        }
    }

    async fn dump(&self, ask: &Create, target: &Target, version: u32, made: &Made, watch: &Watch) -> Result<Created, RepositoryError> {
        let target = self.dumped(target, ask);
        let database = target.database.clone().unwrap_or_else(|| target.user.clone());
        let name = format!("{database}.dump");
        let (dump, output) = Dump::start(&target, &database, version, ask.postgres.bin.as_deref()).map_err(RepositoryError::Server)?;
        let source = Stream::new(&name, output, self.clock.now())?;
        let origin = Origin::Stream { name, of: Some(target.url()) };
        let who = Who { host: who::host(), user: who::person(), tags: ask.tags.clone(), run: None };
        let repository = &made.opened.repository;
        let snapshots = repository.snapshots().await?.whole;
        let parent = snapshots.into_iter().rfind(|(_, snapshot)| snapshot.source == origin && snapshot.host == who.host);
        let base = Base::load(repository, parent, &*self.clock).await?;
        let ended = Ended { origin: origin.clone(), corrupt: Vec::new() };
        // A dump that failed ends as one that did not: only its exit code tells.
        let end = async { dump.end().await.map_err(RepositoryError::Server).map(|()| ended) };
        let store = made.opened.store.clone();
        let (progress, clock) = (watch.progress.clone(), self.clock.clone());
        create_then(repository.clone(), store, Box::new(source), base, who.about(origin), progress, clock, end).await
    }
}
