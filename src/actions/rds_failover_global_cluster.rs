//! `rds.failover_global_cluster`: make a surviving region's cluster the writer of an Aurora global database, with what it
//! has. What the lost writer had beyond that is lost to it.
//!
//! **What it does.** One call to the region that survives (`AllowDataLoss`); nothing is asked of the lost one. Aurora tries
//! to keep the old writer from writing, and cannot while its region is cut off: so it wants a fence proof as
//! `database.promote` does, and asks again just before whether the proof still holds.
//!
//! **Half-done** it is while the global cluster is `failing-over`. The old writer is still the writer and it is
//! `available`: it did not happen. The other one writes: it did. It **cannot be undone**; when the lost region is back, Aurora
//! makes its cluster follow, and `rds.switchover_global_cluster` leads back.

use super::{
    contract::*,
    proof::{FenceProof, still_holds},
    rds_global::{self as global, Move, Moved},
    shared::*,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The estate's name of the database that the clusters hold: the proof is about it.
    pub database: DatabaseName,
    /// The identifier of the global cluster.
    pub global_cluster: String,
    /// Where the cluster is that becomes the writer.
    pub to: RegionName,
    /// What `database.fence` gave: `{{ steps.fence.proof }}`. Without it nothing is failed over.
    #[serde(default)]
    pub proof: Option<FenceProof>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    #[serde(flatten)]
    to: Move,
    proof: FenceProof,
}

pub struct Failover;

impl Action for Failover {
    type Input = Input;
    type Intent = Intent;
    type Output = Moved;

    fn spec() -> Spec {
        Spec {
            name: "rds.failover_global_cluster",
            version: 1,
            summary: "Make a surviving region's cluster the writer of an Aurora global database, with what it has",
            effect: Effect::Observable,
            danger: Danger::Irreversible,
            undo: UndoPolicy::Manual,
            timeout: Span::from_secs(1800),
            example: "id: failover\nuses: rds.failover_global_cluster\nwith: { database: predictions, global_cluster: scoring-global, to: west, proof: \"{{ steps.fence.proof }}\" }\n",
        }
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        [reach(with, "to", Plane::Control), Some(reach_here())].into_iter().flatten().collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database, global_cluster, to, proof } = input;
        let proof = proof.ok_or_else(|| {
            let message = format!("nothing proves that the old writer of `{database}` is fenced; failing over to `{to}` could make two writers");
            Refusal::no("not_fenced", message).remedy("run `database.fence` first and give `proof: \"{{ steps.fence.proof }}\"`")
        })?;
        still_holds(cx, &proof, &database, &to).await?;
        let (to, target) = global::plan(cx, database, global_cluster, to).await?;
        let sync = target.sync.unwrap_or_else(|| "not told".to_owned());
        let notes = vec![format!("its replication is: {sync}; what it lacks is lost"), proof.detail.clone()];
        Ok(Prepared { change: global::changes(&to), notes, intent: Intent { to, proof } })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Moved, ApplyError> {
        still_holds(cx, &intent.proof, &intent.to.database, &intent.to.to).await.map_err(definite)?;
        let instances = cx.world()?.instances_mut(intent.to.through.as_str())?;
        instances.fail_over_global(&intent.to.global_cluster, &intent.to.to_arn).await?;
        Ok(intent.to.done())
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Moved> {
        global::see(cx, &intent.to).await
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Moved>) -> Result<(), ApplyError> {
        global::undo(&cx.read, &intent.to).await
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    use super::contract_tests::{fenced, proof, with_global};
    let with = serde_json::json!({ "database": "predictions", "global_cluster": "scoring-global", "to": "west", "proof": proof() });
    with_global(fenced(with))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, fenced, with_global};
    use serde_json::json;

    #[tokio::test]
    async fn without_a_proof_nothing_is_failed_over() {
        let with = json!({ "database": "predictions", "global_cluster": "scoring-global", "to": "west" });
        assert_eq!(Bench::new(&with_global(fenced(with))).refused::<Failover>().await, "not_fenced");
    }

    #[tokio::test]
    async fn the_lost_region_is_not_needed() {
        let bench = Bench::new(&fixture()).down("east");
        assert!(bench.run::<Failover>().await.expect("moved").writer.contains("us-west-2"));
    }

    #[tokio::test]
    async fn a_proof_that_went_void_after_prepare_stops_it() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<Failover>().await;
        bench.world.lock().leases.get_mut("predictions").expect("lease").epoch += 1;
        assert!(matches!(Failover::apply(&bench.write, &intent).await, Err(ApplyError::Definite(f)) if f.code == "proof_void"));
    }
}
