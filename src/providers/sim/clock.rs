//! A clock that stands still until somebody sleeps; sleeping moves it and takes no time.

use crate::providers::clock::Clock;
use async_trait::async_trait;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// 2026-01-01T00:00:00Z, in milliseconds since the epoch.
const START_MS: u64 = 1_767_225_600_000;

#[derive(Debug, Default)]
pub struct SimClock {
    elapsed_ms: AtomicU64,
    ids: AtomicU64,
}

impl SimClock {
    pub fn advance(&self, by: Duration) {
        self.elapsed_ms.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}

#[async_trait]
impl Clock for SimClock {
    fn now(&self) -> jiff::Timestamp {
        let ms = START_MS + self.elapsed_ms.load(Ordering::SeqCst);
        jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(i64::MAX)).unwrap_or(jiff::Timestamp::MAX)
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms.load(Ordering::SeqCst))
    }
    async fn sleep(&self, length: Duration) {
        self.advance(length.max(Duration::from_millis(1)));
        tokio::task::yield_now().await;
    }
    fn new_id(&self) -> String {
        format!("00000000-0000-7000-8000-{:012x}", self.ids.fetch_add(1, Ordering::SeqCst))
    }
    fn jitter(&self) -> f64 {
        0.5
    }
}
