//! The lease authority of `docs/lease.md`: who may hold the write lease, and until when a grant may
//! still be outstanding. It stands outside both regions.

use super::{
    error::{LabError, LabResult},
    plan::{LabPlan, read_json, write_json},
    web,
};
use crate::providers::{clock::Clock, port::LeaseState};
use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// What must survive the authority's own death. Grants need not: see [`Authority::open`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub epoch: u64,
    pub allowed: Option<String>,
    pub holder: Option<String>,
    pub ttl_ms: u64,
}

struct Lease {
    kept: Kept,
    /// The region of the outstanding grants; unknown after a start.
    to: Option<String>,
    /// On our monotonic clock, when the latest-ending grant runs out, and the wall clock's reading then.
    ends: Duration,
    ends_at: jiff::Timestamp,
}

/// The epoch and the length of a grant.
type Granted = (u64, u64);
/// The epoch, and the region that is allowed instead.
type Denied = (u64, Option<String>);

pub struct Authority {
    file: PathBuf,
    clock: Arc<dyn Clock>,
    leases: Mutex<BTreeMap<String, Lease>>,
}

#[derive(Deserialize)]
pub struct Acquire {
    region: String,
    holder: String,
}

#[derive(Deserialize)]
pub struct Allow {
    region: Option<String>,
    expect_epoch: u64,
    /// What was granted before can commit nothing any more: its server is stopped.
    #[serde(default)]
    ended: bool,
}

impl Authority {
    /// After a start, a grant from before it may be outstanding: each lease counts as granted for one ttl from now.
    /// # Errors
    /// When the file cannot be read.
    pub fn open(file: PathBuf, clock: Arc<dyn Clock>) -> LabResult<Self> {
        let kept: BTreeMap<String, Kept> = read_json(&file)?;
        let leases = kept.into_iter().map(|(name, kept)| (name, granted(kept, None, &*clock))).collect();
        Ok(Self { file, clock, leases: Mutex::new(leases) })
    }

    fn state(&self, name: &str, lease: &Lease) -> LeaseState {
        let left = lease.ends.saturating_sub(self.clock.monotonic());
        // Rounded up: zero is said only when it is over.
        let remaining_ms = u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        LeaseState {
            name: name.to_owned(),
            epoch: lease.kept.epoch,
            allowed: lease.kept.allowed.clone(),
            holder: lease.kept.holder.clone(),
            ttl_ms: lease.kept.ttl_ms,
            remaining_ms,
            expired_at: (remaining_ms == 0).then_some(lease.ends_at),
            now: self.clock.now(),
        }
    }

    fn get(&self, name: &str) -> Option<LeaseState> {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.get(name).map(|lease| self.state(name, lease))
    }

    fn acquire(&self, name: &str, ask: &Acquire) -> Option<Result<Granted, Denied>> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = leases.get_mut(name)?;
        if lease.kept.allowed.as_deref() != Some(ask.region.as_str()) {
            return Some(Err((lease.kept.epoch, lease.kept.allowed.clone())));
        }
        // Moved, but the old region may still hold it: never two at once.
        if lease.to.as_deref() != Some(ask.region.as_str()) && self.clock.monotonic() < lease.ends {
            return Some(Err((lease.kept.epoch, lease.kept.allowed.clone())));
        }
        let mut kept = lease.kept.clone();
        kept.holder = Some(format!("{}/{}", ask.region, ask.holder));
        *lease = granted(kept, Some(ask.region.clone()), &*self.clock);
        Some(Ok((lease.kept.epoch, lease.kept.ttl_ms)))
    }

    /// Durable before it is answered: a promotion will rest on it.
    fn allow(&self, name: &str, ask: Allow) -> LabResult<Option<(bool, LeaseState)>> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lease) = leases.get(name) else { return Ok(None) };
        if lease.kept.epoch != ask.expect_epoch {
            return Ok(Some((false, self.state(name, lease))));
        }
        let mut all: BTreeMap<String, Kept> = leases.iter().map(|(name, lease)| (name.clone(), lease.kept.clone())).collect();
        let next = Kept { epoch: lease.kept.epoch + 1, allowed: ask.region, ..lease.kept.clone() };
        all.insert(name.to_owned(), next.clone());
        write_json(&self.file, &all)?;
        let Some(lease) = leases.get_mut(name) else { return Ok(None) };
        lease.kept = next;
        if ask.ended {
            (lease.to, lease.ends, lease.ends_at) = (None, self.clock.monotonic(), self.clock.now());
        }
        Ok(Some((true, self.state(name, lease))))
    }
}

fn granted(kept: Kept, to: Option<String>, clock: &dyn Clock) -> Lease {
    let ttl = Duration::from_millis(kept.ttl_ms);
    let ends_at = clock.now().checked_add(ttl).unwrap_or_else(|_| clock.now());
    Lease { kept, to, ends: clock.monotonic() + ttl, ends_at }
}

fn unknown(name: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(serde_json::json!({ "error": format!("there is no lease `{name}`") }))).into_response()
}

async fn get_lease(State(all): State<Arc<Authority>>, UrlPath(name): UrlPath<String>) -> Response {
    all.get(&name).map_or_else(|| unknown(&name), |state| Json(state).into_response())
}

async fn acquire(State(all): State<Arc<Authority>>, UrlPath(name): UrlPath<String>, Json(ask): Json<Acquire>) -> Response {
    match all.acquire(&name, &ask) {
        None => unknown(&name),
        Some(Ok((epoch, ttl_ms))) => Json(serde_json::json!({ "granted": true, "epoch": epoch, "ttl_ms": ttl_ms })).into_response(),
        Some(Err((epoch, allowed))) => {
            (StatusCode::CONFLICT, Json(serde_json::json!({ "granted": false, "epoch": epoch, "allowed": allowed }))).into_response()
        }
    }
}

async fn allow(State(all): State<Arc<Authority>>, UrlPath(name): UrlPath<String>, Json(ask): Json<Allow>) -> Response {
    match all.allow(&name, ask) {
        Ok(None) => unknown(&name),
        Ok(Some((true, state))) => Json(state).into_response(),
        Ok(Some((false, state))) => (StatusCode::CONFLICT, Json(state)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, Json(serde_json::json!({ "error": error.to_string() }))).into_response(),
    }
}

/// Serves until the process is killed.
/// # Errors
/// When its file or its port is not to be had.
pub async fn serve(plan: &LabPlan, clock: Arc<dyn Clock>) -> Result<(), LabError> {
    let authority = Arc::new(Authority::open(plan.dir(super::plan::OUTSIDE).join("lease.json"), clock)?);
    let router = Router::new()
        .route("/leases/{name}", get(get_lease))
        .route("/leases/{name}/acquire", post(acquire))
        .route("/leases/{name}/allow", post(allow))
        .with_state(authority);
    web::serve(plan.outside.at(plan.outside.lease), router).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::clock::SystemClock;

    fn ask(region: &str) -> Acquire {
        Acquire { region: region.to_owned(), holder: "t".to_owned() }
    }

    #[tokio::test]
    async fn only_the_allowed_region_is_granted_and_a_restart_waits_one_ttl() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lease.json");
        let kept = Kept { epoch: 1, allowed: Some("east".into()), holder: None, ttl_ms: 80 };
        write_json(&file, &BTreeMap::from([("p".to_owned(), kept)])).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let one = Authority::open(file.clone(), clock.clone()).unwrap();
        assert!(one.acquire("p", &ask("east")).unwrap().is_err(), "a grant from before the start may be outstanding");
        clock.sleep(Duration::from_millis(90)).await;
        assert_eq!(one.acquire("p", &ask("east")), Some(Ok((1, 80))));
        assert_eq!(one.acquire("p", &ask("west")), Some(Err((1, Some("east".into())))));
        assert_eq!(one.acquire("q", &ask("west")), None);
        let (moved, state) = one.allow("p", Allow { region: Some("west".into()), expect_epoch: 1, ended: false }).unwrap().unwrap();
        assert!(moved && state.epoch == 2 && state.remaining_ms > 0, "moving it does not end what was granted: {state:?}");
        assert!(one.acquire("p", &ask("west")).unwrap().is_err(), "never two regions at once");
        let (moved, state) = one.allow("p", Allow { region: None, expect_epoch: 1, ended: false }).unwrap().unwrap();
        assert!(!moved && state.epoch == 2);
        assert!(one.acquire("p", &ask("east")).unwrap().is_err());
        assert!(one.acquire("p", &ask("west")).unwrap().is_err());
        let (moved, state) = one.allow("p", Allow { region: Some("west".into()), expect_epoch: 2, ended: true }).unwrap().unwrap();
        assert!(moved && state.remaining_ms == 0, "whoever asked knows that what was granted can commit nothing: {state:?}");
        assert_eq!(one.acquire("p", &ask("west")), Some(Ok((3, 80))));

        let two = Authority::open(file, clock.clone()).unwrap();
        let state = two.get("p").unwrap();
        assert!(state.remaining_ms > 0 && state.epoch == 3 && state.allowed.as_deref() == Some("west"), "{state:?}");
        clock.sleep(Duration::from_millis(90)).await;
        let state = two.get("p").unwrap();
        assert!(state.remaining_ms == 0 && state.expired_at.is_some(), "{state:?}");
    }
}
