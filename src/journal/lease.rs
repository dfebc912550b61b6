//! How long a process may believe that it owns what it claimed, without trusting anyone's wall clock.
//!
//! The store grants a lease for `ttl`, counted on the store's clock from when it took the request. The
//! holder counts it on its own monotonic clock, from *before* it sent the request, and stops `margin`
//! earlier. Both clocks only measure lengths, and the holder began to count first, so it always stops
//! before the store lets anyone else in. A lease that the store has let run out is never revived: whoever
//! was frozen for so long claims anew, under a new epoch.
//!
//! An embedded store needs none of this: an operating system's lock ends with its process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// The lengths that a lease lives by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long the store keeps others out after a renewal.
    pub ttl: Duration,
    /// How often it is renewed.
    pub renew: Duration,
    /// How long one renewal may take.
    pub call: Duration,
    /// How much earlier than the store the holder stops: what an effect needs to leave this machine.
    pub margin: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(15), renew: Duration::from_secs(3), call: Duration::from_secs(3), margin: Duration::from_secs(2) }
    }
}

impl Terms {
    /// A lease of this length, with the parts in proportion.
    #[must_use]
    pub fn of(ttl: Duration) -> Self {
        Self { ttl, renew: ttl / 5, call: ttl / 5, margin: ttl / 8 }
    }

    /// One renewal may fail and be tried again before the holder must stop; anything tighter is refused.
    pub fn check(self) -> Result<Self, String> {
        let Self { ttl, renew, call, margin } = self;
        if renew + 2 * call + margin > ttl {
            return Err(format!(
                "a lease of {} ms is too short: renewals every {} ms, of up to {} ms each, twice, and a margin of {} ms do not fit into it",
                ttl.as_millis(),
                renew.as_millis(),
                call.as_millis(),
                margin.as_millis()
            ));
        }
        if margin.is_zero() || renew.is_zero() {
            return Err("a lease needs a margin and a time between renewals above zero".to_owned());
        }
        Ok(self)
    }
}

/// What a claim rests on; clones share it.
#[derive(Clone, Debug)]
pub struct Hold {
    /// The holder's monotonic clock, in nanoseconds, at which it must have stopped.
    until: Arc<AtomicU64>,
    lost: Arc<AtomicBool>,
}

impl Hold {
    /// One that ends with the process, or when the store says so.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { until: Arc::new(AtomicU64::new(u64::MAX)), lost: Arc::new(AtomicBool::new(false)) }
    }

    /// A lease whose request was sent at this instant of the holder's monotonic clock.
    #[must_use]
    pub fn leased(terms: Terms, sent: Duration) -> Self {
        let hold = Self::unlimited();
        hold.until.store(deadline(terms, sent), Ordering::SeqCst);
        hold
    }

    /// The store has granted a renewal that was sent at this instant.
    pub fn renewed(&self, terms: Terms, sent: Duration) {
        self.until.store(deadline(terms, sent), Ordering::SeqCst);
    }

    /// The store has let someone else in, or may have: for good.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// May it end before its holder lets go?
    #[must_use]
    pub fn may_end(&self) -> bool {
        self.until.load(Ordering::SeqCst) != u64::MAX
    }

    /// May an effect be begun at this instant of the holder's monotonic clock?
    #[must_use]
    pub fn permits(&self, now: Duration) -> bool {
        !self.is_lost() && nanos(now) < self.until.load(Ordering::SeqCst)
    }
}

fn deadline(terms: Terms, sent: Duration) -> u64 {
    nanos(sent + terms.ttl.saturating_sub(terms.margin))
}

fn nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn the_holder_counts_from_before_it_asked_and_stops_early() {
        let terms = Terms::default().check().unwrap();
        let hold = Hold::leased(terms, S(100));
        assert!(hold.permits(S(112)));
        assert!(!hold.permits(S(113)), "the margin is the holder's loss");
        hold.renewed(terms, S(110));
        assert!(hold.permits(S(122)) && !hold.permits(S(123)));
        hold.lose();
        hold.renewed(terms, S(120));
        assert!(!hold.permits(S(121)), "what was lost stays lost");
        assert!(Hold::unlimited().permits(S(1_000_000_000)));
    }

    #[test]
    fn terms_that_cannot_be_safe_are_refused() {
        for terms in [
            Terms { ttl: S(10), renew: S(3), call: S(3), margin: S(2) },
            Terms { margin: S(0), ..Terms::default() },
            Terms { renew: S(0), ..Terms::default() },
        ] {
            assert!(terms.check().is_err(), "{terms:?}");
        }
        assert!(Terms::of(Duration::from_millis(500)).check().is_ok());
    }
}
