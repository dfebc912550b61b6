//! What runs act upon: each step has a thing that stands or does not. Requests are refused, get lost, land after
//! their sender has died, or are done while the answer never comes; what was accepted may take time to complete.
//!
//! A request lands within two seconds of being sent, or never: the bound that actions declare (`lands_within`).

use super::{Sim, life::Life, tally::Fault};
use crate::model::{estate::SecretRef, ids::*};
use crate::providers::{clock::Clock, port::*};
use async_trait::async_trait;
use serde_json::json;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

/// No request lands later than this after it was sent, in milliseconds.
pub const LANDS_MS: u64 = 1_900;
/// So long whoever is throttled is asked to wait, in milliseconds.
pub const THROTTLED_MS: u64 = 400;

type Place = (RunId, StepId);

struct Thing {
    /// When what was accepted is complete.
    complete: Instant,
    /// After this nothing that was sent so far can land any more.
    quiet: Instant,
}

pub struct World {
    sim: Arc<Sim>,
    things: Mutex<BTreeMap<Place, Thing>>,
    pub down: Mutex<Instant>,
}

impl World {
    pub fn new(sim: &Arc<Sim>) -> Arc<Self> {
        Arc::new(Self { sim: sim.clone(), things: Mutex::default(), down: Mutex::new(Instant::now()) })
    }

    /// Nothing is on its way to it any more, and what it accepted is complete: a person can tell.
    pub fn is_quiet(&self, place: &Place) -> bool {
        self.things.lock().unwrap().get(place).is_none_or(|thing| thing.quiet.max(thing.complete) <= Instant::now())
    }

    fn sent(&self, place: &Place) {
        let now = Instant::now();
        let quiet = now + Duration::from_millis(LANDS_MS + 100);
        let mut things = self.things.lock().unwrap();
        things.entry(place.clone()).and_modify(|thing| thing.quiet = quiet).or_insert(Thing { complete: now, quiet });
    }

    fn land(&self, place: &Place, undo: bool, complete_after: Duration) {
        self.sim.watch().landed(&self.sim, place, undo);
        self.sim.note("world", || format!("{} {} {}", place.0, place.1, if undo { "is undone" } else { "lands" }));
        if let Some(thing) = self.things.lock().unwrap().get_mut(place) {
            thing.complete = Instant::now() + complete_after;
        }
    }
}

/// What becomes of one request that changes something.
#[derive(Clone, Copy)]
enum Fate {
    Works,
    Refused,
    Throttled,
    Unreachable,
    Lost,
    AnswerLost,
    Late,
}

/// The world as one process reaches it.
#[derive(Clone)]
pub struct NodeWorld {
    pub world: Arc<World>,
    pub life: Arc<Life>,
}

fn nowhere<T>() -> PortResult<T> {
    Err(PortError::Config("there is nothing of the kind in this world".into()))
}

impl NodeWorld {
    fn fate(&self, undo: bool) -> Fate {
        let sim = &self.life.sim;
        let kinds = [
            (Fault::Refused, 40, Fate::Refused),
            (Fault::Throttled, 30, Fate::Throttled),
            (Fault::Unreachable, 30, Fate::Unreachable),
            (Fault::Lost, 40, Fate::Lost),
            (Fault::EffectAnswerLost, 50, Fate::AnswerLost),
            (Fault::Late, 50, Fate::Late),
        ];
        if undo && !sim.fault(Fault::UndoFails, 300) {
            return Fate::Works;
        }
        kinds.into_iter().find(|(fault, often, _)| sim.fault(*fault, *often)).map_or(Fate::Works, |(_, _, fate)| fate)
    }

    async fn change(&self, place: Place, key: &str, undo: bool, timeout: Duration) -> PortResult<HttpResponse> {
        let (life, sim) = (&self.life, &self.life.sim);
        let (before, after, inside) = if undo {
            (Fault::CrashInUndo, Fault::CrashInUndo, Fault::CrashInUndo)
        } else {
            (Fault::CrashAfterIntent, Fault::CrashAfterEffect, Fault::CrashInEffect)
        };
        life.point(before, 8).await;
        sim.watch().sent(sim, &place, &life.name, key, undo);
        self.world.sent(&place);
        let fate = self.fate(undo);
        let mut wait = sim.dice().weighted(&[(6, 0), (3, 20), (1, 300)]);
        let result = match fate {
            Fate::Refused => Err(PortError::Refused("no".into())),
            Fate::Throttled => Err(PortError::Throttled { after: Duration::from_millis(THROTTLED_MS), message: "slow down".into() }),
            Fate::Unreachable => Err(PortError::Unreachable("connection refused".into())),
            Fate::Lost => Err(PortError::Unknown("no answer".into())),
            Fate::Works => Ok(()),
            Fate::AnswerLost | Fate::Late => Err(PortError::Unknown("the answer was lost".into())),
        };
        if matches!(fate, Fate::Works | Fate::AnswerLost | Fate::Late) {
            let delay = if matches!(fate, Fate::Late) { sim.dice().range(100, LANDS_MS) } else { wait };
            let complete = if sim.fault(Fault::Slow, 120) { sim.dice().ms(500, 12_000) } else { Duration::ZERO };
            let world = self.world.clone();
            let landing = tokio::spawn(async move {
                if delay > 0 {
                    tokio::time::sleep(Duration::from_millis(delay)).await;
                }
                world.land(&place, undo, complete);
            });
            self.crash_within(inside, delay.max(wait));
            if !matches!(fate, Fate::Late) {
                let _ = landing.await;
                life.point(after, 15).await;
            }
        }
        if matches!(fate, Fate::Lost | Fate::AnswerLost) {
            wait = sim.dice().range(50, u64::try_from(timeout.as_millis()).unwrap());
        }
        tokio::time::sleep(Duration::from_millis(wait)).await;
        life.gate().await;
        result.map(|()| answer(json!({ "value": 500 })))
    }

    fn crash_within(&self, fault: Fault, ms: u64) {
        if self.life.sim.fault(fault, 12) {
            let (life, after) = (self.life.clone(), self.life.sim.dice().ms(0, ms + 1));
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                life.crash(fault.word());
            });
        }
    }

    fn look(&self, place: &Place) -> PortResult<HttpResponse> {
        let sim = &self.life.sim;
        if sim.fault(Fault::Blind, 25) {
            return Err(PortError::Unknown("no answer".into()));
        }
        let stands = sim.watch().stands(place);
        let complete = self.world.things.lock().unwrap().get(place).is_none_or(|thing| thing.complete <= Instant::now());
        let seen = match (stands, complete) {
            (false, _) => "absent",
            (true, false) => "pending",
            (true, true) => "done",
        };
        Ok(answer(json!({ "seen": seen, "value": 500 })))
    }

    fn read(&self, prepares: bool) -> PortResult<HttpResponse> {
        let sim = &self.life.sim;
        if prepares && sim.fault(Fault::NotYet, 40) {
            return Err(PortError::Unreachable("not yet".into()));
        }
        if !prepares && sim.fault(Fault::Blind, 60) {
            return Err(PortError::Unknown("no answer".into()));
        }
        Ok(answer(json!({ "value": sim.dice().range(200, 1000) })))
    }
}

fn answer(body: serde_json::Value) -> HttpResponse {
    HttpResponse { status: 200, headers: BTreeMap::new(), body: body.to_string().into_bytes() }
}

#[async_trait]
impl Http for NodeWorld {
    async fn send(&self, request: HttpRequest) -> PortResult<HttpResponse> {
        let (run, step) = request.url.split_once('/').unwrap();
        let place = (RunId::from(run), StepId::from(step));
        let key = request.headers.get("Idempotency-Key").cloned().unwrap_or_default();
        let changes = matches!(request.method.as_str(), "DO" | "UNDO");
        if !changes {
            // Nothing stands between the permit of a change and its request.
            self.life.gate().await;
        }
        if *self.world.down.lock().unwrap() > Instant::now() {
            let wait = self.life.sim.dice().ms(1, 300);
            tokio::time::sleep(wait).await;
            self.life.gate().await;
            return Err(PortError::Unreachable("the world does not answer".into()));
        }
        if changes {
            let undo = request.method == "UNDO";
            let result = self.change(place.clone(), &key, undo, request.timeout.unwrap_or(Duration::from_secs(5))).await;
            if undo {
                self.life.sim.watch().undo_heard(&place, matches!(result, Err(PortError::Refused(_))));
            }
            return result;
        }
        let wait = self.life.sim.dice().weighted(&[(7, 0), (2, 15), (1, 250)]);
        if wait > 0 {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        let answer = if request.method == "LOOK" { self.look(&place) } else { self.read(request.method == "PREPARE") };
        self.life.gate().await;
        answer
    }
}

#[async_trait]
impl Resolve for NodeWorld {
    async fn ask(&self, _server: Option<SocketAddr>, _name: &str) -> PortResult<DnsAnswer> {
        nowhere()
    }
}

#[async_trait]
impl Processes for NodeWorld {
    async fn run(&self, _spec: &ProcessSpec, _deadline: Duration) -> PortResult<ProcessEnd> {
        nowhere()
    }
    async fn wait_released(&self, _lock_file: &str, _deadline: Duration) -> PortResult<bool> {
        nowhere()
    }
}

impl WorldRead for NodeWorld {
    fn clock(&self) -> Arc<dyn Clock> {
        self.life.clock()
    }
    fn objects(&self, _bucket: &str, _region: &str) -> PortResult<Arc<dyn ObjectRead>> {
        nowhere()
    }
    fn store(&self, _repository: &str) -> PortResult<Arc<dyn ObjectRead>> {
        nowhere()
    }
    fn instances(&self, _region: &str) -> PortResult<Arc<dyn InstanceRead>> {
        nowhere()
    }
    fn sql(&self, _database: &str, _region: &str) -> PortResult<Arc<dyn SqlRead>> {
        nowhere()
    }
    fn dns(&self, _endpoint: &str) -> PortResult<Arc<dyn DnsRead>> {
        nowhere()
    }
    fn resolver(&self) -> Arc<dyn Resolve> {
        Arc::new(self.clone())
    }
    fn http(&self) -> Arc<dyn Http> {
        Arc::new(self.clone())
    }
    fn lease(&self, _database: &str) -> PortResult<Arc<dyn LeaseRead>> {
        nowhere()
    }
    fn servers(&self) -> Arc<dyn crate::providers::servers::Servers> {
        Arc::new(crate::providers::sim::SimServers)
    }
    fn processes(&self) -> Arc<dyn Processes> {
        Arc::new(self.clone())
    }
    fn secret(&self, _reference: &SecretRef) -> PortResult<secrecy::SecretString> {
        nowhere()
    }
}

impl WorldWrite for NodeWorld {
    fn objects_mut(&self, _bucket: &str, _region: &str) -> PortResult<Arc<dyn ObjectWrite>> {
        nowhere()
    }
    fn store_mut(&self, _repository: &str) -> PortResult<Arc<dyn ObjectWrite>> {
        nowhere()
    }
    fn instances_mut(&self, _region: &str) -> PortResult<Arc<dyn InstanceWrite>> {
        nowhere()
    }
    fn sql_mut(&self, _database: &str, _region: &str) -> PortResult<Arc<dyn SqlWrite>> {
        nowhere()
    }
    fn dns_mut(&self, _endpoint: &str) -> PortResult<Arc<dyn DnsWrite>> {
        nowhere()
    }
    fn lease_mut(&self, _database: &str) -> PortResult<Arc<dyn LeaseWrite>> {
        nowhere()
    }
}
