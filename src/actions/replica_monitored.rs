//! What the provider's own monitoring says of a replica's lag, beside what the server says, or instead of it where the
//! server cannot be reached. It is minutes old and has gaps; a gap, or -1, is never taken for zero.

use super::{
    contract::*,
    database_verify_replica::Output,
    replica::{Note, ReplicaState},
    shared::*,
};
use crate::model::{estate::Engine, ids::*, time::Span};
use crate::providers::port::*;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Monitored {
    /// `null` where there is no figure.
    pub lag_ms: Option<u64>,
    /// It says that the replica does not replicate.
    pub not_replicating: bool,
    /// Of which minute the figure is.
    #[schemars(with = "Option<String>")]
    pub at: Option<Timestamp>,
    pub detail: String,
}

/// `None` for what is not on RDS.
pub(crate) async fn ask(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> Option<Monitored> {
    if database(cx, name).ok()?.engine != Engine::RdsPostgres {
        return None;
    }
    let id = instance_id(cx, name, region).ok()?;
    let asked = match cx.world.instances(region.as_str()) {
        Ok(instances) => within(cx, LIMIT, async move { instances.measured_lag(&id).await }).await,
        Err(e) => Err(e),
    };
    let found = |lag_ms, not_replicating, at, detail: String| Monitored { lag_ms, not_replicating, at, detail };
    Some(match asked {
        Ok(MeasuredLag::Seconds(s, at)) => {
            found(Some((s * 1000.0).ceil() as u64), false, Some(at), format!("CloudWatch has a lag of {s} s at {at}"))
        }
        Ok(MeasuredLag::NotReplicating(at)) => {
            found(None, true, Some(at), format!("CloudWatch has a lag of -1 at {at}: it does not replicate"))
        }
        Ok(MeasuredLag::Nothing(stretch)) => {
            found(None, false, None, format!("CloudWatch has no figure of the last {} s", stretch.as_secs()))
        }
        Err(e) => found(None, false, None, format!("CloudWatch could not be asked: {e}")),
    })
}

impl Monitored {
    /// Worth telling where the server itself says that all is well.
    pub(crate) fn disagrees(&self, replica: &ReplicaState) -> Option<Note> {
        let says = matches!(replica, ReplicaState::Streaming { .. }) && self.not_replicating;
        says.then(|| Note {
            what: "monitoring_disagrees".into(),
            detail: format!("{}, and the server streams at this moment", self.detail),
            cure: "look again in two minutes; if it stays, look at the instance's log in RDS".into(),
        })
    }
}

/// The server is silent: what monitoring and the control plane say is all there is.
pub(crate) async fn alone(
    cx: &ReadCx,
    name: &DatabaseName,
    region: &RegionName,
    found: &Monitored,
    max_lag: Option<Span>,
    who: &str,
) -> Result<Output, ApplyError> {
    if found.not_replicating {
        return Err(fail("replica_not_replicating", format!("{who} cannot be asked, and {}", found.detail)));
    }
    let Some(lag_ms) = found.lag_ms else {
        return Err(fail("replica_unknown", format!("{who} cannot be asked, and {}", found.detail)));
    };
    if let Some(max) = max_lag.filter(|max| lag_ms > max.ms) {
        return Err(fail("lag_exceeded", format!("{who} cannot be asked; {}, at most {max} is allowed", found.detail)));
    }
    let id = instance_id(cx, name, region).map_err(definite)?;
    let info = cx.world.instances(region.as_str())?.instance(&id).await?;
    let source = info.and_then(|i| i.replicates_from);
    let source = source.ok_or_else(|| fail("replica_not_replicating", format!("{who}: RDS says that `{id}` is no replica")))?;
    let last = source.rsplit(':').next().unwrap_or_default();
    let all = &database(cx, name).map_err(definite)?.instances;
    let primary = all.iter().find(|(other, i)| *other != region && i.id.as_deref() == Some(last)).map(|(other, _)| other.clone());
    let primary =
        primary.ok_or_else(|| fail("replica_unknown", format!("{who} replicates from `{source}`, which the estate does not know")))?;
    let replica = ReplicaState::Streaming { lag_bytes: None, lag_ms: Some(lag_ms) };
    Ok(Output { replica, primary, tables: None, compared_at: None, notes: Vec::new(), monitored: Some(found.clone()) })
}
