//! The journal, as several processes see it over a line that fails: the real rules (those of the journal in
//! memory), and before them what a network, a full disk and a lease on the server's clock do to a request.
//!
//! In one half of the worlds ownership is an operating system's lock, which ends with its process, as on one
//! machine; in the other half it is a lease in a database, by the same arithmetic ([`lease`]) as the real one.

use super::{Planted, Sim, life::Life, tally::Fault};
use crate::journal::{chain::Dump, lease::*, mem::MemJournal, *};
use crate::model::{event::Body, ids::RunId};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// How long a process waits for the store's answer.
const CALL: Duration = Duration::from_secs(3);

struct Lease {
    epoch: u64,
    owner: String,
    until: Instant,
}

pub struct Store {
    sim: Arc<Sim>,
    pub inner: MemJournal,
    pub terms: Option<Terms>,
    leases: Mutex<BTreeMap<RunId, Lease>>,
    /// How long the holder of a lease waited for the last answer about it.
    heard: Mutex<BTreeMap<RunId, Duration>>,
    pub down: Mutex<Instant>,
    pub full: Mutex<Instant>,
    /// Records that a planted defect loses.
    gaps: Mutex<BTreeSet<(RunId, u64)>>,
}

type Answer<T> = Result<T, JournalError>;

/// What every lease must hold.
pub const IN_TIME: &str = "a holder stops before the store lets another in";

fn trouble<T>(why: &str) -> Answer<T> {
    Err(JournalError::Store { place: "the simulated store".into(), why: why.to_owned() })
}

/// What the store grants: its own guard where it is a lock, nothing where it is a lease.
type Granted = (u64, Option<Claim>);

impl Store {
    pub fn new(sim: &Arc<Sim>, terms: Option<Terms>) -> Arc<Self> {
        Arc::new(Self {
            sim: sim.clone(),
            inner: MemJournal::default(),
            terms,
            leases: Mutex::default(),
            heard: Mutex::default(),
            down: Mutex::new(Instant::now()),
            full: Mutex::new(Instant::now()),
            gaps: Mutex::default(),
        })
    }

    /// When the lease on a run ends, by the server's clock.
    pub fn lease_end(&self, run: &RunId) -> Option<Instant> {
        self.leases.lock().unwrap().get(run).map(|lease| lease.until)
    }

    /// What is left of the lease that was granted under this epoch, by the server's clock.
    fn lease_left(&self, run: &RunId, epoch: u64) -> Option<Duration> {
        let leases = self.leases.lock().unwrap();
        leases.get(run).filter(|lease| lease.epoch == epoch).map(|lease| lease.until.saturating_duration_since(Instant::now()))
    }

    fn lease(&self, run: &RunId, epoch: u64, owner: &str) {
        if let Some(terms) = self.terms {
            let lease = Lease { epoch, owner: owner.to_owned(), until: Instant::now() + terms.ttl };
            self.leases.lock().unwrap().insert(run.clone(), lease);
        }
    }

    async fn create(&self, mut chain: NewChain, owner: &str, first: Draft) -> Answer<(Granted, Stored)> {
        let (run, locks) = (chain.id.clone(), chain.locks.clone());
        if self.sim.planted == Some(Planted::TwoRunsOnOneResource) {
            chain.locks.clear();
        }
        let (claim, stored) = self.inner.create(chain, owner, first).await?;
        self.sim.watch().created(&self.sim, &run, owner, locks, &stored.event);
        self.lease(&run, 1, owner);
        Ok(((1, Some(claim).filter(|_| self.terms.is_none())), stored))
    }

    async fn claim(&self, run: &RunId, owner: &str, force: bool) -> Answer<Granted> {
        if let Some(lease) = self.leases.lock().unwrap().get(run).filter(|lease| !force && lease.until > Instant::now()) {
            return Err(JournalError::Owned { run: run.clone(), owner: lease.owner.clone() });
        }
        let claim = if force || self.terms.is_some() { self.inner.seize(run, owner).await } else { self.inner.claim(run, owner).await }?;
        self.sim.watch().granted(run, claim.epoch, owner);
        self.sim.note("store", || format!("grants {run} epoch {} to {owner}", claim.epoch));
        self.lease(run, claim.epoch, owner);
        Ok((claim.epoch, Some(claim).filter(|_| self.terms.is_none())))
    }

    /// A lease that has run out is never revived.
    fn renew(&self, run: &RunId, epoch: u64) -> Answer<()> {
        let Some(terms) = self.terms else { return Ok(()) };
        let mut leases = self.leases.lock().unwrap();
        match leases.get_mut(run).filter(|lease| lease.epoch == epoch && lease.until > Instant::now()) {
            Some(lease) => {
                lease.until = Instant::now() + terms.ttl;
                Ok(())
            }
            None => Err(JournalError::Lapsed { run: run.clone() }),
        }
    }

    async fn append(&self, run: &RunId, epoch: u64, owner: &str, after: u64, drafts: Vec<Draft>) -> Answer<Vec<Stored>> {
        if *self.full.lock().unwrap() > Instant::now() {
            return trouble("no space left on device");
        }
        let written = if self.sim.planted == Some(Planted::EpochIgnored) { self.sim.watch().epoch(run) } else { epoch };
        let claim = Claim { run: run.clone(), epoch: written, owner: owner.to_owned(), hold: Hold::unlimited(), _guard: Box::new(()) };
        let stored = self.inner.append(&claim, after, drafts).await?;
        for one in &stored {
            self.sim.watch().appended(&self.sim, epoch, owner, &one.event);
            if self.sim.planted == Some(Planted::GapInTheChain) && self.sim.dice().of_1000(2) {
                self.gaps.lock().unwrap().insert((run.clone(), one.event.seq));
            }
        }
        Ok(stored)
    }

    pub async fn load(&self, run: &RunId, after: u64) -> Vec<Stored> {
        let mut events = self.inner.load(run, after).await.unwrap();
        let gaps = self.gaps.lock().unwrap();
        events.retain(|one| !gaps.contains(&(run.clone(), one.event.seq)));
        events
    }

    pub async fn dump(&self) -> Dump {
        let mut dump = self.inner.dump(None).await.unwrap();
        let gaps = self.gaps.lock().unwrap();
        dump.events.retain(|row| !gaps.contains(&(row.run.clone(), row.seq)));
        dump
    }
}

/// The store as one process reaches it.
#[derive(Clone)]
pub struct NodeJournal {
    pub store: Arc<Store>,
    pub life: Arc<Life>,
}

/// Ends the renewals with the claim; the lease itself runs out.
struct Renewals(tokio::task::AbortHandle);

impl Drop for Renewals {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl NodeJournal {
    fn cut_off(&self) -> bool {
        let now = Instant::now();
        *self.store.down.lock().unwrap() > now || *self.life.cut.lock().unwrap() > now
    }

    /// One request and its answer.
    async fn call<T: Send + 'static>(&self, serve: impl Future<Output = Answer<T>> + Send + 'static) -> Answer<T> {
        let (life, sim) = (&self.life, &self.life.sim);
        life.gate().await;
        if self.cut_off() {
            let wait = sim.dice().ms(1, 400);
            tokio::time::sleep(wait).await;
            life.gate().await;
            return trouble("unreachable");
        }
        let late = self.store.terms.is_some() && sim.fault(Fault::RequestLate, 5);
        let answer = if late { self.late(serve).await } else { serve.await };
        let lost = sim.fault(Fault::AnswerLost, 5);
        let slow = sim.fault(Fault::AnswerLate, 20);
        if lost || slow {
            let wait = sim.dice().ms(1, CALL.as_millis() as u64);
            tokio::time::sleep(wait).await;
        }
        life.gate().await;
        if lost && answer.is_ok() { trouble("the answer was lost") } else { answer }
    }

    /// It is on its way, whatever becomes of who sent it.
    async fn late<T: Send + 'static>(&self, serve: impl Future<Output = Answer<T>> + Send + 'static) -> Answer<T> {
        let delay = self.life.sim.dice().ms(10, 4_500);
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = tell.send(serve.await);
        });
        match tokio::time::timeout(CALL, told).await {
            Ok(Ok(answer)) => answer,
            _ => trouble("no answer in time"),
        }
    }

    /// Makes a claim of what was granted, and keeps its lease alive.
    fn hold(&self, run: &RunId, owner: &str, sent: Duration, (epoch, lock): Granted) -> Claim {
        let claim = |hold, guard| Claim { run: run.clone(), epoch, owner: owner.to_owned(), hold, _guard: guard };
        let Some(terms) = self.store.terms else { return claim(Hold::unlimited(), Box::new(lock)) };
        let hold = Hold::leased(terms, self.counted_from(sent));
        self.heard(run, sent);
        self.stops_in_time(run, epoch, &hold);
        let (this, run, kept) = (self.clone(), run.clone(), hold.clone());
        let renewals = self.life.spawn(async move { this.renew(run, epoch, terms, kept).await });
        claim(hold, Box::new(Renewals(renewals)))
    }

    /// The holder counts from before it asked; the planted defect counts from when it heard.
    fn counted_from(&self, sent: Duration) -> Duration {
        if self.life.sim.planted == Some(Planted::LeaseCountedFromTheAnswer) { self.life.monotonic() } else { sent }
    }

    /// Whatever an answer took: when the store lets another in, the holder has stopped.
    fn stops_in_time(&self, run: &RunId, epoch: u64, hold: &Hold) {
        let Some(left) = self.store.lease_left(run, epoch) else { return };
        let stops = !hold.permits(self.life.monotonic() + left);
        self.life.sim.watch().must(stops, IN_TIME, || format!("{run} under epoch {epoch}, {} ms before", left.as_millis()));
    }

    fn heard(&self, run: &RunId, sent: Duration) {
        self.store.heard.lock().unwrap().insert(run.clone(), self.life.monotonic().saturating_sub(sent));
    }

    async fn renew(&self, run: RunId, epoch: u64, terms: Terms, hold: Hold) {
        let clock = self.life.clock();
        loop {
            crate::providers::clock::Clock::sleep(&*clock, terms.renew).await;
            loop {
                let sent = self.life.monotonic();
                let (store, of) = (self.store.clone(), run.clone());
                // A line has a length: what thaws may act before it hears that it has lost its lease.
                let way = self.life.sim.dice().ms(1, 40);
                let slow = self.life.sim.fault(Fault::AnswerLate, 150);
                let back = if slow { self.life.sim.dice().ms(100, 3_000) } else { Duration::ZERO };
                let asked = self.call(async move {
                    tokio::time::sleep(way).await;
                    let answer = store.renew(&of, epoch);
                    tokio::time::sleep(back).await;
                    answer
                });
                match tokio::time::timeout(terms.call, asked).await {
                    Ok(Ok(())) => {
                        hold.renewed(terms, self.counted_from(sent));
                        self.heard(&run, sent);
                        self.stops_in_time(&run, epoch, &hold);
                        break;
                    }
                    Ok(Err(JournalError::Lapsed { .. })) => return hold.lose(),
                    _ => crate::providers::clock::Clock::sleep(&*clock, Duration::from_millis(100)).await,
                }
            }
        }
    }

    async fn take(&self, run: &RunId, owner: &str, force: bool) -> Answer<Claim> {
        let sent = self.life.monotonic();
        let (store, of, by) = (self.store.clone(), run.clone(), owner.to_owned());
        let granted = self.call(async move { store.claim(&of, &by, force).await }).await?;
        Ok(self.hold(run, owner, sent, granted))
    }

    /// Freezes the process with its intent on record, until about the end of its lease: the hardest moment.
    fn freeze_at_intent(&self, run: &RunId) {
        let sim = &self.life.sim;
        let Some((end, terms)) = self.store.lease_end(run).zip(self.store.terms) else { return };
        // Above all if the last answer came so late that it matters from when the holder counts.
        let heard = self.store.heard.lock().unwrap().get(run).copied().unwrap_or_default();
        let often = if heard > terms.margin { 500 } else { 15 };
        if sim.fault(Fault::FreezeAtIntent, often) {
            let late = sim.dice().ms(0, 500 + heard.as_millis() as u64);
            self.life.freeze(end.saturating_duration_since(Instant::now()) + late);
        }
    }
}

#[async_trait]
impl Journal for NodeJournal {
    async fn create(&self, chain: NewChain, owner: &str, first: Draft) -> Answer<(Claim, Stored)> {
        let (run, sent) = (chain.id.clone(), self.life.monotonic());
        let (store, by) = (self.store.clone(), owner.to_owned());
        let (granted, stored) = self.call(async move { store.create(chain, &by, first).await }).await?;
        Ok((self.hold(&run, owner, sent, granted), stored))
    }
    async fn claim(&self, run: &RunId, owner: &str) -> Answer<Claim> {
        self.take(run, owner, false).await
    }
    async fn seize(&self, run: &RunId, owner: &str) -> Answer<Claim> {
        self.take(run, owner, true).await
    }
    async fn release(&self, claim: Claim) {
        let (store, run, epoch) = (self.store.clone(), claim.run.clone(), claim.epoch);
        let _ = self
            .call(async move {
                store.leases.lock().unwrap().retain(|of, lease| *of != run || lease.epoch != epoch);
                Ok(())
            })
            .await;
        drop(claim);
    }
    async fn append(&self, claim: &Claim, after: u64, drafts: Vec<Draft>) -> Answer<Vec<Stored>> {
        let (life, sim) = (&self.life, &self.life.sim);
        let has = |test: fn(&Body) -> bool| drafts.iter().any(|draft| test(&draft.body));
        let (intent, undo) = (has(|body| matches!(body, Body::Applying { .. })), has(|body| matches!(body, Body::Undoing { .. })));
        life.point(Fault::CrashBeforeAppend, 5).await;
        if sim.fault(Fault::AppendFails, 8) {
            return trouble("input/output error");
        }
        let (store, run, epoch, owner) = (self.store.clone(), claim.run.clone(), claim.epoch, life.name.clone());
        let answer = self.call(async move { store.append(&run, epoch, &owner, after, drafts).await }).await;
        if answer.is_ok() && intent {
            life.point(Fault::CrashAfterIntent, 20).await;
            self.freeze_at_intent(&claim.run);
        } else if answer.is_ok() && undo {
            life.point(Fault::CrashInUndo, 50).await;
        } else {
            life.point(Fault::CrashAfterAppend, 5).await;
        }
        life.gate().await;
        answer
    }
    async fn load(&self, run: &RunId, after: u64) -> Answer<Vec<Stored>> {
        let (store, run) = (self.store.clone(), run.clone());
        self.call(async move { Ok(store.load(&run, after).await) }).await
    }
    async fn row(&self, run: &RunId) -> Answer<ChainRow> {
        let (store, run) = (self.store.clone(), run.clone());
        self.call(async move { store.inner.row(&run).await }).await
    }
    async fn list(&self, kind: ChainKind, limit: u32) -> Answer<Vec<ChainRow>> {
        self.store.inner.list(kind, limit).await
    }
    async fn children(&self, parent: &RunId) -> Answer<Vec<ChainRow>> {
        self.store.inner.children(parent).await
    }
    async fn open(&self) -> Answer<Vec<ChainRow>> {
        let store = self.store.clone();
        self.call(async move { store.inner.open().await }).await
    }
    async fn find(&self, prefix: &str) -> Answer<RunId> {
        self.store.inner.find(prefix).await
    }
    async fn post(&self, run: &RunId, at: jiff::Timestamp, actor: &str, command: &Command) -> Answer<i64> {
        let (store, run, actor, command) = (self.store.clone(), run.clone(), actor.to_owned(), command.clone());
        self.call(async move { store.inner.post(&run, at, &actor, &command).await }).await
    }
    async fn letters(&self, run: &RunId) -> Answer<Vec<Letter>> {
        let (store, run) = (self.store.clone(), run.clone());
        self.call(async move { store.inner.letters(&run).await }).await
    }
    async fn taken(&self, letter: i64) -> Answer<()> {
        let store = self.store.clone();
        self.call(async move { store.inner.taken(letter).await }).await
    }
    async fn considered(&self, drill: &str) -> Answer<Option<jiff::Timestamp>> {
        self.store.inner.considered(drill).await
    }
    async fn consider(&self, drill: &str, until: jiff::Timestamp) -> Answer<()> {
        self.store.inner.consider(drill, until).await
    }
    async fn dump(&self, _only: Option<&[RunId]>) -> Answer<Dump> {
        Ok(self.store.dump().await)
    }
}
