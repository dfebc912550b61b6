//! One process on one node: it can die at any instant, be frozen for any time, and has clocks of its own. What
//! it does waits at a gate wherever it meets the journal, the world or time, so that a dead process does nothing
//! more and a frozen one goes on exactly where it stood.

use super::{Sim, tally::Fault};
use crate::providers::clock::Clock;
use async_trait::async_trait;
use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, sync::watch, task::AbortHandle, time::Instant};

/// 2026-01-01T00:00:00Z, in milliseconds since the epoch.
const START_MS: i64 = 1_767_225_600_000;

pub struct Life {
    pub sim: Arc<Sim>,
    /// `n1.3`: the third process on node 1.
    pub name: String,
    /// How far the node's wall clock is off, in milliseconds; it outlives the process.
    pub wall: Arc<AtomicI64>,
    /// How much faster its monotonic clock runs than time, in millionths.
    ppm: i64,
    alive: AtomicBool,
    frozen: Mutex<Instant>,
    /// Until when it is cut off from the journal.
    pub cut: Mutex<Instant>,
    pub interrupt: watch::Sender<bool>,
    tasks: Mutex<Vec<AbortHandle>>,
    pub died: Notify,
}

impl Life {
    pub fn new(sim: &Arc<Sim>, node: usize, number: u32, wall: Arc<AtomicI64>, ppm: i64) -> Arc<Self> {
        Arc::new(Self {
            sim: sim.clone(),
            name: format!("n{node}.{number}"),
            wall,
            ppm,
            alive: AtomicBool::new(true),
            frozen: Mutex::new(Instant::now()),
            cut: Mutex::new(Instant::now()),
            interrupt: watch::channel(false).0,
            tasks: Mutex::default(),
            died: Notify::new(),
        })
    }

    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::SeqCst)
    }

    /// SIGKILL: nothing of it does anything any more.
    pub fn crash(&self, why: &str) {
        if self.alive.swap(false, Ordering::SeqCst) {
            self.sim.note(&self.name, || format!("dies: {why}"));
            self.tasks.lock().unwrap().drain(..).for_each(|task| task.abort());
            self.died.notify_one();
        }
    }

    /// SIGSTOP, and SIGCONT after so long.
    pub fn freeze(&self, length: Duration) {
        self.sim.note(&self.name, || format!("is frozen for {length:?}"));
        let mut frozen = self.frozen.lock().unwrap();
        *frozen = (*frozen).max(Instant::now() + length);
    }

    pub fn thaw(&self) {
        *self.frozen.lock().unwrap() = Instant::now();
        *self.cut.lock().unwrap() = Instant::now();
    }

    /// Waits while it is frozen, and for ever once it is dead.
    pub async fn gate(&self) {
        loop {
            if !self.is_alive() {
                std::future::pending::<()>().await;
            }
            let until = *self.frozen.lock().unwrap();
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// A place at which it may die.
    pub async fn point(&self, fault: Fault, of_1000: u64) {
        if self.sim.fault(fault, of_1000) {
            self.crash(fault.word());
            std::future::pending::<()>().await;
        }
    }

    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let handle = tokio::spawn(work).abort_handle();
        let mut tasks = self.tasks.lock().unwrap();
        tasks.retain(|task| !task.is_finished());
        tasks.push(handle.clone());
        handle
    }

    pub fn clock(self: &Arc<Self>) -> Arc<NodeClock> {
        Arc::new(NodeClock(self.clone()))
    }

    pub fn monotonic(&self) -> Duration {
        let nanos = i64::try_from(self.sim.elapsed().as_nanos()).unwrap();
        Duration::from_nanos((nanos + nanos / 1_000_000 * self.ppm).unsigned_abs())
    }
}

/// The clocks of a node, as its processes read them.
pub struct NodeClock(Arc<Life>);

/// What every clock would show if none were off.
pub fn true_time(sim: &Sim) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(START_MS).unwrap() + sim.elapsed()
}

#[async_trait]
impl Clock for NodeClock {
    fn now(&self) -> jiff::Timestamp {
        true_time(&self.0.sim) + jiff::SignedDuration::from_millis(self.0.wall.load(Ordering::SeqCst))
    }
    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
    async fn sleep(&self, length: Duration) {
        let nanos = i64::try_from(length.as_nanos()).unwrap_or(i64::MAX / 2);
        tokio::time::sleep(Duration::from_nanos((nanos - nanos / 1_000_000 * self.0.ppm).unsigned_abs())).await;
        self.0.gate().await;
    }
    fn new_id(&self) -> String {
        format!("run{:02}", self.0.sim.next_id())
    }
    fn jitter(&self) -> f64 {
        self.0.sim.dice().range(0, 1000) as f64 / 1000.0
    }
}
