//! `rds.copy_snapshot`: copy a snapshot of a database to another region, so that it is there when its own is lost.
//!
//! **What it does.** One call to the region that gets the copy. The snapshot is one by name, or the newest manual one of
//! the instance that is complete; its own name and that of the copy are chosen beforehand. An encrypted one needs a KMS
//! key of the other region, and a URL that Muster signs for the region that it comes from. Within one region a key makes a
//! copy that is encrypted with it.
//!
//! **Half-done** it is while it is `creating`. The copy's name comes from the step's key and its tags carry the whole
//! key, so that it is never made twice; another snapshot of that name is for a person to look at. It is not undone: a
//! snapshot harms nobody (`rds.prune_snapshots` clears away).

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
    /// Where the snapshot is.
    pub from: RegionName,
    /// Where the copy is made.
    pub to: RegionName,
    /// Its identifier, such as `{{ steps.snapshot.snapshot }}`; the newest manual one when left out.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// A KMS key of the copy's region, by ARN or identifier.
    #[serde(default)]
    pub kms_key: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    to: RegionName,
    copy: SnapshotCopy,
    taken: Option<Timestamp>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The copy's identifier.
    pub snapshot: String,
    /// The ARN of what it is a copy of.
    pub source: String,
    /// `available` when it is complete.
    pub status: String,
    /// When the source was taken: what a restore of the copy brings back.
    #[schemars(with = "Option<String>")]
    pub recovered_point: Option<Timestamp>,
    pub kms_key: Option<String>,
}

pub struct Copy;

impl Action for Copy {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "rds.copy_snapshot",
            version: 1,
            summary: "Copy a database's snapshot to another region and wait until it is complete",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(8 * 3600),
            example: "id: copy\nuses: rds.copy_snapshot\nwith: { database: predictions, from: east, to: west }\n",
        }
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        ["from", "to"].iter().filter_map(|field| reach(with, field, Plane::Control)).collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database, from, to, snapshot, kms_key } = input;
        let instances = cx.world.instances(from.as_str())?;
        let found = match &snapshot {
            Some(id) => instances.snapshot(id).await?,
            None => newest(instances.snapshots_of(&instance_id(cx, &database, &from)?).await?),
        };
        let missing = || snapshot.as_ref().map_or_else(|| format!("`{database}` has no complete manual snapshot in region `{from}`"), |id| format!("there is no snapshot `{id}` in region `{from}`"));
        let found = found.ok_or_else(|| Refusal::no("no_snapshot", missing()).remedy("take one with `database.snapshot`"))?;
        if found.status != "available" {
            return Err(Refusal::later("not_available", format!("snapshot `{}` is `{}`, not `available`", found.id, found.status)));
        }
        let leaves = aws_region(cx, &from)? != aws_region(cx, &to)?;
        key_fits(found.kms_key.is_some(), kms_key.as_deref(), leaves, &to)?;
        let id = rds_name(&["muster", database.as_str(), "copy", &short_key(cx)]);
        let what = change(format!("snapshot {id} in {to}"), None, Some(format!("copy of {} in {from}", found.id)));
        let copy = SnapshotCopy { source: found.arn, id, kms_key, tags: tags(cx) };
        Ok(Prepared { intent: Intent { to, copy, taken: found.created }, change: vec![what], notes: Vec::new() })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let instances = cx.world()?.instances_mut(intent.to.as_str())?;
        let there = |found: SnapshotInfo| {
            if ours(&found.tags, &intent.copy.tags) { Ok(output(intent, found)) } else { Err(fail("conflict", strange(&found))) }
        };
        if let Some(found) = instances.snapshot(&intent.copy.id).await? {
            return there(found);
        }
        match instances.copy_snapshot(&intent.copy).await {
            Ok(()) => Ok(output(intent, SnapshotInfo { status: "creating".into(), ..SnapshotInfo::default() })),
            Err(error @ PortError::Conflict { .. }) => match instances.snapshot(&intent.copy.id).await? {
                Some(found) => there(found),
                None => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let found = match cx.world.instances(intent.to.as_str()) {
            Ok(instances) => instances.snapshot(&intent.copy.id).await,
            Err(e) => Err(e),
        };
        match found {
            Err(e) => cannot_tell(&e),
            Ok(None) => Seen::Absent,
            Ok(Some(there)) if !ours(&there.tags, &intent.copy.tags) => Seen::Differs { found: strange(&there) },
            Ok(Some(there)) if there.status == "available" => Seen::Done(output(intent, there)),
            Ok(Some(there)) if ["creating", "copying", "pending"].contains(&there.status.as_str()) => {
                pending(2_000, format!("{} is {} % complete", there.id, there.percent.unwrap_or(0)))
            }
            Ok(Some(there)) => Seen::Differs { found: format!("snapshot {} is `{}`", there.id, there.status) },
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

fn newest(all: Vec<SnapshotInfo>) -> Option<SnapshotInfo> {
    let good = |s: &SnapshotInfo| s.status == "available" && s.kind == "manual";
    all.into_iter().filter(good).max_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)))
}

fn strange(found: &SnapshotInfo) -> String {
    format!("snapshot {} is there and was not made by this step", found.id)
}

fn output(intent: &Intent, found: SnapshotInfo) -> Output {
    Output {
        snapshot: intent.copy.id.clone(),
        source: intent.copy.source.clone(),
        status: found.status,
        recovered_point: intent.taken,
        kms_key: found.kms_key.or_else(|| intent.copy.kms_key.clone()),
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::with_rds_snapshots(serde_json::json!({ "database": "predictions", "from": "east", "to": "west" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;

    #[tokio::test]
    async fn the_newest_is_copied_and_its_age_is_that_of_the_source() {
        let bench = Bench::new(&fixture());
        let began = bench.read.world.clock().now();
        let out = bench.run::<Copy>().await.expect("copied");
        assert!(out.source.ends_with(":day-0"), "{out:?}");
        assert_eq!((out.recovered_point, out.status.as_str()), (Some(began), "available"));
        let kept = bench.world.lock().snapshots[&("west".to_owned(), out.snapshot)].0.clone();
        assert_eq!(kept.copy_of.as_deref(), Some(out.source.as_str()));
    }

    #[tokio::test]
    async fn what_is_encrypted_needs_a_key_there() {
        let bench = Bench::new(&fixture());
        for (snapshot, _) in bench.world.lock().snapshots.values_mut() {
            snapshot.kms_key = Some("arn:aws:kms:us-east-1:1:key/a".into());
        }
        assert_eq!(bench.refused::<Copy>().await, "no_kms_key");
    }

    #[tokio::test]
    async fn a_strange_snapshot_of_that_name_is_not_ours() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<Copy>().await;
        Copy::apply(&bench.write, &intent).await.expect("applied");
        bench.world.lock().snapshots.get_mut(&("west".to_owned(), intent.copy.id.clone())).expect("copy").0.tags.clear();
        assert!(matches!(Copy::observe(&bench.read, &intent).await, Seen::Differs { .. }));
        assert!(matches!(Copy::apply(&bench.write, &intent).await, Err(ApplyError::Definite(f)) if f.code == "conflict"));
    }
}
