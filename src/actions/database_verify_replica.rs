//! `database.verify_replica`: does the replica replicate, and does it hold what its primary holds?
//!
//! The states are told apart (`replica.rs`), each with its cause, from two looks at the standby, a moment apart, and the
//! primary's position between them. Content is compared row by row while writes go on: `replica_judge.rs` says how,
//! and `replica_content.rs` where its limits are. What could not be compared in time is a failure of its own, never a
//! pass. Of a replica on RDS, CloudWatch's `ReplicaLag` is reported beside it; where the server cannot be reached and
//! `content` is false it decides alone, and there -1 or no figure is never taken for zero. It changes nothing. `muster replica verify` is the same by hand, and compares schema and settings too.

use super::{
    contract::*,
    patroni,
    replica::{Note, ReplicaState},
    replica_monitored::{self as monitored, Monitored},
    replica_load::{Bounds, Nobody},
    replica_report::*,
    replica_verify::{Ask, verify},
    shared::*,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// Where the replica is.
    pub region: RegionName,
    /// Where its primary is; when left out it is sought in every other region of the database, each of which is then needed.
    #[serde(default)]
    pub primary: Option<RegionName>,
    /// The largest lag that is still good; any when left out.
    #[serde(default)]
    pub max_lag: Option<Span>,
    /// Compare the content of the tables too.
    #[serde(default = "yes")]
    pub content: bool,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub replica: ReplicaState,
    /// Where the primary is.
    pub primary: RegionName,
    /// Tables whose content is equal; `null` when content was not compared.
    pub tables: Option<u64>,
    /// The standby's position at the last comparison.
    #[schemars(with = "Option<String>")]
    pub compared_at: Option<Lsn>,
    /// What is worth knowing before a failover, beside all that.
    #[serde(default)]
    pub notes: Vec<Note>,
    /// What CloudWatch says of its lag (`engine: rds-postgres`), beside what the server says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitored: Option<Monitored>,
}

pub struct VerifyReplica;

impl Action for VerifyReplica {
    type Input = Input;
    type Intent = Input;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.verify_replica",
            version: 1,
            summary: "Check that a replica replicates and holds what its primary holds",
            effect: Effect::Read,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(300),
            example: "id: replica\nuses: database.verify_replica\nwith: { database: predictions, region: west, max_lag: 30s }\n",
        }
    }
    /// Without its primary nothing is compared: where that is not said, it is sought in each other region.
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        let primary = reach(with, "primary", Plane::Data);
        let sought: Vec<Reach> = if primary.is_none() { reach_servers(with, estate).collect() } else { Vec::new() };
        let here = reach(with, "region", Plane::Data).filter(|here| !sought.contains(here));
        here.into_iter().chain(primary).chain(sought).collect()
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }
    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Input>, Refusal> {
        let instances = &database(cx, &input.database)?.instances;
        if let Some(region) = [Some(&input.region), input.primary.as_ref()].into_iter().flatten().find(|r| !instances.contains_key(*r)) {
            return Err(Refusal::no("no_instance", format!("database `{}` has no instance in region `{region}`", input.database)));
        }
        if input.primary.as_ref() == Some(&input.region) {
            return Err(Refusal::no("same_region", format!("the replica and its primary cannot both be the server in `{}`", input.region)));
        }
        Ok(Prepared { intent: input, change: Vec::new(), notes: Vec::new() })
    }
    async fn apply(cx: &WriteCx, intent: &Input) -> Result<Output, ApplyError> {
        check(&cx.read, intent).await
    }
    async fn observe(_cx: &ReadCx, _intent: &Input) -> Seen<Output> {
        Seen::Absent
    }
    async fn undo(_cx: &WriteCx, _intent: &Input, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

/// How long rows may take to settle, unless the step has less.
const SETTLE: Duration = Duration::from_secs(120);

async fn check(cx: &ReadCx, input: &Input) -> Result<Output, ApplyError> {
    let who = format!("the replica of `{}` in `{}`", input.database, input.region);
    let standby = cx.world.sql(input.database.as_str(), input.region.as_str())?;
    let tables = database(cx, &input.database).map_err(definite)?.tables.clone();
    let clock = cx.world.clock();
    let until = clock.monotonic() + cx.deadline.saturating_sub(Duration::from_secs(2));
    let seed = (clock.jitter() * 9e15) as i64;
    let bounds = Bounds { clock, workers: 1, max_load: 100, until: Some(until), settle: SETTLE, limit: 20, seed };
    let primary = primary(cx, input).await?;
    let ask = Ask { tables, structure: false, content: false, done: Vec::new() };
    let asked = primary.as_ref().map(|(_, sql)| &**sql);
    let looked = verify(asked, &*standby, &ask, &bounds, &Nobody).await;
    let monitored = monitored::ask(cx, &input.database, &input.region).await;
    let silent = looked.as_ref().map_or(true, |l| matches!(l.replica, ReplicaState::Unknown { .. }));
    if let Some(found) = monitored.as_ref().filter(|_| silent && !input.content) {
        return monitored::alone(cx, &input.database, &input.region, found, input.max_lag, &who).await;
    }
    let mut looked = looked.map_err(unread)?;
    streams(&looked.replica, &who)?;
    let disagrees = monitored.as_ref().and_then(|found| found.disagrees(&looked.replica));
    looked.notes.extend(disagrees.clone());
    let Some((region, sql)) = primary else {
        return Err(fail("replica_unknown", format!("{who} streams, but no primary can be asked to compare it with")));
    };
    let both = [input.region.as_str(), region.as_str()];
    let managed = patroni::notes(&*cx.world, database(cx, &input.database).map_err(definite)?, input.database.as_str(), &both).await;
    looked.notes.extend(managed.clone());
    if let Some(max) = input.max_lag
        && looked.replica.lag_ms().is_none_or(|lag| lag > max.ms)
    {
        let lag = looked.replica.lag_ms().map_or_else(|| "not known".to_owned(), |ms| format!("{ms} ms"));
        return Err(fail("lag_exceeded", format!("{who} lags; the lag is {lag}, at most {max} is allowed")));
    }
    if !input.content {
        return Ok(Output { replica: looked.replica, primary: region, tables: None, compared_at: None, notes: looked.notes, monitored });
    }
    let mut report = verify(Some(&*sql), &*standby, &Ask { content: true, ..ask }, &bounds, &Nobody).await.map_err(unread)?;
    streams(&report.replica, &who)?;
    report.notes.extend(disagrees.into_iter().chain(managed));
    let tables = report.tables.as_deref().unwrap_or_default();
    if let Some(failure) = tables.iter().find_map(|table| wrong(table, &who)) {
        return Err(failure);
    }
    let equal = tables.iter().filter(|table| table.state == TableState::Equal).count() as u64;
    Ok(Output { compared_at: report.at(), replica: report.replica, primary: region, tables: Some(equal), notes: report.notes, monitored })
}

fn unread(error: PortError) -> ApplyError {
    fail("replica_unknown", format!("tables could not be compared: {error}"))
}

fn streams(replica: &ReplicaState, who: &str) -> Result<(), ApplyError> {
    let Some((_, why, cure)) = replica.trouble() else { return Ok(()) };
    let word = replica.word();
    Err(fail(&format!("replica_{word}"), format!("{who} is {word}: {why}; {cure}")))
}

/// Why a table is not equal, if it should be.
fn wrong(table: &TableReport, who: &str) -> Option<ApplyError> {
    let name = &table.table;
    match table.state {
        TableState::Equal | TableState::NotReplicated => None,
        TableState::Unknown => {
            let why = table.why.as_deref().unwrap_or("it could not be compared");
            Some(fail("replica_unknown", format!("{who}: table {name}: {why}")))
        }
        TableState::Different => {
            let at = table.at.map(|at| format!(" at {at}")).unwrap_or_default();
            let first = table.differences.first().map(row).or_else(|| table.damage.first().map(|d| d.message.clone())).unwrap_or_default();
            let more = match table.different_rows() {
                0 | 1 => String::new(),
                n => format!(", and {} more differences", n - 1),
            };
            Some(fail("replica_differs", format!("{who} differs in table {name}{at}: {first}{more}")))
        }
    }
}

fn row(one: &RowDifference) -> String {
    let place = one.place.as_deref().map(|place| format!(" at {place}")).unwrap_or_default();
    match one.kind {
        Kind::Changed => format!("the row{place} has other content"),
        Kind::Missing => format!("the row{place} is missing"),
        Kind::Extra => format!("the row{place} is not on the primary"),
    }
}

/// The other region whose server is no standby; only the one that was named, if one was.
async fn primary(cx: &ReadCx, input: &Input) -> Result<Option<(RegionName, Arc<dyn SqlRead>)>, ApplyError> {
    let all = database(cx, &input.database).map_err(definite)?;
    let may_be = |region: &RegionName| *region != input.region && input.primary.as_ref().is_none_or(|primary| primary == region);
    for region in all.instances.keys().filter(|region| may_be(region)) {
        let sql = cx.world.sql(input.database.as_str(), region.as_str())?;
        let asked = within(cx, Duration::from_secs(5), sql.state()).await;
        if let Ok(state) = asked
            && !state.in_recovery
        {
            return Ok(Some((region.clone(), sql)));
        }
    }
    Ok(None)
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "database": "predictions", "region": "west", "max_lag": "30s" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;
    use crate::providers::sim::Server;

    async fn code(change: fn(&mut Server)) -> String {
        let bench = Bench::new(&fixture());
        change(bench.world.lock().servers.get_mut(&("predictions".into(), "west".into())).expect("west"));
        bench.failed::<VerifyReplica>().await.code
    }

    #[tokio::test]
    async fn each_state_has_a_code_of_its_own() {
        assert_eq!(code(|s| s.state.streaming = false).await, "replica_not_replicating");
        assert_eq!(code(|s| s.state.replay_paused = true).await, "replica_stalled");
        assert_eq!(code(|s| s.state.position = Lsn(1)).await, "replica_stalled");
        assert_eq!(code(|s| s.rows[0].digest = "other".into()).await, "replica_differs");
        let bench = Bench::new(&fixture()).down("west");
        assert_eq!(bench.failed::<VerifyReplica>().await.code, "replica_unknown");
    }

    #[tokio::test]
    async fn where_the_server_is_silent_monitoring_decides_and_nothing_is_never_zero() {
        use crate::actions::contract_tests::Fixture;
        use serde_json::json;
        let west = || ("west".to_owned(), "predictions-west".to_owned());
        let with = json!({ "database": "predictions", "region": "west", "max_lag": "30s", "content": false });
        let silent = |lag: Option<f64>| {
            let bench = Bench::new(&Fixture::new(with.clone()));
            bench.world.lock().servers.remove(&("predictions".to_owned(), "west".to_owned()));
            if let Some(lag) = lag {
                bench.world.lock().lags.insert(west(), lag);
            }
            bench
        };
        for (lag, code) in [(None, "replica_unknown"), (Some(-1.0), "replica_not_replicating"), (Some(31.0), "lag_exceeded")] {
            assert_eq!(silent(lag).failed::<VerifyReplica>().await.code, code, "{lag:?}");
        }
        let out = silent(Some(2.5)).run::<VerifyReplica>().await.expect("good");
        assert_eq!((out.replica.lag_ms(), out.primary.as_str()), (Some(2_500), "east"));
        // The server's own word counts where there is one; the other is told.
        let bench = Bench::new(&fixture());
        bench.world.lock().lags.insert(west(), -1.0);
        let out = bench.run::<VerifyReplica>().await.expect("good");
        assert_eq!(out.monitored.expect("asked").lag_ms, None);
        assert!(out.notes.iter().any(|note| note.what == "monitoring_disagrees"));
    }
}
