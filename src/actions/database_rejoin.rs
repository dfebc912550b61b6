//! `database.rejoin`: make the old primary a replica of the new one.
//!
//! **What it does.** What the old primary wrote and nobody acknowledged (or what was stranded there) cannot
//! be merged, so the instance is deleted, keeping its last state as a final snapshot, and a read replica of
//! the new primary is created under the same identifier. It refuses unless the write lease is allowed to
//! the new primary's region, and the instance that would be deleted is not the one that serves.
//!
//! **Half-done** it is in three places: still deleting, deleted but not yet created, still creating. The
//! intent holds the old instance's resource id, which is never reused: that id there and not leaving means
//! that nothing happened; leaving, or another id that is not yet streaming, means wait; no instance at all
//! means that the second half is missing, and `apply`, which looks before each half, goes on with just that.
//!
//! A PostgreSQL server of one's own keeps its machine and its directory: `rejoin_own.rs` says how it comes back.
//!
//! **Undone** it cannot be; the final snapshot keeps what was there.

use super::{
    contract::*,
    own_server::is_own,
    rejoin_own::{self as own, How, OwnIntent},
    shared::{self, *},
    stranded::Stranded,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// Where the old primary is (or was).
    pub region: RegionName,
    /// Where the new primary is.
    pub primary: RegionName,
    /// Of a server of one's own that must be copied: where a tablespace goes on its machine, by its number, such as
    /// `{ 16385: /srv/fast }`; to `DATA.tablespaces/NUMBER` if left out.
    #[serde(default)]
    pub tablespaces: BTreeMap<String, PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Intent {
    Own(OwnIntent),
    Rds(RdsIntent),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RdsIntent {
    database: DatabaseName,
    region: RegionName,
    instance: String,
    /// `None`: there was no instance.
    old_resource: Option<String>,
    primary_id: String,
    primary_arn: String,
    /// The provider's name of the primary's region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kms_key: Option<String>,
    final_snapshot: String,
    tags: BTreeMap<String, String>,
    /// It is a healthy replica of that primary already.
    nothing: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub instance: String,
    /// Where the old instance's last state is kept; `null` when there was nothing to keep.
    pub final_snapshot: Option<String>,
    /// How far the new replica has replayed; `null` until it streams.
    #[schemars(with = "Option<String>")]
    pub position: Option<Lsn>,
    /// How a server of one's own came back; `null` where this machine does not know, or nothing was to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub how: Option<How>,
    /// What only the old primary had; absent when there was nothing, or when that cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stranded: Option<Stranded>,
    /// Why it cannot be told what only the old primary had, such as a hole in its log; absent when it is known. Its
    /// directory is then not rewound, and stays whole (`old_directory`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stranded_unknown: Option<String>,
    /// Where the old directory stays, if a new base backup took its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_directory: Option<String>,
    /// Poolers that could not be led to the primary, in their own words: their clients are sent elsewhere, or wait.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poolers_left: Vec<String>,
}

pub struct Rejoin;

impl Action for Rejoin {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.rejoin",
            version: 1,
            summary: "Make the old primary a replica of the new one, keeping its last state as a snapshot",
            effect: Effect::Observable,
            danger: Danger::Irreversible,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(3600),
            example: "id: rejoin\nuses: database.rejoin\nwith: { database: predictions, region: east, primary: west }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        let there = |plane: &Plane| *plane == Plane::Data || !shared::own(with, estate);
        let planes = || [Plane::Control, Plane::Data].into_iter().filter(there);
        let region: Vec<_> = planes().map(|plane| reach(with, "region", plane)).collect();
        let primary = planes().map(|plane| reach(with, "primary", plane));
        region.into_iter().chain(primary).flatten().chain([reach_here()]).collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database: name, region, primary, tablespaces } = input;
        if region == primary {
            return Err(Refusal::no("same_region", format!("`{region}` cannot be a replica of itself")));
        }
        if is_own(cx, &name)? {
            let prepared = own::prepare(cx, name, region, primary, &tablespaces).await?;
            return Ok(Prepared { intent: Intent::Own(prepared.intent), change: prepared.change, notes: prepared.notes });
        }
        let (instance, primary_id) = (instance_id(cx, &name, &region)?, instance_id(cx, &name, &primary)?);
        may_be_replaced(cx, &name, &region, &primary).await?;
        let source = cx.world.instances(primary.as_str())?.instance(&primary_id).await?;
        let source = source.ok_or_else(|| Refusal::no("no_instance", format!("there is no instance `{primary_id}` in region `{primary}`")))?;
        let old = cx.world.instances(region.as_str())?.instance(&instance).await?;
        let mut intent = RdsIntent {
            final_snapshot: rds_name(&["muster", name.as_str(), "final", &short_key(cx)]),
            tags: [("muster-key".to_owned(), cx.key.clone()), ("muster-run".to_owned(), cx.run.0.clone())].into(),
            // The key of its own region, as it had it before.
            kms_key: old.as_ref().and_then(|o| o.kms_key.clone()),
            old_resource: old.as_ref().map(|o| o.resource_id.clone()),
            primary_arn: source.arn,
            primary_id,
            database: name,
            region,
            instance,
            nothing: false,
        };
        intent.nothing = match &old {
            Some(old) => replica_of(old, &intent) && old.status == "available" && streams(cx, &intent).await.is_ok_and(|s| s.is_some()),
            None => false,
        };
        let mut changes = Vec::new();
        if !intent.nothing {
            let from = old.map(|_| format!("deleted, its last state kept as snapshot {}", intent.final_snapshot));
            changes.push(change(format!("{} in {}", intent.instance, intent.region), from, Some(format!("replica of {}", intent.primary_id))));
        }
        let notes = if intent.nothing { vec!["it is a healthy replica of that primary already".to_owned()] } else { Vec::new() };
        Ok(Prepared { intent: Intent::Rds(intent), change: changes, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let intent = match intent {
            Intent::Own(intent) => return own::apply(cx, intent).await.map(own_output),
            Intent::Rds(intent) => intent,
        };
        if !intent.nothing {
            let instances = cx.world()?.instances_mut(intent.region.as_str())?;
            remove_old(cx, intent, &*instances).await?;
            if instances.instance(&intent.instance).await?.is_none() {
                // The permit is asked again: deleting may have taken minutes.
                let instances = cx.world()?.instances_mut(intent.region.as_str())?;
                let new = NewInstance { id: intent.instance.clone(), tags: intent.tags.clone(), ..NewInstance::default() };
                instances.create_replica(&intent.primary_arn, intent.kms_key.as_deref(), &new).await?;
            }
        }
        Ok(output(intent, None))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let intent = match intent {
            Intent::Own(intent) => {
                return match own::observe(cx, intent).await {
                    Seen::Done(rejoined) => Seen::Done(own_output(rejoined)),
                    Seen::Absent => Seen::Absent,
                    Seen::Pending { poll_after_ms, note } => Seen::Pending { poll_after_ms, note },
                    Seen::Differs { found } => Seen::Differs { found },
                    Seen::CannotTell { why } => Seen::CannotTell { why },
                };
            }
            Intent::Rds(intent) => intent,
        };
        let info = match cx.world.instances(intent.region.as_str()) {
            Ok(instances) => instances.instance(&intent.instance).await,
            Err(e) => Err(e),
        };
        match info {
            Err(e) => cannot_tell(&e),
            Ok(None) => Seen::Absent,
            Ok(Some(info)) if info.status == "deleting" => pending(500, "the old instance is being deleted"),
            Ok(Some(info)) if !intent.nothing && Some(&info.resource_id) == intent.old_resource.as_ref() => Seen::Absent,
            Ok(Some(info)) if !replica_of(&info, intent) => {
                Seen::Differs { found: format!("`{}` replicates from {:?}", info.id, info.replicates_from) }
            }
            Ok(Some(info)) if info.status != "available" => pending(500, format!("the replica is `{}`", info.status)),
            Ok(Some(_)) => match streams(cx, intent).await {
                Ok(Some(position)) => Seen::Done(output(intent, Some(position))),
                Ok(None) => pending(200, "the replica does not stream yet"),
                Err(PortError::Unreachable(why)) => pending(500, format!("the replica does not answer yet: {why}")),
                Err(e) => cannot_tell(&e),
            },
        }
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        let seen = Self::observe(cx, intent).await;
        let intent = match intent {
            // Until it is rewound the old directory is as it was; afterwards it follows, and harms nobody.
            Intent::Own(_) => return Ok(()),
            Intent::Rds(intent) => intent,
        };
        if let Seen::CannotTell { why } = &seen
            && !intent.nothing
        {
            return Err(unseen(&format!("`{}` was replaced", intent.instance), why));
        }
        let untouched = intent.nothing || (seen == Seen::Absent && intent.old_resource == current(cx, intent).await?);
        if untouched {
            return Ok(());
        }
        Err(ApplyError::Definite(
            Failure::new("irreversible", format!("the old instance `{}` was deleted", intent.instance))
                .remedy(format!("its last state is in snapshot {}", intent.final_snapshot)),
        ))
    }

    fn warnings(output: &Output) -> Vec<String> {
        let unknown = output.stranded_unknown.iter().map(|why| {
            let kept = output.old_directory.as_deref().map(|old| format!("; it stays whole in {old}")).unwrap_or_default();
            format!("nobody can tell what only the old primary had, and no file lists it: {why}{kept}")
        });
        let left = output.poolers_left.iter().map(|left| format!("a pooler was not led to the primary: {left}"));
        unknown.chain(left).collect()
    }
}

impl PartialEq for Output {
    fn eq(&self, other: &Self) -> bool {
        let of = |o: &Self| (o.instance.clone(), o.final_snapshot.clone(), o.position, o.how, o.stranded.clone(), o.old_directory.clone());
        of(self) == of(other) && (&self.stranded_unknown, &self.poolers_left) == (&other.stranded_unknown, &other.poolers_left)
    }
}

fn output(intent: &RdsIntent, position: Option<Lsn>) -> Output {
    let kept = !intent.nothing && intent.old_resource.is_some();
    let final_snapshot = kept.then(|| intent.final_snapshot.clone());
    let instance = intent.instance.clone();
    Output { instance, final_snapshot, position, how: None, stranded: None, stranded_unknown: None, old_directory: None, poolers_left: Vec::new() }
}

fn own_output(rejoined: own::Rejoined) -> Output {
    let own::Rejoined { instance, position, how, old_directory, stranded, unknown, poolers_left } = rejoined;
    Output { instance, final_snapshot: None, position, how, stranded, stranded_unknown: unknown, old_directory, poolers_left }
}

fn replica_of(info: &InstanceInfo, intent: &RdsIntent) -> bool {
    info.replicates_from.as_ref().is_some_and(|source| *source == intent.primary_id || *source == intent.primary_arn)
}

async fn current(cx: &WriteCx, intent: &RdsIntent) -> Result<Option<String>, ApplyError> {
    let instances = cx.read.world.instances(intent.region.as_str())?;
    Ok(instances.instance(&intent.instance).await?.map(|i| i.resource_id))
}

/// How far the replica has replayed, if it streams.
async fn streams(cx: &ReadCx, intent: &RdsIntent) -> PortResult<Option<Lsn>> {
    let state = cx.world.sql(intent.database.as_str(), intent.region.as_str())?.state().await?;
    Ok((state.in_recovery && state.streaming).then_some(state.position))
}

/// The new primary serves, and the old one is fenced: the lease is allowed to the new one's region alone.
async fn may_be_replaced(cx: &ReadCx, name: &DatabaseName, region: &RegionName, primary: &RegionName) -> Result<(), Refusal> {
    let state = cx.world.sql(name.as_str(), primary.as_str())?.state().await?;
    if state.in_recovery {
        return Err(Refusal::no("not_primary", format!("the server of `{name}` in `{primary}` is a standby, not the primary")));
    }
    let lease = cx.world.lease(name.as_str())?.lease().await?;
    if lease.allowed.as_deref() == Some(primary.as_str()) {
        return Ok(());
    }
    let allowed = lease.allowed.as_deref().unwrap_or("nobody");
    Err(Refusal::no("not_fenced", format!("the write lease of `{name}` is allowed to {allowed}, not to `{primary}`; the instance in `{region}` is not deleted"))
        .remedy("fence the old primary, promote the new one and admit its writers first"))
}

/// Deletes the instance that the intent is about, if it is still there, and waits until it is gone.
async fn remove_old(cx: &WriteCx, intent: &RdsIntent, instances: &dyn InstanceWrite) -> Result<(), ApplyError> {
    let clock = cx.read.world.clock();
    let until = clock.monotonic() + cx.deadline.saturating_sub(Duration::from_secs(1));
    let mut asked = false;
    while let Some(info) = instances.instance(&intent.instance).await.map_err(|e| unsure(asked, e))? {
        if Some(&info.resource_id) != intent.old_resource.as_ref() {
            return if replica_of(&info, intent) { Ok(()) } else { Err(fail("differs", format!("`{}` is another instance now", info.id))) };
        }
        if info.status != "deleting" {
            if asked {
                // Accepted, and not yet visible: never asked for twice.
                clock.sleep(Duration::from_millis(200)).await;
            } else {
                instances.delete(&intent.instance, Some(&intent.final_snapshot)).await?;
            }
        }
        asked = true;
        if clock.monotonic() >= until {
            return Err(ApplyError::Unknown(Failure::new("still_deleting", format!("`{}` is still being deleted", intent.instance))));
        }
        clock.sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// A question that fails after the deletion was accepted leaves something half-done.
fn unsure(asked: bool, error: PortError) -> ApplyError {
    if asked { ApplyError::Unknown(failure(&error)) } else { error.into() }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::failed_over(serde_json::json!({ "database": "predictions", "region": "east", "primary": "west" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture, promoted};
    use serde_json::json;

    #[tokio::test]
    async fn the_serving_primary_is_never_deleted() {
        let with = json!({ "database": "predictions", "region": "west", "primary": "east" });
        let bench = Bench::new(&promoted(with));
        assert_eq!(bench.refused::<Rejoin>().await, "not_fenced");
    }

    #[tokio::test]
    async fn a_healthy_replica_is_left_alone() {
        let bench = Bench::new(&Fixture::new(json!({ "database": "predictions", "region": "west", "primary": "east" })));
        let out = bench.run::<Rejoin>().await.expect("nothing to do");
        assert_eq!(out.final_snapshot, None);
        assert_eq!(bench.world.writes(), 0);
    }

    #[tokio::test]
    async fn stranded_writes_are_kept() {
        let bench = Bench::new(&fixture());
        let out = bench.run::<Rejoin>().await.expect("rejoined");
        let kept = out.final_snapshot.expect("a snapshot");
        assert!(bench.world.lock().snapshots.contains_key(&("east".into(), kept)));
        assert!(out.position.is_some());
    }
}
