//! The one source of chance in a simulated world: a seed gives the same numbers for ever, whatever becomes of
//! any library. SplitMix64 (Steele, Lea and Flood, 2014).

use std::time::Duration;

pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        // Seeds beside each other must not give streams that resemble each other.
        let mut dice = Self(seed ^ 0x6a09_e667_f3bc_c908);
        dice.next();
        dice
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `from..to`.
    pub fn range(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from).max(1)
    }

    /// So often of a thousand times.
    pub fn of_1000(&mut self, times: u64) -> bool {
        self.next() % 1000 < times
    }

    pub fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.range(from, to))
    }

    /// One of them, each as likely as its weight says.
    pub fn weighted<T: Copy>(&mut self, all: &[(u64, T)]) -> T {
        let mut at = self.range(0, all.iter().map(|(weight, _)| weight).sum());
        for (weight, one) in all {
            if at < *weight {
                return *one;
            }
            at -= weight;
        }
        all[0].1
    }

    pub fn one<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.range(0, all.len() as u64) as usize].clone()
    }
}
