//! What lies between the regions: names, resolvers that cache, HTTP, the lease authority; and processes.
//!
//! Processes are three words: `mark NAME` does something that lasts, `unmark NAME` takes it back, and
//! `marked NAME` looks (0 yes, 1 no). `exit N` ends with N, `hang` never ends, `say TEXT` prints; with
//! standard input, `mark` keeps it as its name.

use super::{SimWorld, state::SYNC};
use crate::providers::{clock::Clock, port::*};
use async_trait::async_trait;
use jiff::SignedDuration;
use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

pub type Handler = Arc<dyn Fn(&HttpRequest) -> PortResult<HttpResponse> + Send + Sync>;

#[derive(Clone)]
pub(super) struct Net {
    pub world: SimWorld,
    /// As one of several servers that hold a zone: which, and in which region.
    pub held: Option<(String, Option<String>)>,
}

impl Net {
    pub fn new(world: &SimWorld) -> Self {
        Self { world: world.clone(), held: None }
    }
    /// What this server has of a zone lies apart from what others have.
    fn zone(&self, zone: &str) -> PortResult<String> {
        let Some((server, region)) = &self.held else { return Ok(zone.to_owned()) };
        self.world.up(region.as_deref().unwrap_or("nowhere"))?;
        Ok(held_zone(zone, server))
    }
}

/// Where the records of one of several servers are kept.
pub fn held_zone(zone: &str, server: &str) -> String {
    format!("{zone} at {server}")
}

#[async_trait]
impl DnsRead for Net {
    async fn record(&self, zone: &str, name: &str, kind: &str) -> PortResult<Option<RecordSet>> {
        self.world.asked("dns.record", zone);
        let zone = self.zone(zone)?;
        Ok(self.world.lock().records.get(&(zone, name.into(), kind.into())).cloned())
    }
    async fn weights(&self, zone: &str, name: &str, kind: &str) -> PortResult<Vec<WeightedSet>> {
        self.world.asked("dns.weights", zone);
        Ok(self.world.lock().weights.get(&(zone.into(), name.into(), kind.into())).cloned().unwrap_or_default())
    }
    async fn sets(&self, zone: &str, name: &str, kind: &str) -> PortResult<Vec<RoutedSet>> {
        self.world.asked("dns.sets", zone);
        let zone = self.zone(zone)?;
        Ok(self.world.lock().sets(&(zone, name.into(), kind.into())))
    }
    async fn health_check(&self, id: &str) -> PortResult<Option<HealthCheck>> {
        self.world.asked("dns.health_check", "");
        Ok(self.world.lock().checks.get(id).map(|spec| HealthCheck { id: id.to_owned(), spec: Some(spec.clone()) }))
    }
    async fn health_check_of(&self, reference: &str) -> PortResult<Option<HealthCheck>> {
        self.world.asked("dns.health_check_of", "");
        self.health_check(reference).await
    }
    async fn health_seen(&self, id: &str) -> PortResult<Option<HealthSeen>> {
        self.world.asked("dns.health_seen", "");
        let now = self.world.clock.now();
        let good = usize::from(self.world.lock().checked(id, now));
        Ok(Some(HealthSeen { good, bad: 1 - good }))
    }
    async fn in_sync(&self, change: &ChangeId) -> PortResult<bool> {
        self.world.asked("dns.in_sync", "");
        let now = self.world.clock.now();
        let state = self.world.lock();
        state.changes.get(&change.0).map(|at| !state.stuck && *at <= now).ok_or_else(|| PortError::NotFound(format!("change {}", change.0)))
    }
}

#[async_trait]
impl DnsWrite for Net {
    async fn swap(&self, zone: &str, expect: Option<&RecordSet>, want: Option<&RecordSet>, _comment: &str) -> PortResult<ChangeId> {
        self.world.asked("dns.swap", zone);
        let any = expect.or(want).ok_or_else(|| PortError::Refused("an empty change".into()))?;
        let zone = self.zone(zone)?;
        self.world.write(|state, now| {
            if state.refusing.contains(&zone) {
                return Err(PortError::Refused(format!("update of {zone}: REFUSED")));
            }
            let key = (zone, any.name.clone(), any.kind.clone());
            let found = state.records.get(&key);
            if found != expect {
                return Err(PortError::Conflict { found: format!("{found:?}") });
            }
            match want {
                Some(record) => state.records.insert(key, record.clone()),
                None => state.records.remove(&key),
            };
            let id = format!("C{}", state.next());
            state.changes.insert(id.clone(), now + SYNC);
            let cached = SignedDuration::from_secs(i64::from(expect.map_or(0, |r| r.ttl_s)));
            state.visible.entry(any.name.clone()).or_default().push((now + SYNC + cached, want.cloned()));
            Ok(ChangeId(id))
        })
    }

    async fn reweigh(&self, zone: &str, expect: &[WeightedSet], want: &[WeightedSet], _comment: &str) -> PortResult<ChangeId> {
        self.world.asked("dns.reweigh", zone);
        let any = expect.first().ok_or_else(|| PortError::Refused("an empty change".into()))?;
        self.world.write(|state, now| {
            let key = (zone.to_owned(), any.record.name.clone(), any.record.kind.clone());
            let found = state.weights.get(&key).cloned().unwrap_or_default();
            if found != expect {
                return Err(PortError::Conflict { found: format!("{found:?}") });
            }
            state.weights.insert(key, want.to_vec());
            let id = format!("C{}", state.next());
            state.changes.insert(id.clone(), now + SYNC);
            Ok(ChangeId(id))
        })
    }

    async fn replace(&self, zone: &str, expect: &[RoutedSet], want: &[RoutedSet], comment: &str) -> PortResult<ChangeId> {
        self.world.asked("dns.replace", zone);
        let simple = |sets: &[RoutedSet]| match sets {
            [RoutedSet { routing: Routing::Simple, alias: None, record, .. }] => Some(record.clone()),
            _ => None,
        };
        if let (Some(from), Some(to)) = (simple(expect), simple(want)) {
            return self.swap(zone, Some(&from), Some(&to), comment).await;
        }
        let any = expect.iter().chain(want).next().ok_or_else(|| PortError::Refused("an empty change".into()))?;
        self.world.write(|state, now| {
            let key = (zone.to_owned(), any.record.name.clone(), any.record.kind.clone());
            let found = state.sets(&key);
            if found != expect {
                return Err(PortError::Conflict { found: show_sets(&found) });
            }
            state.records.remove(&key);
            state.weights.remove(&key);
            state.routed.remove(&key);
            match want {
                [RoutedSet { routing: Routing::Simple, alias: None, record, .. }] => {
                    state.visible.entry(any.record.name.clone()).or_default().push((now + SYNC, Some(record.clone())));
                    state.records.insert(key, record.clone());
                }
                _ => {
                    state.routed.insert(key, want.to_vec());
                }
            }
            let id = format!("C{}", state.next());
            state.changes.insert(id.clone(), now + SYNC);
            Ok(ChangeId(id))
        })
    }

    async fn create_health_check(&self, reference: &str, spec: &HealthSpec) -> PortResult<HealthCheck> {
        self.world.asked("dns.create_health_check", "");
        self.world.write(|state, _| {
            state.checks.entry(reference.to_owned()).or_insert_with(|| spec.clone());
            Ok(HealthCheck { id: reference.to_owned(), spec: state.checks.get(reference).cloned() })
        })
    }

    async fn delete_health_check(&self, id: &str) -> PortResult<()> {
        self.world.asked("dns.delete_health_check", "");
        self.world.write(|state, _| {
            state.checks.remove(id);
            Ok(())
        })
    }
}

#[async_trait]
impl Resolve for Net {
    async fn ask(&self, _server: Option<SocketAddr>, name: &str) -> PortResult<DnsAnswer> {
        let now = self.world.clock.now();
        let state = self.world.lock();
        if let Some(record) = state.chosen(name, now) {
            return Ok(DnsAnswer { addresses: record.values.iter().filter_map(|v| v.parse().ok()).collect(), ttl_s: record.ttl_s });
        }
        let seen = state.visible.get(name).and_then(|all| all.iter().rev().find(|(from, _)| *from <= now));
        let record = seen.and_then(|(_, r)| r.clone()).ok_or_else(|| PortError::NotFound(format!("{name}: NXDOMAIN")))?;
        Ok(DnsAnswer { addresses: record.values.iter().filter_map(|v| v.parse().ok()).collect(), ttl_s: record.ttl_s })
    }
    async fn authorities(&self, _name: &str) -> PortResult<Vec<SocketAddr>> {
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], 53))])
    }
}

#[async_trait]
impl Http for Net {
    async fn send(&self, request: HttpRequest) -> PortResult<HttpResponse> {
        let handler = self.world.handler.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(handler) = handler else {
            // What everybody may read answers as it lies in its bucket.
            let open = self.world.lock().objects.keys().any(|(_, _, key)| key.starts_with(".muster/switch/") && request.url.ends_with(key));
            return if open {
                Ok(HttpResponse { status: 200, headers: std::collections::BTreeMap::new(), body: Vec::new() })
            } else {
                Err(PortError::Unreachable(format!("{}: connection refused", request.url)))
            };
        };
        // A request that carries a key changes its receiver, once for each key.
        let Some(key) = request.headers.get("Idempotency-Key").cloned() else { return handler(&request) };
        self.world.write(|state, _| {
            let answer = handler(&request)?;
            state.received.insert(key, request.url.clone());
            Ok(answer)
        })
    }
}

pub(super) struct Lease {
    pub world: SimWorld,
    pub database: String,
}

impl Lease {
    fn look(&self, state: &super::State) -> PortResult<LeaseState> {
        let now = self.world.clock.now();
        let lease = state.leases.get(&self.database).ok_or_else(|| PortError::NotFound(self.database.clone()))?;
        let left = lease.ends.duration_since(now).as_millis();
        Ok(LeaseState {
            name: self.database.clone(),
            epoch: lease.epoch,
            allowed: lease.allowed.clone(),
            holder: None,
            ttl_ms: lease.ttl_ms,
            remaining_ms: u64::try_from(left).unwrap_or(0),
            expired_at: (left <= 0).then_some(lease.ends),
            now,
        })
    }
}

#[async_trait]
impl LeaseRead for Lease {
    async fn lease(&self) -> PortResult<LeaseState> {
        self.look(&self.world.lock())
    }
}

#[async_trait]
impl LeaseWrite for Lease {
    async fn allow(&self, region: Option<&str>, expect_epoch: u64) -> PortResult<LeaseState> {
        self.world.write(|state, _| {
            let lease = state.leases.get_mut(&self.database).ok_or_else(|| PortError::NotFound(self.database.clone()))?;
            if lease.epoch != expect_epoch {
                return Err(PortError::Conflict { found: format!("epoch {}, allowed {:?}", lease.epoch, lease.allowed) });
            }
            lease.epoch += 1;
            lease.allowed = region.map(str::to_owned);
            self.look(state)
        })
    }
    async fn hand_over(&self, region: &str, expect_epoch: u64) -> PortResult<LeaseState> {
        self.allow(Some(region), expect_epoch).await?;
        let now = self.world.clock.now();
        let mut state = self.world.lock();
        if let Some(lease) = state.leases.get_mut(&self.database) {
            lease.ends = lease.ends.min(now);
        }
        self.look(&state)
    }
}

fn ended(code: i32, output: &str) -> ProcessEnd {
    ProcessEnd { code: Some(code), signal: None, timed_out: false, output: output.to_owned() }
}

#[async_trait]
impl Processes for Net {
    async fn run(&self, spec: &ProcessSpec, deadline: Duration) -> PortResult<ProcessEnd> {
        let words: Vec<&str> = spec.argv.iter().map(String::as_str).collect();
        let stdin = spec.stdin.as_deref().map(|b| String::from_utf8_lossy(b).into_owned());
        match words.as_slice() {
            ["mark", name] => self.world.write(|state, _| {
                state.marks.insert(stdin.unwrap_or_else(|| (*name).to_owned()));
                Ok(ended(0, "marked"))
            }),
            ["unmark", name] => self.world.write(|state, _| {
                state.marks.remove(*name);
                Ok(ended(0, ""))
            }),
            ["marked", name] => Ok(ended(i32::from(!self.world.lock().marks.contains(*name)), "")),
            ["say", text] => Ok(ended(0, text)),
            ["exit", code] => Ok(ended(code.parse().unwrap_or(2), "said no")),
            ["hang"] => {
                let clock = Arc::clone(&self.world.clock);
                clock.sleep(deadline).await;
                if let Some(lock) = &spec.lock_file {
                    let until = clock.now() + SignedDuration::from_secs(5);
                    self.world.lock().held.insert(lock.clone(), until);
                }
                Ok(ProcessEnd { code: None, signal: Some(9), timed_out: true, output: String::new() })
            }
            _ => Err(PortError::NotFound(format!("no program {:?}", spec.argv))),
        }
    }
    async fn wait_released(&self, lock_file: &str, deadline: Duration) -> PortResult<bool> {
        let until = self.world.clock.now() + SignedDuration::try_from(deadline).unwrap_or(SignedDuration::ZERO);
        while self.world.lock().held.contains_key(lock_file) {
            if self.world.clock.now() >= until {
                return Ok(false);
            }
            self.world.clock.sleep(Duration::from_millis(100)).await;
        }
        Ok(true)
    }
}
