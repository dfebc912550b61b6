//! What the role that Muster runs as must be allowed, by what the runbooks do, and whether it is: asked by calls that
//! read. What changes something cannot be tried without changing it, and is told as not checked.

use super::{Muster, ServiceError, files::Folder};
use crate::actions::permissions::{self, Permission};
use crate::model::{
    estate::{Engine, Estate},
    ids::*,
};
use crate::providers::{
    port::{PortError, PortResult, WorldRead},
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
            let tried = tried(&world, estate, permission).await;
            if tried.is_empty() {
                let why = if reads(permission) { "nothing in the estate to try it on" } else { "it changes something, so it is not tried" };
                found.push(Checked { permission, place: None, outcome: Outcome::NotChecked, why: why.to_owned() });
            }
            found.extend(tried);
        }
        found
    }
}

fn reads(permission: &str) -> bool {
    ["rds:Describe", "cloudwatch:Get", "s3:List", "s3:GetBucket", "route53:List"].iter().any(|begin| permission.starts_with(begin))
}

async fn tried(world: &World, estate: &Estate, permission: &'static str) -> Vec<Checked> {
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
    if permission == "s3:ListBucket" {
        for (name, region) in estate.buckets.iter().flat_map(|(name, places)| places.keys().map(move |region| (name, region))) {
            let asked = limited(async { world.objects(name.as_str(), region.as_str())?.list(".muster/", None).await.map(drop) }).await;
            found.push(judged(permission, format!("{region}: {name}"), asked));
        }
        for name in estate.repositories.iter().filter(|(_, r)| r.url.starts_with("s3://")).map(|(name, _)| name) {
            let asked = limited(async { world.store(name.as_str())?.list("snapshots/", None).await.map(drop) }).await;
            found.push(judged(permission, format!("repository {name}"), asked));
        }
    }
    if permission == "route53:ListResourceRecordSets" {
        for (name, endpoint) in estate.endpoints.iter().filter(|(_, e)| e.provider == crate::model::estate::DnsProvider::Route53) {
            let asked = limited(async { world.dns(name.as_str())?.record(&endpoint.zone, &endpoint.name, "A").await.map(drop) }).await;
            found.push(judged(permission, format!("endpoint {name}"), asked));
        }
    }
    found
}

async fn limited(question: impl Future<Output = PortResult<()>>) -> PortResult<()> {
    let late = || PortError::Unreachable(format!("no answer within {} s", LIMIT.as_secs()));
    tokio::time::timeout(LIMIT, question).await.unwrap_or_else(|_| Err(late()))
}

fn judged(permission: &'static str, place: String, asked: PortResult<()>) -> Checked {
    let (outcome, why) = match asked {
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
    }
}
