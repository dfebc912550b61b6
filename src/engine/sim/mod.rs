//! Whole worlds, simulated from a seed: the real engine over a journal, a network, clocks and a world that all
//! fail, with several processes that die, freeze and compete, and people who say too much, too late, twice.
//!
//! Time is virtual and there is one thread to a world, so a seed gives the same world for ever, byte for byte.
//! [`cast`] is who acts, [`plans`] what runs, [`store`] and [`world`] what fails, [`watch`] what must hold
//! whatever fails. docs/simulation.md has the list, and how to replay a seed.

mod cast;
mod dice;
pub mod effect;
mod life;
mod plans;
mod seeds;
mod store;
mod tally;
mod watch;
mod world;

use crate::plan::planted::{Defect, plant};
use dice::Dice;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tally::{Fault, Tally};
use watch::{Broken, Watch};

/// A defect that is planted to show that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    Policy(Defect),
    EpochIgnored,
    LeaseCountedFromTheAnswer,
    TwoRunsOnOneResource,
    GapInTheChain,
}

/// All there is in one simulated world, beside who acts in it.
pub struct Sim {
    pub planted: Option<Planted>,
    dice: Mutex<Dice>,
    watch: Mutex<Watch>,
    /// Kinds of faults that this world has.
    enabled: BTreeSet<Fault>,
    calm: Mutex<bool>,
    ids: Mutex<u64>,
    began: tokio::time::Instant,
    trace: Option<Mutex<Vec<String>>>,
}

impl Sim {
    fn new(seed: u64, planted: Option<Planted>, traced: bool) -> Arc<Self> {
        let mut dice = Dice::new(seed);
        // Some worlds have few kinds of faults, some have all: each hides what another shows.
        let share = dice.weighted(&[(1, 0), (3, 150), (3, 400), (3, 1000)]);
        let enabled = Fault::ALL.iter().copied().filter(|_| dice.of_1000(share)).collect();
        Arc::new(Self {
            planted,
            dice: Mutex::new(dice),
            watch: Mutex::default(),
            enabled,
            calm: Mutex::new(false),
            ids: Mutex::new(0),
            began: tokio::time::Instant::now(),
            trace: traced.then(Mutex::default),
        })
    }

    pub fn dice(&self) -> MutexGuard<'_, Dice> {
        self.dice.lock().unwrap()
    }
    pub fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap()
    }
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
    pub fn next_id(&self) -> u64 {
        let mut ids = self.ids.lock().unwrap();
        *ids += 1;
        *ids
    }

    /// Does this fault happen here and now?
    pub fn fault(&self, fault: Fault, of_1000: u64) -> bool {
        let happens = self.enabled.contains(&fault) && !self.is_calm() && self.dice().of_1000(of_1000);
        if happens {
            *self.watch().tally.faults.entry(fault).or_default() += 1;
            self.note("fault", || fault.word().to_owned());
        }
        happens
    }

    /// From now on nothing fails any more: whatever was done must come to its end.
    pub fn calm(&self) {
        *self.calm.lock().unwrap() = true;
        self.note("calm", || "no more faults".to_owned());
    }
    pub fn is_calm(&self) -> bool {
        *self.calm.lock().unwrap()
    }

    pub fn note(&self, who: &str, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.lock().unwrap().push(format!("{:>9.3} {who:<6} {}", self.elapsed().as_secs_f64(), what()));
        }
    }
}

/// What a seed came to.
pub struct Played {
    pub broken: Option<Broken>,
    pub tally: Tally,
    pub trace: Vec<String>,
}

/// Plays one world from its beginning to its end. Where runs may keep files is the only thing it shares.
pub fn play(seed: u64, planted: Option<Planted>, traced: bool, scratch: &std::path::Path) -> Played {
    plant(match planted {
        Some(Planted::Policy(defect)) => Some(defect),
        _ => None,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let sim = runtime.block_on(async {
        let sim = Sim::new(seed, planted, traced);
        cast::play(&sim, &scratch.join(format!("{seed:x}"))).await;
        sim
    });
    // Every task goes before what they share is looked at.
    drop(runtime);
    plant(None);
    let _ = std::fs::remove_dir_all(scratch.join(format!("{seed:x}")));
    let mut watch = sim.watch();
    let trace = sim.trace.as_ref().map(|trace| std::mem::take(&mut *trace.lock().unwrap())).unwrap_or_default();
    Played { broken: watch.broken.take(), tally: std::mem::take(&mut watch.tally), trace }
}
