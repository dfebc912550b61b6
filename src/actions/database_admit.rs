//! `database.admit`: let the writers of a region in, after its server was promoted.
//!
//! **What it does.** It allows the region to hold the write lease, by compare-and-swap on the epoch, makes
//! the server writable if it was made read-only, and proves with a row of Muster's own that it takes a
//! write. It stands apart from `database.promote` because it must happen only when the promotion is
//! complete, and because each of the two can be recognised by itself after a crash.
//!
//! **Half-done** it is between the switch and the lease: the server is made writable first, so that whoever
//! is granted the lease can use it. The epoch tells the rest: as expected, nothing happened; one further
//! and allowed to this region, it did; anything else was somebody else, and a person must look.
//!
//! **Undone** it is by allowing nobody again, by the same compare-and-swap.

use super::{contract::*, proof::FenceProof, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// The region whose writers may write from now on.
    pub region: RegionName,
    /// The proof under which the region was promoted: nobody else must have changed the lease since.
    #[serde(default)]
    pub proof: Option<FenceProof>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    database: DatabaseName,
    region: RegionName,
    expect_epoch: u64,
    /// The lease is allowed to this region already.
    held: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub region: RegionName,
    /// The lease's epoch from now on.
    pub epoch: u64,
}

pub struct Admit;

impl Action for Admit {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.admit",
            version: 1,
            summary: "Allow a promoted region's writers to write",
            effect: Effect::Repeatable,
            danger: Danger::Reversible,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(60),
            example: "id: admit\nuses: database.admit\nwith: { database: predictions, region: west, proof: \"{{ steps.fence.proof }}\" }\n",
        }
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        reach(with, "region", Plane::Data).into_iter().chain([reach_here()]).collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database: name, region, proof } = input;
        database(cx, &name)?;
        let state = cx.world.sql(name.as_str(), region.as_str())?.state().await?;
        if state.in_recovery {
            return Err(Refusal::no("not_promoted", format!("the server of `{name}` in `{region}` is still a standby"))
                .remedy("run `database.promote` first"));
        }
        let lease = cx.world.lease(name.as_str())?.lease().await?;
        let held = lease.allowed.as_deref() == Some(region.as_str());
        if let Some(other) = lease.allowed.as_deref().filter(|_| !held) {
            return Err(Refusal::no("allowed_elsewhere", format!("`{other}` may write to `{name}`; two regions must never")).remedy("fence it first with `database.fence`"));
        }
        if let Some(proof) = proof.filter(|p| !held && (p.epoch != lease.epoch || p.database != name)) {
            let message = format!("the lease of `{name}` moved on since the proof: epoch {} (proof: {})", lease.epoch, proof.epoch);
            return Err(Refusal::no("proof_void", message));
        }
        let mut changes = Vec::new();
        if !held {
            changes.push(change(format!("write lease of {name}"), Some("nobody".into()), Some(region.0.clone())));
        }
        if state.read_only {
            changes.push(change(format!("{name} in {region}"), Some("read-only".into()), Some("read-write".into())));
        }
        Ok(Prepared { intent: Intent { database: name, region, expect_epoch: lease.epoch, held }, change: changes, notes: Vec::new() })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let now = cx.read.world.lease(intent.database.as_str())?.lease().await?;
        if now.epoch != intent.expect_epoch && !admitted(&now, intent) {
            return Err(fail("lease_moved", format!("the lease of `{}` was changed since (epoch {})", intent.database, now.epoch)));
        }
        let sql = cx.world()?.sql_mut(intent.database.as_str(), intent.region.as_str())?;
        if sql.state().await?.read_only {
            sql.make_writable().await?;
        }
        sql.prove_writable(&cx.key).await?;
        if admitted(&now, intent) {
            return Ok(Output { region: intent.region.clone(), epoch: now.epoch });
        }
        let state = cx.world()?.lease_mut(intent.database.as_str())?.allow(Some(intent.region.as_str()), now.epoch).await?;
        Ok(Output { region: intent.region.clone(), epoch: state.epoch })
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let look = async {
            let lease = cx.world.lease(intent.database.as_str())?.lease().await?;
            let state = cx.world.sql(intent.database.as_str(), intent.region.as_str())?.state().await?;
            Ok::<_, PortError>((lease, state))
        };
        match look.await {
            Err(e) => cannot_tell(&e),
            Ok((lease, state)) if admitted(&lease, intent) && !state.read_only => {
                Seen::Done(Output { region: intent.region.clone(), epoch: lease.epoch })
            }
            Ok((lease, _)) if admitted(&lease, intent) || lease.epoch == intent.expect_epoch => Seen::Absent,
            Ok((lease, _)) => {
                let allowed = lease.allowed.as_deref().unwrap_or("nobody");
                Seen::Differs { found: format!("the lease is at epoch {}, allowed to {allowed}", lease.epoch) }
            }
        }
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        let lease = cx.world()?.lease_mut(intent.database.as_str())?;
        let now = lease.lease().await?;
        if intent.held || now.epoch == intent.expect_epoch || (now.epoch == intent.expect_epoch + 2 && now.allowed.is_none()) {
            return Ok(());
        }
        if !admitted(&now, intent) {
            return Err(fail("lease_moved", format!("the lease of `{}` was changed since (epoch {})", intent.database, now.epoch)));
        }
        lease.allow(None, now.epoch).await?;
        Ok(())
    }
}

fn admitted(lease: &LeaseState, intent: &Intent) -> bool {
    let epoch = intent.expect_epoch + u64::from(!intent.held);
    lease.epoch == epoch && lease.allowed.as_deref() == Some(intent.region.as_str())
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::promoted(serde_json::json!({ "database": "predictions", "region": "west", "proof": super::contract_tests::proof() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture, fenced};
    use serde_json::json;

    #[tokio::test]
    async fn a_standby_admits_nobody() {
        let bench = Bench::new(&fenced(json!({ "database": "predictions", "region": "west" })));
        assert_eq!(bench.refused::<Admit>().await, "not_promoted");
    }

    #[tokio::test]
    async fn the_region_that_writes_already_is_left_as_it_is() {
        let bench = Bench::new(&Fixture::new(json!({ "database": "predictions", "region": "east" })));
        assert_eq!(bench.run::<Admit>().await.expect("admitted").epoch, 3);
    }

    #[tokio::test]
    async fn two_regions_are_never_admitted() {
        let bench = Bench::new(&fixture());
        bench.world.lock().leases.get_mut("predictions").expect("lease").allowed = Some("east".into());
        assert_eq!(bench.refused::<Admit>().await, "allowed_elsewhere");
    }
}
