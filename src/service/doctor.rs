//! What the role that Muster runs as must be allowed, by what the runbooks do, and whether it is: asked by calls that
//! read. What changes something cannot be tried without changing it, and is told as not checked.

use super::{Muster, ServiceError, files::Folder};
use crate::actions::permissions::{self, Permission};
use crate::model::{
    estate::{DnsProvider, Endpoint, Engine, Estate},
    ids::*,
};
use crate::providers::{
    port::{ChangeId, DnsRead, ObjectRead, PortError, PortResult, WorldRead},
    world::World,
};
use serde::Serialize;
use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

/// No answer for so long is an answer too.
const LIMIT: Duration = Duration::from_secs(20);

/// What the runbooks need.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    pub runbooks: Vec<String>,
    pub permissions: BTreeSet<Permission>,
    /// Steps whose action's permissions nobody has written down: `RUNBOOK/STEP (ACTION)`.
    pub unknown: Vec<String>,
}

impl Needs {
    /// As IAM takes it.
    #[must_use]
    pub fn policy(&self) -> serde_json::Value {
        permissions::policy(&self.permissions)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Allowed,
    Denied,
    NotChecked,
}

/// One permission, tried or not.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    pub permission: &'static str,
    /// In which region of the estate, where it was tried in one.
    pub place: Option<String>,
    pub outcome: Outcome,
    pub why: String,
}

impl Muster {
    /// Of these runbooks; of all beside the estate when none is named.
    pub fn permissions(&self, runbooks: &[String]) -> Result<(Estate, Needs), ServiceError> {
        let estate = self.written_estate()?;
        let all: Vec<String> = if runbooks.is_empty() {
            self.folder(Folder::Runbooks).iter().map(|path| path.display().to_string()).collect()
        } else {
            runbooks.to_vec()
        };
        if all.is_empty() {
            return Err(ServiceError::Usage("there is no runbook beside the estate: name one".to_owned()));
        }
        let mut needs = Needs::default();
        for name in all {
            let book = self.runbook(&name, None)?.runbook;
            for step in &book.steps {
                match permissions::of(&step.uses, &step.with, &estate) {
                    Some(found) => needs.permissions.extend(found),
                    None => needs.unknown.push(format!("{}/{} ({})", book.runbook, step.id, step.uses)),
                }
            }
            needs.runbooks.push(book.runbook.to_string());
        }
        Ok((estate, needs))
    }

    /// Tries those that read, where the estate says; the rest is told.
    pub async fn try_permissions(&self, estate: &Estate, needs: &Needs) -> Vec<Checked> {
        let world = World::new(Arc::new(estate.clone()), self.clock.clone());
        let actions: BTreeSet<&'static str> = needs.permissions.iter().map(|p| p.action).collect();
        let mut found = Vec::new();
        for permission in actions {
            let tried = tried(&world, estate, needs, permission).await;
            if tried.is_empty() {
                found.push(Checked { permission, place: None, outcome: Outcome::NotChecked, why: untried(permission).to_owned() });
            }
            found.extend(tried);
        }
        found
    }
}

/// Why nothing was asked.
fn untried(permission: &str) -> &'static str {
    let (service, verb) = permission.split_once(':').unwrap_or_default();
    let reads = ["Describe", "Get", "List"].iter().any(|begin| verb.starts_with(begin));
    match (reads, service) {
        (true, "kms") => "only RDS asks for it, of the key that a step gives, so it is not tried",
        (true, _) => "nothing in the estate to try it on",
        (false, _) => "it changes something, so it is not tried",
    }
}

async fn tried(world: &World, estate: &Estate, needs: &Needs, permission: &'static str) -> Vec<Checked> {
    match permission.split_once(':').map(|(service, _)| service) {
        Some("rds" | "cloudwatch") => of_instances(world, estate, permission).await,
        Some("s3") => of_buckets(world, estate, needs, permission).await,
        Some("route53") => of_zones(world, estate, permission).await,
        _ => Vec::new(),
    }
}

async fn of_instances(world: &World, estate: &Estate, permission: &'static str) -> Vec<Checked> {
    let mut found = Vec::new();
    let instances = estate.databases.values().filter(|d| d.engine == Engine::RdsPostgres).flat_map(|d| &d.instances);
    let mut regions: BTreeSet<&RegionName> = BTreeSet::new();
    for (region, instance) in instances {
        let Some(id) = instance.id.as_deref() else { continue };
        if !regions.insert(region) && permission != "rds:DescribeDBInstances" {
            continue;
        }
        let rds = || world.instances(region.as_str());
        let asked = match permission {
            "rds:DescribeDBInstances" => limited(async { rds()?.instance(id).await.map(drop) }).await,
            "rds:DescribeDBSnapshots" => limited(async { rds()?.snapshots_of(id).await.map(drop) }).await,
            "rds:DescribeGlobalClusters" => limited(async { rds()?.global_cluster("muster-doctor").await.map(drop) }).await,
            "cloudwatch:GetMetricStatistics" => limited(async { rds()?.measured_lag(id).await.map(drop) }).await,
            _ => continue,
        };
        found.push(judged(permission, format!("{region}: {id}"), asked));
    }
    found
}

/// In each bucket that the permission is needed on.
async fn of_buckets(world: &World, estate: &Estate, needs: &Needs, permission: &'static str) -> Vec<Checked> {
    let bucket_of = |resource: &str| {
        let path = resource.split_once(":::").map_or("", |(_, path)| path);
        path.split('/').next().unwrap_or_default().to_owned()
    };
    let needed: BTreeSet<String> = needs.permissions.iter().filter(|p| p.action == permission).map(|p| bucket_of(&p.resource)).collect();
    let mut stores: Vec<(String, PortResult<Arc<dyn ObjectRead>>)> = Vec::new();
    for (name, places) in &estate.buckets {
        let there = places.iter().filter(|(_, place)| needed.contains(&place.bucket));
        stores.extend(there.map(|(region, _)| (format!("{region}: {name}"), world.objects(name.as_str(), region.as_str()))));
    }
    for (name, repository) in &estate.repositories {
        let bucket = repository.url.strip_prefix("s3://").map(|place| place.split('/').next().unwrap_or(place));
        if bucket.is_some_and(|bucket| needed.contains(bucket)) {
            stores.push((format!("repository {name}"), world.store(name.as_str())));
        }
    }
    let mut found = Vec::new();
    for (place, store) in stores {
        let asked = match store {
            Ok(store) => of_bucket(&*store, permission).await,
            Err(e) => Some(Err(e)),
        };
        found.extend(asked.map(|asked| judged(permission, place, asked)));
    }
    found
}

/// `None` for what changes something.
async fn of_bucket(store: &dyn ObjectRead, permission: &str) -> Option<PortResult<()>> {
    Some(match permission {
        "s3:ListBucket" => limited(async { store.list("", None).await.map(drop) }).await,
        "s3:ListBucketVersions" => limited(async { store.versions("", None).await.map(drop) }).await,
        "s3:GetBucketVersioning" => limited(async { store.keeps_versions().await.map(drop) }).await,
        "s3:GetBucketObjectLockConfiguration" => limited(async { store.lock().await.map(drop) }).await,
        "s3:GetReplicationConfiguration" => limited(async { store.replication_rules().await.map(drop) }).await,
        "s3:GetObject" | "s3:GetObjectAttributes" | "s3:GetObjectRetention" => limited(of_object(store, permission)).await,
        _ => return None,
    })
}

/// Of an object that is there: one byte of it, or what is known of it. Of one that is not there nobody says who may read it,
/// but for its content.
async fn of_object(store: &dyn ObjectRead, permission: &str) -> PortResult<()> {
    let page = store.list("", None).await.map_err(|e| PortError::Config(format!("no object is known to try it on: {e}")))?;
    let Some(object) = page.objects.into_iter().find(|object| object.size > 0) else {
        return match permission {
            "s3:GetObject" => store.get(NOBODY).await.map(drop),
            _ => Err(PortError::Config("there is no object to try it on".to_owned())),
        };
    };
    match permission {
        "s3:GetObject" => store.range(&object.key, 0, 1).await.map(drop),
        "s3:GetObjectRetention" => store.retention(&object.key).await.map(drop),
        // What may not be told is not told from what the server does not know.
        _ => store.sums(&object.key).await?.map(drop).ok_or_else(|| PortError::Config(format!("nothing is told of {}", object.key))),
    }
}

/// What nobody is called, neither an object nor a health check.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

async fn of_zones(world: &World, estate: &Estate, permission: &'static str) -> Vec<Checked> {
    let mut found = Vec::new();
    for (name, endpoint) in estate.endpoints.iter().filter(|(_, e)| e.provider == DnsProvider::Route53) {
        let checked = permission.contains("HealthCheck");
        let by_name = permission == "route53:ListHostedZonesByName";
        if (checked && endpoint.standby.is_none()) || (by_name && !endpoint.zone.contains('.')) {
            continue;
        }
        let asked = match world.dns(name.as_str()) {
            Ok(dns) => of_zone(&*dns, endpoint, permission).await,
            Err(e) => Some(Err(e)),
        };
        found.extend(asked.map(|asked| judged(permission, format!("endpoint {name}"), asked)));
    }
    found
}

/// `None` for what changes something.
async fn of_zone(dns: &dyn DnsRead, endpoint: &Endpoint, permission: &str) -> Option<PortResult<()>> {
    let kind = if endpoint.targets.values().all(std::net::IpAddr::is_ipv4) { "A" } else { "AAAA" };
    let sets = || dns.sets(&endpoint.zone, &endpoint.name, kind);
    let check =
        || async { sets().await.ok().and_then(|all| all.into_iter().find_map(|set| set.health)).unwrap_or_else(|| NOBODY.to_owned()) };
    Some(match permission {
        "route53:ListResourceRecordSets" => match limited(async { sets().await.map(drop) }).await {
            Err(PortError::Refused(why)) if why.contains("ListHostedZonesByName") => {
                Err(PortError::Config(format!("the zone was not found by its name: {why}")))
            }
            asked => asked,
        },
        "route53:ListHostedZonesByName" => match limited(async { sets().await.map(drop) }).await {
            // The zone was found, and what is in it is another permission's.
            Err(PortError::Refused(why)) if !why.contains("ListHostedZonesByName") => Ok(()),
            asked => asked,
        },
        "route53:ListHealthChecks" => limited(async { dns.health_check_of("muster-doctor").await.map(drop) }).await,
        "route53:GetHealthCheck" => limited(async { dns.health_check(&check().await).await.map(drop) }).await,
        "route53:GetHealthCheckStatus" => {
            let untold = || PortError::Config("nothing is told of what its checkers found".to_owned());
            limited(async { dns.health_seen(&check().await).await?.map(drop).ok_or_else(untold) }).await
        }
        "route53:GetChange" => limited(async { dns.in_sync(&ChangeId("C0000000000000".to_owned())).await.map(drop) }).await,
        _ => return None,
    })
}

async fn limited(question: impl Future<Output = PortResult<()>>) -> PortResult<()> {
    let late = || PortError::Unreachable(format!("no answer within {} s", LIMIT.as_secs()));
    tokio::time::timeout(LIMIT, question).await.unwrap_or_else(|_| Err(late()))
}

fn judged(permission: &'static str, place: String, asked: PortResult<()>) -> Checked {
    let (outcome, why) = match asked {
        // Of a bucket that is not there everybody is told so.
        Err(PortError::NotFound(why)) if why.contains("NoSuchBucket") => (Outcome::NotChecked, why),
        // Whoever is told that a thing is not there was allowed to ask.
        Ok(()) | Err(PortError::NotFound(_)) => (Outcome::Allowed, "asked and answered".to_owned()),
        Err(PortError::Refused(why)) if denied(&why) => (Outcome::Denied, why),
        Err(other) => (Outcome::NotChecked, other.to_string()),
    };
    Checked { permission, place: Some(place), outcome, why }
}

fn denied(why: &str) -> bool {
    ["AccessDenied", "UnauthorizedOperation", "AuthorizationError", "NotAuthorized"].iter().any(|code| why.contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_asked_is_neither_allowed_nor_denied() {
        let outcome = |asked| judged("rds:DescribeDBInstances", "east".into(), asked).outcome;
        assert_eq!(outcome(Ok(())), Outcome::Allowed);
        assert_eq!(outcome(Err(PortError::NotFound("x".into()))), Outcome::Allowed);
        assert_eq!(outcome(Err(PortError::Refused("Call: AccessDenied: no".into()))), Outcome::Denied);
        assert_eq!(outcome(Err(PortError::Refused("Call: InvalidParameter: no".into()))), Outcome::NotChecked);
        assert_eq!(outcome(Err(PortError::Unreachable("gone".into()))), Outcome::NotChecked);
        assert_eq!(outcome(Err(PortError::Config("no aws".into()))), Outcome::NotChecked);
        assert_eq!(outcome(Err(PortError::NotFound("ListObjectsV2 s3://x/: NoSuchBucket".into()))), Outcome::NotChecked);
    }

    #[test]
    fn what_is_not_tried_is_told_for_the_right_reason() {
        for reads in
            ["s3:GetReplicationConfiguration", "s3:GetObject", "route53:GetChange", "route53:ListHealthChecks", "rds:DescribeDBInstances"]
        {
            assert!(!untried(reads).contains("changes"), "{reads}");
        }
        assert!(untried("kms:DescribeKey").contains("RDS"));
        for changes in ["s3:PutObject", "s3:AbortMultipartUpload", "kms:CreateGrant", "route53:ChangeResourceRecordSets"] {
            assert!(untried(changes).contains("changes"), "{changes}");
        }
    }
}
