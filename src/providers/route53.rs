//! Amazon Route 53. A change is ONE batch, DELETE of what is expected and CREATE of what is wanted: the
//! service refuses the whole of it unless the old records match exactly, which makes it a
//! compare-and-swap, and harmless to repeat.

use super::aws::{AwsClients, Doing, explain};
use super::clock::Clock;
use super::port::{
    ChangeId, DnsRead, DnsWrite, HealthCheck, HealthSeen, HealthSpec, PortError, PortResult, RecordSet, RoutedSet, WeightedSet, show_sets,
};
use super::{
    route53_health,
    route53_sets::{batch, full, of_weighted, routed, simple, weighted},
};
use async_trait::async_trait;
use aws_sdk_route53::{
    operation::change_resource_record_sets::ChangeResourceRecordSetsError,
    types::{ChangeBatch, ChangeStatus, HostedZone, ResourceRecordSet, RrType},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// Route 53 takes five requests a second from a whole account, and one batch after the other for a zone. What it turns
/// away for that was not begun, and is sent again after these pauses.
const AGAIN: [Duration; 4] = [Duration::from_millis(400), Duration::from_millis(900), Duration::from_secs(2), Duration::from_secs(4)];

/// More pages than a name has record sets or zones: a server that never ends is not followed for ever.
const MOST_PAGES: usize = 100;

pub struct Route53 {
    clients: Arc<AwsClients>,
    clock: Arc<dyn Clock>,
    /// Domain names to zone ids: these do not change while we run.
    zones: Mutex<BTreeMap<String, String>>,
}

impl Route53 {
    #[must_use]
    pub fn new(clients: Arc<AwsClients>, clock: Arc<dyn Clock>) -> Self {
        Self { clients, clock, zones: Mutex::default() }
    }

    /// A hosted zone's id, from the id itself (in capitals, as Route 53 writes them) or the zone's domain name.
    async fn zone(&self, zone: &str) -> PortResult<String> {
        let bare = zone.trim_start_matches("/hostedzone/");
        if bare.len() >= 8 && bare.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()) {
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

    /// Names are not unique: a public and a private zone may share one, and so may two public ones.
    async fn zone_named(&self, name: &str) -> PortResult<String> {
        let found = self.zones_named(name).await?;
        match found.as_slice() {
            [] => {
                Err(PortError::NotFound(format!("there is no hosted zone for {name}: write its name or its id as the endpoint's `zone`")))
            }
            [zone] => Ok(id_of(zone)),
            several => {
                let private = |zone: &HostedZone| zone.config().is_some_and(aws_sdk_route53::types::HostedZoneConfig::private_zone);
                let shown = |zone: &HostedZone| format!("{} ({})", id_of(zone), if private(zone) { "private" } else { "public" });
                let ids: Vec<String> = several.iter().map(shown).collect();
                Err(PortError::Config(format!(
                    "{} hosted zones are called {name}: {}; write the id of the right one as the endpoint's `zone`",
                    ids.len(),
                    ids.join(", ")
                )))
            }
        }
    }

    /// The list is in the order of names, and goes on with those that follow.
    async fn zones_named(&self, name: &str) -> PortResult<Vec<HostedZone>> {
        let (clients, what) = (self.clients.route53().await?, format!("ListHostedZonesByName {name}"));
        let (mut found, mut after): (Vec<HostedZone>, Option<String>) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let call = clients.read.list_hosted_zones_by_name().dns_name(full(name)).set_hosted_zone_id(after.clone()).max_items(100);
            let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &what))?;
            for zone in answer.hosted_zones().iter().filter(|z| full(z.name()) == full(name)) {
                // Who lists one twice may leave out another.
                if found.iter().any(|known| known.id() == zone.id()) {
                    return Err(PortError::Refused(format!("{what}: the list leads back to where it was: {}", zone.id())));
                }
                found.push(zone.clone());
            }
            if !answer.is_truncated() || answer.next_dns_name().is_none_or(|next| full(next) != full(name)) {
                return Ok(found);
            }
            after = Some(further(answer.next_hosted_zone_id(), after.as_deref(), &what)?);
        }
        Err(endless(&what))
    }

    /// Every record set of a name: page by page, since there may be a hundred weighted ones.
    async fn all(&self, zone: &str, name: &str, kind: &str) -> PortResult<Vec<RoutedSet>> {
        let (clients, what) = (self.clients.route53().await?, format!("ListResourceRecordSets {name} {kind}"));
        let (mut found, mut after): (Vec<RoutedSet>, Option<String>) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let call = clients.read.list_resource_record_sets().hosted_zone_id(zone).max_items(100);
            let call = call.start_record_name(full(name)).start_record_type(RrType::from(kind)).set_start_record_identifier(after.clone());
            let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &what))?;
            let here = |r: &&ResourceRecordSet| full(r.name()) == full(name) && r.r#type().as_str() == kind;
            for set in answer.resource_record_sets().iter().filter(here) {
                found.push(routed(name, kind, set)?);
            }
            // An identifier of another kind's set would lead back into those that were read.
            let same_kind = answer.next_record_type().is_none_or(|next| next.as_str() == kind);
            let more = same_kind && answer.next_record_name().is_some_and(|next| full(next) == full(name));
            if !answer.is_truncated() || !more {
                found.sort_by(|a, b| a.set.cmp(&b.set));
                return Ok(found);
            }
            after = Some(further(answer.next_record_identifier(), after.as_deref(), &what)?);
        }
        Err(endless(&what))
    }

    /// Carries out a batch; none when Route 53 refuses it for what stands there.
    async fn send(&self, zone: &str, batch: &ChangeBatch, what: &str) -> PortResult<Option<ChangeId>> {
        let mut pauses = AGAIN.iter();
        loop {
            let call = self.clients.route53().await?.write.change_resource_record_sets();
            match call.hosted_zone_id(zone).change_batch(batch.clone()).send().await {
                Ok(answer) => {
                    let id = answer.change_info().map(|i| i.id().trim_start_matches("/change/").to_owned());
                    let id = id.ok_or_else(|| PortError::Unknown(format!("{what}: the answer names no change")))?;
                    return Ok(Some(ChangeId(id)));
                }
                Err(e) if e.as_service_error().is_some_and(ChangeResourceRecordSetsError::is_invalid_change_batch) => return Ok(None),
                Err(e) => match (explain(&e, Doing::Writing, what), pauses.next()) {
                    (PortError::Throttled { .. }, Some(pause)) => self.clock.sleep(*pause).await,
                    (error, _) => return Err(error),
                },
            }
        }
    }
}

/// Where a list goes on that says that there is more. What is not listed must never count as not there.
pub(super) fn further(next: Option<&str>, sent: Option<&str>, what: &str) -> PortResult<String> {
    match next {
        None => Err(PortError::Refused(format!("{what}: the server says that there is more, but not how to go on"))),
        Some(next) if Some(next) == sent => Err(PortError::Refused(format!("{what}: the list leads back to where it was: {next}"))),
        Some(next) => Ok(next.to_owned()),
    }
}

pub(super) fn endless(what: &str) -> PortError {
    PortError::Refused(format!("{what}: the list has no end"))
}

fn id_of(zone: &HostedZone) -> String {
    zone.id().trim_start_matches("/hostedzone/").to_owned()
}

#[async_trait]
impl DnsRead for Route53 {
    async fn record(&self, zone: &str, name: &str, kind: &str) -> PortResult<Option<RecordSet>> {
        simple(name, kind, self.sets(zone, name, kind).await?)
    }

    async fn weights(&self, zone: &str, name: &str, kind: &str) -> PortResult<Vec<WeightedSet>> {
        self.sets(zone, name, kind).await?.into_iter().map(|set| weighted(name, kind, set)).collect()
    }

    async fn sets(&self, zone: &str, name: &str, kind: &str) -> PortResult<Vec<RoutedSet>> {
        let zone = self.zone(zone).await?;
        self.all(&zone, name, kind).await
    }

    async fn health_check(&self, id: &str) -> PortResult<Option<HealthCheck>> {
        route53_health::read(&self.clients, id).await
    }

    async fn health_check_of(&self, reference: &str) -> PortResult<Option<HealthCheck>> {
        route53_health::find(&self.clients, reference).await
    }

    async fn health_seen(&self, id: &str) -> PortResult<Option<HealthSeen>> {
        route53_health::seen(&self.clients, id).await
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
        let sets = |record: Option<&RecordSet>| -> Vec<RoutedSet> { record.cloned().map(RoutedSet::simple).into_iter().collect() };
        self.replace(zone, &sets(expect), &sets(want), comment).await
    }

    async fn reweigh(&self, zone: &str, expect: &[WeightedSet], want: &[WeightedSet], comment: &str) -> PortResult<ChangeId> {
        let sets = |weights: &[WeightedSet]| -> Vec<RoutedSet> { weights.iter().map(of_weighted).collect() };
        self.replace(zone, &sets(expect), &sets(want), comment).await
    }

    async fn replace(&self, zone: &str, expect: &[RoutedSet], want: &[RoutedSet], comment: &str) -> PortResult<ChangeId> {
        let Some(RecordSet { name, kind, .. }) = want.iter().chain(expect).next().map(|set| &set.record) else {
            return Err(PortError::Config("a change of DNS that changes nothing".to_owned()));
        };
        let what = format!("ChangeResourceRecordSets {name} {kind}");
        let id = self.zone(zone).await?;
        let batch = batch(expect, want, comment).map_err(|e| PortError::Config(format!("{what}: {e}")))?;
        if let Some(change) = self.send(&id, &batch, &what).await? {
            return Ok(change);
        }
        let found = match self.all(&id, name, kind).await {
            Ok(sets) => show_sets(&sets),
            Err(e) => format!("something else (it could not be read: {e})"),
        };
        Err(PortError::Conflict { found })
    }

    async fn create_health_check(&self, reference: &str, spec: &HealthSpec) -> PortResult<HealthCheck> {
        route53_health::create(&self.clients, reference, spec).await
    }

    async fn delete_health_check(&self, id: &str) -> PortResult<()> {
        route53_health::delete(&self.clients, id).await
    }
}
