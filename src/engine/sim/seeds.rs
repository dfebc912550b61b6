//! The tests: a slice of seeds in every run of the tests, as many as are asked for by `make sim`, one seed with
//! all that happened in it, and the planted defects, each of which must be found.

use super::{Planted, Played, play, tally::Tally};
use crate::plan::planted::Defect;
use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// How many seeds `make test` plays.
const SLICE: u64 = 200;
/// Within so many seeds every planted defect is found.
const BUG_SEEDS: u64 = 2_000;

const DEFECTS: [(&str, Planted); 10] = [
    ("effect before intent", Planted::Policy(Defect::EffectBeforeIntent)),
    ("no observation after a crash", Planted::Policy(Defect::NoObservationAfterACrash)),
    ("epoch ignored", Planted::EpochIgnored),
    ("undo twice", Planted::Policy(Defect::UndoTwice)),
    ("undo only of what succeeded", Planted::Policy(Defect::UndoOnlyOfWhatSucceeded)),
    ("approval replayed", Planted::Policy(Defect::ApprovalReplayed)),
    ("lease counted from after the renewal", Planted::LeaseCountedFromTheAnswer),
    ("unknown retried", Planted::Policy(Defect::UnknownRetried)),
    ("two runs on one resource", Planted::TwoRunsOnOneResource),
    ("a gap in the chain", Planted::GapInTheChain),
];

fn env(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Plays seeds on every core until all are played, or one breaks something.
fn sweep(seeds: std::ops::Range<u64>, planted: Option<Planted>) -> (Tally, u64, Option<(u64, Played)>) {
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let played = AtomicU64::new(0);
    let (tally, broken) = (Mutex::new(Tally::default()), Mutex::new(None::<(u64, Played)>));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let scratch = tempfile::tempdir().unwrap();
                while !stop.load(Ordering::SeqCst) {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds.end {
                        return;
                    }
                    let one = play(seed, planted, false, scratch.path());
                    played.fetch_add(1, Ordering::SeqCst);
                    tally.lock().unwrap().add(&one.tally);
                    if one.broken.is_some() {
                        stop.store(true, Ordering::SeqCst);
                        // The least that is found, so that the answer is the same on any machine.
                        let mut broken = broken.lock().unwrap();
                        if broken.as_ref().is_none_or(|(other, _)| seed < *other) {
                            *broken = Some((seed, one));
                        }
                    }
                }
            });
        }
    });
    (tally.into_inner().unwrap(), played.into_inner(), broken.into_inner().unwrap())
}

fn replay(seed: u64, planted: Option<Planted>, scratch: &Path) -> Played {
    let played = play(seed, planted, true, scratch);
    for line in &played.trace {
        println!("{line}");
    }
    played
}

#[test]
fn nothing_is_lost_and_nothing_is_done_twice() {
    if let Some(seed) = env("SEED") {
        let scratch = tempfile::tempdir().unwrap();
        let played = replay(seed, None, scratch.path());
        match played.broken {
            Some(broken) => panic!("seed {seed} breaks: {}\n  {}", broken.invariant, broken.what),
            None => println!("\nseed {seed}: every invariant holds"),
        }
        return;
    }
    let (first, seeds) = (env("FROM").unwrap_or(1), env("SEEDS").unwrap_or(SLICE));
    let (tally, played, broken) = sweep(first..first + seeds, None);
    println!("{played} seeds, from {first}");
    tally.print();
    if let Some((seed, played)) = broken {
        let broken = played.broken.unwrap();
        panic!("broken: {}\n  {}\n  replay it with: make sim SEED={seed}", broken.invariant, broken.what);
    }
    assert_eq!(played, seeds);
    println!("\nevery invariant held in {played} seeds");
}

#[test]
fn the_same_seed_is_the_same_world() {
    let scratch = tempfile::tempdir().unwrap();
    for seed in [3, 17, 20_260_101] {
        let (once, twice) = (play(seed, None, true, scratch.path()), play(seed, None, true, scratch.path()));
        assert!(once.trace.len() > 20, "seed {seed} does too little to show anything");
        assert_eq!(once.trace, twice.trace, "seed {seed}");
    }
}

#[test]
fn every_planted_defect_is_found() {
    let seeds = env("SEEDS").unwrap_or(BUG_SEEDS);
    let mut missed = Vec::new();
    for (name, planted) in DEFECTS {
        match sweep(1..seeds + 1, Some(planted)) {
            (_, played, Some((seed, one))) => {
                let broken = one.broken.unwrap();
                println!("{name}: seed {seed}, after {played}: {}", broken.invariant);
            }
            (_, played, None) => missed.push(format!("{name} (in {played} seeds)")),
        }
    }
    assert!(missed.is_empty(), "not found: {}", missed.join(", "));
}
