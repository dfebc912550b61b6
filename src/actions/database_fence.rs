//! `database.fence`: make sure that a region acknowledges no more writes, and prove it.
//!
//! **What it does.** It takes the write lease from everybody, by compare-and-swap on the lease's epoch.
//! Writers acknowledge only while they hold the lease, by their own clock, and it is granted outside the
//! region that is fenced: when the last grant has run out, no write is acknowledged there any more,
//! whether the region is dead, cut off, or frozen and about to thaw. That moment, as the authority's own
//! clock tells it, is the proof `lease_expired`. A look at processes or a ping that is not answered is
//! never one. With `planned`, the primary is also made read-only and its sessions are ended, and the
//! last position of its log becomes part of the proof `read_only`: what is promoted must have replayed it.
//! There the lease need not run out first: what holds it can commit nothing.
//!
//! **Half-done** it is between the lease and the read-only switch, or while a grant runs out. The intent
//! holds the epoch that it expects: an authority that is at this epoch was never changed (`Absent`), one
//! that is exactly one further and allows nobody was changed by us. Either part may be done again.
//!
//! **Undone** it is by allowing the region again: only while no other region's server has left recovery,
//! asked of each; one that cannot be asked may have been promoted, and then a person decides.

use super::{
    contract::*,
    proof::{FenceProof, ProofKind},
    shared::*,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// The region that shall acknowledge no more writes.
    pub region: RegionName,
    /// The primary is healthy and can be asked: make it read-only too, and note its last position, so
    /// that nothing is lost.
    #[serde(default)]
    pub planned: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    database: DatabaseName,
    region: RegionName,
    planned: bool,
    expect_epoch: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// Absent only while the fence is still closing.
    pub proof: Option<FenceProof>,
}

pub struct Fence;

impl Action for Fence {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.fence",
            version: 1,
            summary: "Make sure that a region acknowledges no more writes to a database, and prove it",
            effect: Effect::Repeatable,
            danger: Danger::Reversible,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(120),
            example: "id: fence\nuses: database.fence\nwith: { database: predictions, region: east }\n",
        }
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        let planned = text(with, "planned").is_some_and(|t| t == "true")
            || matches!(with.get("planned").map(|n| &n.value), Some(crate::model::node::NodeValue::Typed(v)) if *v == true);
        let primary = planned.then(|| reach(with, "region", Plane::Data)).flatten();
        std::iter::once(reach_here()).chain(primary).collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database: name, region, planned } = input;
        if !database(cx, &name)?.instances.contains_key(&region) {
            return Err(Refusal::no("no_instance", format!("database `{name}` has no instance in region `{region}`")));
        }
        if database(cx, &name)?.lease.is_none() {
            return Err(Refusal::no("no_lease", format!("database `{name}` has no write lease, so nothing proves that `{region}` is fenced"))
                .remedy(format!("give databases.{name}.lease a lease authority outside its regions (docs/lease.md)")));
        }
        let lease = cx.world.lease(name.as_str())?.lease().await?;
        if let Some(other) = lease.allowed.as_deref().filter(|a| *a != region.as_str()) {
            return Err(Refusal::no("not_the_writer", format!("`{other}`, not `{region}`, may write to `{name}`; fencing would stop `{other}`"))
                .remedy("fence the region that holds the lease, or leave this step out"));
        }
        if planned {
            let state = cx.world.sql(name.as_str(), region.as_str())?.state().await?;
            if state.in_recovery {
                return Err(Refusal::no("not_primary", format!("the server of `{name}` in `{region}` is a standby, not the primary")));
            }
        }
        let allowed = lease.allowed.clone().unwrap_or_else(|| "nobody".into());
        let mut all = vec![change(format!("write lease of {name}"), Some(allowed), Some("nobody".into()))];
        if planned {
            all.push(change(format!("{name} in {region}"), Some("read-write".into()), Some("read-only, sessions ended".into())));
        }
        let notes = vec![format!("epoch {}; grants are good for {} ms, {} ms are left", lease.epoch, lease.ttl_ms, lease.remaining_ms)];
        Ok(Prepared { intent: Intent { database: name, region, planned, expect_epoch: lease.epoch }, change: all, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let lease = cx.world()?.lease_mut(intent.database.as_str())?;
        match lease.allow(None, intent.expect_epoch).await {
            Ok(_) => {}
            Err(PortError::Conflict { found }) => {
                let now = lease.lease().await.map_err(ApplyError::from)?;
                if !ours(&now, intent) {
                    return Err(fail("lease_moved", format!("the lease of `{}` was changed by someone else: {found}", intent.database)));
                }
            }
            Err(e) => return Err(e.into()),
        }
        if intent.planned {
            // The lease is taken already: from here on a failure leaves something done.
            let sql = cx.world()?.sql_mut(intent.database.as_str(), intent.region.as_str())?;
            sql.make_read_only().await.map_err(|e| ApplyError::Unknown(failure(&e)))?;
        }
        Ok(Output { proof: None })
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let lease = match cx.world.lease(intent.database.as_str()) {
            Ok(lease) => lease.lease().await,
            Err(e) => Err(e),
        };
        let lease = match lease {
            Ok(lease) => lease,
            Err(e) => return cannot_tell(&e),
        };
        if lease.epoch == intent.expect_epoch {
            return Seen::Absent;
        }
        if !ours(&lease, intent) {
            let allowed = lease.allowed.as_deref().unwrap_or("nobody");
            return Seen::Differs { found: format!("the lease is at epoch {}, allowed to {allowed}", lease.epoch) };
        }
        if intent.planned { read_only(cx, intent, &lease).await } else { expired(intent, &lease) }
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        let lease = cx.world()?.lease_mut(intent.database.as_str())?;
        let now = lease.lease().await?;
        let again = now.epoch == intent.expect_epoch + 2 && now.allowed.as_deref() == Some(intent.region.as_str());
        if now.epoch == intent.expect_epoch {
            return Ok(());
        }
        if !again && !ours(&now, intent) {
            return Err(fail("lease_moved", format!("the lease of `{}` was changed since (epoch {})", intent.database, now.epoch)));
        }
        none_promoted(cx, intent).await?;
        if intent.planned {
            cx.world()?.sql_mut(intent.database.as_str(), intent.region.as_str())?.make_writable().await?;
        }
        if !again {
            lease.allow(Some(intent.region.as_str()), now.epoch).await?;
        }
        Ok(())
    }
}

fn ours(lease: &LeaseState, intent: &Intent) -> bool {
    lease.epoch == intent.expect_epoch + 1 && lease.allowed.is_none()
}

fn expired(intent: &Intent, lease: &LeaseState) -> Seen<Output> {
    if lease.remaining_ms > 0 {
        // Asked a little after the end, and at least now and then on the way.
        return pending(lease.remaining_ms.clamp(5, 500), format!("a grant is good for {} ms more", lease.remaining_ms));
    }
    let detail = format!("lease allowed to nobody since epoch {}; no grant is left", lease.epoch);
    done(intent, lease, ProofKind::LeaseExpired, None, detail)
}

async fn read_only(cx: &ReadCx, intent: &Intent, lease: &LeaseState) -> Seen<Output> {
    let look = async {
        let sql = cx.world.sql(intent.database.as_str(), intent.region.as_str())?;
        // Sessions first: the position must be one that nobody can add an acknowledged write to.
        let sessions = sql.sessions().await?;
        Ok::<_, PortError>((sessions, sql.state().await?))
    };
    match look.await {
        Err(e) => cannot_tell(&e),
        Ok((_, state)) if !state.read_only => Seen::Absent,
        Ok((sessions, _)) if sessions > 0 && lease.remaining_ms > 0 => pending(50, format!("{sessions} sessions are still open")),
        Ok((_, state)) => {
            let detail = format!("read-only at {}, its sessions ended, lease allowed to nobody since epoch {}", state.position, lease.epoch);
            done(intent, lease, ProofKind::ReadOnly, Some(state.position), detail)
        }
    }
}

fn done(intent: &Intent, lease: &LeaseState, kind: ProofKind, lsn: Option<Lsn>, detail: String) -> Seen<Output> {
    let (database, region) = (intent.database.clone(), intent.region.clone());
    Seen::Done(Output { proof: Some(FenceProof { kind, database, region, epoch: lease.epoch, at: lease.now, expires: None, lsn, detail }) })
}

/// Every other region's server must say that it is still a standby.
async fn none_promoted(cx: &WriteCx, intent: &Intent) -> Result<(), ApplyError> {
    let others = database(cx, &intent.database).map_err(definite)?.instances.keys().filter(|r| **r != intent.region);
    for region in others {
        let state = match cx.read.world.sql(intent.database.as_str(), region.as_str()) {
            Ok(sql) => sql.state().await,
            Err(e) => Err(e),
        };
        if !state.as_ref().is_ok_and(|s| s.in_recovery) {
            let why = state.err().map_or_else(|| "it is no standby any more".to_owned(), |e| e.to_string());
            let message = format!("`{}` in `{region}` may have been promoted ({why}); the fence stays closed", intent.database);
            return Err(ApplyError::Definite(Failure::new("promoted", message).remedy("decide by hand which region shall write")));
        }
    }
    Ok(())
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "database": "predictions", "region": "east" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    #[tokio::test]
    async fn a_frozen_region_is_fenced_by_time_alone() {
        let bench = Bench::new(&fixture()).down("east");
        let out = bench.run::<Fence>().await.expect("fenced");
        let proof = out.proof.expect("a proof");
        assert_eq!((proof.kind, proof.epoch), (ProofKind::LeaseExpired, 4));
        assert!(bench.elapsed_ms() >= 1_000, "the grant was good for a second");
    }

    #[tokio::test]
    async fn a_planned_fence_notes_the_last_position() {
        let bench = Bench::new(&Fixture::new(json!({ "database": "predictions", "region": "east", "planned": true })));
        let proof = bench.run::<Fence>().await.expect("fenced").proof.expect("a proof");
        assert_eq!(proof.kind, ProofKind::ReadOnly);
        assert_eq!(proof.lsn, Some(Lsn(0x0300_0000)));
        assert!(bench.elapsed_ms() < 1_000, "it need not wait for the lease");
    }

    #[tokio::test]
    async fn the_wrong_region_is_not_fenced() {
        let bench = Bench::new(&Fixture::new(json!({ "database": "predictions", "region": "west" })));
        assert_eq!(bench.refused::<Fence>().await, "not_the_writer");
    }

    #[tokio::test]
    async fn undo_keeps_closed_what_may_have_been_promoted() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<Fence>().await;
        Fence::apply(&bench.write, &intent).await.expect("applied");
        bench.world.lock().down.insert("west".into());
        let refused = Fence::undo(&bench.write, &intent, None).await;
        assert!(matches!(refused, Err(ApplyError::Definite(f)) if f.code == "promoted"));
        bench.world.lock().down.clear();
        Fence::undo(&bench.write, &intent, None).await.expect("undone");
        assert_eq!(bench.world.lock().leases["predictions"].allowed.as_deref(), Some("east"));
    }
}
