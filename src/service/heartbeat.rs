//! The heartbeat of `muster serve`: a channel hears that the scheduler lives, and alarms when it does not.
//!
//! Each channel that asked for it has a pace of its own and a task of its own, so that none waits for
//! another. What is told is that the calendar has been looked at lately: a scheduler that hangs sends
//! nothing, and the silence is the alarm (see `docs/notices.md`).

use super::{
    Muster, ServiceError,
    notices::{Message, deliver},
};
use crate::model::estate::{Notice, Notify};
use crate::providers::world::World;
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;

/// The pace of a channel that says none.
const DEFAULT: Duration = Duration::from_mins(1);
/// A scheduler that did not get round for so long does not count as alive. Beginning a drill of an estate
/// that cannot be reached takes a while, and is no failure.
const STALLED: Duration = Duration::from_mins(2);

/// When the scheduler last got round.
#[derive(Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// The scheduler got round, at this time of the monotonic clock.
    pub fn round(&self, now: Duration) {
        self.0.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    #[must_use]
    pub fn is_alive(&self, now: Duration) -> bool {
        now.saturating_sub(Duration::from_millis(self.0.load(Ordering::Relaxed))) < STALLED
    }
}

/// Begins to send; stops when the set is dropped.
pub fn start(muster: &Muster, pulse: &Pulse) -> Result<JoinSet<()>, ServiceError> {
    let estate = Arc::new(muster.written_estate()?);
    let mut tasks = JoinSet::new();
    for channel in estate.notify.iter().filter(|channel| channel.on.contains(&Notice::Heartbeat)) {
        let world = World::new(estate.clone(), muster.clock.clone());
        tasks.spawn(beat(muster.clone(), world, channel.clone(), pulse.clone()));
    }
    Ok(tasks)
}

async fn beat(muster: Muster, world: World, channel: Notify, pulse: Pulse) {
    let every = channel.every.map_or(DEFAULT, crate::model::time::Span::duration).max(Duration::from_millis(100));
    let about = json!({
        "actor": muster.actor(),
        "state": std::path::absolute(&muster.state).unwrap_or_else(|_| muster.state.clone()),
        "every_ms": u64::try_from(every.as_millis()).unwrap_or(u64::MAX),
    });
    let message = Message { notice: Notice::Heartbeat, text: "muster serve is alive".to_owned(), about, next: Vec::new() };
    let mut due = muster.clock.monotonic();
    loop {
        let now = muster.clock.monotonic();
        if pulse.is_alive(now) {
            deliver(&world, &channel, &message).await;
        } else {
            tracing::error!("the scheduler does not get round; no heartbeat is sent");
        }
        // Kept to the pace, however long the channel took; a beat that could not be kept is left out.
        due = (due + every).max(muster.clock.monotonic());
        muster.clock.sleep(due.saturating_sub(muster.clock.monotonic())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_that_hangs_is_not_alive() {
        let pulse = Pulse::default();
        pulse.round(Duration::from_secs(1_000));
        assert!(pulse.is_alive(Duration::from_secs(1_000) + STALLED / 2));
        assert!(!pulse.is_alive(Duration::from_secs(1_000) + STALLED));
    }
}
