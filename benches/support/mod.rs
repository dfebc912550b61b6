//! A small harness for the benches: rounds of the same work, the median of them, and how far they spread.
//!
//! Statistics beyond that would pretend to a precision that a shared machine does not have. Every bench
//! prints its spread, so that whoever reads a figure sees the noise it stands in.
// A bench measures real time, ends at the first surprise, and uses what it needs of this file.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

use std::{hint::black_box, time::Duration, time::Instant};

/// What one bench came to.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    pub median: Duration,
    pub lower: Duration,
    pub upper: Duration,
}

impl Figure {
    fn of(mut rounds: Vec<Duration>) -> Self {
        rounds.sort_unstable();
        let at = |quarter: usize| rounds[(rounds.len() - 1) * quarter / 4];
        Self { median: at(2), lower: at(1), upper: at(3) }
    }

    /// How many of `n` things a second, by the median.
    #[must_use]
    pub fn rate(&self, n: u64) -> f64 {
        n as f64 / self.median.as_secs_f64()
    }

    /// How far apart the quartiles are: one round that the machine interrupted says nothing of the work.
    fn spread(&self) -> f64 {
        100.0 * (self.upper.as_secs_f64() - self.lower.as_secs_f64()) / self.median.as_secs_f64()
    }

    /// One line: what, the median, per item if there are several, the spread of the rounds.
    pub fn print(&self, what: &str, items: u64) {
        let each = self.median.div_f64(items.max(1) as f64);
        let each = if items > 1 { format!("{each:>12.2?} each, {:>12.0} a second", self.rate(items)) } else { String::new() };
        println!("{what:<44} {:>12.2?}  {each}  (spread {:.0} %)", self.median, self.spread());
    }
}

/// Times `rounds` of the same work, after one that does not count.
pub fn measure<T>(rounds: usize, mut work: impl FnMut() -> T) -> Figure {
    black_box(work());
    let mut took = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let begun = Instant::now();
        black_box(work());
        took.push(begun.elapsed());
    }
    Figure::of(took)
}

/// The same for work that waits; `Runtime::block_on` is outside what is timed only once a round.
pub fn measure_async<F: Future>(rounds: usize, mut work: impl FnMut() -> F) -> Figure {
    let runtime = runtime();
    measure(rounds, || runtime.block_on(work()))
}

#[must_use]
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// The repository's own file of that name.
#[must_use]
pub fn shipped(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The lab's estate and the runbook of that name, compiled.
#[must_use]
pub fn plan(runbook: &str, inputs: &[(&str, &str)]) -> muster::model::plan::Plan {
    use muster::runbook::{compile::compile, load};
    let estate = load::load_estate("muster.yaml", &shipped("muster.yaml")).expect("the estate reads").estate;
    let file = format!("runbooks/{runbook}.yaml");
    let book = load::load_runbook(&file, &shipped(&file)).expect("the runbook reads");
    let inputs = inputs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    compile(&book, &estate, &inputs, muster::model::plan::Scope::Live, false, &muster::actions::Known).expect("the runbook compiles")
}
