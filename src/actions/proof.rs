//! Evidence that an old primary can acknowledge no more writes: the one key that opens a promotion.
//!
//! A proof is worth what it says only for as long as the lease authority still says the same: whoever
//! uses one asks again ([`still_holds`]). Silence of the old primary is never a proof, nor is a look at
//! its processes: what is frozen may thaw.

use super::{
    contract::{ReadCx, Refusal},
    shared::within,
};
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
}

/// What `database.fence` gives and `database.promote` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FenceProof {
    pub kind: ProofKind,
    pub database: DatabaseName,
    /// The region that is fenced.
    pub region: RegionName,
    /// The lease's epoch that our own change made.
    pub epoch: u64,
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
    let lease = cx.world.lease(database.as_str())?.lease().await?;
    if lease.epoch != proof.epoch || lease.allowed.is_some() {
        let allowed = lease.allowed.as_deref().unwrap_or("nobody");
        return Err(void(format!(
            "the lease moved on since the proof: epoch {} (proof: {}), allowed to {allowed}",
            lease.epoch, proof.epoch
        )));
    }
    match proof.kind {
        ProofKind::LeaseExpired if lease.remaining_ms > 0 => {
            Err(void(format!("a grant of the lease is still good for {} ms", lease.remaining_ms)))
        }
        ProofKind::LeaseExpired => Ok(()),
        ProofKind::ReadOnly => still_read_only(cx, proof, &lease).await.map_err(void),
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
