//! `database.admit`: let the writers of a region in, after its server was promoted.
//!
//! **What it does.** It allows the region to hold the write lease, by compare-and-swap on the epoch, makes
//! the server writable if it was made read-only, and proves with a row of Muster's own that it takes a
//! write. It stands apart from `database.promote` because it must happen only when the promotion is
//! complete, and because each of the two can be recognised by itself after a crash. A PostgreSQL server of one's own may
//! have no lease: then letting in is making it writable, and letting the roles log in that its predecessor's fence kept
//! out, which the promoted server has on record.
//!
//! **Half-done** it is between the switch and the lease: the server is made writable first, so that whoever
//! is granted the lease can use it. The epoch tells the rest: as expected, nothing happened; one further
//! and allowed to this region, it did; anything else was somebody else, and a person must look. Poolers say themselves where
//! they send their clients.
//!
//! **Undone** it is by allowing nobody again, by the same compare-and-swap. Poolers stay where they are: the server that they
//! pointed to before is dead.

use super::{contract::*, own_server::{is_own, other_primary}, poolers, proof::FenceProof, shared::*};
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
    /// `None`: there is no lease.
    expect_epoch: Option<u64>,
    /// The lease is allowed to this region already.
    held: bool,
    /// Roles that a fence keeps out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    roles: Vec<String>,
    /// Poolers stand before it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pooled: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub region: RegionName,
    /// The lease's epoch from now on; `null` where there is no lease.
    pub epoch: Option<u64>,
    /// Poolers of another region that did not answer, in their own words: they send their clients where they did before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poolers_left: Vec<String>,
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
        let leased = database(cx, &name)?.lease.is_some();
        let own = is_own(cx, &name)?;
        let state = cx.world.sql(name.as_str(), region.as_str())?.state().await?;
        if state.in_recovery {
            return Err(Refusal::no("not_promoted", format!("the server of `{name}` in `{region}` is still a standby"))
                .remedy("run `database.promote` first"));
        }
        // Where there is a lease it decides: an old primary that it fences may well answer, or be thawing, and is not waited for.
        if own && !leased && let Some(other) = other_primary(cx, &name, &region).await? {
            return Err(Refusal::no("allowed_elsewhere", format!("the server of `{name}` in `{other}` can be written to; two must never"))
                .remedy("fence it first with `database.fence`"));
        }
        let mut changes = Vec::new();
        let (mut expect_epoch, mut held) = (None, false);
        if leased || !own {
            let lease = cx.world.lease(name.as_str())?.lease().await?;
            held = may_be_let_in(&lease, &name, &region, proof.as_ref())?;
            expect_epoch = Some(lease.epoch);
            if !held {
                changes.push(change(format!("write lease of {name}"), Some("nobody".into()), Some(region.0.clone())));
            }
        }
        if state.read_only {
            changes.push(change(format!("{name} in {region}"), Some("read-only".into()), Some("read-write".into())));
        }
        let roles = if own { cx.world.cluster(name.as_str(), region.as_str())?.revoked().await? } else { Vec::new() };
        if !roles.is_empty() {
            changes.push(change(format!("{} in {name}", roles.join(", ")), Some("may not log in".into()), Some("may log in".into())));
        }
        let pooled = own && !database(cx, &name)?.poolers.is_empty();
        let (led, notes) = if pooled { poolers::foresee(cx, &name, &region).await? } else { Default::default() };
        changes.extend(led);
        Ok(Prepared { intent: Intent { database: name, region, expect_epoch, held, roles, pooled }, change: changes, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let now = match intent.expect_epoch {
            None => None,
            Some(_) => Some(cx.read.world.lease(intent.database.as_str())?.lease().await?),
        };
        if let Some(now) = now.as_ref().filter(|now| Some(now.epoch) != intent.expect_epoch && !admitted(now, intent)) {
            return Err(fail("lease_moved", format!("the lease of `{}` was changed since (epoch {})", intent.database, now.epoch)));
        }
        let (name, region) = (intent.database.as_str(), intent.region.as_str());
        let sql = cx.world()?.sql_mut(name, region)?;
        if sql.state().await?.read_only {
            sql.make_writable().await?;
        }
        if !intent.roles.is_empty() {
            cx.world()?.cluster_mut(name, region)?.let_log_in(&intent.roles, true).await?;
        }
        sql.prove_writable(&cx.key).await?;
        let epoch = match now {
            None => None,
            Some(now) if admitted(&now, intent) => Some(now.epoch),
            Some(now) => Some(cx.world()?.lease_mut(name)?.allow(Some(region), now.epoch).await?.epoch),
        };
        let poolers_left = if intent.pooled { poolers::lead(cx, &intent.database, &intent.region).await? } else { Vec::new() };
        Ok(Output { region: intent.region.clone(), epoch, poolers_left })
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let done = |epoch, poolers_left| Seen::Done(Output { region: intent.region.clone(), epoch, poolers_left });
        let look = async {
            let (name, region) = (intent.database.as_str(), intent.region.as_str());
            let lease = match intent.expect_epoch {
                None => None,
                Some(_) => Some(cx.world.lease(name)?.lease().await?),
            };
            let kept_out = !intent.roles.is_empty() && !cx.world.cluster(name, region)?.revoked().await?.is_empty();
            let (led, left) = if intent.pooled { poolers::led(cx, &intent.database, &intent.region).await? } else { (true, Vec::new()) };
            Ok::<_, PortError>((lease, !led || kept_out || cx.world.sql(name, region)?.state().await?.read_only, left))
        };
        match look.await {
            Err(e) => cannot_tell(&e),
            Ok((None, closed, left)) => if closed { Seen::Absent } else { done(None, left) },
            Ok((Some(lease), false, left)) if admitted(&lease, intent) => done(Some(lease.epoch), left),
            Ok((Some(lease), ..)) if admitted(&lease, intent) || Some(lease.epoch) == intent.expect_epoch => Seen::Absent,
            Ok((Some(lease), ..)) => {
                let allowed = lease.allowed.as_deref().unwrap_or("nobody");
                Seen::Differs { found: format!("the lease is at epoch {}, allowed to {allowed}", lease.epoch) }
            }
        }
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        let Some(expect) = intent.expect_epoch else {
            // Without a lease nobody but the server itself could be told: it stays as it is, and a fence closes it.
            return Ok(());
        };
        let lease = cx.world()?.lease_mut(intent.database.as_str())?;
        let now = lease.lease().await?;
        if intent.held || now.epoch == expect || (now.epoch == expect + 2 && now.allowed.is_none()) {
            return Ok(());
        }
        if !admitted(&now, intent) {
            return Err(fail("lease_moved", format!("the lease of `{}` was changed since (epoch {})", intent.database, now.epoch)));
        }
        lease.allow(None, now.epoch).await?;
        Ok(())
    }
}

/// Is the lease allowed to the region already? Two regions never are.
fn may_be_let_in(lease: &LeaseState, name: &DatabaseName, region: &RegionName, proof: Option<&FenceProof>) -> Result<bool, Refusal> {
    let held = lease.allowed.as_deref() == Some(region.as_str());
    if let Some(other) = lease.allowed.as_deref().filter(|_| !held) {
        return Err(Refusal::no("allowed_elsewhere", format!("`{other}` may write to `{name}`; two regions must never")).remedy("fence it first with `database.fence`"));
    }
    if let Some(proof) = proof.filter(|p| !held && (p.epoch != Some(lease.epoch) || p.database != *name)) {
        let was = proof.epoch.map_or_else(|| "none".to_owned(), |epoch| epoch.to_string());
        return Err(Refusal::no("proof_void", format!("the lease of `{name}` moved on since the proof: epoch {} (proof: {was})", lease.epoch)));
    }
    Ok(held)
}

fn admitted(lease: &LeaseState, intent: &Intent) -> bool {
    let epoch = intent.expect_epoch.map(|expect| expect + u64::from(!intent.held));
    Some(lease.epoch) == epoch && lease.allowed.as_deref() == Some(intent.region.as_str())
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
        assert_eq!(bench.run::<Admit>().await.expect("admitted").epoch, Some(3));
    }

    #[tokio::test]
    async fn two_regions_are_never_admitted() {
        let bench = Bench::new(&fixture());
        bench.world.lock().leases.get_mut("predictions").expect("lease").allowed = Some("east".into());
        assert_eq!(bench.refused::<Admit>().await, "allowed_elsewhere");
    }
}
