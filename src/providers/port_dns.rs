//! DNS as actions see it: record sets and how one of several is chosen, health checks, and what servers answer.

use super::port::{PortError, PortResult};
use crate::model::ids::RegionName;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, net::SocketAddr, sync::Arc};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordSet {
    pub name: String,
    /// `A`, `AAAA`.
    pub kind: String,
    pub ttl_s: u32,
    pub values: Vec<String>,
}

/// One of several record sets under one name, which answers as often as its weight says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedSet {
    /// Tells it from the others of the name.
    pub set: String,
    /// Its share is this part of the sum of all of the name's; 0 to 255.
    pub weight: u32,
    /// The health check without which it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// An alias has neither TTL nor values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<Alias>,
    pub record: RecordSet,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeId(pub String);

/// How one of several record sets under a name is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// It is the only one.
    Simple,
    Weighted {
        weight: u32,
    },
    /// The primary answers while its health check is good, else the secondary.
    Primary,
    Secondary,
}

/// What an alias record stands for, instead of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The hosted zone of what it stands for.
    pub zone: String,
    pub name: String,
    /// Does it count as ill when what it stands for is?
    pub evaluate: bool,
}

/// One record set, with all that it is chosen by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedSet {
    /// Tells it from the others of the name; none for a simple one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    pub routing: Routing,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// An alias has neither TTL nor values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<Alias>,
    pub record: RecordSet,
}

impl RoutedSet {
    #[must_use]
    pub fn simple(record: RecordSet) -> Self {
        Self { set: None, routing: Routing::Simple, health: None, alias: None, record }
    }
}

impl std::fmt::Display for RoutedSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.routing {
            Routing::Simple => {}
            Routing::Weighted { weight } => write!(f, "{} weight {weight}: ", self.set.as_deref().unwrap_or("?"))?,
            Routing::Primary => f.write_str("PRIMARY ")?,
            Routing::Secondary => f.write_str("SECONDARY ")?,
        }
        match &self.alias {
            Some(alias) => write!(f, "alias of {}", alias.name)?,
            None => write!(f, "{} (ttl {} s)", self.record.values.join(", "), self.record.ttl_s)?,
        }
        match &self.health {
            Some(check) => write!(f, ", health check {check}"),
            None => Ok(()),
        }
    }
}

/// All sets of a name, for people.
#[must_use]
pub fn show_sets(sets: &[RoutedSet]) -> String {
    let shown: Vec<String> = sets.iter().map(ToString::to_string).collect();
    if shown.is_empty() { "no record".to_owned() } else { shown.join("; ") }
}

/// What a health checker asks, and what it makes of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSpec {
    /// `http` or `https`.
    pub scheme: String,
    /// A name or an address.
    pub host: String,
    pub port: u16,
    pub path: String,
    /// It is good when the answer is bad.
    pub inverted: bool,
    pub every_s: u32,
    /// How many answers in a row change a health checker's mind.
    pub looks: u32,
    /// It is always good.
    pub disabled: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    pub id: String,
    /// `None`: it asks something else, or in a way that Muster does not know.
    pub spec: Option<HealthSpec>,
}

/// What the health checkers found last, before anything is inverted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSeen {
    pub good: usize,
    pub bad: usize,
}

#[async_trait]
pub trait DnsRead: Send + Sync {
    async fn record(&self, zone: &str, name: &str, kind: &str) -> PortResult<Option<RecordSet>>;
    /// The weighted record sets of a name, in the order of their identifiers; none when there is nothing under it.
    async fn weights(&self, zone: &str, name: &str, kind: &str) -> PortResult<Vec<WeightedSet>>;
    /// All record sets of a name, whatever they are chosen by, in the order of their identifiers. One that is chosen in a way
    /// that Muster does not know is `Refused`: it could not be put back as it was.
    async fn sets(&self, zone: &str, name: &str, kind: &str) -> PortResult<Vec<RoutedSet>> {
        Ok(self.record(zone, name, kind).await?.map(RoutedSet::simple).into_iter().collect())
    }
    async fn health_check(&self, _id: &str) -> PortResult<Option<HealthCheck>> {
        Err(no_policies())
    }
    /// The one that was made with a reference.
    async fn health_check_of(&self, _reference: &str) -> PortResult<Option<HealthCheck>> {
        Err(no_policies())
    }
    /// What its checkers found last; `None` where the provider does not tell.
    async fn health_seen(&self, _id: &str) -> PortResult<Option<HealthSeen>> {
        Err(no_policies())
    }
    /// Is the change in sync on all authoritative servers?
    async fn in_sync(&self, change: &ChangeId) -> PortResult<bool>;
}

#[async_trait]
pub trait DnsWrite: DnsRead {
    /// Atomic compare-and-swap: `Conflict` when what stands there is not `expect`.
    async fn swap(&self, zone: &str, expect: Option<&RecordSet>, want: Option<&RecordSet>, comment: &str) -> PortResult<ChangeId>;
    /// The same for weighted sets of one name: all of them change at once, or none.
    async fn reweigh(&self, zone: &str, expect: &[WeightedSet], want: &[WeightedSet], comment: &str) -> PortResult<ChangeId>;
    /// The same for all sets of one name, whatever they are chosen by.
    async fn replace(&self, zone: &str, expect: &[RoutedSet], want: &[RoutedSet], comment: &str) -> PortResult<ChangeId> {
        let simple = |sets: &[RoutedSet]| match sets {
            [] => Ok(None),
            [RoutedSet { routing: Routing::Simple, alias: None, record, .. }] => Ok(Some(record.clone())),
            _ => Err(no_policies()),
        };
        self.swap(zone, simple(expect)?.as_ref(), simple(want)?.as_ref(), comment).await
    }
    /// Makes a health check, or gives the one that was made with this reference before.
    async fn create_health_check(&self, _reference: &str, _spec: &HealthSpec) -> PortResult<HealthCheck> {
        Err(no_policies())
    }
    /// Deletes it, if it is there.
    async fn delete_health_check(&self, _id: &str) -> PortResult<()> {
        Err(no_policies())
    }
}

fn no_policies() -> PortError {
    PortError::Config("this DNS provider has neither health checks nor routing policies: that takes `provider: route53`".to_owned())
}

/// One of the servers that hold a zone, each for itself: what is changed at one is not changed at another.
pub struct Holder<D: ?Sized> {
    /// `HOST:PORT`; empty where there is but one.
    pub server: String,
    /// Where it stands, if it stands in a region.
    pub region: Option<RegionName>,
    pub dns: Arc<D>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsAnswer {
    pub addresses: Vec<IpAddr>,
    pub ttl_s: u32,
}

#[async_trait]
pub trait Resolve: Send + Sync {
    /// Asks one server directly, without a cache of our own; `None` for the system's resolvers.
    async fn ask(&self, server: Option<SocketAddr>, name: &str) -> PortResult<DnsAnswer>;
    /// The authoritative servers of the zone that a name is in, as the system's resolvers tell.
    async fn authorities(&self, name: &str) -> PortResult<Vec<SocketAddr>> {
        Err(PortError::NotFound(format!("nobody knows the authoritative servers of {name}")))
    }
}
