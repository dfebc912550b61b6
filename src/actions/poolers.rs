//! The connection poolers before a database of one's own, led to the server that may be written to: whoever comes through
//! one finds it there, and is held no longer.
//!
//! A pooler that stands in another region than that server may be lost with it. That is no reason to stay down: it is left
//! and named, and led when its region is back (`database.rejoin`). Any other must answer, since its clients would go on
//! asking a server that is dead. Where Patroni manages the servers, its callbacks lead the poolers, and nothing is done here.

use super::{contract::*, own_server::instance, patroni, shared::*};
use crate::model::{effect::*, ids::*};
use crate::providers::port::*;
use futures::future::join_all;

/// Where they are to point to, and for each that is to be led, in the estate's order, whether it stands in another region.
struct Plan {
    host: String,
    port: u16,
    away: Vec<bool>,
}

fn plan(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> Result<Plan, Refusal> {
    let target = instance(cx, name, region)?;
    let away = if patroni::managed(cx, name, region).is_some() {
        Vec::new()
    } else {
        database(cx, name)?.poolers.iter().map(|pooler| pooler.region.as_ref().is_some_and(|at| at != region)).collect()
    };
    Ok(Plan { host: target.host.clone().unwrap_or_default(), port: target.port.unwrap_or(5432), away })
}

impl Plan {
    fn is_met(&self, state: &PoolerState) -> bool {
        !state.paused && (state.host.as_str(), state.port) == (self.host.as_str(), self.port)
    }

    /// Each that is lost with its region is told by what it says; what any other says counts.
    fn judge<T>(&self, each: Vec<PortResult<T>>) -> PortResult<(Vec<T>, Vec<String>)> {
        let (mut good, mut left) = (Vec::new(), Vec::new());
        for (said, away) in each.into_iter().zip(&self.away) {
            match said {
                Ok(value) => good.push(value),
                Err(PortError::Unreachable(why)) if *away => left.push(why),
                Err(error) => return Err(error),
            }
        }
        Ok((good, left))
    }
}

/// Points every pooler to the region's server and lets its clients go on; gives what those say that are left.
pub(super) async fn lead(cx: &WriteCx, name: &DatabaseName, region: &RegionName) -> Result<Vec<String>, ApplyError> {
    let plan = plan(cx, name, region).map_err(definite)?;
    let each = lead_each(cx, name, &plan).await?;
    Ok(plan.judge(each)?.1)
}

/// The same where something else is the step's business: [`astray`] tells which could not be led.
pub(super) async fn lead_what_can_be_led(cx: &WriteCx, name: &DatabaseName, region: &RegionName) -> Result<(), ApplyError> {
    let plan = plan(cx, name, region).map_err(definite)?;
    lead_each(cx, name, &plan).await.map(drop)
}

async fn lead_each(cx: &WriteCx, name: &DatabaseName, plan: &Plan) -> Result<Vec<PortResult<()>>, ApplyError> {
    let poolers = cx.world()?.poolers_mut(name.as_str())?;
    let each = poolers.iter().take(plan.away.len()).map(|pooler| async {
        let state = pooler.state().await?;
        if (state.host.as_str(), state.port) != (plan.host.as_str(), plan.port) {
            pooler.point(&plan.host, plan.port).await?;
        }
        if state.paused { pooler.resume().await } else { Ok(()) }
    });
    Ok(join_all(each).await)
}

/// Those that do not send their clients to the region's server, or do not say so, each in a sentence.
pub(super) async fn astray(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> Vec<String> {
    let Ok(plan) = plan(cx, name, region) else { return Vec::new() };
    let poolers = match cx.world.poolers(name.as_str()) {
        Ok(poolers) => poolers,
        Err(error) => return vec![error.to_string()],
    };
    let each = poolers.iter().take(plan.away.len()).map(|pooler| async {
        match pooler.state().await {
            Ok(state) if plan.is_met(&state) => None,
            Ok(state) => Some(format!("{} sends its clients {}", pooler.name(), told(&state.host, state.port, state.paused))),
            Err(error) => Some(error.to_string()),
        }
    });
    join_all(each).await.into_iter().flatten().collect()
}

fn told(host: &str, port: u16, paused: bool) -> String {
    format!("to {host}:{port}{}", if paused { ", paused" } else { "" })
}

/// Are all led there that answer? And what those say that do not and may be left.
pub(super) async fn led(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> PortResult<(bool, Vec<String>)> {
    let plan = plan(cx, name, region).map_err(|refusal| PortError::Config(refusal.failure.message))?;
    let poolers = cx.world.poolers(name.as_str())?;
    let (states, left) = plan.judge(join_all(poolers.iter().take(plan.away.len()).map(|pooler| pooler.state())).await)?;
    Ok((states.iter().all(|state| plan.is_met(state)), left))
}

/// What leading them would change, and which do not answer now.
pub(super) async fn foresee(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> Result<(Vec<Change>, Vec<String>), Refusal> {
    let plan = plan(cx, name, region)?;
    let (mut changes, mut notes) = (Vec::new(), Vec::new());
    let poolers = cx.world.poolers(name.as_str())?;
    let states = join_all(poolers.iter().take(plan.away.len()).map(|pooler| pooler.state())).await;
    for ((pooler, away), state) in poolers.iter().zip(&plan.away).zip(states) {
        match state {
            Ok(state) if plan.is_met(&state) => {}
            Ok(state) => {
                let (from, to) = (told(&state.host, state.port, state.paused), told(&plan.host, plan.port, false));
                changes.push(change(pooler.name(), Some(from), Some(to)));
            }
            Err(error) if *away => notes.push(format!("{error}; its region is another, so it is left as it is")),
            Err(error) => notes.push(format!("{error}; its clients cannot be let in before it answers")),
        }
    }
    Ok((changes, notes))
}
