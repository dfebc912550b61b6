//! `rds.restore_snapshot`: make a new instance of a snapshot: the counterpart of `database.snapshot`, where
//! `database.restore` is for base backups in a repository.
//!
//! **What it does.** One call. The snapshot is one by name, or the newest of the database in that region that is
//! complete, a copy from another region too. Nothing is replaced, and nothing points to the new instance yet.
//!
//! **Half-done** it is while it is `creating`; the name and the tags come from the step's key, so that it is never made
//! twice. It is not undone: it harms nobody, and costs until somebody deletes it.

use super::{contract::*, rds_shared::*, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// Where the snapshot is, and the new instance will be.
    pub region: RegionName,
    /// The snapshot's identifier; the newest of the database there when left out.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// The identifier of the new instance; derived from the step when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// `db.r6g.large`; the snapshot's when left out.
    #[serde(default)]
    pub class: Option<String>,
    #[serde(default)]
    pub subnet_group: Option<String>,
    #[serde(default)]
    pub security_groups: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    region: RegionName,
    snapshot: String,
    taken: Option<Timestamp>,
    new: NewInstance,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    #[serde(flatten)]
    pub made: MadeInstance,
    pub snapshot: String,
    /// When the snapshot was taken.
    #[schemars(with = "Option<String>")]
    pub recovered_point: Option<Timestamp>,
}

pub struct FromSnapshot;

impl Action for FromSnapshot {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "rds.restore_snapshot",
            version: 1,
            summary: "Make a new instance of a database's snapshot",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(4 * 3600),
            example: "id: restored\nuses: rds.restore_snapshot\nwith: { database: predictions, region: west }\n",
        }
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        reach(with, "region", Plane::Control).into_iter().collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database, region, snapshot, name, class, subnet_group, security_groups } = input;
        let found = match snapshot {
            Some(id) => {
                let found = cx.world.instances(region.as_str())?.snapshot(&id).await?;
                found.ok_or_else(|| Refusal::no("no_snapshot", format!("there is no snapshot `{id}` in region `{region}`")))?
            }
            None => newest(cx, &database, &region).await?,
        };
        if found.status != "available" {
            return Err(Refusal::later("not_available", format!("snapshot `{}` is `{}`, not `available`", found.id, found.status)));
        }
        let id = name_of(cx, name, &database)?;
        free(cx, &region, &id).await?;
        let what = change(format!("{id} in {region}"), None, Some(format!("snapshot {} of {}", found.id, found.instance)));
        let new = Wishes { class, subnet_group, security_groups }.into_instance(cx, id);
        Ok(Prepared { intent: Intent { region, snapshot: found.id, taken: found.created, new }, change: vec![what], notes: Vec::new() })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let of = MadeOf::Snapshot(&intent.snapshot);
        Ok(output(intent, make_instance(cx, &intent.region, &intent.new, of).await?))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        see_instance(cx, &intent.region, &intent.new, |_| Ok(())).await.map(|made| output(intent, made))
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

fn output(intent: &Intent, made: MadeInstance) -> Output {
    Output { made, snapshot: intent.snapshot.clone(), recovered_point: intent.taken }
}

/// Of any of the database's instances: a copy is kept under the name of the one that it was taken of.
async fn newest(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> Result<SnapshotInfo, Refusal> {
    let instances = cx.world.instances(region.as_str())?;
    let mut all = Vec::new();
    for id in database(cx, name)?.instances.values().filter_map(|i| i.id.as_ref()) {
        all.extend(instances.snapshots_of(id).await?.into_iter().filter(|s| s.status == "available"));
    }
    let newest = all.into_iter().max_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    newest.ok_or_else(|| Refusal::no("no_snapshot", format!("`{name}` has no complete snapshot in region `{region}`")).remedy("take one (`database.snapshot`) or copy one there (`rds.copy_snapshot`)"))
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::with_rds_snapshots(serde_json::json!({ "database": "predictions", "region": "east" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    #[tokio::test]
    async fn the_newest_that_is_complete_is_taken() {
        let bench = Bench::new(&fixture());
        assert_eq!(bench.run::<FromSnapshot>().await.expect("restored").snapshot, "day-0");
    }

    #[tokio::test]
    async fn without_a_snapshot_nothing_is_made() {
        let with = json!({ "database": "predictions", "region": "west" });
        assert_eq!(Bench::new(&Fixture::new(with)).refused::<FromSnapshot>().await, "no_snapshot");
        let with = json!({ "database": "predictions", "region": "east", "snapshot": "day-9999" });
        assert_eq!(Bench::new(&Fixture::new(with)).refused::<FromSnapshot>().await, "no_snapshot");
    }
}
