//! `database.verify_replica`: does the replica replicate, and does it hold what its primary holds?
//!
//! The states are told apart (`replica.rs`), from two looks at the standby, a moment apart, and the primary's
//! position between them. Content is compared row by row while writes go on: `replica_content.rs` says how, and
//! where its limits are. What could not be compared in time is a failure of its own, never a pass. It changes
//! nothing.

use super::{
    contract::*,
    replica::{ReplicaState, judge},
    replica_content::compare,
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
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        reach(with, "region", Plane::Data).into_iter().collect()
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }
    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Input>, Refusal> {
        if !database(cx, &input.database)?.instances.contains_key(&input.region) {
            return Err(Refusal::no("no_instance", format!("database `{}` has no instance in region `{}`", input.database, input.region)));
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

async fn check(cx: &ReadCx, input: &Input) -> Result<Output, ApplyError> {
    let who = format!("the replica of `{}` in `{}`", input.database, input.region);
    let standby = cx.world.sql(input.database.as_str(), input.region.as_str())?;
    let first = standby.state().await.map_err(|e| fail("replica_unknown", format!("{who} cannot be asked: {e}")))?;
    let primary = primary(cx, input).await?;
    cx.world.clock().sleep(Duration::from_millis(500)).await;
    let second = standby.state().await.map_err(|e| fail("replica_unknown", format!("{who} cannot be asked: {e}")))?;
    let replica = judge(&first, &second, primary.as_ref().map(|p| p.2));
    if let ReplicaState::Stalled { why, .. } | ReplicaState::NotReplicating { why, .. } | ReplicaState::Unknown { why } = &replica {
        return Err(fail(&format!("replica_{}", replica.word()), format!("{who} is {}: {why}", replica.word())));
    }
    let Some((region, sql, _)) = primary else {
        return Err(fail("replica_unknown", format!("{who} streams, but no primary can be asked to compare it with")));
    };
    if let Some(max) = input.max_lag
        && replica.lag_ms().is_none_or(|lag| lag > max.ms)
    {
        let lag = replica.lag_ms().map_or_else(|| "not known".to_owned(), |ms| format!("{ms} ms"));
        return Err(fail("lag_exceeded", format!("{who} lags; the lag is {lag}, at most {max} is allowed")));
    }
    if !input.content {
        return Ok(Output { replica, primary: region, tables: None, compared_at: None });
    }
    let tables = database(cx, &input.database).map_err(definite)?.tables.clone();
    let equal = compare(cx, &*sql, &*standby, &tables, &who).await?;
    Ok(Output { replica, primary: region, tables: Some(equal.tables), compared_at: Some(equal.at) })
}

/// The other region whose server is no standby, and its position.
async fn primary(cx: &ReadCx, input: &Input) -> Result<Option<(RegionName, Arc<dyn SqlRead>, Lsn)>, ApplyError> {
    let all = database(cx, &input.database).map_err(definite)?;
    for region in all.instances.keys().filter(|r| **r != input.region) {
        let sql = cx.world.sql(input.database.as_str(), region.as_str())?;
        let asked = within(cx, Duration::from_secs(5), sql.state()).await;
        if let Ok(state) = asked
            && !state.in_recovery
        {
            return Ok(Some((region.clone(), sql, state.position)));
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
}
