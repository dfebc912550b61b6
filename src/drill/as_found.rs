//! What the estate looks like, in the few facts that a drill changes: which region is writable, who
//! replicates, who may write, where the names point. Taken before a drill and after it, and compared.

use crate::model::{
    estate::{Estate, Standby},
    ids::*,
};
use crate::providers::port::{DnsRead, PortError, PortResult, RoutedSet, Routing, WorldRead, show_sets};
use std::collections::BTreeMap;

/// Fact and value: `database predictions in east` -> `writable`.
pub type Facts = BTreeMap<String, String>;

/// Looks at everything the estate names. What cannot be reached is on record as such.
pub async fn capture(world: &dyn WorldRead, estate: &Estate) -> Facts {
    let mut facts = Facts::new();
    for (name, database) in &estate.databases {
        for region in database.instances.keys() {
            facts.insert(format!("database {name} in {region}"), or_unreachable(server(world, name, region).await));
        }
        if database.lease.is_some() {
            facts.insert(format!("writers of {name}"), or_unreachable(writers(world, name).await));
        }
    }
    for (name, endpoint) in &estate.endpoints {
        let key = format!("endpoint {name}");
        facts.insert(key, or_unreachable(target(world, name, &endpoint.zone, &endpoint.name).await));
        if let Some(standby) = &endpoint.standby {
            facts.insert(format!("switch of {name}"), or_unreachable(switch(world, name, standby).await));
        }
    }
    facts
}

fn or_unreachable(value: PortResult<String>) -> String {
    value.unwrap_or_else(|error| match error {
        PortError::Unreachable(_) => error.to_string(),
        other => format!("unreachable: {other}"),
    })
}

async fn server(world: &dyn WorldRead, name: &DatabaseName, region: &RegionName) -> PortResult<String> {
    let state = world.sql(name.as_str(), region.as_str())?.state().await?;
    Ok(match (state.in_recovery, state.streaming, state.read_only) {
        (true, true, _) => "standby, streaming",
        (true, false, _) => "standby, not streaming",
        (false, _, true) => "primary, read-only",
        (false, _, false) => "writable",
    }
    .to_owned())
}

async fn writers(world: &dyn WorldRead, name: &DatabaseName) -> PortResult<String> {
    let lease = world.lease(name.as_str())?.lease().await?;
    Ok(lease.allowed.map_or("allowed nowhere".to_owned(), |region| format!("allowed in {region}")))
}

/// Every record of the name, whatever it is chosen by; of each server, where several hold the zone and do not have the same.
async fn target(world: &dyn WorldRead, name: &EndpointName, zone: &str, host: &str) -> PortResult<String> {
    let holders = world.holders(name.as_str())?;
    let mut each = Vec::new();
    for holder in &holders {
        each.push((holder.server.as_str(), or_unreachable(records(&*holder.dns, zone, host).await)));
    }
    Ok(match each.as_slice() {
        [(_, first), rest @ ..] if rest.iter().all(|(_, other)| other == first) => first.clone(),
        _ => each.iter().map(|(server, shown)| format!("{shown} at {server}")).collect::<Vec<_>>().join("; "),
    })
}

async fn records(dns: &dyn DnsRead, zone: &str, host: &str) -> PortResult<String> {
    let mut sets = dns.sets(zone, host, "A").await?;
    if sets.is_empty() {
        sets = dns.sets(zone, host, "AAAA").await?;
    }
    Ok(match sets.as_slice() {
        [RoutedSet { routing: Routing::Simple, alias: None, record, .. }] => {
            format!("{} {} ttl {}", record.kind, record.values.join(","), record.ttl_s)
        }
        _ => show_sets(&sets),
    })
}

/// The switch of a failover through the data plane.
async fn switch(world: &dyn WorldRead, name: &EndpointName, standby: &Standby) -> PortResult<String> {
    let key = standby.key(name);
    let there = world.objects(standby.bucket.as_str(), standby.region.as_str())?.head(&key).await?;
    Ok(if there.is_some() { "on" } else { "off" }.to_owned())
}

/// What is not as it was, one sentence each.
#[must_use]
pub fn differences(before: &Facts, after: &Facts) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let value = |facts: &Facts, key: &str| facts.get(key).cloned().unwrap_or_else(|| "nothing".to_owned());
    let pairs = keys.into_iter().map(|key| (key, value(before, key), value(after, key)));
    pairs.filter(|(_, was, is)| was != is).map(|(key, was, is)| format!("{key}: was {was}, is {is}")).collect()
}
