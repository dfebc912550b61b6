//! Record sets as Route 53 writes them, and as the port does. What Muster could not put back as it was is refused here.

use super::port::{Alias, PortError, PortResult, RecordSet, RoutedSet, Routing, WeightedSet};
use aws_sdk_route53::{
    error::BuildError,
    types::{
        AliasTarget, Change, ChangeAction, ChangeBatch, ResourceRecord, ResourceRecordSet, ResourceRecordSetFailover, RrType,
        builders::ResourceRecordSetBuilder,
    },
};

/// What one comment may hold.
const LONGEST_COMMENT: usize = 256;

/// As Route 53 writes names: lower case, with the dot.
pub(super) fn full(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    // Route 53 writes the asterisk of a wildcard in octal.
    let name = name.replace("\\052", "*");
    if name.ends_with('.') { name } else { format!("{name}.") }
}

/// Deletes what is expected and creates what is wanted. Sets that do not change stand in it as well, deleted and made
/// anew: then they must be as expected, too.
pub(super) fn batch(expect: &[RoutedSet], want: &[RoutedSet], comment: &str) -> Result<ChangeBatch, BuildError> {
    let mut batch = ChangeBatch::builder().comment(comment.chars().take(LONGEST_COMMENT).collect::<String>());
    for (action, sets) in [(ChangeAction::Delete, expect), (ChangeAction::Create, want)] {
        for set in sets {
            let set = builder(set)?.build()?;
            batch = batch.changes(Change::builder().action(action.clone()).resource_record_set(set).build()?);
        }
    }
    batch.build()
}

fn builder(set: &RoutedSet) -> Result<ResourceRecordSetBuilder, BuildError> {
    let kind = RrType::from(set.record.kind.as_str());
    let mut made = ResourceRecordSet::builder().name(full(&set.record.name)).r#type(kind);
    made = made.set_set_identifier(set.set.clone()).set_health_check_id(set.health.clone());
    made = match set.routing {
        Routing::Simple => made,
        Routing::Weighted { weight } => made.weight(i64::from(weight)),
        Routing::Primary => made.failover(ResourceRecordSetFailover::Primary),
        Routing::Secondary => made.failover(ResourceRecordSetFailover::Secondary),
    };
    if let Some(alias) = &set.alias {
        let target = AliasTarget::builder().hosted_zone_id(&alias.zone).dns_name(full(&alias.name));
        return Ok(made.alias_target(target.evaluate_target_health(alias.evaluate).build()?));
    }
    made = made.ttl(i64::from(set.record.ttl_s));
    for value in &set.record.values {
        made = made.resource_records(ResourceRecord::builder().value(value).build()?);
    }
    Ok(made)
}

/// A set as Route 53 tells it.
pub(super) fn routed(name: &str, kind: &str, set: &ResourceRecordSet) -> PortResult<RoutedSet> {
    let unknown = [
        (set.region().is_some(), "latency"),
        (set.geo_location().is_some(), "geolocation"),
        (set.geo_proximity_location().is_some(), "geoproximity"),
        (set.multi_value_answer().is_some(), "multivalue"),
        (set.cidr_routing_config().is_some(), "IP-based routing"),
        (set.traffic_policy_instance_id().is_some(), "a traffic policy"),
    ];
    if let Some((_, what)) = unknown.iter().find(|(there, _)| *there) {
        return Err(PortError::Refused(format!(
            "{name} {kind} is answered by {what}; Muster shifts simple, weighted and failover records, aliases among them"
        )));
    }
    let routing = match (set.weight(), set.failover()) {
        (Some(weight), _) => Routing::Weighted { weight: u32::try_from(weight).unwrap_or(0) },
        (None, Some(ResourceRecordSetFailover::Primary)) => Routing::Primary,
        (None, Some(_)) => Routing::Secondary,
        (None, None) => Routing::Simple,
    };
    let alias = set.alias_target().map(|target| Alias {
        zone: target.hosted_zone_id().to_owned(),
        name: full(target.dns_name()),
        evaluate: target.evaluate_target_health(),
    });
    let record = RecordSet {
        name: name.to_owned(),
        kind: kind.to_owned(),
        ttl_s: set.ttl().and_then(|t| u32::try_from(t).ok()).unwrap_or(0),
        values: set.resource_records().iter().map(|r| r.value().to_owned()).collect(),
    };
    let identifier = set.set_identifier().filter(|_| routing != Routing::Simple).map(str::to_owned);
    Ok(RoutedSet { set: identifier, routing, health: set.health_check_id().map(str::to_owned), alias, record })
}

/// The one simple record that holds addresses, if that is what there is.
pub(super) fn simple(name: &str, kind: &str, sets: Vec<RoutedSet>) -> PortResult<Option<RecordSet>> {
    // Weighted, failover...: more than one may share the name, and a swap of one is not a shift.
    match sets.into_iter().next() {
        None => Ok(None),
        Some(set) if set.routing != Routing::Simple => {
            Err(PortError::Refused(format!("{name} {kind} is answered by a routing policy, not by a simple record")))
        }
        Some(set) if set.alias.is_some() => Err(PortError::Refused(format!("{name} {kind} is an alias record, which holds no addresses"))),
        Some(set) => Ok(Some(set.record)),
    }
}

pub(super) fn weighted(name: &str, kind: &str, set: RoutedSet) -> PortResult<WeightedSet> {
    let (Some(identifier), Routing::Weighted { weight }) = (set.set, set.routing) else {
        return Err(PortError::Refused(format!("{name} {kind} is not weighted: give each region a weighted record first")));
    };
    Ok(WeightedSet { set: identifier, weight, health: set.health, alias: set.alias, record: set.record })
}

pub(super) fn of_weighted(set: &WeightedSet) -> RoutedSet {
    let WeightedSet { set, weight, health, alias, record } = set.clone();
    RoutedSet { set: Some(set), routing: Routing::Weighted { weight }, health, alias, record }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(address: &str) -> RecordSet {
        RecordSet { name: "API.scoring.test".into(), kind: "A".into(), ttl_s: 5, values: vec![address.into()] }
    }

    #[test]
    fn a_swap_is_one_batch_that_deletes_before_it_creates() {
        let simple = |address| vec![RoutedSet::simple(record(address))];
        let made = batch(&simple("127.0.1.1"), &simple("127.0.2.1"), &"x".repeat(300)).unwrap();
        let steps: Vec<_> = made.changes().iter().map(|c| (c.action().as_str(), c.resource_record_set().unwrap())).collect();
        assert_eq!(steps.iter().map(|s| s.0).collect::<Vec<_>>(), ["DELETE", "CREATE"]);
        assert!(steps.iter().all(|s| s.1.name() == "api.scoring.test." && s.1.ttl() == Some(5)));
        assert_eq!(made.comment().map(str::len), Some(256));
        assert_eq!(batch(&[], &simple("127.0.2.1"), "").unwrap().changes().len(), 1);
    }

    /// What is read is what was written: so it can be put back.
    #[test]
    fn every_kind_of_set_goes_there_and_back() {
        let alias = Alias { zone: "Z1".into(), name: "lb.test.".into(), evaluate: true };
        let bare = RecordSet { ttl_s: 0, values: Vec::new(), ..record("") };
        let set = |set: &str, routing, health: Option<&str>| RoutedSet {
            set: Some(set.into()),
            routing,
            health: health.map(str::to_owned),
            alias: None,
            record: record("127.0.1.1"),
        };
        for one in [
            RoutedSet::simple(record("127.0.1.1")),
            RoutedSet { alias: Some(alias.clone()), record: bare.clone(), ..RoutedSet::simple(bare.clone()) },
            set("east", Routing::Weighted { weight: 0 }, Some("h")),
            set("east", Routing::Primary, Some("h")),
            RoutedSet { alias: Some(alias), record: bare, ..set("west", Routing::Secondary, None) },
        ] {
            let made = builder(&one).unwrap().build().unwrap();
            assert_eq!(routed("API.scoring.test", "A", &made).unwrap(), one);
        }
        let latency = builder(&set("east", Routing::Simple, None)).unwrap();
        let latency = latency.region(aws_sdk_route53::types::ResourceRecordSetRegion::UsEast1).build().unwrap();
        assert!(matches!(routed("a", "A", &latency), Err(PortError::Refused(why)) if why.contains("latency")));
    }

    #[test]
    fn names_are_compared_as_route_53_writes_them() {
        assert_eq!(full("Api.Scoring.test"), "api.scoring.test.");
        assert_eq!(full("\\052.scoring.test."), "*.scoring.test.");
    }
}
