//! What each action asks of Amazon: the permissions that a role needs for a step, and the IAM policy of several. Pure: it
//! reads the step as written and the estate. Where an expression stands, everything that it could name is meant.

use super::shared::text;
use crate::model::{
    estate::{Bucket, Database, DnsProvider, Engine, Estate, Repository},
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
/// An upload in parts, and one that the provider copies (`UploadPartCopy`), ask for no more than `PutObject` where they go to.
const RECEIVE_OBJECTS: &[&str] = &["s3:GetObject", "s3:GetObjectAttributes", "s3:PutObject", "s3:AbortMultipartUpload"];
const SWITCH_OBJECTS: &[&str] = &["s3:GetObject", "s3:PutObject", "s3:DeleteObject"];
const WRITE_OBJECTS: &[&str] =
    &["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:GetObjectRetention", "s3:PutObjectRetention"];
const LOCK: &[&str] = &["s3:GetBucketObjectLockConfiguration"];

#[must_use]
pub fn of(action: &str, with: &Node, estate: &Estate) -> Needed {
    let step = Step { with, estate };
    let (noun, verb) = action.split_once('.').unwrap_or((action, ""));
    Some(match (noun, verb) {
        _ if NOTHING.contains(&action) => BTreeSet::new(),
        ("rds", _) | ("database", "snapshot" | "promote" | "fence" | "rejoin" | "verify_replica") => step.rds(action)?,
        ("backup", "create") => step.vault().into_iter().chain(step.source()).collect(),
        ("backup", "copy" | "forget" | "prove" | "restore" | "verify") | ("database", "backup" | "prove" | "record" | "restore") => {
            step.vault()
        }
        ("bucket", "backup") => step.buckets("from", COMPARE_OBJECTS).into_iter().chain(step.buckets("to", RECEIVE_OBJECTS)).collect(),
        ("bucket", "verify") => {
            let sides = ["from", "to"].map(|side| step.buckets(side, COMPARE_OBJECTS));
            let whole = &["s3:GetBucketVersioning", "s3:GetReplicationConfiguration", "s3:ListBucketVersions"];
            sides.into_iter().flatten().chain(step.whole_buckets(whole)).collect()
        }
        ("wheel", "take" | "release") if with.get("database").is_some() => BTreeSet::new(),
        ("wheel", "take" | "release") => step.buckets("region", SWITCH_OBJECTS),
        ("traffic", "shift") if with.get("golden").is_some() => step.zones(true).into_iter().chain(step.golden()).collect(),
        ("dns" | "traffic", "shift") | ("dns", "lower_ttl") => step.zones(true),
        ("dns", "prepare") => step.zones(true).into_iter().chain(step.checks(true)).chain(step.switch()).collect(),
        ("dns", "standby_takes_over") => step.switch(),
        ("model", "golden") => step.golden(),
        ("readiness", "check") => {
            let rds = step.rds("database.verify_replica")?;
            let whole = &["s3:GetBucketVersioning", "s3:GetReplicationConfiguration", "s3:GetBucketObjectLockConfiguration"];
            let buckets = step.every_bucket(READ_OBJECTS).into_iter().chain(step.whole_buckets(whole));
            let snapshots = if rds.is_empty() { Vec::new() } else { all(&["rds:DescribeDBSnapshots"], &["*".to_owned()]).collect() };
            rds.into_iter().chain(snapshots).chain(step.vault()).chain(buckets).chain(step.zones(false)).chain(step.checks(false)).collect()
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

    /// Of a region; else of the first that says where it is: an account lies in one partition.
    fn partition(&self, region: Option<&RegionName>) -> &'static str {
        let named = region.and_then(|region| self.aws(region));
        let any = || self.estate.regions.keys().find_map(|region| self.aws(region));
        named.or_else(any).map_or("aws", partition)
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
                add(
                    &[one],
                    &[vec![format!("arn:{}:rds::*:global-cluster:{name}", self.partition(None))], self.in_regions("cluster", "*")].concat(),
                );
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
            _ => format!("arn:{}:kms:*:*:key/*", self.partition(None)),
        };
        all(&["kms:DescribeKey", "kms:CreateGrant"], &[given]).collect()
    }

    /// The places of a bucket, each with its partition: in one region, or in all.
    fn places<'e>(&self, places: &'e BTreeMap<RegionName, Bucket>, region: Option<&str>) -> Vec<(&'static str, &'e Bucket)> {
        let there = places.iter().filter(|(name, _)| region.is_none_or(|region| name.as_str() == region));
        there.map(|(name, place)| (self.partition(Some(name)), place)).collect()
    }

    /// The bucket that is named, in the region that a field names; in every region where that is an expression.
    fn buckets(&self, side: &str, objects: &[&'static str]) -> BTreeSet<Permission> {
        let named = self.named("bucket", &self.estate.buckets).into_iter();
        named.flat_map(|places| self.places(places, text(self.with, side))).flat_map(|(part, place)| below(part, place, objects)).collect()
    }

    /// A bucket that is backed up; of a folder nothing is asked here.
    fn source(&self) -> BTreeSet<Permission> {
        if self.with.get("bucket").is_some() { self.buckets("region", READ_OBJECTS) } else { BTreeSet::new() }
    }

    fn every_bucket(&self, objects: &[&'static str]) -> BTreeSet<Permission> {
        let all = self.estate.buckets.values().flat_map(|places| self.places(places, None));
        all.flat_map(|(part, place)| below(part, place, objects)).collect()
    }

    /// What is asked of a bucket itself, beside its list.
    fn whole_buckets(&self, actions: &[&'static str]) -> BTreeSet<Permission> {
        let named = self.named("bucket", &self.estate.buckets).into_iter().flat_map(|places| self.places(places, None));
        let names: Vec<String> = named.map(|(part, place)| format!("arn:{part}:s3:::{}", place.bucket)).collect();
        all(actions, &names).collect()
    }

    /// The recorded predictions of an endpoint, in the region that is asked.
    fn golden(&self) -> BTreeSet<Permission> {
        let golden = self.named("endpoint", &self.estate.endpoints).into_iter().filter_map(|endpoint| endpoint.golden.as_ref());
        let places = golden.filter_map(|golden| self.estate.buckets.get(&golden.bucket));
        let there = places.flat_map(|places| self.places(places, text(self.with, "to")));
        there.flat_map(|(part, place)| below(part, place, READ_OBJECTS)).collect()
    }

    /// The switch of an endpoint, and the object beside it.
    fn switch(&self) -> BTreeSet<Permission> {
        let standbys = self.named("endpoint", &self.estate.endpoints).into_iter().filter_map(|e| e.standby.as_ref());
        let places = standbys.filter_map(|s| Some((s, self.estate.buckets.get(&s.bucket)?)));
        let there = places.flat_map(|(s, places)| self.places(places, Some(s.region.as_str())));
        there.flat_map(|(part, place)| below(part, place, SWITCH_OBJECTS)).collect()
    }

    /// The health checks behind failover records.
    fn checks(&self, changes: bool) -> BTreeSet<Permission> {
        if !self.named("endpoint", &self.estate.endpoints).into_iter().any(|e| e.standby.is_some()) {
            return BTreeSet::new();
        }
        let one = [format!("arn:{}:route53:::healthcheck/*", self.partition(None))];
        let mut needs: BTreeSet<Permission> = all(&["route53:GetHealthCheck", "route53:GetHealthCheckStatus"], &one).collect();
        if changes {
            needs.extend(all(&["route53:DeleteHealthCheck"], &one));
            needs.extend(all(&["route53:CreateHealthCheck", "route53:ListHealthChecks"], &["*".to_owned()]));
        }
        needs
    }

    fn vault(&self) -> BTreeSet<Permission> {
        let one = |repository: &Repository| {
            let (name, prefix) = repository.url.strip_prefix("s3://").map(|place| place.split_once('/').unwrap_or((place, "")))?;
            let prefix = Some(prefix.trim_matches('/')).filter(|p| !p.is_empty()).map(|p| format!("{p}/")).unwrap_or_default();
            let (part, place) =
                (self.partition(repository.region.as_ref()), Bucket { bucket: name.to_owned(), prefix, ..Bucket::default() });
            let lock = all(LOCK, &[format!("arn:{part}:s3:::{name}")]).collect::<Vec<_>>();
            Some(below(part, &place, WRITE_OBJECTS).into_iter().chain(lock))
        };
        self.named("repository", &self.estate.repositories).into_iter().filter_map(one).flatten().collect()
    }

    fn zones(&self, changes: bool) -> BTreeSet<Permission> {
        let endpoints = self.named("endpoint", &self.estate.endpoints).into_iter().filter(|e| e.provider == DnsProvider::Route53);
        let (mut needs, part) = (BTreeSet::new(), self.partition(None));
        for endpoint in endpoints {
            let by_id = !endpoint.zone.contains('.');
            let zone = [if by_id {
                format!("arn:{part}:route53:::hostedzone/{}", endpoint.zone)
            } else {
                format!("arn:{part}:route53:::hostedzone/*")
            }];
            needs.extend(all(&["route53:ListResourceRecordSets"], &zone));
            if !by_id {
                needs.extend(all(&["route53:ListHostedZonesByName"], &["*".to_owned()]));
            }
            if changes {
                needs.extend(all(&["route53:ChangeResourceRecordSets"], &zone));
                needs.extend(all(&["route53:GetChange"], &[format!("arn:{part}:route53:::change/*")]));
            }
        }
        needs
    }
}

fn partition(region: &str) -> &'static str {
    // The longer beginnings first.
    const OTHERS: [(&str, &str); 7] = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-isob-", "aws-iso-b"),
        ("us-isof-", "aws-iso-f"),
        ("us-iso-", "aws-iso"),
        ("eu-isoe-", "aws-iso-e"),
        ("eusc-", "aws-eusc"),
    ];
    OTHERS.iter().find(|(begin, _)| region.starts_with(begin)).map_or("aws", |(_, partition)| partition)
}

fn arn(region: &str, kind: &str, name: &str) -> String {
    format!("arn:{}:rds:{region}:*:{kind}:{name}", partition(region))
}

/// The list of a bucket, and what is done to objects in it: to those whose keys begin as the estate says.
fn below(partition: &str, place: &Bucket, objects: &[&'static str]) -> BTreeSet<Permission> {
    let bucket = format!("arn:{partition}:s3:::{}", place.bucket);
    let within = [format!("{bucket}/{}*", place.prefix)];
    all(&["s3:ListBucket"], &[bucket]).chain(all(objects, &within)).collect()
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
#[path = "permissions_tests.rs"]
mod tests;
