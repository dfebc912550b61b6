//! `database.backup`: a base backup of a PostgreSQL cluster into a repository, as one more snapshot.
//!
//! **What it does.** The server streams its files, of which only the pages are stored that the repository does not hold
//! yet, and on a second connection the log that they need to be restored; the snapshot is written last. An empty place
//! is made a repository first. A standby is backed up only where `from_standby` says so: its backup begins at its last
//! restart point, not at this moment.
//!
//! **Half-done** it leaves chunks that no snapshot refers to, and log that the next backup may use; nothing stays on the
//! server. The snapshot carries the run and the step that made it, so after a crash it is known whether it is there.
//! One with corrupt pages is kept, named, and no success. It is not undone: a snapshot more harms nothing.

use super::{contract::*, shared::*, vault::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::{port::Lsn, replication::Purpose};
use crate::repository::{
    RepositoryError,
    cluster::backup::{Cluster, Who, backup},
    names::Id,
    open::Repository,
    snapshot::{Snapshot, Source},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// The region of the server that is read.
    pub region: RegionName,
    pub repository: RepositoryName,
    /// The server there is a standby, and is to be: it spares the primary.
    #[serde(default)]
    pub from_standby: bool,
    /// What the snapshot is found by later.
    #[serde(default)]
    pub tags: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    input: Input,
    system_identifier: String,
    /// What the snapshot is recognised by.
    mark: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The snapshot's identifier.
    pub snapshot: String,
    /// When the backup began.
    #[schemars(with = "String")]
    pub time: jiff::Timestamp,
    pub system_identifier: String,
    pub timeline: u32,
    /// From where to where it takes the log to be restored.
    #[schemars(with = "String")]
    pub start: Lsn,
    #[schemars(with = "String")]
    pub stop: Lsn,
    pub files: u64,
    pub bytes: u64,
    pub bytes_new: u64,
    pub bytes_stored: u64,
    pub duration_ms: u64,
    /// Pages whose checksums are wrong; 0 in a step that succeeded.
    pub corrupt_pages: u64,
}

pub struct Backup;

impl Action for Backup {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.backup",
            version: 1,
            summary: "Back a PostgreSQL cluster up into a repository, with the log that it takes to restore it",
            effect: Effect::Observable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(12 * 3600),
            example: "id: backup\nuses: database.backup\nwith: { database: predictions, region: east, repository: vault, tags: [nightly] }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        let server = reach(with, "region", Plane::Data);
        [reach_vault(with, "repository", estate), server.into_iter().collect()].concat()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let dial = cx.world.replication(input.database.as_str(), input.region.as_str())?;
        let mut session = dial.dial(Purpose::Replication).await.map_err(RepositoryError::from)?;
        let cluster = Cluster::of(&mut session, dial.url()).await?;
        session.close().await;
        if cluster.from_standby != input.from_standby {
            let (is, say) = if cluster.from_standby { ("a standby", "true") } else { ("a primary", "false") };
            let what = format!("the server of `{}` in `{}` is {is} at this moment", input.database, input.region);
            return Err(Refusal::no("role", what).remedy(format!("name the other region, or say `from_standby: {say}`")));
        }
        let mut notes = Vec::new();
        match open(cx, &input.repository).await {
            Ok(_) => {}
            Err(refusal) if refusal.failure.code == "no_repository" => {
                notes.push(format!("there is no repository yet: it is made, with the password of `{}`", input.repository));
            }
            Err(refusal) => return Err(refusal),
        }
        let change = change(place(&input.repository), None, Some(format!("a base backup of {}", cluster.url)));
        let intent = Intent { system_identifier: cluster.system_identifier, mark: mark(cx), input };
        Ok(Prepared { intent, change: vec![change], notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let (input, clock, watched) = (&intent.input, cx.read.world.clock(), Watched::new());
        let (host, user) = who(&cx.read);
        let store = cx.world()?.store_mut(input.repository.as_str())?;
        let unlock = unlock(&cx.read, &input.repository).map_err(definite)?;
        Repository::make(&*store, &place(&input.repository), &unlock, &format!("{user}@{host}"), clock.now()).await?;
        let (repository, store) = open_mut(cx, &input.repository).await?;
        let dial = cx.read.world.replication(input.database.as_str(), input.region.as_str())?;
        let who = Who { host, user, tags: input.tags.clone(), run: Some(intent.mark.clone()) };
        cx.world()?;
        let made = backup(repository, store, &*dial, who, watched.0.clone(), clock).await?;
        let output = output(&made.id, &made.snapshot).ok_or_else(|| fail("internal", "the snapshot is that of no cluster".to_owned()))?;
        if output.system_identifier != intent.system_identifier {
            let what = format!("another cluster answers there by now: {} in place of {}", output.system_identifier, intent.system_identifier);
            return Err(fail("another_cluster", what));
        }
        match made.corrupt.first() {
            Some(first) => {
                let what = format!("{} pages are corrupt; they are in snapshot {} as they are; the first is {first}", made.corrupt.len(), made.id.short());
                let remedy = "restore those relations from an older backup or a standby; the server's log names each page as well";
                Err(ApplyError::Definite(Failure::new("corrupt", what).remedy(remedy)))
            }
            None => Ok(output),
        }
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let look = async {
            let repository = open(cx, &intent.input.repository).await?;
            Ok::<_, Refusal>(repository.snapshots().await?)
        };
        let found = match look.await {
            Err(refusal) => return untold(refusal),
            Ok(found) => found,
        };
        let ours = |(_, s): &&(Id, Snapshot)| s.run.as_ref() == Some(&intent.mark) && s.stats.corrupt_pages == 0;
        match found.whole.iter().rfind(ours).and_then(|(id, s)| output(id, s)) {
            Some(output) if output.system_identifier == intent.system_identifier => Seen::Done(output),
            Some(_) | None if found.damaged.is_empty() => Seen::Absent,
            _ => Seen::CannotTell { why: format!("a snapshot cannot be read, and may be this step's: {}", found.damaged[0]) },
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

fn output(id: &Id, snapshot: &Snapshot) -> Option<Output> {
    let Source::Postgres { system_identifier, timeline, start, stop, .. } = &snapshot.source else { return None };
    let stats = &snapshot.stats;
    Some(Output {
        snapshot: id.to_string(),
        time: snapshot.time,
        system_identifier: system_identifier.clone(),
        timeline: *timeline,
        start: *start,
        stop: *stop,
        files: stats.files,
        bytes: stats.bytes,
        bytes_new: stats.bytes_new,
        bytes_stored: stats.bytes_stored,
        duration_ms: snapshot.duration_ms,
        corrupt_pages: stats.corrupt_pages,
    })
}

/// Into an empty place: the repository is made as well.
#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    let with = serde_json::json!({ "database": "predictions", "region": "east", "repository": "vault", "tags": ["nightly"] });
    super::contract_tests::Fixture::new(with).sure()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    #[tokio::test]
    async fn the_second_backup_holds_what_the_first_stored() {
        let mut bench = Bench::new(&fixture());
        let first = bench.run::<Backup>().await.expect("backed up");
        assert!(first.files == 4 && first.bytes_new > 0 && first.start < first.stop, "{first:?}");
        bench.another_run("0191");
        let second = bench.run::<Backup>().await.expect("backed up");
        assert_ne!(second.snapshot, first.snapshot);
        assert_eq!((second.files, second.bytes_new), (first.files, 0));
    }

    #[tokio::test]
    async fn a_standby_is_backed_up_only_if_that_is_meant() {
        let with = |region: &str, standby: bool| {
            Fixture::new(json!({ "database": "predictions", "region": region, "repository": "vault", "from_standby": standby }))
        };
        assert_eq!(Bench::new(&with("west", false)).refused::<Backup>().await, "role");
        assert_eq!(Bench::new(&with("east", true)).refused::<Backup>().await, "role");
        Bench::new(&with("west", true)).run::<Backup>().await.expect("backed up");
    }
}
