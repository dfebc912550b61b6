//! The tests: a slice of seeds in every run of the tests, as many as are asked for by `make sim`, one seed with
//! all that happened in it, and the planted defects, each of which must be found.

use super::{Planted, Played, play, store::IN_TIME, tally::Tally};
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

/// A defect, and the invariants that it breaks: being found by another would be finding something else.
const DEFECTS: [(&str, Planted, &[&str]); 12] = [
    ("effect before intent", Planted::Policy(Defect::EffectBeforeIntent), &["no effect before its intent is durable"]),
    (
        "no observation after a crash",
        Planted::Policy(Defect::NoObservationAfterACrash),
        &["an open attempt is looked at before another", "an effect happens at most once"],
    ),
    ("epoch ignored", Planted::EpochIgnored, &["a stale epoch never appends"]),
    ("undo twice", Planted::Policy(Defect::UndoTwice), &["each is undone once"]),
    (
        "undo only of what succeeded",
        Planted::Policy(Defect::UndoOnlyOfWhatSucceeded),
        &["undo goes in reverse order", "undo goes through every step that was begun"],
    ),
    ("undo given up at once", Planted::Policy(Defect::UndoGivenUp), &["an undo is not given up for what may pass"]),
    ("undo tried without end", Planted::Policy(Defect::UndoWithoutEnd), &["an undo is tried no more often than it may be"]),
    ("approval replayed", Planted::Policy(Defect::ApprovalReplayed), &["an approval counts once, in time, for what was asked"]),
    ("lease counted from after the renewal", Planted::LeaseCountedFromTheAnswer, &[IN_TIME, "one hand on the wheel: only the owner acts"]),
    (
        "unknown retried",
        Planted::Policy(Defect::UnknownRetried),
        &["an open attempt is looked at before another", "an effect happens at most once"],
    ),
    ("two runs on one resource", Planted::TwoRunsOnOneResource, &["two runs never hold one resource"]),
    ("a gap in the chain", Planted::GapInTheChain, &["the chain verifies"]),
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

/// Worlds in which something was once done twice, kept for as long as they play out as they did.
const ONCE_BROKEN: [u64; 1] = [
    // Frozen between a look at the world and its judgement: what was absent then had landed meanwhile.
    4659,
];

#[test]
fn worlds_that_were_once_broken_hold() {
    let scratch = tempfile::tempdir().unwrap();
    for seed in ONCE_BROKEN {
        let broken = play(seed, None, false, scratch.path()).broken;
        assert!(broken.is_none(), "seed {seed}: {}", broken.map(|broken| broken.what).unwrap_or_default());
    }
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
    // All of them, within as many seeds as the issue allows, take `make sim-bugs`; here those that show soon.
    let only = std::env::var("BUGS").ok();
    let seeds = if only.is_some() { BUG_SEEDS } else { SLICE };
    let mut found = 0;
    let mut missed = Vec::new();
    let named = |name: &str| only.as_deref().is_none_or(|only| only == "all" || name.contains(only));
    for (name, planted, invariants) in DEFECTS.into_iter().filter(|(name, ..)| named(name)) {
        match sweep(1..seeds + 1, Some(planted)) {
            (_, _, Some((seed, one))) => {
                let broken = one.broken.unwrap();
                println!("{name:<38} found after {seed:>4} seeds: {}", broken.invariant);
                assert!(
                    invariants.contains(&broken.invariant),
                    "{name}: seed {seed} breaks something else: {}: {}",
                    broken.invariant,
                    broken.what
                );
                found += 1;
            }
            (_, played, None) => missed.push(format!("{name} (in {played} seeds)")),
        }
    }
    println!("{found} of {} planted defects found", DEFECTS.len());
    // Two need many seeds: a stale owner whose record still fits, and an owner that changes while a run is undone.
    let rare = |name: &String| only.is_none() && (name.starts_with("epoch ignored") || name.starts_with("undo twice"));
    missed.retain(|name| !rare(name));
    assert!(missed.is_empty(), "not found: {}", missed.join(", "));
}
