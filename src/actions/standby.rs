//! The switch of an endpoint that fails over through the data plane: where it lies, who looks at it, and which records
//! stand behind it. Shared by what prepares it, what fires it and what checks it.
//!
//! The switch is an object in the standby region. Route 53's health checkers ask for it; their check is inverted and
//! hangs on the PRIMARY record: while the object is there, the primary counts as ill and the SECONDARY answers. Writing
//! or deleting it is a request to that region's S3 and to nothing else. It is inverted so that a standby region that is
//! lost leaves the traffic where it is.

use super::{contract::*, shared::*};
use crate::model::{
    estate::{Bucket, Endpoint, Standby},
    ids::*,
};
use crate::providers::port::*;
use std::{collections::BTreeSet, net::IpAddr, time::Duration};
use url::{Host, Url};

/// What is appended to the switch's key for an object that is always there: by it anybody finds out whether the health
/// checkers could see the switch.
const PROBE: &str = ".probe";

pub(crate) struct Switch {
    /// The region that takes over, and owns it.
    pub region: RegionName,
    /// The other one.
    pub primary: RegionName,
    pub bucket: BucketName,
    pub key: String,
    /// Where the health checkers ask for it.
    pub url: Url,
    /// The check that hangs on the primary record.
    pub spec: HealthSpec,
}

impl Switch {
    pub fn probe_key(&self) -> String {
        format!("{}{PROBE}", self.key)
    }
    pub fn told(&self) -> String {
        format!("{} in bucket `{}` of `{}`", self.key, self.bucket, self.region)
    }
}

pub(crate) fn switch(cx: &ReadCx, name: &EndpointName) -> Result<Switch, Refusal> {
    let ep = endpoint(cx, name)?;
    let standby = ep.standby.as_ref().ok_or_else(|| {
        Refusal::no("no_standby", format!("endpoint `{name}` has no switch in a standby region"))
            .remedy(format!("write endpoints.{name}.standby, then run `dns.prepare` (docs/dns.md)"))
    })?;
    target(ep, &standby.region)?;
    let mut others = ep.targets.keys().filter(|region| **region != standby.region);
    let (Some(primary), None) = (others.next().cloned(), others.next()) else {
        return Err(Refusal::no("no_standby", format!("endpoint `{name}` needs exactly two targets: failover records are a pair")));
    };
    let key = standby.key(name);
    let url = match &standby.url {
        Some(url) => url.clone(),
        None => place(cx, standby, &key)?,
    };
    let spec = spec(&url, standby)?;
    Ok(Switch { region: standby.region.clone(), primary, bucket: standby.bucket.clone(), key, url, spec })
}

/// The object's address, as anybody would ask for it.
fn place(cx: &ReadCx, standby: &Standby, key: &str) -> Result<Url, Refusal> {
    let no = |why: &str| Refusal::no("no_url", format!("{key} has no address of its own: {why}")).remedy("write `standby.url`");
    let bucket = cx.estate.buckets.get(&standby.bucket).and_then(|regions| regions.get(&standby.region));
    let Bucket { bucket, prefix, .. } = bucket.ok_or_else(|| no("the estate has no such bucket in that region"))?;
    let aws = cx.estate.regions.get(&standby.region).and_then(|region| region.aws.as_ref());
    let aws = aws.ok_or_else(|| no("its region has no `aws`"))?;
    let text = match &aws.endpoints.s3 {
        Some(server) => format!("{}/{bucket}/{prefix}{key}", server.as_str().trim_end_matches('/')),
        None => format!("https://{bucket}.s3.{}.amazonaws.com/{prefix}{key}", aws.region),
    };
    text.parse().map_err(|e| no(&format!("{text}: {e}")))
}

fn spec(url: &Url, standby: &Standby) -> Result<HealthSpec, Refusal> {
    let no = |what: &str| Refusal::no("no_url", format!("{url} has no {what}"));
    let host = match url.host().ok_or_else(|| no("host"))? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(ip) => ip.to_string(),
        Host::Ipv6(ip) => ip.to_string(),
    };
    Ok(HealthSpec {
        scheme: url.scheme().to_owned(),
        host,
        port: url.port_or_known_default().ok_or_else(|| no("port"))?,
        path: url.path().to_owned(),
        inverted: true,
        every_s: u32::try_from(standby.every.ms / 1_000).unwrap_or(u32::MAX),
        looks: standby.looks,
        disabled: false,
    })
}

/// What lies there, if anything does.
pub(crate) async fn read(cx: &ReadCx, bucket: &BucketName, region: &RegionName, key: &str) -> PortResult<Option<String>> {
    let objects = cx.world.objects(bucket.as_str(), region.as_str())?;
    match read_all(&*objects, key).await {
        Ok((_, body)) => Ok(Some(String::from_utf8_lossy(&body).into_owned())),
        Err(PortError::NotFound(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Can the health checkers see the switch? What keeps them from it, if they cannot.
pub(crate) async fn visible(cx: &ReadCx, switch: &Switch) -> Result<(), String> {
    let mut url = switch.url.clone();
    url.set_path(&format!("{}{PROBE}", url.path()));
    let timeout = Some(Duration::from_secs(4));
    let request = HttpRequest { method: "GET".into(), url: url.to_string(), timeout, ..HttpRequest::default() };
    match cx.world.http().send(request).await {
        Ok(answer) if (200..400).contains(&answer.status) => Ok(()),
        Ok(answer) => Err(format!("{url} answers {} to whoever has no key", answer.status)),
        Err(e) => Err(format!("{url}: {e}")),
    }
}

pub(crate) fn remedy(switch: &Switch) -> String {
    format!("let everybody read {} and {} (docs/dns.md has the bucket policy)", switch.key, switch.probe_key())
}

/// Which region a set belongs to: by its address, else by its identifier.
pub(crate) fn region_of(ep: &Endpoint, identifier: &str, record: &RecordSet) -> Option<RegionName> {
    let by_address = ep.targets.iter().find(|(_, ip)| record.values == [ip.to_string()]).map(|(region, _)| region.clone());
    by_address.or_else(|| ep.targets.keys().find(|region| region.as_str() == identifier).cloned())
}

fn region(ep: &Endpoint, set: &RoutedSet) -> Option<RegionName> {
    region_of(ep, set.set.as_deref().unwrap_or_default(), &set.record)
}

/// The pair of records behind the switch, made from what stands there; the primary's check is `health`.
pub(crate) fn wanted(ep: &Endpoint, switch: &Switch, there: &[RoutedSet], kind: &str, health: Option<&str>) -> Vec<RoutedSet> {
    let make = |region: &RegionName, routing: Routing, address: &IpAddr| {
        let old = there.iter().find(|set| self::region(ep, set).as_ref() == Some(region));
        let alias = old.and_then(|set| set.alias.clone());
        let fresh = RecordSet { name: ep.name.clone(), kind: kind.to_owned(), ttl_s: ttl_s(ep), values: vec![address.to_string()] };
        RoutedSet {
            set: Some(old.and_then(|set| set.set.clone()).unwrap_or_else(|| region.to_string())),
            routing,
            health: if routing == Routing::Primary { health.map(str::to_owned) } else { old.and_then(|set| set.health.clone()) },
            record: if alias.is_some() { RecordSet { ttl_s: 0, values: Vec::new(), ..fresh } } else { fresh },
            alias,
        }
    };
    let mut pair: Vec<RoutedSet> = [(&switch.primary, Routing::Primary), (&switch.region, Routing::Secondary)]
        .into_iter()
        .filter_map(|(region, routing)| Some(make(region, routing, ep.targets.get(region)?)))
        .collect();
    pair.sort_by(|a, b| a.set.cmp(&b.set));
    pair
}

/// The check on the primary record, where these sets are what `wanted` makes, whatever their check.
pub(crate) fn hangs_on(ep: &Endpoint, switch: &Switch, there: &[RoutedSet], kind: &str) -> Option<String> {
    let health = there.iter().find(|set| set.routing == Routing::Primary)?.health.clone()?;
    (wanted(ep, switch, there, kind, Some(&health)) == there).then_some(health)
}

/// The regions that answer while every check is good.
pub(crate) fn serving(ep: &Endpoint, there: &[RoutedSet]) -> Vec<RegionName> {
    let answers = |set: &&RoutedSet| match set.routing {
        Routing::Simple | Routing::Primary => true,
        Routing::Weighted { weight } => weight > 0,
        Routing::Secondary => false,
    };
    let regions: BTreeSet<RegionName> = there.iter().filter(answers).filter_map(|set| region(ep, set)).collect();
    regions.into_iter().collect()
}
