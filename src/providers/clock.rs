//! The clock, sleep, and randomness: the only place in the crate that asks the machine for them, so
//! that everything else can be run under a clock of the test's own.

use async_trait::async_trait;
use std::time::Duration;

#[async_trait]
pub trait Clock: Send + Sync {
    /// The wall clock, for records.
    fn now(&self) -> jiff::Timestamp;
    /// Time since some fixed instant that never steps back, for deadlines and differences.
    fn monotonic(&self) -> Duration;
    async fn sleep(&self, length: Duration);
    /// A new identifier: a UUIDv7.
    fn new_id(&self) -> String;
    /// Evenly distributed in [0, 1).
    fn jitter(&self) -> f64;
}

/// 32 bytes that nobody can guess, from the operating system: for keys and salts.
pub fn random() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(std::io::Error::from)?;
    Ok(bytes)
}

/// The machine's own.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started: std::time::Instant,
}

#[allow(clippy::disallowed_methods)] // the one place
impl SystemClock {
    #[must_use]
    pub fn new() -> Self {
        Self { started: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
#[allow(clippy::disallowed_methods)] // the one place
impl Clock for SystemClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }
    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
    async fn sleep(&self, length: Duration) {
        tokio::time::sleep(length).await;
    }
    fn new_id(&self) -> String {
        uuid::Uuid::now_v7().to_string()
    }
    fn jitter(&self) -> f64 {
        // 53 bits are what an f64 holds exactly.
        let bits = uuid::Uuid::new_v4().as_u128() as u64 >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}
