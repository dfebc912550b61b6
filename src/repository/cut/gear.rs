//! The rolling hash: a cut where the last 64 bytes hash low.
//!
//! Each byte adds a random number of its own to the hash shifted left by one, so a byte is forgotten after 64 others.
//! The `fastcdc` crate is not used: its seed is 64 bits xored onto a published table, which one known pair of content and
//! cut undoes, and it looks at one place after the other. The hash of a place depends on nothing but the 64 bytes
//! before it, so four stretches can be gone through abreast, where one alone would wait for each addition.

/// What the hash sees.
const WINDOW: usize = 64;
/// Bytes gone through abreast by each of four lanes.
const LANE: usize = 8 << 10;

pub struct Gear {
    table: Box<[u64; 256]>,
}

impl Gear {
    /// The table is drawn from the seed by BLAKE3, used as a stream cipher would be.
    pub fn new(seed: &[u8; 32]) -> Self {
        let mut stream = blake3::Hasher::new_derive_key("muster 2026-11-26 table of the chunker").update(seed).finalize_xof();
        let mut table = Box::new([0; 256]);
        for number in table.iter_mut() {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            *number = u64::from_le_bytes(bytes);
        }
        Self { table }
    }

    /// The hash at the end of `bytes`.
    pub fn hash(&self, bytes: &[u8]) -> u64 {
        let (_, window) = bytes.split_at(bytes.len().saturating_sub(WINDOW));
        window.iter().fold(0, |hash, byte| self.step(hash, *byte))
    }

    /// The first end of a chunk at or behind `from` and before or at `to`: the hash of the bytes before it is at most `limit`.
    /// `from` is at least `WINDOW`.
    pub fn find(&self, data: &[u8], from: usize, to: usize, limit: u64) -> Option<usize> {
        let mut begin = from;
        while begin + 4 * LANE <= to && !self.any_in_lanes(data, begin, limit) {
            begin += 4 * LANE;
        }
        let place = data.get(begin..to)?;
        let mut hash = self.hash(data.get(..begin)?);
        place
            .iter()
            .position(|byte| {
                hash = self.step(hash, *byte);
                hash <= limit
            })
            .map(|at| begin + at + 1)
    }

    /// Is there an end in the four lanes from `begin` on?
    fn any_in_lanes(&self, data: &[u8], begin: usize, limit: u64) -> bool {
        let lane = |n: usize| data.get(begin + n * LANE..).and_then(|rest| rest.first_chunk::<LANE>());
        let (Some(first), Some(second), Some(third), Some(fourth)) = (lane(0), lane(1), lane(2), lane(3)) else { return true };
        let [mut one, mut two, mut three, mut four] = [0, 1, 2, 3].map(|n| self.hash(data.get(..begin + n * LANE).unwrap_or_default()));
        for (((a, b), c), d) in first.iter().zip(second).zip(third).zip(fourth) {
            one = self.step(one, *a);
            two = self.step(two, *b);
            three = self.step(three, *c);
            four = self.step(four, *d);
            if one.min(two).min(three).min(four) <= limit {
                return true;
            }
        }
        false
    }

    fn step(&self, hash: u64, byte: u8) -> u64 {
        // No index of a byte is outside 256 numbers, and the compiler knows.
        (hash << 1).wrapping_add(self.table[usize::from(byte)])
    }
}
