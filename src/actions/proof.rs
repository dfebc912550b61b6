//! Evidence that an old primary can acknowledge no more writes: the one key that opens a promotion.
//!
//! A proof is worth what it says only for as long as the same look still finds the same: whoever uses one asks again
//! ([`still_holds`]), each kind it is made of. Silence of the old primary is never a proof.

use super::{
    contract::{ReadCx, Refusal},
    fence_ways::{Fenced, verify},
    shared::within,
};
use crate::model::effect::Seen;
use crate::model::ids::*;
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProofKind {
    /// The write lease is allowed to nobody, and the last grant has run out.
    LeaseExpired,
    /// The primary itself refuses writes, its sessions were ended, and the lease is allowed to nobody.
    ReadOnly,
    /// The server's machine says that no process of it lives, not the postmaster nor a backend that it left behind, that
    /// nobody holds its memory, and that whoever starts it gets a standby. It says nothing of a copy of the data
    /// elsewhere.
    ServerStopped,
    /// No role but Muster's own and replication's may log in, new sessions are read-only, none of the old ones is left.
    /// It says nothing of who has Muster's own password.
    AccessRevoked,
    /// `pg_hba.conf` lets in Muster and replication alone, a connection was refused, no session is left. As above.
    HbaClosed,
    /// The poolers hold their clients. It says nothing of clients that come another way, so it is never enough alone;
    /// and anybody may let them go on, so it expires.
    PoolerPaused,
    /// The estate's command says that the server is cut off from its clients. It is worth what that command looks at.
    NetworkCut,
    /// Patroni has made it a standby cluster, and every member that it or the estate names says, by its server's own word,
    /// that it is in recovery. It says nothing of a member that neither of them names.
    PatroniDemoted,
    /// RDS says that the prepared group alone says who gets to the instance, and the server that it is read-only and that
    /// no session is left: those that were open before had stayed open. It says nothing of who is in the closed group.
    SecurityGroupClosed,
    /// RDS says that the instance is stopped. It starts it again by itself after seven days, so it expires; and it may
    /// refuse to stop one that has replicas.
    InstanceStopped,
    /// The master user has another password. It says nothing of other roles, nor of sessions that were open, so it is
    /// never enough alone.
    CredentialsRotated,
}

impl ProofKind {
    /// One of those that go through the API of RDS.
    pub(crate) fn of_rds(self) -> bool {
        matches!(self, Self::SecurityGroupClosed | Self::InstanceStopped | Self::CredentialsRotated)
    }
    /// Does it keep every writer out by itself?
    pub(crate) fn sound(self) -> bool {
        !matches!(self, Self::ReadOnly | Self::PoolerPaused | Self::CredentialsRotated)
    }
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::LeaseExpired => "lease_expired",
            Self::ReadOnly => "read_only",
            Self::ServerStopped => "server_stopped",
            Self::AccessRevoked => "access_revoked",
            Self::HbaClosed => "hba_closed",
            Self::PoolerPaused => "pooler_paused",
            Self::NetworkCut => "network_cut",
            Self::PatroniDemoted => "patroni_demoted",
            Self::SecurityGroupClosed => "security_group_closed",
            Self::InstanceStopped => "instance_stopped",
            Self::CredentialsRotated => "credentials_rotated",
        }
    }
}

/// What `database.fence` gives and `database.promote` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FenceProof {
    pub kind: ProofKind,
    /// What else was closed; it must hold as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<ProofKind>,
    pub database: DatabaseName,
    /// The region that is fenced.
    pub region: RegionName,
    /// The lease's epoch that our own change made; absent where the database has no lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// When it was established.
    #[schemars(with = "String")]
    pub at: jiff::Timestamp,
    /// When it is worth nothing any more, if that comes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub expires: Option<jiff::Timestamp>,
    /// The last position of the fenced primary's log, where it could be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub lsn: Option<Lsn>,
    pub detail: String,
}

/// Does the proof, given for this database, still allow a promotion in `region`?
pub(crate) async fn still_holds(cx: &ReadCx, proof: &FenceProof, database: &DatabaseName, region: &RegionName) -> Result<(), Refusal> {
    let void = |why: String| Refusal::no("proof_void", why).remedy("run `database.fence` again and use its new proof");
    if proof.database != *database {
        return Err(void(format!("the fence proof is for database `{}`, not `{database}`", proof.database)));
    }
    if proof.region == *region {
        return Err(void(format!("the fence proof fences `{region}` itself, the region to be promoted")));
    }
    if proof.expires.is_some_and(|at| at <= cx.world.clock().now()) {
        return Err(void("the fence proof has expired".into()));
    }
    let lease = match proof.epoch {
        Some(epoch) => Some(lease_holds(cx, database, epoch).await?.map_err(&void)?),
        None => None,
    };
    let kinds = || std::iter::once(proof.kind).chain(proof.also.iter().copied());
    if !kinds().any(|kind| kind.sound() || (kind == ProofKind::ReadOnly && lease.is_some())) {
        return Err(void("nothing in the fence proof keeps every writer out".into()));
    }
    for kind in kinds() {
        match (kind, &lease) {
            (ProofKind::LeaseExpired, Some(lease)) if lease.remaining_ms > 0 => {
                return Err(void(format!("a grant of the lease is still good for {} ms", lease.remaining_ms)));
            }
            (ProofKind::LeaseExpired, Some(_)) => {}
            (ProofKind::ReadOnly, Some(lease)) => still_read_only(cx, proof, lease).await.map_err(&void)?,
            (ProofKind::LeaseExpired | ProofKind::ReadOnly, None) => {
                return Err(void(format!("`{}` is no proof without the lease's epoch", kind.word())));
            }
            _ => still_closed(cx, proof, kind).await.map_err(&void)?,
        }
    }
    Ok(())
}

/// The lease stands as the proof says: at its epoch, allowed to nobody.
async fn lease_holds(cx: &ReadCx, database: &DatabaseName, epoch: u64) -> Result<Result<LeaseState, String>, Refusal> {
    let lease = cx.world.lease(database.as_str())?.lease().await?;
    if lease.epoch == epoch && lease.allowed.is_none() {
        return Ok(Ok(lease));
    }
    let allowed = lease.allowed.as_deref().unwrap_or("nobody");
    Ok(Err(format!("the lease moved on since the proof: epoch {} (proof: {epoch}), allowed to {allowed}", lease.epoch)))
}

/// Looked at again from outside, in the same way as when it was closed. Of a stopped server whose machine is gone since
/// then, the proof stands: it can only come back as a standby. Everything else must be seen.
async fn still_closed(cx: &ReadCx, proof: &FenceProof, kind: ProofKind) -> Result<(), String> {
    let fenced = Fenced { database: &proof.database, region: &proof.region, planned: proof.lsn.is_some() };
    match verify(cx, fenced, kind).await {
        Seen::Done(_) => Ok(()),
        Seen::CannotTell { .. } if kind == ProofKind::ServerStopped => Ok(()),
        Seen::CannotTell { why } => Err(format!("`{}` cannot be seen any more: {why}", kind.word())),
        Seen::Absent => Err(format!("`{}` does not hold any more", kind.word())),
        Seen::Pending { note: found, .. } | Seen::Differs { found } => Err(format!("`{}` does not hold any more: {found}", kind.word())),
    }
}

/// A primary that can be asked must say that it is still read-only; of one that cannot be asked any
/// more, only the lease is proof.
async fn still_read_only(cx: &ReadCx, proof: &FenceProof, lease: &LeaseState) -> Result<(), String> {
    if proof.lsn.is_none() {
        return Err("a `read_only` proof must name the last position of the log".into());
    }
    let asked = match cx.world.sql(proof.database.as_str(), proof.region.as_str()) {
        Ok(sql) => within(cx, Duration::from_secs(2), async move { sql.state().await }).await,
        Err(e) => Err(e),
    };
    match asked {
        Ok(state) if state.read_only || state.in_recovery => Ok(()),
        Ok(_) => Err(format!("the old primary in `{}` accepts writes again", proof.region)),
        Err(_) if lease.remaining_ms == 0 => Ok(()),
        Err(e) => {
            Err(format!("the old primary in `{}` can no longer be asked ({e}), and a grant of the lease has not run out yet", proof.region))
        }
    }
}
