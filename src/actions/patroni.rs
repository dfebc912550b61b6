//! What Patroni is asked to do where it manages a region's servers: become a standby cluster (a fence), become one of its
//! own (a promotion). Muster does nothing behind its back: Patroni would undo it, and rightly.
//!
//! **The proof** `patroni_demoted` is that its configuration says that it follows another region, and that every member
//! which the estate or the cluster names says, by its own server's word, that it is in recovery. A member that does not
//! answer may be a primary whose Patroni is frozen: then there is no proof. It says nothing of a member that neither names.

use super::{
    contract::*,
    database_promote as promote,
    fence_ways::{Closed, Fenced},
    replica::Note,
    shared::*,
};
use crate::model::{effect::*, estate, ids::*};
use crate::providers::port::*;
use std::time::Duration;

pub(crate) fn managed<'a>(cx: &'a ReadCx, name: &DatabaseName, region: &RegionName) -> Option<&'a estate::Patroni> {
    cx.estate.databases.get(name)?.instances.get(region)?.patroni.as_ref()
}

/// The cluster, if it can be asked and does what it is asked.
pub(crate) async fn ready(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> Result<PatroniCluster, Refusal> {
    ready_in(&*cx.world, name.as_str(), region.as_str()).await
}

async fn ready_in(world: &dyn WorldRead, name: &str, region: &str) -> Result<PatroniCluster, Refusal> {
    let cluster = match world.patroni(name, region)?.cluster().await {
        Ok(cluster) => cluster,
        Err(PortError::Unreachable(why)) => {
            return Err(Refusal::later("patroni_unreachable", why)
                .remedy("start Patroni on its members; if the region is lost, fence it by `lease_expired` or `network_cut`"));
        }
        Err(other) => return Err(other.into()),
    };
    if cluster.paused {
        let message =
            format!("Patroni of `{name}` in `{region}` is paused (`{}`): it would not act, or not watch over what was done", cluster.scope);
        return Err(Refusal::no("patroni_paused", message).remedy(format!("patronictl resume {}", cluster.scope)));
    }
    Ok(cluster)
}

pub(crate) fn no_leader(name: &DatabaseName, region: &RegionName, cluster: &PatroniCluster) -> Refusal {
    Refusal::later("patroni_no_leader", format!("Patroni of `{name}` in `{region}` has no leader at this moment"))
        .remedy(format!("patronictl list {}", cluster.scope))
}

// ---------------------------------------------------------------- a fence

/// Whom it follows from then on: the one other region of the estate.
pub(crate) fn follows(cx: &ReadCx, fenced: Fenced<'_>) -> Result<(RegionName, StandbyOf), Refusal> {
    let (name, region) = (fenced.database, fenced.region);
    if managed(cx, name, region).is_none() {
        return Err(Refusal::no("no_patroni", format!("the estate names no Patroni for `{name}` in `{region}`"))
            .remedy(format!("write databases.{name}.instances.{region}.patroni")));
    }
    let others: Vec<_> = database(cx, name)?.instances.iter().filter(|(other, _)| *other != region).collect();
    let [(other, instance)] = others.as_slice() else {
        return Err(Refusal::no(
            "no_other",
            format!("`{name}` has {} other regions; as a standby cluster `{region}` follows exactly one", others.len()),
        )
        .remedy("make it a standby cluster yourself (`patronictl demote-cluster`), then fence it"));
    };
    let host = instance.host.clone().ok_or_else(|| {
        Refusal::no("no_host", format!("the estate does not say where `{name}` answers in `{other}`"))
            .remedy(format!("write databases.{name}.instances.{other}.host"))
    })?;
    let primary_slot_name = instance.patroni.as_ref().and_then(|p| p.slot.clone());
    Ok(((*other).clone(), StandbyOf { host, port: instance.port.unwrap_or(5432), primary_slot_name }))
}

pub(crate) async fn close(cx: &WriteCx, fenced: Fenced<'_>) -> Result<(), ApplyError> {
    let (_, upstream) = follows(cx, fenced).map_err(definite)?;
    ready(cx, fenced.database, fenced.region).await.map_err(definite)?;
    Ok(cx.world()?.patroni_mut(fenced.database.as_str(), fenced.region.as_str())?.follow(Some(&upstream)).await?)
}

pub(crate) async fn open(cx: &WriteCx, fenced: Fenced<'_>) -> Result<(), ApplyError> {
    Ok(cx.world()?.patroni_mut(fenced.database.as_str(), fenced.region.as_str())?.follow(None).await?)
}

pub(crate) async fn demoted(cx: &ReadCx, fenced: Fenced<'_>) -> PortResult<Seen<Closed>> {
    let patroni = cx.world.patroni(fenced.database.as_str(), fenced.region.as_str())?;
    let cluster = patroni.cluster().await?;
    let Some(upstream) = &cluster.standby_of else { return Ok(Seen::Absent) };
    let nodes = patroni.nodes().await?;
    let mut last = None;
    for (at, node) in &nodes {
        let node = match node {
            Ok(node) => node,
            Err(error) => {
                return Ok(Seen::CannotTell {
                    why: format!(
                        "the member at {at} does not answer, and may be a primary still ({error}); start its Patroni, or take it out of the cluster and of the estate"
                    ),
                });
            }
        };
        match node.in_recovery {
            Some(true) => last = last.max(node.position),
            Some(false) => return Ok(pending(100, format!("`{}` is a primary still", node.name))),
            None => return Ok(pending(100, format!("the server of `{}` does not answer (`{}`)", node.name, node.state))),
        }
    }
    let detail = format!("Patroni `{}` follows {upstream}; {} members, every one in recovery", cluster.scope, nodes.len());
    Ok(Seen::Done(Closed { lsn: last.filter(|_| fenced.planned), detail, expires: None }))
}

// ---------------------------------------------------------------- a promotion

/// Waits until the leader has replayed what the proof names.
pub(crate) async fn promotable(cx: &ReadCx, name: &DatabaseName, region: &RegionName, lsn: Option<Lsn>) -> Result<PatroniNode, Refusal> {
    let clock = cx.world.clock();
    let until = clock.monotonic() + cx.deadline.min(Duration::from_mins(1));
    let cluster = ready(cx, name, region).await?;
    if cluster.standby_of.is_none() {
        return Err(Refusal::no(
            "not_a_replica",
            format!("Patroni of `{name}` in `{region}` has no standby cluster: it is a primary's already"),
        ));
    }
    loop {
        let leader = leader_node(cx, name, region).await?;
        let leader = leader.ok_or_else(|| no_leader(name, region, &cluster))?;
        let here = leader.position.unwrap_or_default();
        if leader.in_recovery == Some(true) && lsn.is_none_or(|lsn| here >= lsn) {
            return Ok(leader);
        }
        if clock.monotonic() >= until {
            let message = format!(
                "`{}` of `{name}` in `{region}` has replayed {here}, the old primary ended at {}",
                leader.name,
                lsn.unwrap_or_default()
            );
            return Err(Refusal::later("not_caught_up", message).remedy("promoting now would lose the writes between"));
        }
        clock.sleep(Duration::from_millis(50)).await;
    }
}

/// What the leader says of itself.
async fn leader_node(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> PortResult<Option<PatroniNode>> {
    let patroni = cx.world.patroni(name.as_str(), region.as_str())?;
    let Some(leader) = patroni.cluster().await?.leader().map(|l| l.name.clone()) else { return Ok(None) };
    Ok(patroni.nodes().await?.into_iter().filter_map(|(_, node)| node.ok()).find(|node| node.name == leader))
}

pub(crate) async fn promote(cx: &WriteCx, name: &DatabaseName, region: &RegionName) -> Result<(), ApplyError> {
    ready(cx, name, region).await.map_err(definite)?;
    Ok(cx.world()?.patroni_mut(name.as_str(), region.as_str())?.follow(None).await?)
}

/// Done when its leader says that it has left recovery; what it was asked, its configuration shows.
pub(crate) async fn promoted(cx: &ReadCx, intent: &promote::Intent) -> PortResult<Seen<promote::Output>> {
    let (name, region) = (&intent.database, &intent.region);
    let cluster = cx.world.patroni(name.as_str(), region.as_str())?.cluster().await?;
    // The configuration is the request: while it still follows, nobody has asked.
    if cluster.standby_of.is_some() {
        return Ok(Seen::Absent);
    }
    match leader_node(cx, name, region).await? {
        Some(node) if node.system_identifier.as_ref().is_some_and(|id| *id != intent.resource_id) => {
            Ok(Seen::Differs { found: "another cluster answers there".into() })
        }
        Some(node) if node.in_recovery == Some(false) => Ok(Seen::Done(promote::Output {
            instance: intent.instance.clone(),
            timeline_before: intent.timeline_before,
            timeline_after: node.timeline,
            position: node.position,
        })),
        Some(node) => Ok(pending(100, format!("Patroni is promoting `{}`", node.name))),
        None => Ok(pending(200, "Patroni has no leader at this moment")),
    }
}

// ---------------------------------------------------------------- readiness

/// What is worth knowing of a replica and its primary before anybody asks Patroni for something: that it would not do it.
pub(crate) async fn notes(world: &dyn WorldRead, database: &estate::Database, name: &str, regions: &[&str]) -> Vec<Note> {
    let mut found = Vec::new();
    for region in regions.iter().filter(|r| database.instances.get(**r).is_some_and(|i| i.patroni.is_some())) {
        if let Err(Refusal { failure, .. }) = ready_in(world, name, region).await {
            found.push(Note { what: failure.code, detail: failure.message, cure: failure.remedy.unwrap_or_default() });
        }
    }
    found
}

/// One word on a region's Patroni, whether that is good, and more.
pub(crate) async fn health(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> (String, bool, String) {
    let cluster = match ready(cx, name, region).await {
        Ok(cluster) => cluster,
        Err(r) => return (r.failure.code.clone(), false, format!("{}; {}", r.failure.message, r.failure.remedy.unwrap_or_default())),
    };
    let following = cluster.members.iter().filter(|m| m.follows()).count();
    match (cluster.leader(), &cluster.standby_of) {
        (None, _) => ("no_leader".into(), false, format!("`{}` has no leader", cluster.scope)),
        (Some(leader), Some(of)) => ("standby_cluster".into(), true, format!("`{}` leads, {following} follow it; of {of}", leader.name)),
        (Some(leader), None) => ("primary".into(), true, format!("`{}` leads, {following} follow it", leader.name)),
    }
}

/// A server that Patroni manages, as whoever would work around it is told.
pub(crate) fn hands_off(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> Refusal {
    let remedy = match managed(cx, name, region) {
        Some(_) => "let Patroni do it: `database.fence` with `by: [patroni_demoted]`, `database.promote`, `database.switchover` with `member`; Patroni itself leads members back (`use_pg_rewind`)".to_owned(),
        None => format!("write databases.{name}.instances.{region}.patroni, so that Muster asks Patroni; or take the server out of its hands first and remove patroni.dynamic.json"),
    };
    Refusal::no("patroni", format!("Patroni manages the server of `{name}` in `{region}`; Muster does not work around it")).remedy(remedy)
}
