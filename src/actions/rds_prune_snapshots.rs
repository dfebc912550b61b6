//! `rds.prune_snapshots`: delete the snapshots of a database's instance that no rule keeps: grandfather, father, son.
//!
//! **What it does.** Only manual snapshots that are complete count and are deleted, of one instance in one region; those
//! that RDS takes by itself it clears away by itself. By default only Muster's own, which carry its tag. Of each kind of
//! period the last one is kept, the newest always. Which are deleted is chosen beforehand, by name, shown in the
//! plan, and nothing else is deleted later, whatever has come meanwhile. `keep_last` and the others as in
//! `backup.forget`; with none of them it is refused. Copies are counted apart from what was taken there.
//!
//! **Half-done** it is while some of those names are still there; deleting the rest goes on from there. It cannot be
//! undone.

use super::{contract::*, rds_shared::KEY_TAG, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::plan::retention::{Point, Retention, decide};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[allow(clippy::struct_field_names)] // the fields are words of the language
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// Where the snapshots are.
    pub region: RegionName,
    /// The instance that they were taken of; the database's in that region when left out. For copies from elsewhere it
    /// is the one there.
    #[serde(default)]
    pub instance: Option<String>,
    #[serde(default)]
    pub keep_last: u32,
    #[serde(default)]
    pub keep_daily: u32,
    #[serde(default)]
    pub keep_weekly: u32,
    #[serde(default)]
    pub keep_monthly: u32,
    #[serde(default)]
    pub keep_yearly: u32,
    /// Also those that Muster did not take.
    #[serde(default)]
    pub others_too: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    region: RegionName,
    delete: Vec<String>,
    kept: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The identifiers of those that are gone.
    pub deleted: Vec<String>,
    pub kept: u64,
}

pub struct Prune;

impl Action for Prune {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "rds.prune_snapshots",
            version: 1,
            summary: "Delete the manual snapshots of a database's instance that no rule keeps",
            effect: Effect::Repeatable,
            danger: Danger::Irreversible,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(1800),
            example: "id: prune\nuses: rds.prune_snapshots\nwith: { database: predictions, region: west, keep_daily: 7, keep_weekly: 4, keep_monthly: 12 }\n",
        }
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        reach(with, "region", Plane::Control).into_iter().collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database, region, instance, keep_last, keep_daily, keep_weekly, keep_monthly, keep_yearly, others_too } = input;
        let rule = Retention { last: keep_last, daily: keep_daily, weekly: keep_weekly, monthly: keep_monthly, yearly: keep_yearly };
        if rule.is_empty() {
            return Err(Refusal::no("no_rule", "no rule says what is kept").remedy("give `keep_daily` or another of them"));
        }
        let id = instance.map_or_else(|| instance_id(cx, &database, &region), Ok)?;
        let all = cx.world.instances(region.as_str())?.snapshots_of(&id).await?;
        // One that does not say when it was taken is not judged, and so it is kept.
        let ours = |s: &&SnapshotInfo| s.kind == "manual" && s.status == "available" && (others_too || s.tags.contains_key(KEY_TAG));
        let points: Vec<Point> = all.iter().filter(ours).filter_map(point).collect();
        let reasons = decide(&points, rule);
        let delete: Vec<String> = points.iter().zip(&reasons).filter(|(_, why)| why.is_empty()).map(|(p, _)| p.id.clone()).collect();
        let change = delete.iter().map(|id| change(format!("snapshot {id} in {region}"), Some("kept".into()), Some("deleted".into()))).collect();
        let kept = (all.len() - delete.len()) as u64;
        let notes = vec![format!("{kept} of {} snapshots of `{id}` in `{region}` are kept", all.len())];
        Ok(Prepared { intent: Intent { region, delete, kept }, change, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        for id in &intent.delete {
            // The permit is asked each time: there may be many.
            match cx.world()?.instances_mut(intent.region.as_str())?.delete_snapshot(id).await {
                Ok(()) | Err(PortError::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(output(intent))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let instances = match cx.world.instances(intent.region.as_str()) {
            Ok(instances) => instances,
            Err(e) => return cannot_tell(&e),
        };
        for id in &intent.delete {
            match instances.snapshot(id).await {
                Err(e) => return cannot_tell(&e),
                Ok(None) => {}
                Ok(Some(there)) if there.status == "deleting" => return pending(1_000, format!("snapshot {id} is being deleted")),
                Ok(Some(_)) => return Seen::Absent,
            }
        }
        Seen::Done(output(intent))
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        let instances = cx.read.world.instances(intent.region.as_str())?;
        for id in &intent.delete {
            if instances.snapshot(id).await?.is_none() {
                return Err(fail("irreversible", format!("snapshot {id} was deleted")));
            }
        }
        Ok(())
    }
}

fn point(found: &SnapshotInfo) -> Option<Point> {
    let group = if found.copy_of.is_some() { "copies" } else { "taken here" };
    Some(Point { id: found.id.clone(), time: found.created?, group: group.to_owned() })
}

fn output(intent: &Intent) -> Output {
    Output { deleted: intent.delete.clone(), kept: intent.kept }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    let with = serde_json::json!({ "database": "predictions", "region": "east", "keep_last": 3, "keep_weekly": 2, "others_too": true });
    super::contract_tests::with_rds_snapshots(with)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, with_rds_snapshots};
    use serde_json::json;

    #[tokio::test]
    async fn what_rds_took_itself_and_what_a_rule_keeps_stays() {
        let bench = Bench::new(&fixture());
        let out = bench.run::<Prune>().await.expect("pruned");
        let left: Vec<String> = bench.world.lock().snapshots.keys().map(|(_, id)| id.clone()).collect();
        assert!(left.contains(&"rds:nightly".to_owned()) && left.contains(&"day-0".to_owned()), "{left:?}");
        assert_eq!(left.len() as u64, out.kept);
        assert!(!out.deleted.is_empty() && out.deleted.iter().all(|id| !left.contains(id)));
    }

    #[tokio::test]
    async fn others_snapshots_are_left_alone_and_a_rule_is_needed() {
        let bench = Bench::new(&with_rds_snapshots(json!({ "database": "predictions", "region": "east", "keep_last": 1 })));
        assert!(bench.run::<Prune>().await.expect("pruned").deleted.is_empty());
        let bench = Bench::new(&with_rds_snapshots(json!({ "database": "predictions", "region": "east" })));
        assert_eq!(bench.refused::<Prune>().await, "no_rule");
    }

    #[tokio::test]
    async fn what_came_after_prepare_is_not_deleted() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<Prune>().await;
        let (mut late, at) = bench.world.lock().snapshots[&("east".to_owned(), "day-9".to_owned())].clone();
        late.id = "late".into();
        bench.world.lock().snapshots.insert(("east".into(), "late".into()), (late, at));
        Prune::apply(&bench.write, &intent).await.expect("pruned");
        assert!(bench.world.lock().snapshots.contains_key(&("east".to_owned(), "late".to_owned())));
    }
}
