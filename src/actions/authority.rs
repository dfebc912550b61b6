//! What the servers of a zone answer, asked one by one: DNS's data plane alone, without the provider's API.

use super::{contract::ReadCx, shared::within};
use crate::model::estate::{DnsProvider, Endpoint};
use crate::providers::port::*;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// An authoritative server has its answer ready.
const ANSWER: Duration = Duration::from_millis(500);

/// Where the zone's servers answer: as the estate says, else as they are found by their names.
pub(crate) async fn servers(cx: &ReadCx, ep: &Endpoint) -> PortResult<Vec<SocketAddr>> {
    if !ep.authority.is_empty() {
        return Ok(ep.authority.clone());
    }
    let resolver = cx.world.resolver();
    let Some(update) = ep.update.as_ref().filter(|_| ep.provider == DnsProvider::Rfc2136) else {
        let limit = Duration::from_secs(3);
        return within(cx, limit, async move { resolver.authorities(&ep.name).await }).await;
    };
    let mut found = Vec::new();
    for server in &update.authorities() {
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.contains(':') => (host, port.parse().unwrap_or(53)),
            _ => (server.as_str(), 53),
        };
        match (server.parse::<SocketAddr>(), host.parse::<IpAddr>()) {
            (Ok(address), _) => found.push(address),
            (_, Ok(ip)) => found.push(SocketAddr::new(ip, port)),
            _ => found.extend(resolver.ask(None, host).await?.addresses.into_iter().map(|ip| SocketAddr::new(ip, port))),
        }
    }
    Ok(found)
}

/// What each of them answers for the endpoint's name.
pub(crate) async fn answers(cx: &ReadCx, ep: &Endpoint, servers: &[SocketAddr]) -> Vec<(SocketAddr, PortResult<DnsAnswer>)> {
    let resolver = cx.world.resolver();
    let each = servers.iter().map(|server| {
        let resolver = resolver.clone();
        async move { (*server, within(cx, ANSWER, async move { resolver.ask(Some(*server), &ep.name).await }).await) }
    });
    futures::future::join_all(each).await
}

/// The one answer on which all of them agree that answer at all; what they say instead, if they do not.
pub(crate) async fn agreed(cx: &ReadCx, ep: &Endpoint) -> Result<DnsAnswer, String> {
    let servers = servers(cx, ep).await.map_err(|e| e.to_string())?;
    let mut agreed: Option<(SocketAddr, DnsAnswer)> = None;
    let mut silent = String::new();
    for (server, answer) in answers(cx, ep, &servers).await {
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(e) => {
                silent = format!("{server}: {e}");
                continue;
            }
        };
        answer.addresses.sort_unstable();
        match &agreed {
            Some((first, other)) if *other != answer => {
                return Err(format!("{first} answers {}, {server} answers {}", show(other), show(&answer)));
            }
            Some(_) => {}
            None => agreed = Some((server, answer)),
        }
    }
    agreed.map(|(_, answer)| answer).ok_or_else(|| format!("no authoritative server of {} answers: {silent}", ep.name))
}

pub(crate) fn show(answer: &DnsAnswer) -> String {
    let addresses: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
    format!("{} (ttl {} s)", addresses.join(", "), answer.ttl_s)
}
