//! Amazon Route 53. A swap is ONE batch, DELETE of what is expected and CREATE of what is wanted: the
//! service refuses the whole of it unless the old record matches exactly, which makes it a
//! compare-and-swap, and harmless to repeat.

use super::aws::{AwsClients, Doing, explain};
use super::port::{ChangeId, DnsRead, DnsWrite, PortError, PortResult, RecordSet, WeightedSet};
use async_trait::async_trait;
use aws_sdk_route53::{
    error::BuildError,
    operation::change_resource_record_sets::ChangeResourceRecordSetsError,
    types::{
        Change, ChangeAction, ChangeBatch, ChangeStatus, ResourceRecord, ResourceRecordSet, RrType, builders::ResourceRecordSetBuilder,
    },
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::Mutex;

/// What one comment may hold.
const LONGEST_COMMENT: usize = 256;

pub struct Route53 {
    clients: Arc<AwsClients>,
    /// Domain names to zone ids: these do not change while we run.
    zones: Mutex<BTreeMap<String, String>>,
}

impl Route53 {
    #[must_use]
    pub fn new(clients: Arc<AwsClients>) -> Self {
        Self { clients, zones: Mutex::default() }
    }

    /// A hosted zone's id, from the id itself (`Z…`, as Route 53 writes them) or the zone's domain name.
    async fn zone(&self, zone: &str) -> PortResult<String> {
        let bare = zone.trim_start_matches("/hostedzone/");
        if !bare.contains('.') && bare.starts_with('Z') && bare.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()) {
            return Ok(bare.to_owned());
        }
        let mut zones = self.zones.lock().await;
        if let Some(id) = zones.get(bare) {
            return Ok(id.clone());
        }
        let id = self.zone_named(bare).await?;
        zones.insert(bare.to_owned(), id.clone());
        Ok(id)
    }

    async fn zone_named(&self, name: &str) -> PortResult<String> {
        let call = self.clients.route53().await?.read.list_hosted_zones_by_name().dns_name(full(name)).max_items(100);
        let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &format!("ListHostedZonesByName {name}")))?;
        // The list goes on with the names that follow.
        let mut found = answer.hosted_zones().iter().filter(|z| full(z.name()) == full(name));
        let Some(zone) = found.next() else {
            return Err(PortError::NotFound(format!(
                "there is no hosted zone for {name}: write its name or its id as the endpoint's `zone`"
            )));
        };
        if found.next().is_some() {
            return Err(PortError::Config(format!(
                "more than one hosted zone is called {name}: write the id of the right one as the endpoint's `zone`"
            )));
        }
        Ok(zone.id().trim_start_matches("/hostedzone/").to_owned())
    }

    async fn find(&self, zone: &str, name: &str, kind: &str) -> PortResult<Option<RecordSet>> {
        let call = self.clients.route53().await?.read.list_resource_record_sets().hosted_zone_id(zone);
        let call = call.start_record_name(full(name)).start_record_type(RrType::from(kind)).max_items(2);
        let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &format!("ListResourceRecordSets {name} {kind}")))?;
        let here = |r: &&ResourceRecordSet| full(r.name()) == full(name) && r.r#type().as_str() == kind;
        let Some(set) = answer.resource_record_sets().iter().find(here) else { return Ok(None) };
        // Weighted, failover, latency...: more than one may share the name, and a swap of one is not a shift.
        if set.set_identifier().is_some() {
            return Err(PortError::Refused(format!("{name} {kind} is answered by a routing policy; Muster shifts simple records")));
        }
        if set.alias_target().is_some() {
            return Err(PortError::Refused(format!("{name} {kind} is an alias record; Muster shifts records that hold addresses")));
        }
        let values = set.resource_records().iter().map(|r| r.value().to_owned()).collect();
        let ttl_s = set.ttl().and_then(|t| u32::try_from(t).ok()).unwrap_or(0);
        Ok(Some(RecordSet { name: name.to_owned(), kind: kind.to_owned(), ttl_s, values }))
    }

    /// Every record set of a name: page by page, since there may be a hundred weighted ones.
    async fn sets(&self, zone: &str, name: &str, kind: &str) -> PortResult<Vec<ResourceRecordSet>> {
        let clients = self.clients.route53().await?;
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let call = clients.read.list_resource_record_sets().hosted_zone_id(zone);
            let call = call.start_record_name(full(name)).start_record_type(RrType::from(kind)).set_start_record_identifier(after.take());
            let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &format!("ListResourceRecordSets {name} {kind}")))?;
            let here = |r: &&ResourceRecordSet| full(r.name()) == full(name) && r.r#type().as_str() == kind;
            found.extend(answer.resource_record_sets().iter().filter(here).cloned());
            let more = answer.next_record_name().is_some_and(|next| full(next) == full(name));
            match answer.next_record_identifier() {
                Some(next) if more && answer.is_truncated() => after = Some(next.to_owned()),
                _ => return Ok(found),
            }
        }
    }

    /// What stands where a swap was refused.
    async fn standing(&self, zone: &str, of: &RecordSet) -> String {
        match self.find(zone, &of.name, &of.kind).await {
            Ok(Some(found)) => format!("{} {} {} {}", found.name, found.ttl_s, found.kind, found.values.join(" ")),
            Ok(None) => format!("no record {} {}", of.name, of.kind),
            Err(e) => format!("something else (it could not be read: {e})"),
        }
    }
}

/// As Route 53 writes names: lower case, with the dot.
fn full(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    // Route 53 writes the asterisk of a wildcard in octal.
    let name = name.replace("\\052", "*");
    if name.ends_with('.') { name } else { format!("{name}.") }
}

fn builder(record: &RecordSet) -> Result<ResourceRecordSetBuilder, BuildError> {
    let mut set =
        ResourceRecordSet::builder().name(full(&record.name)).r#type(RrType::from(record.kind.as_str())).ttl(i64::from(record.ttl_s));
    for value in &record.values {
        set = set.resource_records(ResourceRecord::builder().value(value).build()?);
    }
    Ok(set)
}

fn change(action: ChangeAction, record: &RecordSet) -> Result<Change, BuildError> {
    Change::builder().action(action).resource_record_set(builder(record)?.build()?).build()
}

fn weighted_change(action: ChangeAction, set: &WeightedSet) -> Result<Change, BuildError> {
    let built = builder(&set.record)?.set_identifier(&set.set).weight(i64::from(set.weight)).set_health_check_id(set.health.clone());
    Change::builder().action(action).resource_record_set(built.build()?).build()
}

/// Sets that do not change stand in it as well, deleted and made anew: then they must be as expected, too.
fn weighted_batch(expect: &[WeightedSet], want: &[WeightedSet], comment: &str) -> Result<ChangeBatch, BuildError> {
    let mut batch = ChangeBatch::builder().comment(comment.chars().take(LONGEST_COMMENT).collect::<String>());
    for old in expect {
        batch = batch.changes(weighted_change(ChangeAction::Delete, old)?);
    }
    for new in want {
        batch = batch.changes(weighted_change(ChangeAction::Create, new)?);
    }
    batch.build()
}

/// A set as Route 53 tells it, if it is a weighted one that holds addresses.
fn weighted(name: &str, kind: &str, set: &ResourceRecordSet) -> PortResult<WeightedSet> {
    let (Some(identifier), Some(weight)) = (set.set_identifier(), set.weight()) else {
        return Err(PortError::Refused(format!("{name} {kind} is not weighted: give each region a weighted record first")));
    };
    if set.alias_target().is_some() {
        return Err(PortError::Refused(format!(
            "{name} {kind} has an alias under `{identifier}`; Muster shifts records that hold addresses"
        )));
    }
    let record = RecordSet {
        name: name.to_owned(),
        kind: kind.to_owned(),
        ttl_s: set.ttl().and_then(|t| u32::try_from(t).ok()).unwrap_or(0),
        values: set.resource_records().iter().map(|r| r.value().to_owned()).collect(),
    };
    let health = set.health_check_id().map(str::to_owned);
    Ok(WeightedSet { set: identifier.to_owned(), weight: u32::try_from(weight).unwrap_or(0), health, record })
}

fn batch(expect: Option<&RecordSet>, want: Option<&RecordSet>, comment: &str) -> Result<ChangeBatch, BuildError> {
    let mut batch = ChangeBatch::builder().comment(comment.chars().take(LONGEST_COMMENT).collect::<String>());
    if let Some(old) = expect {
        batch = batch.changes(change(ChangeAction::Delete, old)?);
    }
    if let Some(new) = want {
        batch = batch.changes(change(ChangeAction::Create, new)?);
    }
    batch.build()
}

#[async_trait]
impl DnsRead for Route53 {
    async fn record(&self, zone: &str, name: &str, kind: &str) -> PortResult<Option<RecordSet>> {
        let zone = self.zone(zone).await?;
        self.find(&zone, name, kind).await
    }

    async fn weights(&self, zone: &str, name: &str, kind: &str) -> PortResult<Vec<WeightedSet>> {
        let zone = self.zone(zone).await?;
        let sets = self.sets(&zone, name, kind).await?;
        let mut all = sets.iter().map(|set| weighted(name, kind, set)).collect::<PortResult<Vec<_>>>()?;
        all.sort_by(|a, b| a.set.cmp(&b.set));
        Ok(all)
    }

    async fn in_sync(&self, change: &ChangeId) -> PortResult<bool> {
        let id = change.0.trim_start_matches("/change/");
        let call = self.clients.route53().await?.read.get_change().id(id);
        let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &format!("GetChange {id}")))?;
        Ok(answer.change_info().is_some_and(|i| *i.status() == ChangeStatus::Insync))
    }
}

#[async_trait]
impl DnsWrite for Route53 {
    async fn swap(&self, zone: &str, expect: Option<&RecordSet>, want: Option<&RecordSet>, comment: &str) -> PortResult<ChangeId> {
        let Some(subject) = want.or(expect) else {
            return Err(PortError::Config("a change of DNS that changes nothing".to_owned()));
        };
        let what = format!("ChangeResourceRecordSets {} {}", subject.name, subject.kind);
        let zone = self.zone(zone).await?;
        let batch = batch(expect, want, comment).map_err(|e| PortError::Config(format!("{what}: {e}")))?;
        match self.send(&zone, batch, &what).await? {
            Some(change) => Ok(change),
            None => Err(PortError::Conflict { found: self.standing(&zone, subject).await }),
        }
    }

    async fn reweigh(&self, zone: &str, expect: &[WeightedSet], want: &[WeightedSet], comment: &str) -> PortResult<ChangeId> {
        let Some(WeightedSet { record, .. }) = expect.first() else {
            return Err(PortError::Config("a change of weights that changes nothing".to_owned()));
        };
        let what = format!("ChangeResourceRecordSets {} {}", record.name, record.kind);
        let id = self.zone(zone).await?;
        let batch = weighted_batch(expect, want, comment).map_err(|e| PortError::Config(format!("{what}: {e}")))?;
        match self.send(&id, batch, &what).await? {
            Some(change) => Ok(change),
            None => {
                let found = match self.weights(zone, &record.name, &record.kind).await {
                    Ok(sets) => sets.iter().map(|s| format!("{} weight {}", s.set, s.weight)).collect::<Vec<_>>().join(", "),
                    Err(e) => format!("something else (it could not be read: {e})"),
                };
                Err(PortError::Conflict { found })
            }
        }
    }
}

impl Route53 {
    /// Carries out a batch; none when Route 53 refuses it for what stands there.
    async fn send(&self, zone: &str, batch: ChangeBatch, what: &str) -> PortResult<Option<ChangeId>> {
        let call = self.clients.route53().await?.write.change_resource_record_sets().hosted_zone_id(zone).change_batch(batch);
        match call.send().await {
            Ok(answer) => {
                let id = answer.change_info().map(|i| i.id().trim_start_matches("/change/").to_owned());
                id.map(|id| Some(ChangeId(id))).ok_or_else(|| PortError::Unknown(format!("{what}: the answer names no change")))
            }
            Err(e) if e.as_service_error().is_some_and(ChangeResourceRecordSetsError::is_invalid_change_batch) => Ok(None),
            Err(e) => Err(explain(&e, Doing::Writing, what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(address: &str) -> RecordSet {
        RecordSet { name: "API.scoring.test".into(), kind: "A".into(), ttl_s: 5, values: vec![address.into()] }
    }

    #[test]
    fn a_swap_is_one_batch_that_deletes_before_it_creates() {
        let made = batch(Some(&record("127.0.1.1")), Some(&record("127.0.2.1")), &"x".repeat(300)).unwrap();
        let steps: Vec<_> = made.changes().iter().map(|c| (c.action().as_str(), c.resource_record_set().unwrap())).collect();
        assert_eq!(steps.iter().map(|s| s.0).collect::<Vec<_>>(), ["DELETE", "CREATE"]);
        assert!(steps.iter().all(|s| s.1.name() == "api.scoring.test." && s.1.ttl() == Some(5)));
        assert_eq!(made.comment().map(str::len), Some(256));
        assert_eq!(batch(None, Some(&record("127.0.2.1")), "").unwrap().changes().len(), 1);
    }

    #[test]
    fn names_are_compared_as_route_53_writes_them() {
        assert_eq!(full("Api.Scoring.test"), "api.scoring.test.");
        assert_eq!(full("\\052.scoring.test."), "*.scoring.test.");
    }
}
