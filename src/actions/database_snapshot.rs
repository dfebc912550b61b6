//! `database.snapshot`: take a snapshot of a database's instance through its control plane.
//!
//! **What it does.** One call; the provider then takes its time. The snapshot's name is derived from the
//! step's key, and its tags carry the whole key: the provider has no idempotency token, but it refuses a
//! second snapshot of the same name, so the same intent twice is one snapshot. `rds.copy_snapshot` takes it elsewhere.
//!
//! **Half-done** it is while it is `creating`. No snapshot of that name: it did not happen. One with
//! another key in its tags: a person must look. It is not undone: a snapshot harms nobody.

use super::{contract::*, rds_shared::KEY_TAG, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// The region of the instance; the snapshot is kept in the same region.
    pub region: RegionName,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    region: RegionName,
    instance: String,
    snapshot: String,
    tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub snapshot: String,
    /// `available` when it is complete.
    pub status: String,
    #[schemars(with = "Option<String>")]
    pub created: Option<jiff::Timestamp>,
    pub size_gib: Option<i32>,
}

pub struct Snapshot;

impl Action for Snapshot {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.snapshot",
            version: 1,
            summary: "Take a snapshot of a database's instance and wait until it is available",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(3600),
            example: "id: snapshot\nuses: database.snapshot\nwith: { database: predictions, region: east }\n",
        }
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        reach(with, "region", Plane::Control).into_iter().collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let instance = instance_id(cx, &input.database, &input.region)?;
        let info = cx.world.instances(input.region.as_str())?.instance(&instance).await?;
        let info = info.ok_or_else(|| Refusal::no("no_instance", format!("there is no instance `{instance}` in region `{}`", input.region)))?;
        if info.status != "available" {
            return Err(Refusal::later("not_available", format!("`{instance}` in `{}` is `{}`, not `available`", input.region, info.status)));
        }
        let snapshot = rds_name(&["muster", input.database.as_str(), &short_key(cx)]);
        let tags = [(KEY_TAG.to_owned(), cx.key.clone()), ("muster-run".to_owned(), cx.run.0.clone())].into();
        let what = change(format!("snapshot {snapshot} of {instance} in {}", input.region), None, Some("created".into()));
        Ok(Prepared { intent: Intent { region: input.region, instance, snapshot, tags }, change: vec![what], notes: Vec::new() })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let instances = cx.world()?.instances_mut(intent.region.as_str())?;
        if let Some(there) = instances.snapshot(&intent.snapshot).await? {
            return if ours(&there, intent) { Ok(output(there)) } else { Err(fail("conflict", strange(&there))) };
        }
        match instances.create_snapshot(&intent.instance, &intent.snapshot, &intent.tags).await {
            // An earlier attempt, whose answer was lost, may have come to light only now.
            Err(error @ PortError::Conflict { .. }) => {
                let there = instances.snapshot(&intent.snapshot).await?.filter(|there| ours(there, intent));
                return there.map(output).ok_or_else(|| error.into());
            }
            other => other?,
        }
        Ok(Output { snapshot: intent.snapshot.clone(), status: "creating".into(), created: None, size_gib: None })
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let found = match cx.world.instances(intent.region.as_str()) {
            Ok(instances) => instances.snapshot(&intent.snapshot).await,
            Err(e) => Err(e),
        };
        match found {
            Err(e) => cannot_tell(&e),
            Ok(None) => Seen::Absent,
            Ok(Some(there)) if !ours(&there, intent) => Seen::Differs { found: strange(&there) },
            Ok(Some(there)) if there.status == "available" => Seen::Done(output(there)),
            Ok(Some(there)) if there.status == "creating" => {
                pending(1_000, format!("{} is {} % complete", there.id, there.percent.unwrap_or(0)))
            }
            Ok(Some(there)) => Seen::Differs { found: format!("snapshot {} is `{}`", there.id, there.status) },
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

fn ours(there: &SnapshotInfo, intent: &Intent) -> bool {
    there.instance == intent.instance && there.tags.get(KEY_TAG) == intent.tags.get(KEY_TAG)
}

fn strange(there: &SnapshotInfo) -> String {
    format!("snapshot {} of {} is there and was not taken by this step", there.id, there.instance)
}

fn output(there: SnapshotInfo) -> Output {
    Output { snapshot: there.id, status: there.status, created: there.created, size_gib: there.size_gib }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "database": "predictions", "region": "east" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;

    #[tokio::test]
    async fn the_name_comes_from_the_key() {
        let bench = Bench::new(&fixture());
        let out = bench.run::<Snapshot>().await.expect("taken");
        assert_eq!(out.snapshot, format!("muster-predictions-{}", &bench.read.key[..16]));
        assert_eq!(out.status, "available");
    }

    #[tokio::test]
    async fn a_strange_snapshot_of_that_name_is_not_ours() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<Snapshot>().await;
        Snapshot::apply(&bench.write, &intent).await.expect("applied");
        for (snapshot, _) in bench.world.lock().snapshots.values_mut() {
            snapshot.tags.clear();
        }
        assert!(matches!(Snapshot::observe(&bench.read, &intent).await, Seen::Differs { .. }));
        assert!(matches!(Snapshot::apply(&bench.write, &intent).await, Err(ApplyError::Definite(f)) if f.code == "conflict"));
    }
}
