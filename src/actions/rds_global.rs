//! What the two ways to move the writer of an Aurora global database share: who writes, who shall, and how it stands.

use super::{contract::*, rds_shared::aws_region, shared::*};
use crate::model::{effect::*, ids::*};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Move {
    pub database: DatabaseName,
    pub global_cluster: String,
    pub to: RegionName,
    /// The region, in the estate's words, that the call is sent to.
    pub through: RegionName,
    pub from_arn: String,
    pub to_arn: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Moved {
    pub global_cluster: String,
    /// The ARN of the cluster that writes now.
    pub writer: String,
    /// The ARN of the one that wrote before.
    pub before: String,
}

impl Move {
    pub(crate) fn done(&self) -> Moved {
        Moved { global_cluster: self.global_cluster.clone(), writer: self.to_arn.clone(), before: self.from_arn.clone() }
    }
}

/// The cluster as the region that becomes the writer's sees it: the other may be gone.
pub(crate) async fn plan(cx: &ReadCx, database: DatabaseName, id: String, to: RegionName) -> Result<(Move, GlobalMember), Refusal> {
    self::database(cx, &database)?;
    let found = cx.world.instances(to.as_str())?.global_cluster(&id).await?;
    let found =
        found.ok_or_else(|| Refusal::no("no_global_cluster", format!("there is no global cluster `{id}`, seen from region `{to}`")))?;
    if found.status != "available" {
        return Err(Refusal::later("not_available", format!("global cluster `{id}` is `{}`, not `available`", found.status)));
    }
    let here = aws_region(cx, &to)?;
    let target = found.members.iter().find(|m| m.region() == here);
    let target =
        target.ok_or_else(|| Refusal::no("no_member", format!("global cluster `{id}` has no member in region `{to}` ({here})")))?;
    if target.writer {
        return Err(Refusal::no("writes_already", format!("the cluster in `{to}` is the writer of `{id}` already")));
    }
    let writer = found.members.iter().find(|m| m.writer);
    let writer = writer.ok_or_else(|| {
        Refusal::no("no_writer", format!("global cluster `{id}` has no writer"))
            .remedy("look at it in the RDS console before anything is changed")
    })?;
    let intent = Move { database, global_cluster: id, through: to.clone(), to, from_arn: writer.arn.clone(), to_arn: target.arn.clone() };
    Ok((intent, target.clone()))
}

/// The estate's word for the region of an ARN.
pub(crate) fn region_of(cx: &ReadCx, arn: &str) -> Option<RegionName> {
    let at = arn_region(arn)?;
    cx.estate.regions.iter().find(|(_, r)| r.aws.as_ref().is_some_and(|a| a.region == at)).map(|(name, _)| name.clone())
}

pub(crate) fn changes(intent: &Move) -> Vec<Change> {
    vec![change(format!("writer of {}", intent.global_cluster), Some(intent.from_arn.clone()), Some(intent.to_arn.clone()))]
}

/// Seen from the region that becomes the writer's.
pub(crate) async fn see(cx: &ReadCx, intent: &Move) -> Seen<Moved> {
    let found = match cx.world.instances(intent.to.as_str()) {
        Ok(instances) => instances.global_cluster(&intent.global_cluster).await,
        Err(e) => Err(e),
    };
    let found = match found {
        Err(e) => return cannot_tell(&e),
        Ok(None) => return Seen::Differs { found: format!("there is no global cluster `{}` any more", intent.global_cluster) },
        Ok(Some(found)) => found,
    };
    if found.status != "available" {
        return pending(1_000, format!("the global cluster is `{}`", found.status));
    }
    match found.members.iter().find(|m| m.writer).map(|m| m.arn.as_str()) {
        Some(writer) if writer == intent.to_arn => Seen::Done(intent.done()),
        Some(writer) if writer == intent.from_arn => Seen::Absent,
        Some(writer) => Seen::Differs { found: format!("{writer} writes") },
        None => pending(1_000, "nobody writes at the moment"),
    }
}

pub(crate) async fn undo(cx: &ReadCx, intent: &Move) -> Result<(), ApplyError> {
    match see(cx, intent).await {
        Seen::Absent => Ok(()),
        Seen::CannotTell { why } => Err(unseen(&format!("the writer of `{}` was moved", intent.global_cluster), &why)),
        _ => Err(ApplyError::Definite(
            Failure::new("irreversible", format!("the writer of `{}` was moved, or may have been", intent.global_cluster))
                .remedy("move it back with `rds.switchover_global_cluster` when both regions are there"),
        )),
    }
}
