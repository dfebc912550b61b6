//! What answers and looks without the control plane: the zone as it is served, and the health checkers, whose findings
//! decide which weighted or failover record is answered. AWS's intervals of 10 or 30 seconds run ten times as fast here.
//!
//! The API hands over `served.json` in one step and reads `health.json`; nothing else lies between the two processes.

use super::{
    error::LabResult,
    health::Check,
    plan::{LabPlan, OUTSIDE, ZONE, read_json, write_json},
    zone::{Record, Zone},
};
use crate::providers::clock::Clock;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How often it is looked whether a check was made.
const LOOK: Duration = Duration::from_millis(20);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(400);

/// What the API hands over.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Served {
    pub zone: Zone,
    #[serde(default)]
    pub checks: BTreeMap<String, Check>,
}

#[must_use]
pub fn served_file(plan: &LabPlan) -> PathBuf {
    plan.dir(OUTSIDE).join("served.json")
}
/// Which answers the checkers found good.
#[must_use]
pub fn health_file(plan: &LabPlan) -> PathBuf {
    plan.dir(OUTSIDE).join("health.json")
}

#[derive(Default)]
struct Live {
    served: Served,
    /// Which file that was.
    stamp: Option<(u64, i64, i64)>,
    /// Answers found good or bad; absent until it is known.
    found: BTreeMap<String, bool>,
    watched: BTreeSet<String>,
}

pub struct Nameserver {
    plan: Arc<LabPlan>,
    clock: Arc<dyn Clock>,
    live: Mutex<Live>,
}

impl Nameserver {
    #[must_use]
    pub fn new(plan: Arc<LabPlan>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { plan, clock, live: Mutex::default() })
    }

    /// As it is at this moment: each question sees a change that is in sync.
    fn with<T>(&self, look: impl FnOnce(&mut Live) -> T) -> T {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let file = served_file(&self.plan);
        let stamp = std::fs::metadata(&file).ok().map(|m| (m.ino(), m.mtime(), m.mtime_nsec()));
        if stamp != live.stamp
            && let Ok(served) = read_json(&file)
        {
            (live.served, live.stamp) = (served, stamp);
        }
        look(&mut live)
    }

    /// The record that answers now.
    #[must_use]
    pub fn lookup(&self, name: &str, kind: &str) -> Option<Record> {
        let dice = self.clock.jitter();
        self.with(|live| live.served.zone.answer(name, kind, &live.ill(), dice).cloned())
    }
    #[must_use]
    pub fn known(&self, name: &str) -> bool {
        self.with(|live| live.served.zone.has_name(name))
    }
    #[must_use]
    pub fn inside(&self, name: &str) -> bool {
        name == ZONE || name.ends_with(&format!(".{ZONE}"))
    }

    /// Starts a checker for every check that is made, until the process is killed.
    pub async fn check(self: Arc<Self>) {
        loop {
            let fresh = self.with(|live| {
                let fresh: Vec<_> = live
                    .served
                    .checks
                    .iter()
                    .filter(|(id, _)| !live.watched.contains(*id))
                    .map(|(id, check)| (id.clone(), check.clone()))
                    .collect();
                live.watched.extend(fresh.iter().map(|(id, _)| id.clone()));
                fresh
            });
            for (id, check) in fresh {
                tokio::spawn(self.clone().watch(id, check));
            }
            self.clock.sleep(LOOK).await;
        }
    }

    /// Asks until the check is deleted; so many answers in a row change its mind.
    async fn watch(self: Arc<Self>, id: String, check: Check) {
        let client = reqwest::Client::new();
        let url = format!("http://{}:{}{}", check.address, check.port, check.path);
        let pause = Duration::from_millis(check.interval_s * 100);
        let (mut known, mut against) = (None, 0);
        while self.with(|live| live.served.checks.contains_key(&id)) {
            let answer = client.get(&url).timeout(ANSWER).send().await;
            let good = answer.is_ok_and(|a| a.status().is_success() || a.status().is_redirection());
            against = if known == Some(good) { 0 } else { against + 1 };
            if against >= check.threshold {
                (known, against) = (Some(good), 0);
                if let Err(error) = self.note(&id, Some(good)) {
                    tracing::error!(%error, "what was found could not be kept");
                }
            }
            self.clock.sleep(pause).await;
        }
        let _ = self.note(&id, None);
    }

    fn note(&self, id: &str, good: Option<bool>) -> LabResult<()> {
        self.with(|live| {
            match good {
                Some(good) => live.found.insert(id.to_owned(), good),
                None => live.found.remove(id),
            };
            if good.is_none() {
                live.watched.remove(id);
            }
            write_json(&health_file(&self.plan), &live.found)
        })
    }
}

impl Live {
    /// Until enough is known a check counts as good, and so an inverted one as ill: as with AWS.
    fn ill(&self) -> BTreeMap<String, bool> {
        let good = |id: &String| self.found.get(id).copied().unwrap_or(true);
        self.served.checks.iter().map(|(id, check)| (id.clone(), good(id) == check.inverted)).collect()
    }
}
