//! What several actions need and none owns: finding things in the estate, reading `with` before it is
//! typed, and saying how long to wait. It changes nothing and knows no single action.

use super::contract::{ApplyError, ReadCx, Refusal, failure};
use crate::model::{
    effect::*,
    estate::{Database, DnsPrimary, DnsProvider, DnsUpdate, Endpoint, Engine, Estate},
    ids::*,
    node::{Node, NodeValue},
};
use crate::providers::{clock::Clock, port::*};
use futures::StreamExt;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// A text that stands in `with` already: not one that an expression will give later.
pub(crate) fn text<'a>(with: &'a Node, field: &str) -> Option<&'a str> {
    let text = match &with.get(field)?.value {
        NodeValue::Text { text, .. } => text.as_str(),
        NodeValue::Typed(value) => value.as_str()?,
        _ => return None,
    };
    (!text.contains("{{")).then_some(text)
}

/// `database/predictions`, from the field that names it.
pub(crate) fn locks(with: &Node, kind: &str, field: &str) -> Vec<Resource> {
    text(with, field).map(|name| Resource(format!("{kind}/{name}"))).into_iter().collect()
}

/// One plane of the region that a field names.
pub(crate) fn reach(with: &Node, field: &str, plane: Plane) -> Option<Reach> {
    text(with, field).map(|region| Reach { place: Place::Region(region.into()), plane })
}

/// Every region that the database named in `with` has a server in.
pub(crate) fn reach_servers(with: &Node, estate: &Estate) -> impl Iterator<Item = Reach> {
    let database = text(with, "database").and_then(|name| estate.databases.get(name));
    let regions: Vec<_> = database.into_iter().flat_map(|d| d.instances.keys().cloned()).collect();
    regions.into_iter().map(|region| Reach { place: Place::Region(region), plane: Plane::Data })
}

/// What a change of an endpoint's records goes through. Route 53 has one control plane for all regions; a zone of one's
/// own has a primary server, which stands in a region or outside of all, or several.
pub(crate) fn reach_dns(with: &Node, field: &str, estate: &Estate) -> Vec<Reach> {
    let endpoint = text(with, field).and_then(|name| estate.endpoints.get(name));
    let update = endpoint.filter(|e| e.provider == DnsProvider::Rfc2136).and_then(|e| e.update.as_ref());
    match update.map(DnsUpdate::primaries).as_deref() {
        Some([one]) => {
            vec![one.region.clone().map_or_else(reach_here, |region| Reach { place: Place::Region(region), plane: Plane::Data })]
        }
        Some(several) => {
            let site = |one: &DnsPrimary| Site { server: one.server.clone(), region: one.region.clone() };
            vec![Reach { place: Place::Each(several.iter().map(site).collect()), plane: Plane::Data }]
        }
        None => vec![Reach { place: Place::Global, plane: Plane::Control }, Reach { place: Place::Global, plane: Plane::Data }],
    }
}

/// Is the database that `with` names one of servers of one's own? They have no control plane.
pub(crate) fn own(with: &Node, estate: &Estate) -> bool {
    text(with, "database").and_then(|name| estate.databases.get(name)).is_some_and(|d| d.engine == Engine::Postgres)
}

/// The machine that Muster runs on and what it was pointed to.
pub(crate) fn reach_here() -> Reach {
    Reach { place: Place::Here, plane: Plane::Data }
}

pub(crate) fn database<'a>(cx: &'a ReadCx, name: &DatabaseName) -> Result<&'a Database, Refusal> {
    cx.estate.databases.get(name).ok_or_else(|| Refusal::no("unknown_database", format!("the estate has no database `{name}`")))
}

/// The provider's identifier of a database's instance in a region.
pub(crate) fn instance_id(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> Result<String, Refusal> {
    let instance = database(cx, name)?.instances.get(region);
    let instance = instance.ok_or_else(|| Refusal::no("no_instance", format!("database `{name}` has no instance in region `{region}`")))?;
    instance.id.clone().ok_or_else(|| {
        Refusal::no("no_instance_id", format!("the estate gives no `id` for database `{name}` in region `{region}`"))
            .remedy(format!("write databases.{name}.instances.{region}.id"))
    })
}

pub(crate) fn endpoint<'a>(cx: &'a ReadCx, name: &EndpointName) -> Result<&'a Endpoint, Refusal> {
    cx.estate.endpoints.get(name).ok_or_else(|| Refusal::no("unknown_endpoint", format!("the estate has no endpoint `{name}`")))
}

pub(crate) fn target(endpoint: &Endpoint, region: &RegionName) -> Result<IpAddr, Refusal> {
    endpoint
        .targets
        .get(region)
        .copied()
        .ok_or_else(|| Refusal::no("no_target", format!("endpoint `{}` has no target in region `{region}`", endpoint.name)))
}

/// The TTL that an endpoint's records shall have. Route 53 counts in seconds; less than one would mean "do not cache",
/// which is not the same.
pub(crate) fn ttl_s(endpoint: &Endpoint) -> u32 {
    u32::try_from(endpoint.ttl.ms.div_ceil(1_000)).unwrap_or(u32::MAX)
}

/// `A` or `AAAA`.
pub(crate) fn record_kind(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "A" } else { "AAAA" }
}

/// The resolvers of an endpoint's clients, by the names that they are shown under.
pub(crate) fn panel(endpoint: &Endpoint) -> Vec<String> {
    let all: Vec<String> = endpoint.resolvers.iter().map(ToString::to_string).collect();
    if all.is_empty() { vec!["the system's resolver".to_owned()] } else { all }
}

/// The same with where each is asked; `None` for the system's.
pub(crate) fn resolvers(endpoint: &Endpoint) -> impl Iterator<Item = (String, Option<SocketAddr>)> {
    let servers = endpoint.resolvers.iter().copied().map(Some).chain(endpoint.resolvers.is_empty().then_some(None));
    panel(endpoint).into_iter().zip(servers)
}

/// What one resolver answers for an endpoint's name, within so long.
pub(crate) async fn ask(cx: &ReadCx, endpoint: &Endpoint, server: Option<SocketAddr>, limit: Duration) -> PortResult<Vec<IpAddr>> {
    let resolver = cx.world.resolver();
    within(cx, limit, async move { resolver.ask(server, &endpoint.name).await }).await.map(|answer| answer.addresses)
}

/// Gives up on an answer that does not come in time: for questions whose answer may stay away.
pub(crate) async fn within<T>(cx: &ReadCx, limit: Duration, question: impl Future<Output = PortResult<T>> + Send) -> PortResult<T> {
    in_time(&*cx.world.clock(), limit.min(cx.deadline), question).await
}

/// The same where there is no step.
pub(crate) async fn in_time<T>(clock: &dyn Clock, limit: Duration, question: impl Future<Output = PortResult<T>> + Send) -> PortResult<T> {
    match futures::future::select(Box::pin(question), Box::pin(clock.sleep(limit))).await {
        futures::future::Either::Left((answer, _)) => answer,
        futures::future::Either::Right(_) => Err(PortError::Unreachable(format!("no answer within {} ms", limit.as_millis()))),
    }
}

/// All objects under a prefix, without Muster's own.
pub(crate) async fn list_all(objects: &dyn ObjectRead, prefix: &str) -> PortResult<Vec<ObjectMeta>> {
    let mut all = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = objects.list(prefix, after.as_deref()).await?;
        all.extend(page.objects.into_iter().filter(|o| prefix.starts_with(OWN) || !o.key.starts_with(OWN)));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

/// Keys that are Muster's own.
pub(crate) const OWN: &str = ".muster/";

pub(crate) async fn read_all(objects: &dyn ObjectRead, key: &str) -> PortResult<(ObjectMeta, Vec<u8>)> {
    let body = objects.get(key).await?;
    let mut chunks = body.chunks;
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok((body.meta, bytes))
}

/// A refusal of a check that is carried out in `apply`: nothing was changed, and it will not be repeated.
pub(crate) fn definite(refusal: Refusal) -> ApplyError {
    if refusal.retry {
        ApplyError::Retry { after: Duration::from_secs(1), failure: refusal.failure }
    } else {
        ApplyError::Definite(refusal.failure)
    }
}

pub(crate) fn fail(code: &str, message: impl Into<String>) -> ApplyError {
    ApplyError::Definite(Failure::new(code, message))
}

pub(crate) fn cannot_tell<O>(error: &PortError) -> Seen<O> {
    Seen::CannotTell { why: failure(error).message }
}

/// What `undo` would have to know cannot be seen: nothing was tried, and it may be seen soon.
pub(crate) fn unseen(what: &str, why: &str) -> ApplyError {
    ApplyError::Retry { after: Duration::ZERO, failure: Failure::new("cannot_tell", format!("whether {what} cannot be seen: {why}")) }
}

pub(crate) fn pending<O>(poll_after_ms: u64, note: impl Into<String>) -> Seen<O> {
    Seen::Pending { poll_after_ms, note: note.into() }
}

pub(crate) fn change(what: impl Into<String>, from: Option<String>, to: Option<String>) -> Change {
    Change { what: what.into(), from, to }
}

/// The first 16 characters of a step's key: enough to tell runs apart, short enough for identifiers.
pub(crate) fn short_key(cx: &ReadCx) -> String {
    cx.key.chars().take(16).collect()
}

/// A name as RDS allows it: letters, digits and single hyphens, beginning with a letter, at most 63. What is too much
/// is cut from what stands before the last part, which tells one name from another.
pub(crate) fn rds_name(parts: &[&str]) -> String {
    let words = |text: &str| text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect::<Vec<_>>().join("-");
    let Some((last, first)) = parts.split_last() else { return String::new() };
    let last: String = words(last).chars().take(62).collect();
    let first: String = words(&first.join("-")).chars().take(62 - last.len()).collect();
    words(&format!("{first}-{last}"))
}

/// The one address on which all resolvers of an endpoint agree that answer: one in a lost region does not.
pub(crate) async fn resolved(cx: &ReadCx, endpoint: &Endpoint) -> Result<IpAddr, ApplyError> {
    let mut found: Option<IpAddr> = None;
    let mut silent = None;
    let asked = resolvers(endpoint).map(|(who, server)| async move { (who, ask(cx, endpoint, server, Duration::from_secs(2)).await) });
    for (who, answer) in futures::future::join_all(asked).await {
        let addresses = match answer {
            Ok(addresses) => addresses,
            Err(error) => {
                silent = Some(error);
                continue;
            }
        };
        let [address] = addresses.as_slice() else {
            return Err(fail("resolvers_differ", format!("{who} answers {} with {} addresses", endpoint.name, addresses.len())));
        };
        if found.is_some_and(|other| other != *address) {
            return Err(fail("resolvers_differ", format!("the resolvers of {} do not agree: {who} answers {address}", endpoint.name)));
        }
        found = Some(*address);
    }
    let nobody = || silent.map_or_else(|| fail("unresolved", format!("no resolver answers {}", endpoint.name)), ApplyError::from);
    found.ok_or_else(nobody)
}

/// A path at an endpoint, asked of one address.
pub(crate) fn at(endpoint: &Endpoint, ip: IpAddr, path: &str) -> (String, Option<std::net::SocketAddr>) {
    let port = endpoint.port.unwrap_or(if endpoint.scheme == "https" { 443 } else { 80 });
    let slash = if path.starts_with('/') { "" } else { "/" };
    (format!("{}://{}:{port}{slash}{path}", endpoint.scheme, endpoint.name), Some((ip, port).into()))
}

#[cfg(test)]
mod tests {
    use super::rds_name;

    #[test]
    fn a_long_name_keeps_what_tells_it_apart() {
        assert_eq!(rds_name(&["muster", "orders_eu", "0123"]), "muster-orders-eu-0123");
        assert_eq!(rds_name(&["as-it-is"]), "as-it-is");
        let long = rds_name(&["muster", &"x".repeat(80), "0123456789abcdef"]);
        assert!(long.len() <= 63 && long.ends_with("-0123456789abcdef"), "{long}");
    }
}
