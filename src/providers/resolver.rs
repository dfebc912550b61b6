//! Names to addresses, asked anew each time: of one server directly, as a client behind that resolver
//! would see it, or of the system's resolvers. Neither a cache of ours nor a hosts file comes between.

use super::port::{DnsAnswer, PortError, PortResult, Resolve};
use async_trait::async_trait;
use hickory_proto::rr::{RData, Record, RecordType};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
};
use std::{net::SocketAddr, time::Duration};

const TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Default)]
pub struct DnsResolver;

fn options(options: &mut ResolverOpts) {
    options.timeout = TIMEOUT;
    options.attempts = 1;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.num_concurrent_reqs = 1;
    // One datagram, one answer; TCP only when the server says that it did not fit.
    options.try_tcp_on_error = false;
}

fn resolver(server: Option<SocketAddr>) -> PortResult<TokioResolver> {
    let fail =
        |e: &dyn std::fmt::Display| PortError::Config(format!("the system's resolvers cannot be used: {e}; name resolvers in the estate"));
    let mut builder = match server {
        None => TokioResolver::builder_tokio().map_err(|e| fail(&e))?,
        Some(server) => {
            let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
            (udp.port, tcp.port) = (server.port(), server.port());
            let one = NameServerConfig::new(server.ip(), true, vec![udp, tcp]);
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![one]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    options(builder.options_mut());
    builder.build().map_err(|e| fail(&e))
}

fn server_name(record: &Record) -> Option<String> {
    match &record.data {
        RData::NS(server) => Some(server.0.to_ascii()),
        _ => None,
    }
}

#[async_trait]
impl Resolve for DnsResolver {
    async fn ask(&self, server: Option<SocketAddr>, name: &str) -> PortResult<DnsAnswer> {
        // With the dot, no search domain is tried.
        let full = if name.ends_with('.') { name.to_owned() } else { format!("{name}.") };
        let whom = server.map_or_else(|| "the system's resolvers".to_owned(), |s| s.to_string());
        let resolver = resolver(server)?;
        let answer = tokio::time::timeout(TIMEOUT, resolver.lookup_ip(full)).await;
        let found = answer
            .map_err(|_| PortError::Unreachable(format!("{whom} did not answer for {name} within {} s", TIMEOUT.as_secs())))?
            .map_err(|e| {
                if e.is_no_records_found() {
                    PortError::NotFound(format!("{whom} knows no address of {name}"))
                } else {
                    PortError::Unreachable(format!("{whom} gave no answer for {name}: {e}"))
                }
            })?;
        // An address is good for as long as every record that led to it.
        let ttl_s = found.as_lookup().answers().iter().map(|r| r.ttl).min().unwrap_or(0);
        Ok(DnsAnswer { addresses: found.iter().collect(), ttl_s })
    }

    async fn authorities(&self, name: &str) -> PortResult<Vec<SocketAddr>> {
        let resolver = resolver(None)?;
        let mut servers = Vec::new();
        // The zone begins at the name itself or at one of those above it.
        let mut zone = name.trim_end_matches('.');
        while servers.is_empty() {
            let asked = tokio::time::timeout(TIMEOUT, resolver.lookup(format!("{zone}."), RecordType::NS)).await;
            servers =
                asked.ok().and_then(Result::ok).map(|found| found.answers().iter().filter_map(server_name).collect()).unwrap_or_default();
            match zone.split_once('.') {
                Some((_, above)) if above.contains('.') => zone = above,
                _ => break,
            }
        }
        let asked = servers.iter().map(|server| async { self.ask(None, server).await.map(|answer| answer.addresses).unwrap_or_default() });
        let addresses = futures::future::join_all(asked).await;
        let found: Vec<SocketAddr> = addresses.into_iter().flatten().map(|ip| SocketAddr::new(ip, 53)).collect();
        if found.is_empty() {
            return Err(PortError::NotFound(format!(
                "the system's resolvers name no authoritative server of {name}: write them as the endpoint's `authority`"
            )));
        }
        Ok(found)
    }
}
