//! `database.record`: how many rows chosen tables have and what is in them, at one known position of the log, on record in
//! the repository beside the base backup. `database.prove` with `until: recorded` leads a backup to that very position,
//! and compares.
//!
//! **What it does.** The tables are locked against writers for a moment: while one session holds the lock, another takes its
//! snapshot, and a restore point is written into the log. Then the writers go on, and the rows are counted and summed in
//! that snapshot at leisure. Every commit that the snapshot shows lies before the restore point, and every later one
//! behind it, so that a recovery which ends there has exactly these rows. Writers that do not let go of a table within two
//! seconds are not waited for any longer: nothing was changed, and it is tried again.
//!
//! **Half-done** it leaves a restore point in the log that nobody refers to. The record carries the run and the step that
//! made it: it is there, so it happened. It is not undone: it says what was.

use super::{
    contract::*,
    database_checks::{self, Recorded},
    own_server::{is_own, state_of},
    recovered::choose_base,
    shared::*,
    vault::*,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::Lsn;
use crate::repository::{
    names::Id,
    open::Repository,
    proof::{self, Level, Proof},
    recovery::Cluster,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// The region of the primary.
    pub region: RegionName,
    /// Where its base backups and its log are.
    pub repository: RepositoryName,
    /// `orders`, or `sales.orders`; what the estate says of the database (`tables`) when left out.
    #[serde(default)]
    pub tables: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    input: Input,
    tables: Vec<String>,
    /// The newest base backup of this cluster.
    snapshot: Id,
    system_identifier: String,
    mark: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The base backup that it stands beside.
    pub snapshot: String,
    pub system_identifier: String,
    pub timeline: u32,
    /// To this a recovery has to come for the tables to be these.
    #[schemars(with = "String")]
    pub position: Lsn,
    /// The name of the restore point there.
    pub restore_point: String,
    pub tables: Vec<Recorded>,
    /// For how long writers to these tables waited.
    pub held_ms: u64,
}

pub struct Record;

impl Action for Record {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.record",
            version: 1,
            summary: "Put on record what is in chosen tables at one position of the log, for a restore to be compared with",
            effect: Effect::Observable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(2 * 3600),
            example: "id: record\nuses: database.record\nwith: { database: predictions, region: east, repository: vault, tables: [predictions] }\n",
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
        let (name, region) = (&input.database, &input.region);
        if !is_own(cx, name)? {
            return Err(Refusal::no("not_own", format!("`{name}` is Amazon's: its log is in no repository of Muster's"))
                .remedy("`database.record` is for `engine: postgres`"));
        }
        let tables = if input.tables.is_empty() { database(cx, name)?.tables.clone() } else { input.tables.clone() };
        if tables.is_empty() {
            return Err(Refusal::no("no_tables", format!("nothing says which tables of `{name}` are put on record"))
                .remedy(format!("name them in `tables`, or write databases.{name}.tables")));
        }
        let state = state_of(cx, name, region).await?;
        if state.in_recovery {
            return Err(Refusal::no("not_primary", format!("the server of `{name}` in `{region}` is a standby: it takes no lock and no restore point")));
        }
        let repository = open(cx, &input.repository).await?;
        let (snapshot, shown) = newest(&repository, &state.system_identifier).await?;
        let what = format!("{}, records", place(&input.repository));
        let change = change(what, None, Some(format!("{} tables of {name}, beside {shown}", tables.len())));
        let notes = vec!["writers to these tables wait for a moment".to_owned()];
        let (system_identifier, mark) = (state.system_identifier, mark(cx));
        Ok(Prepared { intent: Intent { input, tables, snapshot, system_identifier, mark }, change: vec![change], notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let (name, region) = (&intent.input.database, &intent.input.region);
        let begun = cx.read.world.clock().monotonic();
        let state = state_of(cx, name, region).await?;
        if state.system_identifier != intent.system_identifier {
            return Err(fail("another_cluster", format!("another cluster answers for `{name}` in `{region}` by now")));
        }
        let (repository, store) = open_mut(cx, &intent.input.repository).await?;
        let restore_point = format!("muster-{}", short_key(cx));
        let (tables, questions) = database_checks::asked(&intent.tables);
        let cluster = cx.world()?.cluster_mut(name.as_str(), region.as_str())?;
        let frozen = cluster.freeze(&tables, database_checks::FORMS, &questions, &restore_point).await?;
        let output = Output {
            snapshot: intent.snapshot.to_string(),
            system_identifier: intent.system_identifier.clone(),
            timeline: state.timeline,
            position: frozen.position,
            restore_point,
            tables: intent.tables.iter().zip(&frozen.rows).map(|(table, row)| Recorded::of(table, row)).collect(),
            held_ms: frozen.held_ms,
        };
        let proof = Proof {
            snapshot: intent.snapshot,
            time: cx.read.world.clock().now(),
            ok: true,
            level: Level::Recorded,
            files: 0,
            bytes: 0,
            duration_ms: u64::try_from(cx.read.world.clock().monotonic().saturating_sub(begun).as_millis()).unwrap_or(u64::MAX),
            host: who(&cx.read).0,
            run: Some(intent.mark.clone()),
            why: None,
            found: serde_json::to_value(&output).ok(),
        };
        record(cx, &repository, &*store, &proof).await?;
        Ok(output)
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let look = async {
            let repository = open(cx, &intent.input.repository).await?;
            Ok::<_, Refusal>(proof::records(&repository).await?)
        };
        match look.await {
            Err(refusal) => untold(refusal),
            Ok(found) => match found.whole.into_iter().rev().find(|(_, p)| p.run.as_ref() == Some(&intent.mark)) {
                None => Seen::Absent,
                Some((_, proof)) => match proof.found.map(serde_json::from_value) {
                    Some(Ok(output)) => Seen::Done(output),
                    _ => Seen::CannotTell { why: "its record is there, and does not say what it found".to_owned() },
                },
            },
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

/// The newest base backup of this cluster: without one a record would have nothing to be compared with.
async fn newest(repository: &Repository, system: &str) -> Result<(Id, String), Refusal> {
    let all = repository.snapshots().await?.whole;
    let found = all.into_iter().rfind(|(_, s)| Cluster::of(s).is_some_and(|cluster| cluster.system == system));
    let (id, snapshot) = found.ok_or_else(|| {
        Refusal::no("no_snapshot", format!("{} has no base backup of cluster {system}", repository.place))
            .remedy("`database.backup` first: a record is compared with what a base backup is led to")
    })?;
    // Its shape is that of any other.
    choose_base(repository, &id.to_string(), None).await.map(|_| ())?;
    Ok((id, shown(&id, &snapshot)))
}

/// The newest record that this base backup can be led to; or that of one position.
pub(crate) async fn of(repository: &Repository, cluster: &Cluster, at: Option<Lsn>) -> Result<Option<Output>, Refusal> {
    let all = proof::records(repository).await?.whole.into_iter().rev();
    let records = all.filter_map(|(_, proof)| serde_json::from_value::<Output>(proof.found?).ok());
    let mut fits = records.filter(|r| r.system_identifier == cluster.system && r.position >= cluster.base.stop && r.timeline >= cluster.base.timeline);
    Ok(fits.find(|r| at.is_none_or(|at| r.position == at)))
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    let with = serde_json::json!({ "database": "orders", "region": "east", "repository": "vault", "tables": ["sales.orders"] });
    super::cluster_fixture::with_own_cluster(with)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;

    #[tokio::test]
    async fn it_is_on_record_and_is_no_proof_of_a_restore() {
        let bench = Bench::new(&fixture());
        let out = bench.run::<Record>().await.expect("recorded");
        assert_eq!((out.tables.len(), out.tables[0].rows), (1, 3), "{out:?}");
        let repository = open(&bench.read, &"vault".into()).await.map_err(|r| r.failure).expect("open");
        assert!(proof::load(&repository).await.expect("loaded").whole.is_empty());
        assert_eq!(proof::records(&repository).await.expect("loaded").whole.len(), 1);
    }

    #[tokio::test]
    async fn without_a_base_backup_or_tables_it_is_refused() {
        let with = serde_json::json!({ "database": "orders", "region": "east", "repository": "vault", "tables": ["a"] });
        let bench = Bench::new(&crate::actions::cluster_fixture::with_cluster(with.clone()));
        assert_eq!(bench.refused::<Record>().await, "no_snapshot");
        let mut none = with;
        none["tables"] = serde_json::json!([]);
        assert_eq!(Bench::new(&crate::actions::cluster_fixture::with_cluster(none)).refused::<Record>().await, "no_tables");
    }
}
