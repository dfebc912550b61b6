//! Who acts in a simulated world: nodes that go on with what is open, whoever starts runs, whatever breaks
//! things, and people who answer what the runs ask ([`people`]).

use super::{Sim, life::Life, plans, store::*, tally::Fault, world::*};
use crate::engine::{Engine, EngineError};
use crate::journal::{Claim, Journal, JournalError, lease::Terms};
use crate::model::{ids::RunId, status::RunStatus};
use crate::plan::state::RunState;
use crate::providers::clock::Clock;
use futures::FutureExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

#[path = "people.rs"]
mod people;

/// Every run must have ended so long after the last fault.
const PATIENCE: Duration = Duration::from_secs(900);
/// No run takes more records than this.
const RECORDS: u64 = 3_000;

pub struct Stage {
    pub sim: Arc<Sim>,
    pub store: Arc<Store>,
    world: Arc<World>,
    scratch: PathBuf,
    /// The process that runs on each node at this moment.
    pub lives: Mutex<BTreeMap<usize, Arc<Life>>>,
    /// Runs of which a command was refused.
    refused: Mutex<BTreeSet<RunId>>,
    /// Runs that are still to be started.
    waiting: AtomicUsize,
}

pub async fn play(sim: &Arc<Sim>, scratch: &Path) {
    let (nodes, runs, terms, storm) = {
        let mut dice = sim.dice();
        let leased = dice.of_1000(600);
        let terms = leased.then(|| terms(&mut dice));
        (dice.range(1, 4) as usize, dice.range(1, 6) as usize, terms, dice.ms(15_000, 50_000))
    };
    let (store, world) = (Store::new(sim, terms), World::new(sim));
    let (lives, waiting) = (Mutex::default(), AtomicUsize::new(runs));
    let stage = Arc::new(Stage { sim: sim.clone(), store, world, scratch: scratch.to_owned(), lives, refused: Mutex::default(), waiting });
    for node in 0..nodes {
        tokio::spawn(host(stage.clone(), node));
    }
    for number in 0..runs {
        tokio::spawn(start(stage.clone(), number));
    }
    tokio::spawn(people::people(stage.clone()));
    let trouble = tokio::spawn(trouble(stage.clone()));
    stage.until(storm).await;
    trouble.abort();
    stage.calm();
    stage.until(storm + PATIENCE).await;
    // What is on its way may still land.
    sleep(Duration::from_millis(LANDS_MS + 200)).await;
    stage.verify().await;
    if !stage.broken() {
        let open = stage.waiting.load(Ordering::SeqCst);
        let mut watch = sim.watch();
        watch.at_the_end();
        if open > 0 {
            watch.broke("every run comes to an end", format!("{open} could not be started"));
        }
    }
}

/// Terms as an operator may choose them: any that are not refused.
fn terms(dice: &mut super::dice::Dice) -> Terms {
    loop {
        let ttl = dice.ms(4_000, 16_000);
        let part = |dice: &mut super::dice::Dice, from, to| ttl.mul_f64(dice.range(from, to) as f64 / 1000.0);
        let terms = Terms { ttl, renew: part(dice, 100, 300), call: part(dice, 100, 350), margin: part(dice, 60, 200) };
        if let Ok(terms) = terms.check() {
            return terms;
        }
    }
}

/// A node: a process, and after its death another.
async fn host(stage: Arc<Stage>, node: usize) {
    let wall = Arc::new(AtomicI64::new(0));
    let ppm = stage.sim.dice().range(0, 20_000).cast_signed() - 10_000;
    for number in 1.. {
        let life = Life::new(&stage.sim, node, number, wall.clone(), ppm);
        stage.lives.lock().unwrap().insert(node, life.clone());
        life.spawn(serve(stage.clone(), life.clone()));
        life.died.notified().await;
        let rest = stage.sim.dice().ms(50, 6_000);
        sleep(rest).await;
    }
}

/// What a node does: it goes on with what nobody owns.
async fn serve(stage: Arc<Stage>, life: Arc<Life>) {
    let journal = stage.journal(&life);
    loop {
        let rest = stage.sim.dice().ms(100, 1_200);
        life.clock().sleep(rest).await;
        for row in journal.open().await.unwrap_or_default().iter().filter(|row| row.status == "running") {
            if let Ok(claim) = journal.claim(&row.id, &life.name).await {
                stage.carry(&life, claim, false);
            }
        }
    }
}

/// Starts one run, again and again until it is started.
async fn start(stage: Arc<Stage>, number: usize) {
    let (plan, rest) = {
        let mut dice = stage.sim.dice();
        let resource = dice.one(&["database/a", "endpoint/b", "bucket/c"]);
        (plans::plan(&mut dice, number, resource), dice.ms(0, 8_000))
    };
    sleep(rest).await;
    loop {
        if let Some(life) = stage.someone() {
            let (known, asked, plan) = (stage.clone(), life.clone(), plan.clone());
            let (tell, told) = tokio::sync::oneshot::channel();
            life.spawn(async move {
                let made = known.engine(&asked).create(plan, None).await;
                let fresh = made.is_ok();
                match made {
                    Ok((claim, _)) => known.carry(&asked, claim, false),
                    Err(error) => known.saw_error(&error),
                }
                let _ = tell.send(fresh);
            });
            if told.await.unwrap_or(false) {
                break;
            }
        }
        let rest = stage.sim.dice().ms(500, 5_000);
        sleep(rest).await;
    }
    stage.waiting.fetch_sub(1, Ordering::SeqCst);
}

/// Whatever goes wrong by itself.
async fn trouble(stage: Arc<Stage>) {
    let pause = stage.sim.dice().range(200, 4_000);
    loop {
        let rest = stage.sim.dice().ms(pause / 2, pause * 2);
        sleep(rest).await;
        let Some(life) = stage.someone() else { continue };
        let sim = &stage.sim;
        let ttl = stage.store.terms.map_or(10_000, |terms| terms.ttl.as_millis() as u64);
        let kinds = [
            Fault::CrashAnywhere,
            Fault::Interrupt,
            Fault::FreezeShort,
            Fault::FreezeLong,
            Fault::ClockForward,
            Fault::ClockBack,
            Fault::StoreDown,
            Fault::Partition,
            Fault::DiskFull,
            Fault::WorldDown,
        ];
        let kind = sim.dice().one(&kinds);
        if !sim.fault(kind, 1000) {
            continue;
        }
        let (brief, long, hours) = {
            let mut dice = sim.dice();
            (dice.ms(10, ttl / 2), dice.ms(ttl / 2, ttl * 3), dice.range(1, 7_200_000).cast_signed())
        };
        let later = |length| Instant::now() + length;
        match kind {
            Fault::CrashAnywhere => life.crash(kind.word()),
            Fault::Interrupt => drop(life.interrupt.send_replace(true)),
            Fault::FreezeShort => life.freeze(brief),
            Fault::FreezeLong => life.freeze(long),
            Fault::ClockForward => drop(life.wall.fetch_add(hours, Ordering::SeqCst)),
            Fault::ClockBack => drop(life.wall.fetch_sub(hours, Ordering::SeqCst)),
            Fault::StoreDown => *stage.store.down.lock().unwrap() = later(long),
            Fault::Partition => *life.cut.lock().unwrap() = later(long),
            Fault::DiskFull => *stage.store.full.lock().unwrap() = later(long),
            _ => *stage.world.down.lock().unwrap() = later(brief),
        }
    }
}

impl Stage {
    pub fn journal(&self, life: &Arc<Life>) -> NodeJournal {
        NodeJournal { store: self.store.clone(), life: life.clone() }
    }

    fn engine(&self, life: &Arc<Life>) -> Engine {
        Engine {
            journal: Arc::new(self.journal(life)),
            world: Arc::new(NodeWorld { world: self.world.clone(), life: life.clone() }),
            clock: life.clock(),
            actor: life.name.clone(),
            scratch: self.scratch.clone(),
            listener: Arc::new(|_| {}),
            interrupt: life.interrupt.subscribe(),
        }
    }

    /// Some process that is alive.
    pub fn someone(&self) -> Option<Arc<Life>> {
        let alive: Vec<_> = self.lives.lock().unwrap().values().filter(|life| life.is_alive()).cloned().collect();
        (!alive.is_empty()).then(|| self.sim.dice().one(&alive))
    }

    /// The real engine owns the run, in a task of this process.
    pub fn carry(self: &Arc<Self>, life: &Arc<Life>, claim: Claim, resume: bool) {
        let (stage, engine, run) = (self.clone(), self.engine(life), claim.run.clone());
        let interrupted = life.interrupt.subscribe();
        let owner = life.clone();
        life.spawn(async move {
            let left = AssertUnwindSafe(engine.carry_on(claim, resume)).catch_unwind().await;
            match left {
                Err(_) => stage.sim.watch().broke("the engine never panics", format!("while it carried on {run}")),
                Ok(Err(error)) => {
                    stage.sim.note(&owner.name, || format!("lets go of {run}: {error}"));
                    stage.saw_error(&error);
                }
                Ok(Ok(outcome)) => {
                    stage.sim.note(&owner.name, || format!("leaves {run}: {:?}", outcome.state.status));
                    stage.compare(&run, &outcome.state).await;
                }
            }
            // A process that was interrupted ends when its run is settled.
            if *interrupted.borrow() {
                let last = owner.clone();
                tokio::spawn(async move { last.crash("interrupted") });
            }
        });
    }

    /// The records alone give what the owner held in memory.
    async fn compare(&self, run: &RunId, state: &RunState) {
        let events = self.store.inner.load(run, 0).await.unwrap();
        let upto = events.iter().map(|one| &one.event).take_while(|event| event.seq <= state.seq);
        if RunState::of(upto).as_ref() != Some(state) {
            self.sim.watch().broke("the fold of the records is the owner's state", format!("{run} at #{}", state.seq));
        }
        self.verify().await;
    }

    async fn verify(&self) {
        let verified = crate::journal::chain::verify(&self.store.dump().await);
        let mut watch = self.sim.watch();
        watch.tally.checks += 1;
        if !verified.verified {
            watch.broke("the chain verifies", verified.problems.join("; "));
        }
    }

    fn saw_error(&self, error: &EngineError) {
        let word = match error {
            EngineError::Journal(JournalError::Fenced { .. }) => "fenced",
            EngineError::Journal(JournalError::Lapsed { .. }) => "lease lapsed",
            EngineError::Journal(JournalError::Behind { .. }) => "behind",
            EngineError::Journal(JournalError::Locked { .. }) => "resource locked",
            EngineError::Journal(JournalError::Store { .. }) => "store in trouble",
            _ => "other",
        };
        self.sim.watch().tally.saw("owners that let go", word);
    }

    fn broken(&self) -> bool {
        self.sim.watch().broken.is_some()
    }

    fn calm(&self) {
        self.sim.calm();
        let now = Instant::now();
        *self.store.down.lock().unwrap() = now;
        *self.store.full.lock().unwrap() = now;
        *self.world.down.lock().unwrap() = now;
        self.lives.lock().unwrap().values().for_each(|life| life.thaw());
    }

    /// Waits until everything has ended, something is broken, or it is this late.
    async fn until(&self, end: Duration) {
        while self.sim.elapsed() < end && !self.broken() {
            sleep(Duration::from_millis(500)).await;
            let open = self.store.inner.open().await.unwrap();
            if let Some(row) = open.iter().find(|row| row.seq > RECORDS) {
                self.sim.watch().broke("every run comes to an end", format!("{} has {} records", row.id, row.seq));
            }
            if open.is_empty() && self.waiting.load(Ordering::SeqCst) == 0 {
                return;
            }
        }
        if self.sim.is_calm() && self.sim.elapsed() >= end {
            let open = self.store.inner.open().await.unwrap();
            let names: Vec<_> = open.iter().map(|row| format!("{} ({})", row.id, row.status)).collect();
            self.sim.watch().broke("every run comes to an end", format!("still open: {}", names.join(", ")));
        }
    }
}

/// Is this a status in which a run waits for a person?
pub fn parked(status: &str) -> Option<RunStatus> {
    [RunStatus::Paused, RunStatus::WaitingApproval, RunStatus::Indeterminate].into_iter().find(|one| one.word() == status)
}
