//! Each action's permissions, held against what it really asks of its providers.

use super::*;
use crate::actions::{
    catalogue,
    contract_tests::{Bench, Fixture, estate, map_of},
    fixture,
};
use crate::model::effect::Seen;
use std::time::Duration;

/// What each call of a provider asks of Amazon.
const ASKS: &[(&str, &[&str])] = &[
    ("objects.list", &["s3:ListBucket"]),
    ("objects.head", &["s3:GetObject"]),
    ("objects.get", &["s3:GetObject"]),
    ("objects.sums", &["s3:GetObject", "s3:GetObjectAttributes"]),
    ("objects.keeps_versions", &["s3:GetBucketVersioning"]),
    ("objects.lock", &["s3:GetBucketObjectLockConfiguration"]),
    ("objects.locks", &["s3:GetBucketObjectLockConfiguration"]),
    ("objects.replication_rules", &["s3:GetReplicationConfiguration"]),
    ("objects.retention", &["s3:GetObjectRetention"]),
    ("objects.put", &["s3:PutObject"]),
    ("objects.put_stream", &["s3:PutObject", "s3:AbortMultipartUpload"]),
    ("objects.copy_from", &["s3:PutObject", "s3:AbortMultipartUpload"]),
    ("objects.swap", &["s3:PutObject"]),
    ("objects.delete", &["s3:DeleteObject"]),
    ("objects.retain", &["s3:PutObjectRetention"]),
    ("instances.instance", &["rds:DescribeDBInstances"]),
    ("instances.snapshot", &["rds:DescribeDBSnapshots"]),
    ("instances.snapshots_of", &["rds:DescribeDBSnapshots"]),
    ("instances.global_cluster", &["rds:DescribeGlobalClusters"]),
    ("instances.measured_lag", &["cloudwatch:GetMetricStatistics"]),
    ("instances.create_snapshot", &["rds:CreateDBSnapshot", "rds:AddTagsToResource"]),
    ("instances.copy_snapshot", &["rds:CopyDBSnapshot", "rds:AddTagsToResource"]),
    ("instances.delete_snapshot", &["rds:DeleteDBSnapshot"]),
    ("instances.restore_to", &["rds:RestoreDBInstanceToPointInTime", "rds:AddTagsToResource"]),
    ("instances.restore_snapshot", &["rds:RestoreDBInstanceFromDBSnapshot", "rds:AddTagsToResource"]),
    ("instances.promote", &["rds:PromoteReadReplica"]),
    ("instances.create_replica", &["rds:CreateDBInstanceReadReplica", "rds:AddTagsToResource"]),
    ("instances.delete", &["rds:DeleteDBInstance", "rds:CreateDBSnapshot"]),
    ("instances.stop", &["rds:StopDBInstance"]),
    ("instances.start", &["rds:StartDBInstance"]),
    ("instances.set_groups", &["rds:ModifyDBInstance"]),
    ("instances.set_password", &["rds:ModifyDBInstance"]),
    ("instances.tag", &["rds:AddTagsToResource"]),
    ("instances.switch_global", &["rds:SwitchoverGlobalCluster"]),
    ("instances.fail_over_global", &["rds:FailoverGlobalCluster"]),
    ("dns.record", &["route53:ListResourceRecordSets"]),
    ("dns.weights", &["route53:ListResourceRecordSets"]),
    ("dns.sets", &["route53:ListResourceRecordSets"]),
    ("dns.swap", &["route53:ChangeResourceRecordSets"]),
    ("dns.reweigh", &["route53:ChangeResourceRecordSets"]),
    ("dns.replace", &["route53:ChangeResourceRecordSets"]),
    ("dns.in_sync", &["route53:GetChange"]),
    ("dns.health_check", &["route53:GetHealthCheck"]),
    ("dns.health_check_of", &["route53:ListHealthChecks"]),
    ("dns.health_seen", &["route53:GetHealthCheckStatus"]),
    ("dns.create_health_check", &["route53:CreateHealthCheck"]),
    ("dns.delete_health_check", &["route53:DeleteHealthCheck"]),
];

/// The step from its plan to its undoing, however it ends: every call counts.
async fn through(bench: &Bench, name: &str) {
    let action = crate::actions::find(name).expect("an action");
    let Ok(prepared) = action.prepare(&bench.read, &bench.with).await else { return };
    let applied = action.apply(&bench.write, &prepared.intent).await;
    for _ in 0..1_000 {
        match action.observe(&bench.read, &prepared.intent).await {
            Seen::Pending { poll_after_ms, .. } => bench.read.world.clock().sleep(Duration::from_millis(poll_after_ms)).await,
            _ => break,
        }
    }
    let _ = action.undo(&bench.write, &prepared.intent, applied.ok()).await;
}

/// The resource that a call went to, as an ARN begins; `None` where a call is about no one resource.
fn went_to(call: &str, place: &str) -> Option<String> {
    let (name, region) = place.split_once('@')?;
    let of_vault = name.strip_prefix("repositories/").map(|name| format!("arn:aws:s3:::vault-{name}"));
    call.starts_with("objects.").then(|| of_vault.unwrap_or_else(|| format!("arn:aws:s3:::{name}-{region}")))
}

fn fixtures(name: &str) -> Vec<Fixture> {
    let more = |with: Value| {
        let mut made = fixture(name).expect("a fixture");
        made.with = with;
        made
    };
    let also = match name {
        "bucket.backup" => vec![json!({ "bucket": "models", "from": "east", "to": "west", "server_copy_above": 1 })],
        "bucket.verify" => vec![json!({ "bucket": "models", "from": "east", "to": "west", "against": "source", "checksums": true })],
        "backup.create" => vec![json!({ "repository": "vault", "bucket": "models", "region": "east" })],
        "traffic.shift" => vec![json!({ "endpoint": "inference", "to": "west", "stages": [100], "bake": "5s", "golden": {} })],
        _ => Vec::new(),
    };
    also.into_iter().map(more).chain(fixture(name)).collect()
}

#[tokio::test]
async fn what_an_action_asks_stands_in_its_policy() {
    let mut named = estate();
    for (name, repository) in &mut named.repositories {
        repository.url = format!("s3://vault-{name}/muster");
    }
    let (mut held, mut missing) = (0, BTreeSet::new());
    for name in catalogue().iter().map(|action| action.spec().name) {
        for made in fixtures(name) {
            let needed = of(name, &map_of(&made.with), &named).expect("it is written down");
            let bench = Bench::new(&made);
            through(&bench, name).await;
            for (call, place) in bench.world.calls() {
                let (_, asks) = ASKS.iter().find(|(asked, _)| *asked == call).unwrap_or_else(|| panic!("nobody says what {call} asks"));
                let resource = went_to(call, &place);
                for action in *asks {
                    held += 1;
                    let fits = |p: &Permission| p.action == *action && resource.as_ref().is_none_or(|r| p.resource.starts_with(r.as_str()));
                    if !needed.iter().any(fits) {
                        missing.insert(format!("{name}: {action} on {}", resource.clone().unwrap_or(place.clone())));
                    }
                }
            }
        }
    }
    assert!(missing.is_empty(), "asked, and in no policy: {missing:#?}");
    assert!(held > 120, "{held} permissions were held against policies");
}

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
    assert!(stopped.iter().any(|p| p.starts_with("rds:StopDBInstance")) && !stopped.iter().any(|p| p.contains("Modify")), "{stopped:?}");
    let pruned = needs("rds.prune_snapshots", json!({ "database": "predictions", "region": "east", "keep_last": 1 }));
    assert!(pruned.contains("rds:DeleteDBSnapshot arn:aws:rds:us-west-2:*:snapshot:muster-*"), "{pruned:?}");
    let shift = needs("dns.shift", json!({ "endpoint": "inference", "to": "west" }));
    assert!(shift.contains("route53:ListHostedZonesByName *"), "the zone is given by its name: {shift:?}");
}

#[test]
fn an_expression_means_everything_that_it_could_name() {
    let any = needs("bucket.verify", json!({ "bucket": "{{ inputs.bucket }}", "from": "east", "to": "west" }));
    assert!(any.contains("s3:GetObject arn:aws:s3:::models-east/*") && any.contains("s3:ListBucket arn:aws:s3:::models-west"), "{any:?}");
    assert!(any.contains("s3:GetObjectAttributes arn:aws:s3:::models-west/*"), "{any:?}");
    let key = needs("rds.copy_snapshot", json!({ "database": "predictions", "from": "east", "to": "west", "kms_key": "{{ inputs.key }}" }));
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

#[test]
fn a_bucket_that_receives_copies_may_be_written_and_its_source_may_not() {
    let backup = needs("bucket.backup", json!({ "bucket": "models", "from": "east", "to": "west" }));
    for action in ["s3:PutObject", "s3:AbortMultipartUpload", "s3:GetObject", "s3:GetObjectAttributes"] {
        assert!(backup.contains(&format!("{action} arn:aws:s3:::models-west/*")), "{action}: {backup:?}");
    }
    assert!(!backup.iter().any(|p| p.contains("Put") && p.contains("models-east")), "{backup:?}");
    assert!(!backup.iter().any(|p| p.contains("Delete")), "{backup:?}");
    let shift = |golden: Value| needs("traffic.shift", json!({ "endpoint": "inference", "to": "west", "golden": golden }));
    assert!(shift(json!({})).contains("s3:GetObject arn:aws:s3:::models-west/*"));
    let plain = needs("traffic.shift", json!({ "endpoint": "inference", "to": "west" }));
    assert!(!plain.iter().any(|p| p.starts_with("s3:")), "{plain:?}");
}

#[test]
fn resources_lie_in_the_partition_of_their_region_and_below_their_prefix() {
    let mut elsewhere = estate();
    for (region, place) in [("east", "us-gov-east-1"), ("west", "us-gov-west-1")] {
        elsewhere.regions.get_mut(region).expect("a region").aws.as_mut().expect("on Amazon").region = place.into();
    }
    elsewhere.buckets.get_mut("models").expect("a bucket").get_mut("west").expect("a place").prefix = "live-".into();
    elsewhere.repositories.get_mut("vault").expect("a repository").url = "s3://dr-vault/scoring/".into();
    let of_step = |action: &str, with: Value| of(action, &map_of(&with), &elsewhere).expect("it is written down");
    let mut all = of_step("bucket.backup", json!({ "bucket": "models", "from": "east", "to": "west" }));
    all.extend(of_step("dns.prepare", json!({ "endpoint": "steady" })));
    all.extend(of_step("backup.create", json!({ "repository": "vault", "path": "." })));
    all.extend(of_step("rds.switchover_global_cluster", json!({ "database": "predictions", "global_cluster": "g" })));
    all.extend(of_step(
        "rds.copy_snapshot",
        json!({ "database": "predictions", "from": "east", "to": "west", "kms_key": "{{ inputs.key }}" }),
    ));
    let strange: Vec<_> = all.iter().filter(|p| p.resource != "*" && !p.resource.starts_with("arn:aws-us-gov:")).collect();
    assert!(all.len() > 20 && strange.is_empty(), "{strange:?}");
    let holds = |action: &str, resource: &str| all.iter().any(|p| p.action == action && p.resource == resource);
    assert!(holds("s3:PutObject", "arn:aws-us-gov:s3:::models-west/live-*"), "a prefix need not end with a slash: {all:?}");
    assert!(holds("s3:PutObject", "arn:aws-us-gov:s3:::dr-vault/scoring/*"), "{all:?}");
    assert_eq!(["us-east-1", "cn-north-1", "us-isob-east-1", "eusc-de-east-1"].map(partition), ["aws", "aws-cn", "aws-iso-b", "aws-eusc"]);
}
