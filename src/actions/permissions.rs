//! What each action asks of Amazon: the permissions that a role needs for a step, and the IAM policy of several. Pure: it
//! reads the step as written and the estate. Where an expression stands, everything that it could name is meant.

use super::shared::text;
use crate::model::{
    estate::{Database, DnsProvider, Engine, Estate},
    ids::*,
    node::{Node, NodeValue},
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// One thing that may be done, and to what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    /// `rds:CreateDBSnapshot`.
    pub action: &'static str,
    /// An ARN with wild cards, or `*`.
    pub resource: String,
}

/// What a step needs; `None` when nobody has written it down for that action.
pub type Needed = Option<BTreeSet<Permission>>;

/// Actions that ask nothing of Amazon, whatever they are given. `approval` is a step of the engine's own.
const NOTHING: [&str; 10] = [
    "approval",
    "condition.check",
    "database.admit",
    "database.follow",
    "exec.command",
    "http.check",
    "metrics.check",
    "notify.exec",
    "notify.webhook",
    "database.switchover",
];

const READ_OBJECTS: &[&str] = &["s3:GetObject"];
const COMPARE_OBJECTS: &[&str] = &["s3:GetObject", "s3:GetObjectAttributes"];
const WRITE_OBJECTS: &[&str] =
    &["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:GetObjectRetention", "s3:PutObjectRetention"];

#[must_use]
pub fn of(action: &str, with: &Node, estate: &Estate) -> Needed {
    let step = Step { with, estate };
    let (noun, verb) = action.split_once('.').unwrap_or((action, ""));
    Some(match (noun, verb) {
        _ if NOTHING.contains(&action) => BTreeSet::new(),
        ("rds", _) | ("database", "snapshot" | "promote" | "fence" | "rejoin" | "verify_replica") => step.rds(action)?,
        ("backup", "create" | "copy" | "forget" | "prove" | "restore" | "verify")
        | ("database", "backup" | "prove" | "record" | "restore") => step.vault(),
        ("bucket", "backup") => step.buckets(COMPARE_OBJECTS).into_iter().chain(step.vault()).collect(),
        ("bucket", "verify") => step.buckets(COMPARE_OBJECTS).into_iter().chain(step.whole_buckets()).collect(),
        ("wheel", "take" | "release") if with.get("database").is_some() => BTreeSet::new(),
        ("wheel", "take" | "release") => step.buckets(&["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]),
        ("dns" | "traffic", "shift") | ("dns", "lower_ttl") => step.zones(true),
        ("dns", "prepare") => step.zones(true).into_iter().chain(step.checks(true)).chain(step.switch()).collect(),
        ("dns", "standby_takes_over") => step.switch(),
        ("model", "golden") => step.every_bucket(READ_OBJECTS),
        ("readiness", "check") => {
            let rds = step.rds("database.verify_replica")?;
            let buckets = step.every_bucket(READ_OBJECTS).into_iter().chain(step.whole_buckets());
            rds.into_iter().chain(step.vault()).chain(buckets).chain(step.zones(false)).chain(step.checks(false)).collect()
        }
        _ => return None,
    })
}

struct Step<'a> {
    with: &'a Node,
    estate: &'a Estate,
}

fn all<'a>(actions: &'a [&'static str], resources: &'a [String]) -> impl Iterator<Item = Permission> + 'a {
    actions.iter().flat_map(move |action| resources.iter().map(move |resource| Permission { action, resource: resource.clone() }))
}

impl Step<'_> {
    /// What a field names; everything of that kind where it is left out or an expression.
    fn named<'e, N: Ord + std::borrow::Borrow<str>, T>(&self, field: &str, all: &'e BTreeMap<N, T>) -> Vec<&'e T> {
        match text(self.with, field) {
            Some(name) => all.get(name).into_iter().collect(),
            None => all.values().collect(),
        }
    }

    fn databases(&self) -> impl Iterator<Item = &Database> {
        self.named("database", &self.estate.databases).into_iter().filter(|d| d.engine == Engine::RdsPostgres)
    }

    fn aws(&self, region: &RegionName) -> Option<&str> {
        self.estate.regions.get(region).and_then(|r| r.aws.as_ref()).map(|aws| aws.region.as_str())
    }

    /// `arn:aws:rds:us-east-1:*:db:NAME`, of the databases in question.
    fn instances(&self) -> Vec<String> {
        let of = |d: &Database| {
            let one = |(region, i): (&RegionName, &crate::model::estate::Instance)| Some(arn(self.aws(region)?, "db", i.id.as_deref()?));
            d.instances.iter().filter_map(one).collect::<Vec<_>>()
        };
        self.databases().flat_map(of).collect()
    }

    /// Something of that kind, in each region of the databases in question.
    fn in_regions(&self, kind: &str, name: &str) -> Vec<String> {
        let regions: BTreeSet<&str> = self.databases().flat_map(|d| d.instances.keys()).filter_map(|r| self.aws(r)).collect();
        regions.into_iter().map(|region| arn(region, kind, name)).collect()
    }

    /// What a step makes: its name is given, or begins with Muster's.
    fn made(&self) -> Vec<String> {
        self.in_regions("db", text(self.with, "name").unwrap_or("muster-*"))
    }

    fn says(&self, word: &str) -> bool {
        fn within(node: &Node, word: &str) -> bool {
            match &node.value {
                NodeValue::Text { text, .. } => text == word || text.contains("{{"),
                NodeValue::Typed(value) => value.to_string().contains(word),
                NodeValue::List(items) => items.iter().any(|item| within(item, word)),
                _ => false,
            }
        }
        self.with.get("by").is_some_and(|by| within(by, word))
    }

    fn rds(&self, action: &str) -> Needed {
        let (source, made, snapshots) = (self.instances(), self.made(), self.in_regions("snapshot", "muster-*"));
        if source.is_empty() && self.databases().next().is_none() {
            return Some(BTreeSet::new());
        }
        let any = ["*".to_owned()];
        let mut needs: BTreeSet<Permission> = all(&["rds:DescribeDBInstances"], &any).collect();
        let mut add = |actions: &[&'static str], on: &[String]| needs.extend(all(actions, on));
        let makes = |given: &[String]| [given, &made, &self.around()].concat();
        match action {
            "database.snapshot" => {
                add(&["rds:DescribeDBSnapshots"], &any);
                add(&["rds:CreateDBSnapshot"], &[source, snapshots.clone()].concat());
                add(&["rds:AddTagsToResource"], &snapshots);
            }
            "database.promote" => add(&["rds:PromoteReadReplica"], &source),
            "database.fence" => self.fence(&source, &mut needs),
            "database.verify_replica" => add(&["cloudwatch:GetMetricStatistics"], &any),
            "database.rejoin" => {
                add(&["rds:DeleteDBInstance", "rds:CreateDBInstanceReadReplica"], &[source.clone(), self.around()].concat());
                add(&["rds:CreateDBSnapshot"], &[source.clone(), snapshots].concat());
                add(&["rds:AddTagsToResource"], &source);
            }
            "rds.copy_snapshot" => {
                add(&["rds:DescribeDBSnapshots"], &any);
                add(&["rds:CopyDBSnapshot"], &self.in_regions("snapshot", "*"));
                add(&["rds:AddTagsToResource"], &snapshots);
            }
            "rds.create_replica" => {
                add(&["rds:CreateDBInstanceReadReplica"], &makes(&source));
                add(&["rds:AddTagsToResource"], &made);
            }
            "rds.restore_point_in_time" => {
                add(&["rds:RestoreDBInstanceToPointInTime"], &makes(&source));
                add(&["rds:AddTagsToResource"], &made);
            }
            "rds.restore_snapshot" => {
                add(&["rds:DescribeDBSnapshots"], &any);
                add(&["rds:RestoreDBInstanceFromDBSnapshot"], &makes(&self.in_regions("snapshot", "*")));
                add(&["rds:AddTagsToResource"], &made);
            }
            "rds.prune_snapshots" => {
                add(&["rds:DescribeDBSnapshots"], &any);
                add(&["rds:DeleteDBSnapshot"], &self.in_regions("snapshot", if self.others_too() { "*" } else { "muster-*" }));
            }
            "rds.switchover_global_cluster" | "rds.failover_global_cluster" => {
                let one = if action.contains("switchover") { "rds:SwitchoverGlobalCluster" } else { "rds:FailoverGlobalCluster" };
                let name = text(self.with, "global_cluster").unwrap_or("*");
                add(&["rds:DescribeGlobalClusters"], &any);
                add(&[one], &[vec![format!("arn:aws:rds::*:global-cluster:{name}")], self.in_regions("cluster", "*")].concat());
            }
            _ => return None,
        }
        needs.extend(self.keys());
        Some(needs)
    }

    fn fence(&self, source: &[String], needs: &mut BTreeSet<Permission>) {
        let prepared = self.databases().any(|d| d.lease.is_none() && d.instances.values().any(|i| i.fence.is_some()));
        let default = self.with.get("by").is_none() && prepared;
        if default || self.says("security_group_closed") || self.says("credentials_rotated") {
            needs.extend(all(&["rds:ModifyDBInstance"], source));
        }
        if self.says("credentials_rotated") || self.says("instance_stopped") {
            needs.extend(all(&["rds:AddTagsToResource", "rds:RemoveTagsFromResource"], source));
        }
        if self.says("instance_stopped") {
            needs.extend(all(&["rds:StopDBInstance", "rds:StartDBInstance"], source));
        }
    }

    fn others_too(&self) -> bool {
        match self.with.get("others_too").map(|node| &node.value) {
            None => false,
            Some(NodeValue::Typed(value)) => *value != json!(false),
            Some(NodeValue::Text { text, .. }) => text != "false",
            Some(_) => true,
        }
    }

    /// What a new instance is made with, beside what it is made of.
    fn around(&self) -> Vec<String> {
        ["subgrp", "pg", "og"].iter().flat_map(|kind| self.in_regions(kind, "*")).collect()
    }

    /// RDS uses a key in the name of whoever asks.
    fn keys(&self) -> BTreeSet<Permission> {
        let Some(given) = self.with.get("kms_key") else { return BTreeSet::new() };
        let given = match &given.value {
            NodeValue::Text { text, .. } if text.starts_with("arn:") && !text.contains("{{") => text.clone(),
            NodeValue::Typed(Value::String(text)) if text.starts_with("arn:") => text.clone(),
            _ => "arn:aws:kms:*:*:key/*".to_owned(),
        };
        all(&["kms:DescribeKey", "kms:CreateGrant"], &[given]).collect()
    }

    fn buckets(&self, objects: &[&'static str]) -> BTreeSet<Permission> {
        let places = self.named("bucket", &self.estate.buckets).into_iter().flat_map(BTreeMap::values);
        places.flat_map(|place| bucket(&place.bucket, &place.prefix, objects)).collect()
    }

    fn every_bucket(&self, objects: &[&'static str]) -> BTreeSet<Permission> {
        let places = self.estate.buckets.values().flat_map(BTreeMap::values);
        places.flat_map(|place| bucket(&place.bucket, &place.prefix, objects)).collect()
    }

    /// What is asked of a bucket itself, and of its versions.
    fn whole_buckets(&self) -> BTreeSet<Permission> {
        let places = self.named("bucket", &self.estate.buckets).into_iter().flat_map(BTreeMap::values);
        let names: Vec<String> = places.map(|place| format!("arn:aws:s3:::{}", place.bucket)).collect();
        all(&["s3:GetBucketVersioning", "s3:GetReplicationConfiguration", "s3:ListBucketVersions"], &names).collect()
    }

    /// The switch of an endpoint, and the object beside it.
    fn switch(&self) -> BTreeSet<Permission> {
        let standbys = self.named("endpoint", &self.estate.endpoints).into_iter().filter_map(|e| e.standby.as_ref());
        let places = standbys.filter_map(|s| self.estate.buckets.get(&s.bucket)?.get(&s.region));
        places.flat_map(|place| bucket(&place.bucket, &place.prefix, &["s3:GetObject", "s3:PutObject", "s3:DeleteObject"])).collect()
    }

    /// The health checks behind failover records.
    fn checks(&self, changes: bool) -> BTreeSet<Permission> {
        if !self.named("endpoint", &self.estate.endpoints).into_iter().any(|e| e.standby.is_some()) {
            return BTreeSet::new();
        }
        let one = ["arn:aws:route53:::healthcheck/*".to_owned()];
        let mut needs: BTreeSet<Permission> = all(&["route53:GetHealthCheck", "route53:GetHealthCheckStatus"], &one).collect();
        if changes {
            needs.extend(all(&["route53:DeleteHealthCheck"], &one));
            needs.extend(all(&["route53:CreateHealthCheck", "route53:ListHealthChecks"], &["*".to_owned()]));
        }
        needs
    }

    fn vault(&self) -> BTreeSet<Permission> {
        let places = self.named("repository", &self.estate.repositories).into_iter();
        let s3 = places.filter_map(|r| r.url.strip_prefix("s3://").map(|place| place.split_once('/').unwrap_or((place, ""))));
        s3.flat_map(|(name, prefix)| bucket(name, prefix, WRITE_OBJECTS)).collect()
    }

    fn zones(&self, changes: bool) -> BTreeSet<Permission> {
        let endpoints = self.named("endpoint", &self.estate.endpoints).into_iter().filter(|e| e.provider == DnsProvider::Route53);
        let mut needs = BTreeSet::new();
        for endpoint in endpoints {
            let by_id = !endpoint.zone.contains('.');
            let zone = [if by_id {
                format!("arn:aws:route53:::hostedzone/{}", endpoint.zone)
            } else {
                "arn:aws:route53:::hostedzone/*".to_owned()
            }];
            needs.extend(all(&["route53:ListResourceRecordSets"], &zone));
            if !by_id {
                needs.extend(all(&["route53:ListHostedZonesByName"], &["*".to_owned()]));
            }
            if changes {
                needs.extend(all(&["route53:ChangeResourceRecordSets"], &zone));
                needs.extend(all(&["route53:GetChange"], &["arn:aws:route53:::change/*".to_owned()]));
            }
        }
        needs
    }
}

fn arn(region: &str, kind: &str, name: &str) -> String {
    let partition = if region.starts_with("cn-") {
        "aws-cn"
    } else if region.starts_with("us-gov-") {
        "aws-us-gov"
    } else {
        "aws"
    };
    format!("arn:{partition}:rds:{region}:*:{kind}:{name}")
}

fn bucket(name: &str, prefix: &str, objects: &[&'static str]) -> BTreeSet<Permission> {
    let prefix = prefix.trim_matches('/');
    let below = if prefix.is_empty() { "*".to_owned() } else { format!("{prefix}/*") };
    let whole = all(&["s3:ListBucket", "s3:GetBucketObjectLockConfiguration"], &[format!("arn:aws:s3:::{name}")]).collect::<Vec<_>>();
    whole.into_iter().chain(all(objects, &[format!("arn:aws:s3:::{name}/{below}")])).collect()
}

/// The IAM policy of all of them: a statement for each set of resources, in a stable order.
#[must_use]
pub fn policy(needs: &BTreeSet<Permission>) -> Value {
    let mut on: BTreeMap<&'static str, BTreeSet<&str>> = BTreeMap::new();
    for need in needs {
        on.entry(need.action).or_default().insert(&need.resource);
    }
    let mut statements: BTreeMap<BTreeSet<&str>, Vec<&'static str>> = BTreeMap::new();
    for (action, resources) in on {
        statements.entry(resources).or_default().push(action);
    }
    let statement =
        |(resources, actions): (BTreeSet<&str>, Vec<&str>)| json!({ "Effect": "Allow", "Action": actions, "Resource": resources });
    json!({ "Version": "2012-10-17", "Statement": statements.into_iter().map(statement).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::{
        catalogue,
        contract_tests::{estate, map_of},
        fixture,
    };

    fn needs(action: &str, with: Value) -> BTreeSet<String> {
        let needed = of(action, &map_of(&with), &estate()).expect("it is written down");
        needed.into_iter().map(|p| format!("{} {}", p.action, p.resource)).collect()
    }

    #[test]
    fn every_action_that_goes_through_rds_has_its_permissions() {
        for action in catalogue() {
            let name = action.spec().name;
            let with = fixture(name).expect("a fixture").with;
            if name.starts_with("rds.") || name.starts_with("database.") {
                assert!(of(name, &map_of(&with), &estate()).is_some(), "{name}");
            }
        }
        assert_eq!(of("no.such", &Node::typed(json!({})), &estate()), None);
    }

    #[test]
    fn every_action_is_written_down_and_a_failover_by_the_switch_asks_s3_alone() {
        for action in catalogue() {
            let name = action.spec().name;
            let with = fixture(name).expect("a fixture").with;
            assert!(of(name, &map_of(&with), &estate()).is_some(), "{name}");
        }
        let fired = needs("dns.standby_takes_over", json!({ "endpoint": "steady", "to": "west" }));
        assert!(!fired.is_empty() && fired.iter().all(|p| p.starts_with("s3:")), "{fired:?}");
        let prepared = needs("dns.prepare", json!({ "endpoint": "steady" }));
        assert!(prepared.contains("route53:CreateHealthCheck *"), "{prepared:?}");
    }

    #[test]
    fn a_step_needs_no_more_than_what_it_names() {
        let snapshot = needs("database.snapshot", json!({ "database": "predictions", "region": "east" }));
        assert!(snapshot.contains("rds:CreateDBSnapshot arn:aws:rds:us-east-1:*:db:predictions-east"), "{snapshot:?}");
        assert!(!snapshot.iter().any(|p| p.contains("Delete") || p.contains("Modify")), "{snapshot:?}");
        let of_own = needs("database.fence", json!({ "database": "orders", "region": "east" }));
        assert!(of_own.is_empty(), "a server of one's own asks nothing of Amazon: {of_own:?}");
        let leased = needs("database.fence", json!({ "database": "predictions", "region": "east" }));
        assert!(!leased.iter().any(|p| p.contains("Modify") || p.contains("Stop")), "{leased:?}");
        let stopped = needs("database.fence", json!({ "database": "predictions", "region": "east", "by": ["instance_stopped"] }));
        assert!(
            stopped.iter().any(|p| p.starts_with("rds:StopDBInstance")) && !stopped.iter().any(|p| p.contains("Modify")),
            "{stopped:?}"
        );
        let pruned = needs("rds.prune_snapshots", json!({ "database": "predictions", "region": "east", "keep_last": 1 }));
        assert!(pruned.contains("rds:DeleteDBSnapshot arn:aws:rds:us-west-2:*:snapshot:muster-*"), "{pruned:?}");
        let shift = needs("dns.shift", json!({ "endpoint": "inference", "to": "west" }));
        assert!(shift.contains("route53:ListHostedZonesByName *"), "the zone is given by its name: {shift:?}");
    }

    #[test]
    fn an_expression_means_everything_that_it_could_name() {
        let any = needs("bucket.verify", json!({ "bucket": "{{ inputs.bucket }}", "from": "east", "to": "west" }));
        assert!(
            any.contains("s3:GetObject arn:aws:s3:::models-east/*") && any.contains("s3:ListBucket arn:aws:s3:::models-west"),
            "{any:?}"
        );
        assert!(any.contains("s3:GetObjectAttributes arn:aws:s3:::models-west/*"), "{any:?}");
        let key =
            needs("rds.copy_snapshot", json!({ "database": "predictions", "from": "east", "to": "west", "kms_key": "{{ inputs.key }}" }));
        assert!(key.contains("kms:CreateGrant arn:aws:kms:*:*:key/*"), "{key:?}");
    }

    #[test]
    fn a_policy_has_one_statement_for_each_set_of_resources() {
        let of = |action: &'static str, resource: &str| Permission { action, resource: resource.to_owned() };
        let needs = [of("a:One", "*"), of("a:Two", "*"), of("a:Three", "arn:x")].into();
        let statement = |actions: &[&str], resource: &str| json!({ "Effect": "Allow", "Action": actions, "Resource": [resource] });
        assert_eq!(
            policy(&needs),
            json!({ "Version": "2012-10-17", "Statement": [statement(&["a:One", "a:Two"], "*"), statement(&["a:Three"], "arn:x")] })
        );
    }
}
