//! `database.promote`: make a replica the primary. The most dangerous thing that Muster does: with the
//! old primary still writing there would be two histories.
//!
//! **What it does.** One call to the control plane of the surviving region, or, to a server of one's own, `pg_promote`. It wants a fence proof, and
//! asks the lease authority again, when it prepares and just before it promotes, whether the proof still
//! holds: same epoch, allowed to nobody, no grant left. A planned proof names the old primary's last log
//! position; the promotion waits until the replica has replayed it and refuses otherwise, so that
//! a switchover loses nothing. It does not let the writers in: that is `database.admit`, afterwards.
//!
//! **Half-done** it is while the instance is `modifying`, for seconds or minutes, whoever watches. Still
//! a replica and available: it did not happen. On its own, with the same resource id (never reused, unlike
//! the name), and its server out of recovery: it happened. The timelines before and after are on record.
//!
//! A standby that has just lost its receiver sits out `wal_retrieve_retry_interval` (5 s unless set) before it takes
//! notice of a promotion: on a server of one's own that is made short first, and stays so.
//!
//! **Undoing** is not possible: a promoted server becomes a replica again by `database.rejoin`.

use super::{
    contract::*,
    own_server::{self, QUICK_RETRY, RETRY_INTERVAL, SLOW_RETRY_MS, is_own, not_patronis, setting_ms, state_of},
    patroni,
    proof::{FenceProof, still_holds},
    shared::*,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// Where the replica is that becomes the primary.
    pub region: RegionName,
    /// What `database.fence` gave: `{{ steps.fence.proof }}`. Without it nothing is promoted.
    #[serde(default)]
    pub proof: Option<FenceProof>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    pub(super) database: DatabaseName,
    pub(super) region: RegionName,
    pub(super) instance: String,
    pub(super) resource_id: String,
    pub(super) timeline_before: u32,
    proof: FenceProof,
    /// A server of one's own: promoted by SQL. `resource_id` is then its cluster's identifier.
    #[serde(default)]
    own: bool,
    /// Its `wal_retrieve_retry_interval` is made short.
    #[serde(default)]
    hurry: bool,
    /// Patroni is asked to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    patroni: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub instance: String,
    pub timeline_before: u32,
    /// `null` until the server has left recovery.
    pub timeline_after: Option<u32>,
    /// The position of the log right after the promotion was seen.
    #[schemars(with = "Option<String>")]
    pub position: Option<Lsn>,
}

pub struct Promote;

impl Action for Promote {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.promote",
            version: 1,
            summary: "Make a database's replica the primary, given proof that the old one is fenced",
            effect: Effect::Observable,
            danger: Danger::Irreversible,
            undo: UndoPolicy::Manual,
            timeout: Span::from_secs(300),
            example: "id: promote\nuses: database.promote\nwith: { database: predictions, region: west, proof: \"{{ steps.fence.proof }}\" }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        let control = reach(with, "region", Plane::Control).filter(|_| !own(with, estate));
        [control, reach(with, "region", Plane::Data), Some(reach_here())].into_iter().flatten().collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database: name, region, proof } = input;
        let own = is_own(cx, &name)?;
        let instance = if own { format!("{name} in {region}") } else { instance_id(cx, &name, &region)? };
        let proof = proof.ok_or_else(|| {
            Refusal::no("not_fenced", format!("nothing proves that the old primary of `{name}` is fenced; promoting `{region}` could make two primaries"))
                .remedy("run `database.fence` first and give `proof: \"{{ steps.fence.proof }}\"`")
        })?;
        if patroni::managed(cx, &name, &region).is_some() {
            still_holds(cx, &proof, &name, &region).await?;
            return prepare_patroni(cx, name, region, instance, proof).await;
        }
        if own {
            // An outage may be waiting: the two machines are asked at once.
            let (held, patroni) = futures::join!(still_holds(cx, &proof, &name, &region), not_patronis(cx, &name, &region));
            held.and(patroni)?;
            return prepare_own(cx, name, region, instance, proof).await;
        }
        still_holds(cx, &proof, &name, &region).await?;
        let info = cx.world.instances(region.as_str())?.instance(&instance).await?;
        let info = info.ok_or_else(|| Refusal::no("no_instance", format!("there is no instance `{instance}` in region `{region}`")))?;
        if info.replicates_from.is_none() {
            return Err(Refusal::no("not_a_replica", format!("`{instance}` in `{region}` is no replica; there is nothing to promote")));
        }
        if info.status != "available" {
            return Err(Refusal::later("not_available", format!("`{instance}` in `{region}` is `{}`, not `available`", info.status)));
        }
        let state = caught_up(cx, &name, &region, proof.lsn).await?;
        let what = change(format!("{name} in {region}"), Some("replica".into()), Some("primary".into()));
        let notes = vec![format!("replayed up to {}; {}", state.position, proof.detail)];
        let intent =
            Intent { database: name, region, instance, resource_id: info.resource_id, timeline_before: state.timeline, proof, own, hurry: false, patroni: false };
        Ok(Prepared { intent, change: vec![what], notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        // Between prepare and now an approval may have waited for an hour.
        still_holds(cx, &intent.proof, &intent.database, &intent.region).await.map_err(definite)?;
        if intent.patroni {
            patroni::promote(cx, &intent.database, &intent.region).await?;
            return Ok(Output { instance: intent.instance.clone(), timeline_before: intent.timeline_before, timeline_after: None, position: None });
        }
        if intent.own {
            return promote_own(cx, intent).await;
        }
        cx.world()?.instances_mut(intent.region.as_str())?.promote(&intent.instance).await?;
        Ok(Output { instance: intent.instance.clone(), timeline_before: intent.timeline_before, timeline_after: None, position: None })
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        if intent.patroni {
            return own_server::seen(patroni::promoted(cx, intent)).await;
        }
        if intent.own {
            return match state_of(cx, &intent.database, &intent.region).await {
                Err(e) => cannot_tell(&e),
                Ok(state) if state.system_identifier != intent.resource_id => Seen::Differs { found: "another cluster answers there".into() },
                Ok(state) if state.in_recovery => Seen::Absent,
                Ok(state) => Seen::Done(promoted(intent, &state)),
            };
        }
        let info = match cx.world.instances(intent.region.as_str()) {
            Ok(instances) => instances.instance(&intent.instance).await,
            Err(e) => Err(e),
        };
        match info {
            Err(e) => cannot_tell(&e),
            Ok(None) => Seen::Differs { found: format!("there is no instance `{}` any more", intent.instance) },
            Ok(Some(info)) if info.resource_id != intent.resource_id => {
                Seen::Differs { found: format!("`{}` is another instance now: {}", info.id, info.resource_id) }
            }
            Ok(Some(info)) if info.status != "available" => pending(200, format!("the instance is `{}`", info.status)),
            Ok(Some(info)) => out_of_recovery(cx, intent, info.replicates_from.is_some()).await,
        }
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        match Self::observe(cx, intent).await {
            Seen::Absent => Ok(()),
            Seen::CannotTell { why } => Err(unseen(&format!("`{}` in `{}` was promoted", intent.database, intent.region), &why)),
            _ => Err(ApplyError::Definite(
                Failure::new("irreversible", format!("the promotion of `{}` in `{}` cannot be taken back", intent.database, intent.region))
                    .remedy("make the other region follow it with `database.rejoin`, then switch back as planned"),
            )),
        }
    }
}

async fn prepare_own(cx: &ReadCx, name: DatabaseName, region: RegionName, instance: String, proof: FenceProof) -> Result<Prepared<Intent>, Refusal> {
    let state = caught_up(cx, &name, &region, proof.lsn).await?;
    if state.replay_paused {
        return Err(Refusal::no("replay_paused", format!("the replay of `{name}` in `{region}` is paused: promoted now, it would lack what it has received"))
            .remedy("SELECT pg_wal_replay_resume()"));
    }
    let retry = cx.world.cluster(name.as_str(), region.as_str())?.settings(&[RETRY_INTERVAL]).await?.remove(RETRY_INTERVAL).unwrap_or_default();
    let hurry = setting_ms(&retry).is_none_or(|ms| ms > SLOW_RETRY_MS);
    let mut all = vec![change(format!("{name} in {region}"), Some("standby".into()), Some("primary".into()))];
    if hurry {
        all.push(change(format!("{RETRY_INTERVAL} of {name} in {region}"), Some(retry), Some(QUICK_RETRY.into())));
    }
    let notes = vec![format!("replayed up to {}; {}", state.position, proof.detail)];
    let timeline_before = state.timeline;
    Ok(Prepared { intent: Intent { database: name, region, instance, resource_id: state.system_identifier, timeline_before, proof, own: true, hurry, patroni: false }, change: all, notes })
}

/// The leader of a standby cluster becomes a primary when Patroni is told to follow nobody.
async fn prepare_patroni(cx: &ReadCx, name: DatabaseName, region: RegionName, instance: String, proof: FenceProof) -> Result<Prepared<Intent>, Refusal> {
    let leader = patroni::promotable(cx, &name, &region, proof.lsn).await?;
    let all = vec![change(format!("{name} in {region}"), Some("standby cluster".into()), Some("primary".into()))];
    let notes = vec![format!("Patroni promotes `{}`, which has replayed {}; {}", leader.name, leader.position.unwrap_or_default(), proof.detail)];
    let (resource_id, timeline_before) = (leader.system_identifier.unwrap_or_default(), leader.timeline.unwrap_or_default());
    Ok(Prepared { intent: Intent { database: name, region, instance, resource_id, timeline_before, proof, own: true, hurry: false, patroni: true }, change: all, notes })
}

async fn promote_own(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
    let cluster = cx.world()?.cluster_mut(intent.database.as_str(), intent.region.as_str())?;
    if intent.hurry && state_of(cx, &intent.database, &intent.region).await?.in_recovery {
        cluster.set(RETRY_INTERVAL, Some(QUICK_RETRY)).await?;
    }
    cx.world()?;
    let state = cluster.promote(Duration::from_mins(1).min(cx.deadline)).await?;
    Ok(promoted(intent, &state))
}

fn promoted(intent: &Intent, state: &ServerState) -> Output {
    Output {
        instance: intent.instance.clone(),
        timeline_before: intent.timeline_before,
        timeline_after: Some(state.timeline),
        position: Some(state.position),
    }
}

/// The server's own word decides; the control plane may lag behind it.
async fn out_of_recovery(cx: &ReadCx, intent: &Intent, replicates: bool) -> Seen<Output> {
    let state = match cx.world.sql(intent.database.as_str(), intent.region.as_str()) {
        Ok(sql) => sql.state().await,
        Err(e) => Err(e),
    };
    match state {
        Ok(state) if !state.in_recovery => Seen::Done(promoted(intent, &state)),
        _ if replicates => Seen::Absent,
        Ok(_) => pending(100, "the instance stands on its own, its server is still in recovery"),
        Err(PortError::Unreachable(why)) => pending(200, format!("the promoted server does not answer yet: {why}")),
        Err(e) => cannot_tell(&e),
    }
}

/// Waits, within bounds, for a planned proof's position to be replayed.
async fn caught_up(cx: &ReadCx, name: &DatabaseName, region: &RegionName, lsn: Option<Lsn>) -> Result<ServerState, Refusal> {
    let clock = cx.world.clock();
    let sql = cx.world.sql(name.as_str(), region.as_str())?;
    let until = clock.monotonic() + cx.deadline.min(Duration::from_mins(1));
    loop {
        let state = sql.state().await?;
        if !state.in_recovery {
            return Err(Refusal::no("not_a_replica", format!("the server of `{name}` in `{region}` is not in recovery: it is a primary already")));
        }
        match lsn {
            Some(lsn) if state.position < lsn => {
                if clock.monotonic() >= until {
                    let message = format!("`{name}` in `{region}` has replayed {}, the old primary ended at {lsn}", state.position);
                    return Err(Refusal::later("not_caught_up", message).remedy("promoting now would lose the writes between"));
                }
                clock.sleep(Duration::from_millis(20)).await;
            }
            _ => return Ok(state),
        }
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::fenced(serde_json::json!({ "database": "predictions", "region": "west", "proof": super::contract_tests::proof() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, fenced, proof};
    use serde_json::json;

    #[tokio::test]
    async fn without_a_proof_nothing_is_promoted() {
        let bench = Bench::new(&fenced(json!({ "database": "predictions", "region": "west" })));
        assert_eq!(bench.refused::<Promote>().await, "not_fenced");
    }

    #[tokio::test]
    async fn a_proof_is_void_for_another_region_database_or_epoch() {
        // Nor when it has run out.
        let past = json!("2020-01-01T00:00:00Z");
        for (field, value) in [("region", json!("west")), ("database", json!("other")), ("epoch", json!(3)), ("expires", past)] {
            let mut wrong = serde_json::to_value(proof()).expect("json");
            wrong[field] = value;
            let bench = Bench::new(&fenced(json!({ "database": "predictions", "region": "west", "proof": wrong })));
            assert_eq!(bench.refused::<Promote>().await, "proof_void", "{field}");
        }
    }

    #[tokio::test]
    async fn a_lease_that_moved_after_prepare_stops_the_promotion() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<Promote>().await;
        bench.world.lock().leases.get_mut("predictions").expect("lease").epoch += 1;
        assert!(matches!(Promote::apply(&bench.write, &intent).await, Err(ApplyError::Definite(f)) if f.code == "proof_void"));
    }

    #[tokio::test]
    async fn a_planned_promotion_waits_for_the_last_position() {
        let mut planned = proof();
        planned.kind = crate::actions::proof::ProofKind::ReadOnly;
        planned.lsn = Some(Lsn(0x0300_0001));
        let bench = Bench::new(&fenced(json!({ "database": "predictions", "region": "west", "proof": planned })));
        bench.world.lock().servers.get_mut(&("predictions".into(), "east".into())).expect("east").state.read_only = true;
        assert_eq!(bench.refused::<Promote>().await, "not_caught_up");
        bench.world.lock().servers.get_mut(&("predictions".into(), "west".into())).expect("west").state.position = Lsn(0x0300_0001);
        let out = bench.run::<Promote>().await.expect("promoted");
        assert_eq!((out.timeline_before, out.timeline_after), (1, Some(2)));
    }
}
