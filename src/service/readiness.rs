//! `muster readiness`: what `readiness.check` looks at, asked by a person at any time and put on no record. It needs no
//! journal, which may be what is lost.

use super::{Muster, ServiceError};
use crate::actions::{
    contract::ReadCx,
    readiness_check::{self as check, Input},
};
pub use crate::actions::{readiness_check::Finding, readiness_dns::Dns};
use crate::engine::work::key;
use crate::model::{estate::Estate, ids::*, plan::Scope, time::Span};
use crate::providers::world::World;
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// The same where much else is told beside it, at once.
const GLANCE: Duration = Duration::from_secs(5);

/// How long everything that concerns one region, or one repository, may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What was found: whole, or of one region.
#[derive(Clone, Debug, Serialize)]
pub struct Readiness {
    pub ready: bool,
    pub regions: BTreeMap<RegionName, Vec<Finding>>,
    /// What lies in no region of the estate, or is the same for all.
    pub repositories: Vec<Finding>,
}

/// What somebody asked for: as in the action, for any number of regions.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// All of the estate when empty.
    pub regions: Vec<RegionName>,
    pub services: Vec<ServiceName>,
    /// All that the services use when empty.
    pub repositories: Vec<RepositoryName>,
    pub max_replica_lag: Option<Span>,
    pub max_backup_age: Option<Span>,
    pub max_proof_age: Option<Span>,
    pub max_log_age: Option<Span>,
    pub dns: Dns,
}

impl Asked {
    fn of(&self, region: &str) -> Input {
        let Self { services, repositories, max_replica_lag, max_backup_age, max_proof_age, max_log_age, dns, .. } = self.clone();
        Input { region: region.into(), services, repositories, max_replica_lag, max_backup_age, max_proof_age, max_log_age, dns }
    }
}

/// The region that repositories are looked at for: they lie in none, and nothing of it is asked.
const NONE: &str = "";

impl Muster {
    pub async fn readiness(&self, asked: Asked) -> Result<Readiness, ServiceError> {
        let estate = Arc::new(self.estate()?);
        known(&estate, &asked)?;
        let named = !asked.regions.is_empty();
        let regions: Vec<RegionName> =
            if asked.regions.is_empty() { estate.regions.keys().cloned().collect() } else { asked.regions.clone() };
        let cx = self.looking(estate.clone());
        let of_region = |region: RegionName| {
            let (cx, input) = (&cx, asked.of(region.as_str()));
            async move {
                let found = tokio::time::timeout(LIMIT, check::region(cx, &input)).await;
                let found = found.unwrap_or_else(|_| vec![late(format!("region/{region}"), LIMIT)]);
                (region, found)
            }
        };
        let with = asked.of(NONE);
        let repositories = check::chosen(&cx, &with);
        let of_repositories = futures::future::join_all(repositories.iter().map(|name| of_repository(&cx, &with, name)));
        let (regions, repositories) = futures::join!(futures::future::join_all(regions.into_iter().map(of_region)), of_repositories);
        let (mut regions, repositories): (BTreeMap<RegionName, Vec<Finding>>, Vec<_>) =
            (regions.into_iter().collect(), repositories.concat());
        if repositories.is_empty() && regions.values().all(Vec::is_empty) {
            let text = format!("{} names nothing there that could be looked at", self.estate_file.display());
            return Err(ServiceError::Usage(text));
        }
        for (region, found) in regions.iter_mut().filter(|(_, found)| named && found.is_empty()) {
            found.push(nothing_there(region));
        }
        let ready = regions.values().flatten().chain(&repositories).all(|finding| finding.ok);
        Ok(Readiness { ready, regions, repositories })
    }

    /// Whether it is proven that what lies in each repository of the estate restores.
    pub async fn proofs(&self, estate: &Estate) -> Vec<Finding> {
        let estate = Arc::new(estate.clone());
        let cx = self.looking(estate.clone());
        let of = |name: RepositoryName| {
            let cx = &cx;
            async move {
                let found = tokio::time::timeout(GLANCE, check::proven(cx, &name)).await;
                found.unwrap_or_else(|_| late(format!("repository/{name} proof"), GLANCE))
            }
        };
        futures::future::join_all(estate.repositories.keys().cloned().map(of)).await
    }

    fn looking(&self, estate: Arc<Estate>) -> ReadCx {
        let (run, step) = (RunId::from("readiness"), StepId::from("readiness"));
        ReadCx {
            world: Arc::new(World::new(estate.clone(), self.clock.clone())),
            estate,
            key: key(&run, &step),
            scratch: self.state.join("readiness"),
            run,
            step,
            scope: Scope::Live,
            lost: None,
            deadline: LIMIT,
        }
    }
}

async fn of_repository(cx: &ReadCx, with: &Input, name: &RepositoryName) -> Vec<Finding> {
    let found = tokio::time::timeout(LIMIT, check::repository(cx, with, name)).await;
    found.unwrap_or_else(|_| vec![late(format!("repository/{name}"), LIMIT)])
}

fn late(what: String, limit: Duration) -> Finding {
    Finding { what, state: "unknown".to_owned(), ok: false, detail: format!("no answer within {} s", limit.as_secs()) }
}

/// Of a region that was asked for by its name: that nothing was looked at is said, and not left out.
fn nothing_there(region: &RegionName) -> Finding {
    let detail = "the estate names nothing there that could be looked at".to_owned();
    Finding { what: format!("region/{region}"), state: "nothing_there".to_owned(), ok: true, detail }
}

/// Every name that was given is one of the estate's.
fn known(estate: &Estate, asked: &Asked) -> Result<(), ServiceError> {
    let named = |what: &str, name: &str, known: Vec<&str>| {
        if known.contains(&name) {
            return Ok(());
        }
        let has = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(ServiceError::Usage(format!("the estate has no {what} `{name}`; it has: {has}")))
    };
    let regions = || estate.regions.keys().map(RegionName::as_str).collect();
    let services = || estate.services.keys().map(ServiceName::as_str).collect();
    let repositories = || estate.repositories.keys().map(RepositoryName::as_str).collect();
    asked.regions.iter().try_for_each(|name| named("region", name.as_str(), regions()))?;
    asked.services.iter().try_for_each(|name| named("service", name.as_str(), services()))?;
    asked.repositories.iter().try_for_each(|name| named("repository", name.as_str(), repositories()))
}
