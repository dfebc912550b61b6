//! `rds.switchover_global_cluster`: make another region's cluster the writer of an Aurora global database, losing nothing.
//!
//! **What it does.** One call to the region that writes; Aurora stops the writes there, waits until the other cluster has
//! all of them, and changes the roles. Both regions must be in order: for a region that is lost there is
//! `rds.failover_global_cluster`. One whose replication is not `connected` is refused.
//!
//! **Half-done** it is while the global cluster is `switching-over`. The old writer still writes and it is `available`: it
//! did not happen. The other one writes: it did. **Undone** it is not by itself: it is the same the other way round.

use super::{
    contract::*,
    rds_global::{self as global, Move, Moved},
    shared::*,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The estate's name of the database that the clusters hold.
    pub database: DatabaseName,
    /// The identifier of the global cluster.
    pub global_cluster: String,
    /// Where the cluster is that becomes the writer.
    pub to: RegionName,
}

pub struct Switchover;

impl Action for Switchover {
    type Input = Input;
    type Intent = Move;
    type Output = Moved;

    fn spec() -> Spec {
        Spec {
            name: "rds.switchover_global_cluster",
            version: 1,
            summary: "Make another region's cluster the writer of an Aurora global database, losing nothing",
            effect: Effect::Observable,
            danger: Danger::Reversible,
            undo: UndoPolicy::Manual,
            timeout: Span::from_secs(1800),
            example: "id: switch\nuses: rds.switchover_global_cluster\nwith: { database: predictions, global_cluster: scoring-global, to: west }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        // The writer's region is found out when it is prepared: it may be any that the database has.
        let named = text(with, "database").and_then(|name| estate.databases.get(name));
        let all = named.into_iter().flat_map(|d| d.instances.keys().cloned());
        let mut all: Vec<Reach> = all.map(|region| Reach { place: Place::Region(region), plane: Plane::Control }).collect();
        let to = reach(with, "to", Plane::Control).filter(|to| !all.contains(to));
        all.extend(to);
        all
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Move>, Refusal> {
        let (mut intent, target) = global::plan(cx, input.database, input.global_cluster, input.to).await?;
        if let Some(sync) = target.sync.as_deref().filter(|s| *s != "connected") {
            return Err(Refusal::later("not_in_sync", format!("the cluster in `{}` is `{sync}`, not `connected`: a switchover would wait for it", intent.to)));
        }
        let writer = global::region_of(cx, &intent.from_arn);
        intent.through = writer.ok_or_else(|| {
            Refusal::no("unknown_region", format!("no region of the estate is that of the writer, {}", intent.from_arn))
                .remedy("write it into `regions`, with its `aws.region`")
        })?;
        let notes = target.sync.is_none().then(|| "RDS does not say whether the cluster is in sync".to_owned());
        Ok(Prepared { change: global::changes(&intent), notes: notes.into_iter().collect(), intent })
    }

    async fn apply(cx: &WriteCx, intent: &Move) -> Result<Moved, ApplyError> {
        let instances = cx.world()?.instances_mut(intent.through.as_str())?;
        instances.switch_global(&intent.global_cluster, &intent.to_arn).await?;
        Ok(intent.done())
    }

    async fn observe(cx: &ReadCx, intent: &Move) -> Seen<Moved> {
        global::see(cx, intent).await
    }

    async fn undo(cx: &WriteCx, intent: &Move, _output: Option<Moved>) -> Result<(), ApplyError> {
        global::undo(&cx.read, intent).await
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    use super::contract_tests::{Fixture, with_global};
    with_global(Fixture::new(serde_json::json!({ "database": "predictions", "global_cluster": "scoring-global", "to": "west" })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;

    #[tokio::test]
    async fn the_writer_moves_and_a_second_time_is_refused() {
        let bench = Bench::new(&fixture());
        assert_eq!(bench.run::<Switchover>().await.expect("moved").writer, "arn:aws:rds:us-west-2:000000000000:cluster:scoring-us-west-2");
        assert_eq!(bench.refused::<Switchover>().await, "writes_already");
    }

    #[tokio::test]
    async fn one_that_is_not_in_sync_is_not_switched_to() {
        let bench = Bench::new(&fixture());
        bench.world.lock().globals.get_mut("scoring-global").expect("global").0.members[1].sync = Some("pending-resync".into());
        assert_eq!(bench.refused::<Switchover>().await, "not_in_sync");
    }
}
