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
//! A PostgreSQL server of one's own (`engine: postgres`) can be fenced in other ways too (`by`, see `fence_ways.rs` and
//! `proof.rs`): stopped, so that it comes back as a standby only; its roles kept from logging in; its `pg_hba.conf`
//! closed; its network cut; with its poolers paused. Each is looked at from outside before the proof names it. Without a
//! lease one of them is needed: `read_only` alone stops whoever obeys.
//!
//! An RDS instance (`engine: rds-postgres`) can be fenced through its API (`fence_rds.rs`): a prepared security group that
//! lets in nobody but Muster is attached alone, and the sessions that had stayed open are ended; it is stopped, which
//! counts only until RDS starts it again, seven days later; its master user gets another password, which counts only beside
//! another way. These need the API of the region that is fenced, which the lease does not.
//!
//! **Half-done** it is between the lease and the read-only switch, or while a grant runs out. The intent
//! holds the epoch that it expects: an authority that is at this epoch was never changed (`Absent`), one
//! that is exactly one further and allows nobody was changed by us. Either part may be done again.
//!
//! **Undone** it is by opening what was closed, exactly as it stood, and allowing the region again: only while no other region's server has left recovery,
//! asked of each; one that cannot be asked may have been promoted, and then a person decides.

use super::{
    contract::*,
    fence_rds as rds,
    fence_ways::{self as ways, Closed, Fenced, PAUSE_COUNTS},
    own_server::{is_own, not_patronis},
    patroni,
    proof::{FenceProof, ProofKind},
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
    /// The region that shall acknowledge no more writes.
    pub region: RegionName,
    /// The primary is healthy and can be asked: make it read-only too, and note its last position, so
    /// that nothing is lost.
    #[serde(default)]
    pub planned: bool,
    /// How it is fenced; all of them together. Left out: by Patroni where it manages the region (unplanned only without a
    /// lease), by the lease where there is one, else by what the estate has: `server_stopped`, `network_cut` or, planned,
    /// `access_revoked`; with `engine: rds-postgres` `security_group_closed`.
    #[serde(default)]
    pub by: Vec<ProofKind>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    database: DatabaseName,
    region: RegionName,
    planned: bool,
    /// `None`: there is no lease.
    expect_epoch: Option<u64>,
    by: Vec<ProofKind>,
    /// Who could log in before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    roles: Vec<String>,
    /// The security groups that an RDS instance had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
}

impl Intent {
    fn fenced(&self) -> Fenced<'_> {
        Fenced { database: &self.database, region: &self.region, planned: self.planned }
    }
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
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        use crate::model::node::NodeValue;
        let planned = text(with, "planned").is_some_and(|t| t == "true")
            || matches!(with.get("planned").map(|n| &n.value), Some(NodeValue::Typed(v)) if *v == true);
        // Every way but the lease and a cut network asks the server, or its machine.
        let ways = with.get("by").map(|by| format!("{by:?}")).unwrap_or_default();
        let database = text(with, "database").and_then(|name| estate.databases.get(name));
        let leased = database.is_some_and(|d| d.lease.is_some());
        let prepared = database.is_some_and(|d| d.instances.values().any(|i| i.fence.is_some()));
        let asks = ["read_only", "server_stopped", "access_revoked", "hba_closed", "patroni_demoted"].iter().any(|way| ways.contains(way));
        let asks = planned || asks || (ways.is_empty() && own(with, estate) && !leased);
        let of_rds = ["security_group_closed", "instance_stopped", "credentials_rotated"].iter().any(|way| ways.contains(way))
            || (ways.is_empty() && !own(with, estate) && !leased && prepared);
        let control = of_rds.then(|| reach(with, "region", Plane::Control)).flatten();
        let asks = asks || (of_rds && !ways.contains("instance_stopped"));
        let primary = asks.then(|| reach(with, "region", Plane::Data)).flatten();
        std::iter::once(reach_here()).chain(control).chain(primary).collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database: name, region, planned, by } = input;
        if !database(cx, &name)?.instances.contains_key(&region) {
            return Err(Refusal::no("no_instance", format!("database `{name}` has no instance in region `{region}`")));
        }
        let fenced = Fenced { database: &name, region: &region, planned };
        let by = chosen(cx, fenced, by)?;
        if by.iter().any(|kind| matches!(kind, ProofKind::ServerStopped | ProofKind::HbaClosed)) {
            not_patronis(cx, &name, &region).await?;
        }
        let asked = by.contains(&ProofKind::PatroniDemoted);
        if asked && patroni::ready(cx, &name, &region).await?.standby_of.is_some() && planned {
            return Err(Refusal::no("not_primary", format!("Patroni of `{name}` in `{region}` is a standby cluster, not the primary's")));
        }
        let mut all = Vec::new();
        let mut notes = Vec::new();
        let mut expect_epoch = None;
        if database(cx, &name)?.lease.is_some() {
            let lease = cx.world.lease(name.as_str())?.lease().await?;
            if let Some(other) = lease.allowed.as_deref().filter(|a| *a != region.as_str()) {
                return Err(Refusal::no("not_the_writer", format!("`{other}`, not `{region}`, may write to `{name}`; fencing would stop `{other}`"))
                    .remedy("fence the region that holds the lease, or leave this step out"));
            }
            let allowed = lease.allowed.clone().unwrap_or_else(|| "nobody".into());
            all.push(change(format!("write lease of {name}"), Some(allowed), Some("nobody".into())));
            notes.push(format!("epoch {}; grants are good for {} ms, {} ms are left", lease.epoch, lease.ttl_ms, lease.remaining_ms));
            expect_epoch = Some(lease.epoch);
        }
        if planned && !asked {
            let state = cx.world.sql(name.as_str(), region.as_str())?.state().await?;
            if state.in_recovery {
                return Err(Refusal::no("not_primary", format!("the server of `{name}` in `{region}` is a standby, not the primary")));
            }
        }
        ways::may_close(cx, fenced, &by).await?;
        let groups = if by.iter().any(|kind| kind.of_rds()) { rds::before(cx, fenced, &by, &mut notes).await? } else { Vec::new() };
        let roles = if by.contains(&ProofKind::AccessRevoked) { ways::roles(cx, fenced).await? } else { Vec::new() };
        all.extend(by.iter().filter(|kind| **kind != ProofKind::LeaseExpired).map(|kind| {
            change(format!("{name} in {region}"), Some("read-write".into()), Some(kind.to(roles.len())))
        }));
        Ok(Prepared { intent: Intent { database: name, region, planned, expect_epoch, by, roles, groups }, change: all, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        if let Some(expect) = intent.expect_epoch {
            let lease = cx.world()?.lease_mut(intent.database.as_str())?;
            match lease.allow(None, expect).await {
                Ok(_) => {}
                Err(PortError::Conflict { found }) => {
                    let now = lease.lease().await.map_err(ApplyError::from)?;
                    if !ours(&now, expect) {
                        return Err(fail("lease_moved", format!("the lease of `{}` was changed by someone else: {found}", intent.database)));
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        for kind in &intent.by {
            ways::close(cx, intent.fenced(), *kind, &intent.roles).await?;
        }
        Ok(Output { proof: None })
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let lease = match intent.expect_epoch {
            None => None,
            Some(expect) => match lease(cx, intent, expect).await {
                Seen::Done(lease) => Some(lease),
                Seen::Pending { poll_after_ms, note } => return Seen::Pending { poll_after_ms, note },
                Seen::Absent => return Seen::Absent,
                Seen::Differs { found } => return Seen::Differs { found },
                Seen::CannotTell { why } => return Seen::CannotTell { why },
            },
        };
        look(cx, intent, lease).await
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        let Some(expect) = intent.expect_epoch else {
            none_promoted(cx, intent).await?;
            return open(cx, intent).await;
        };
        let lease = cx.world()?.lease_mut(intent.database.as_str())?;
        let now = lease.lease().await?;
        let again = now.epoch == expect + 2 && now.allowed.as_deref() == Some(intent.region.as_str());
        if now.epoch == expect {
            return Ok(());
        }
        if !again && !ours(&now, expect) {
            return Err(fail("lease_moved", format!("the lease of `{}` was changed since (epoch {})", intent.database, now.epoch)));
        }
        none_promoted(cx, intent).await?;
        open(cx, intent).await?;
        if !again {
            lease.allow(Some(intent.region.as_str()), now.epoch).await?;
        }
        Ok(())
    }
}

/// The ways that were asked for, if together they keep every writer out; else those that the estate has.
fn chosen(cx: &ReadCx, fenced: Fenced<'_>, by: Vec<ProofKind>) -> Result<Vec<ProofKind>, Refusal> {
    use ProofKind::{AccessRevoked, LeaseExpired, NetworkCut, PatroniDemoted, ReadOnly, SecurityGroupClosed, ServerStopped};
    let (name, region) = (fenced.database, fenced.region);
    let (leased, own) = (database(cx, name)?.lease.is_some(), is_own(cx, name)?);
    let patronis = patroni::managed(cx, name, region).is_some();
    let by = match by.as_slice() {
        [] if patronis && (fenced.planned || !leased) => vec![PatroniDemoted],
        [] if leased => vec![if fenced.planned { ReadOnly } else { LeaseExpired }],
        [] if own => [ServerStopped, NetworkCut].into_iter().find(|kind| ways::possible(cx, fenced, *kind).is_ok())
            .or(fenced.planned.then_some(AccessRevoked)).into_iter().collect(),
        [] => [SecurityGroupClosed].into_iter().filter(|kind| ways::possible(cx, fenced, *kind).is_ok()).collect(),
        _ => by,
    };
    if by.is_empty() {
        return Err(Refusal::no("no_lease", format!("database `{name}` has no write lease, so nothing proves that `{region}` is fenced"))
            .remedy(format!("give databases.{name}.lease a lease authority outside its regions (docs/lease.md), or write databases.{name}.instances.{region}.{}", if own { "server (docs/postgres.md)" } else { "fence.security_group (docs/aws.md), or ask for `by: [instance_stopped]`" })));
    }
    if let Some(kind) = by.iter().find(|kind| !own && !kind.of_rds() && !matches!(kind, LeaseExpired | ReadOnly)) {
        return Err(Refusal::no("not_possible", format!("`{}` is for servers of one's own, and `{name}` is Amazon's", kind.word())));
    }
    if let Some(kind) = by.iter().find(|kind| own && kind.of_rds()) {
        return Err(Refusal::no("not_possible", format!("`{}` goes through the API of RDS, and `{name}` is a server of one's own", kind.word())));
    }
    rds::fits(fenced, &by)?;
    let mut by = by;
    // Nothing of a stopped instance can be changed.
    by.sort_by_key(|kind| *kind != ProofKind::CredentialsRotated);
    by.iter().try_for_each(|kind| ways::possible(cx, fenced, *kind))?;
    if !leased && !by.iter().any(|kind| kind.sound()) {
        let (alone, more) = if own { ("pooler_paused", "`server_stopped`, `access_revoked`, `hba_closed` or `network_cut`") } else { ("credentials_rotated", "`security_group_closed` or `instance_stopped`") };
        return Err(Refusal::no("unsound", format!("`{alone}` alone does not fence `{name}`: clients that come another way still write"))
            .remedy(format!("add {more} to `by`")));
    }
    Ok(by)
}

impl ProofKind {
    fn to(self, roles: usize) -> String {
        match self {
            Self::LeaseExpired | Self::ReadOnly => "read-only, sessions ended".into(),
            Self::ServerStopped => "stopped; it starts as a standby only".into(),
            Self::AccessRevoked => format!("{roles} roles may not log in, read-only, sessions ended"),
            Self::HbaClosed => "pg_hba.conf closed, sessions ended".into(),
            Self::PoolerPaused => "its poolers paused".into(),
            Self::NetworkCut => "cut off from its network".into(),
            Self::PatroniDemoted => "a standby cluster, by Patroni".into(),
            Self::SecurityGroupClosed => "behind the closed security group alone, read-only, sessions ended".into(),
            Self::InstanceStopped => "stopped; RDS starts it again after seven days".into(),
            Self::CredentialsRotated => "its master user has another password".into(),
        }
    }
}

async fn open(cx: &WriteCx, intent: &Intent) -> Result<(), ApplyError> {
    for kind in intent.by.iter().rev() {
        ways::open(cx, intent.fenced(), *kind, &intent.roles, &intent.groups).await?;
    }
    Ok(())
}

async fn lease(cx: &ReadCx, intent: &Intent, expect: u64) -> Seen<LeaseState> {
    let lease = match cx.world.lease(intent.database.as_str()) {
        Ok(lease) => lease.lease().await,
        Err(e) => Err(e),
    };
    match lease {
        Err(e) => cannot_tell(&e),
        Ok(lease) if lease.epoch == expect => Seen::Absent,
        Ok(lease) if !ours(&lease, expect) => {
            let allowed = lease.allowed.as_deref().unwrap_or("nobody");
            Seen::Differs { found: format!("the lease is at epoch {}, allowed to {allowed}", lease.epoch) }
        }
        Ok(lease) => Seen::Done(lease),
    }
}

/// Every way that it was closed in, looked at from outside.
async fn look(cx: &ReadCx, intent: &Intent, lease: Option<LeaseState>) -> Seen<Output> {
    let mut lsn: Option<Lsn> = None;
    let mut details = Vec::new();
    let mut expires: Option<jiff::Timestamp> = None;
    for kind in &intent.by {
        let seen = match (kind, &lease) {
            (ProofKind::LeaseExpired, Some(lease)) => expired(lease),
            (ProofKind::ReadOnly, Some(lease)) => read_only(cx, intent, lease).await,
            _ => ways::verify(cx, intent.fenced(), *kind).await,
        };
        match seen {
            Seen::Done(closed) => {
                lsn = lsn.max(closed.lsn);
                expires = [expires, closed.expires].into_iter().flatten().min();
                details.push(closed.detail);
            }
            Seen::Pending { poll_after_ms, note } => return Seen::Pending { poll_after_ms, note },
            Seen::Absent => return Seen::Absent,
            Seen::Differs { found } => return Seen::Differs { found },
            Seen::CannotTell { why } => return Seen::CannotTell { why },
        }
    }
    if let Some(lease) = &lease {
        details.push(format!("lease allowed to nobody since epoch {}", lease.epoch));
    }
    let now = cx.world.clock().now();
    let kinds = || intent.by.iter().copied();
    let Some(kind) = kinds().find(|kind| kind.sound()).or_else(|| kinds().next()) else { return Seen::Absent };
    Seen::Done(Output {
        proof: Some(FenceProof {
            kind,
            also: kinds().filter(|other| *other != kind).collect(),
            database: intent.database.clone(),
            region: intent.region.clone(),
            epoch: lease.as_ref().map(|l| l.epoch),
            at: lease.as_ref().map_or(now, |l| l.now),
            expires: [kinds().any(|kind| kind == ProofKind::PoolerPaused).then(|| now + PAUSE_COUNTS), expires].into_iter().flatten().min(),
            // Unplanned, what the old primary had beyond its standby is not waited for: it is counted, and kept at the rejoin.
            lsn: lsn.filter(|_| intent.planned),
            detail: details.join("; "),
        }),
    })
}

fn ours(lease: &LeaseState, expect: u64) -> bool {
    lease.epoch == expect + 1 && lease.allowed.is_none()
}

fn expired(lease: &LeaseState) -> Seen<Closed> {
    if lease.remaining_ms > 0 {
        // Asked a little after the end, and at least now and then on the way.
        return pending(lease.remaining_ms.clamp(5, 500), format!("a grant is good for {} ms more", lease.remaining_ms));
    }
    Seen::Done(Closed { lsn: None, detail: "no grant of the lease is left".into(), expires: None })
}

async fn read_only(cx: &ReadCx, intent: &Intent, lease: &LeaseState) -> Seen<Closed> {
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
        Ok((_, state)) => Seen::Done(Closed { lsn: Some(state.position), detail: format!("read-only at {}, its sessions ended", state.position), expires: None }),
    }
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
            let passing = matches!(&state, Err(PortError::Unreachable(_) | PortError::Throttled { .. } | PortError::Unknown(_)));
            let why = state.err().map_or_else(|| "it is no standby any more".to_owned(), |e| e.to_string());
            let message = format!("`{}` in `{region}` may have been promoted ({why}); the fence stays closed", intent.database);
            let failure = Failure::new("promoted", message).remedy("decide by hand which region shall write");
            // Who does not answer at this moment may say soon that it is a standby.
            return Err(if passing { ApplyError::Retry { after: Duration::ZERO, failure } } else { ApplyError::Definite(failure) });
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
        assert_eq!((proof.kind, proof.epoch), (ProofKind::LeaseExpired, Some(4)));
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
        assert!(matches!(refused, Err(ApplyError::Retry { failure, .. }) if failure.code == "promoted"), "it may answer soon");
        bench.world.lock().down.clear();
        let west = ("predictions".to_owned(), "west".to_owned());
        let recovers = |bench: &Bench, so| bench.world.lock().servers.get_mut(&west).expect("west").state.in_recovery = so;
        recovers(&bench, false);
        let refused = Fence::undo(&bench.write, &intent, None).await;
        assert!(matches!(refused, Err(ApplyError::Definite(f)) if f.code == "promoted"), "it has answered");
        recovers(&bench, true);
        Fence::undo(&bench.write, &intent, None).await.expect("undone");
        assert_eq!(bench.world.lock().leases["predictions"].allowed.as_deref(), Some("east"));
    }
}
