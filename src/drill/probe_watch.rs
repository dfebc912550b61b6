//! What the resolvers answer that clients use, from moment to moment: how a change of the name spreads.
//!
//! Each resolver is asked by itself, every 20 ms, so that a silent one does not hide the others.

use super::probe::{lock, within};
use crate::plan::measure::ResolverSample;
use crate::providers::clock::Clock;
use crate::providers::port::Resolve;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::{sync::CancellationToken, sync::DropGuard, task::TaskTracker};

const EVERY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_millis(250);
/// Changes, not answers; a name that changes more often has other troubles.
const KEPT: usize = 10_000;

/// Runs until it is stopped or dropped.
pub struct ResolverWatch {
    seen: Arc<Mutex<Vec<ResolverSample>>>,
    tasks: TaskTracker,
    guard: DropGuard,
}

impl ResolverWatch {
    /// Asks from now on; the system's resolvers when none is given.
    #[must_use]
    pub fn start(resolve: &Arc<dyn Resolve>, clock: &Arc<dyn Clock>, name: &str, resolvers: &[SocketAddr]) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let tasks = TaskTracker::new();
        let cancel = CancellationToken::new();
        let servers: Vec<_> = if resolvers.is_empty() { vec![None] } else { resolvers.iter().copied().map(Some).collect() };
        for server in servers {
            let watch = Watch {
                resolve: Arc::clone(resolve),
                clock: Arc::clone(clock),
                name: name.trim_end_matches('.').to_owned(),
                server,
                seen: Arc::clone(&seen),
            };
            let cancel = cancel.clone();
            tasks.spawn(async move { cancel.run_until_cancelled(watch.run()).await });
        }
        tasks.close();
        Self { seen, tasks, guard: cancel.drop_guard() }
    }

    /// The first answer of each resolver and every change since, in the order in which they came.
    #[must_use]
    pub fn samples(&self) -> Vec<ResolverSample> {
        lock(&self.seen).clone()
    }

    pub async fn stop(self) -> Vec<ResolverSample> {
        let Self { seen, tasks, guard } = self;
        drop(guard);
        tasks.wait().await;
        std::mem::take(&mut *lock(&seen))
    }
}

struct Watch {
    resolve: Arc<dyn Resolve>,
    clock: Arc<dyn Clock>,
    name: String,
    server: Option<SocketAddr>,
    seen: Arc<Mutex<Vec<ResolverSample>>>,
}

impl Watch {
    async fn run(&self) {
        let resolver = self.server.map_or_else(|| "system".to_owned(), |s| s.to_string());
        let mut last: Option<Vec<IpAddr>> = None;
        loop {
            let began = self.clock.monotonic();
            // A resolver that fails has not changed its answer.
            if let Some(Ok(mut answer)) = within(self.clock.as_ref(), PATIENCE, self.resolve.ask(self.server, &self.name)).await {
                answer.addresses.sort_unstable();
                if last.as_ref() != Some(&answer.addresses) {
                    last = Some(answer.addresses.clone());
                    let at = self.clock.now();
                    let mut seen = lock(&self.seen);
                    if seen.len() < KEPT {
                        seen.push(ResolverSample { at, resolver: resolver.clone(), addresses: answer.addresses });
                    }
                }
            }
            let took = self.clock.monotonic().saturating_sub(began);
            self.clock.sleep(EVERY.saturating_sub(took).max(Duration::from_millis(1))).await;
        }
    }
}
