//! What a recovery took and what it lost, from what was seen (rule 4 of the architecture).
//!
//! Every figure is a difference of two instants, each from a source of its own, or a count over the
//! ledger. Where one of them is missing the figure is `None`, never zero.

use crate::model::{
    objective::{Instants, Rpo, Rto, RtoParts},
    time::Span,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// One question of the client outside both regions, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSample {
    /// The order of sending, from 0 without a gap.
    pub seq: u64,
    pub sent: Timestamp,
    /// When the answer was complete, or was given up.
    pub done: Timestamp,
    pub good: bool,
    /// Where it was sent to; `None` when the name had no answer.
    pub address: Option<IpAddr>,
    pub why_bad: Option<String>,
    /// The identifier that was sent along.
    pub id: Option<String>,
}

/// An answer of a resolver that differs from its last one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolverSample {
    pub at: Timestamp,
    pub resolver: String,
    pub addresses: Vec<IpAddr>,
}

/// An acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    pub id: String,
    pub sent: Timestamp,
    pub acked: Timestamp,
}

/// All that the instants are found from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recovery<'a> {
    pub samples: &'a [ProbeSample],
    pub resolvers: &'a [ResolverSample],
    /// When the first fault was injected.
    pub fault: Option<Timestamp>,
    /// T1, from the run's events.
    pub detected: Option<Timestamp>,
    /// T2, from the run's events.
    pub first_applying: Option<Timestamp>,
    /// When the last traffic change was sent (its `Applying`); no resolver can have it earlier.
    pub traffic_sent: Option<Timestamp>,
    /// T3, from the run's events.
    pub traffic_applied: Option<Timestamp>,
    /// Where the service answers after recovery; `None` when its address does not change.
    pub target: Option<IpAddr>,
    /// So many good answers in a row make a recovery.
    pub good: u32,
}

/// The six instants, as far as they were seen.
#[must_use]
pub fn instants(recovery: &Recovery<'_>) -> Instants {
    let mut samples: Vec<&ProbeSample> = recovery.samples.iter().collect();
    samples.sort_by_key(|s| s.seq);
    let outage = recovery.detected.and_then(|at| outage_at(&samples, at));
    // Without a verdict there is still a last good answer before the fault.
    let last_good = match (outage, recovery.detected) {
        (Some(first), Some(detected)) => latest_good(&samples, |s| s.seq < first.seq && s.done <= detected),
        _ => recovery.fault.and_then(|fault| latest_good(&samples, |s| s.done <= fault)),
    };
    Instants {
        last_good,
        detected: recovery.detected,
        first_applying: recovery.first_applying,
        traffic_applied: recovery.traffic_applied,
        resolver_moved: resolver_moved(recovery),
        recovered: recovered(recovery, &samples, outage.map(|s| s.sent)),
        ..Instants::default()
    }
}

fn latest_good(samples: &[&ProbeSample], admit: impl Fn(&ProbeSample) -> bool) -> Option<Timestamp> {
    samples.iter().filter(|s| s.good && admit(s)).map(|s| s.done).max()
}

/// The first of the unbroken run of bad probes, in the order of sending, that led to a verdict at `detected`.
fn outage_at<'a>(samples: &[&'a ProbeSample], detected: Timestamp) -> Option<&'a ProbeSample> {
    let seen: Vec<&ProbeSample> = samples.iter().copied().filter(|s| s.done <= detected).collect();
    // The verdict fell on the bad answer that came in last.
    let (trigger, _) = seen.iter().enumerate().filter(|(_, s)| !s.good).max_by_key(|(_, s)| (s.done, s.seq))?;
    seen.get(..=trigger)?.iter().rev().take_while(|s| !s.good).last().copied()
}

fn resolver_moved(recovery: &Recovery<'_>) -> Option<Timestamp> {
    let (sent, target) = (recovery.traffic_sent.or(recovery.traffic_applied)?, recovery.target?);
    recovery.resolvers.iter().filter(|s| s.at >= sent && s.addresses.contains(&target)).map(|s| s.at).min()
}

/// When the first of `good` consecutive good answers came, of those sent after the fault took hold.
fn recovered(recovery: &Recovery<'_>, samples: &[&ProbeSample], outage: Option<Timestamp>) -> Option<Timestamp> {
    // A fault may need a while to show: what was answered before the outage is no recovery.
    let after = recovery.fault.into_iter().chain(outage).max()?;
    let need = usize::try_from(recovery.good.max(1)).ok()?;
    let counts = |s: &ProbeSample| s.good && s.sent > after && recovery.target.is_none_or(|target| s.address == Some(target));
    samples.windows(need).find(|window| window.iter().all(|s| counts(s))).and_then(|window| window.first()).map(|s| s.done)
}

/// The recovery time and its parts; all `None` when an instant is missing, or when the measurement has a
/// hole in it because a process was replaced.
#[must_use]
pub fn rto(instants: &Instants, objective: Option<Span>, hole: bool) -> Rto {
    let objective_ms = objective.map(|o| o.ms);
    let measured = if hole { None } else { parts(instants) };
    let Some((parts_ms, actual)) = measured else {
        return Rto { objective_ms, ..Rto::default() };
    };
    Rto { objective_ms, actual_ms: Some(actual), met: objective_ms.map(|o| actual <= o), parts_ms }
}

/// Instants are cut to milliseconds first, so that the parts add up exactly.
fn parts(instants: &Instants) -> Option<(RtoParts, u64)> {
    let ms = |at: Option<Timestamp>| at.map(Timestamp::as_millisecond);
    let (t0, t1, t2) = (ms(instants.last_good)?, ms(instants.detected)?, ms(instants.first_applying)?);
    let (t3, t4, t5) = (ms(instants.traffic_applied)?, ms(instants.resolver_moved)?, ms(instants.recovered)?);
    let parts =
        RtoParts { detect: Some(t1 - t0), decide: Some(t2 - t1), act: Some(t3 - t2), propagate: Some(t4 - t3), verify: Some(t5 - t4) };
    Some((parts, u64::try_from(t5 - t0).ok()?))
}

/// The data loss: acknowledged writes that were not found afterwards. `ledger` or `present` is `None`
/// when it could not be read to its end. `fault` is the moment of loss, if there was one.
#[must_use]
pub fn rpo(objective: Option<Span>, ledger: Option<&[LedgerEntry]>, present: Option<&BTreeSet<String>>, fault: Option<Timestamp>) -> Rpo {
    let objective_ms = objective.map(|o| o.ms);
    let Some(ledger) = ledger else {
        return Rpo { objective_ms, ..Rpo::default() };
    };
    // An identifier counts once, from its first acknowledgement on.
    let mut acked: BTreeMap<&str, Timestamp> = BTreeMap::new();
    for entry in ledger {
        acked.entry(&entry.id).and_modify(|at| *at = entry.acked.min(*at)).or_insert(entry.acked);
    }
    let acknowledged_writes = u64::try_from(acked.len()).ok();
    let Some(present) = present else {
        return Rpo { objective_ms, acknowledged_writes, ..Rpo::default() };
    };
    let lost: Vec<Timestamp> = acked.iter().filter(|(id, _)| !present.contains(**id)).map(|(_, at)| *at).collect();
    let actual_ms = match lost.iter().min() {
        None => Some(0),
        Some(oldest) => fault.map(|fault| loss_ms(*oldest, fault)),
    };
    let met = objective_ms.zip(actual_ms).map(|(objective, actual)| actual <= objective);
    Rpo { objective_ms, actual_ms, met, acknowledged_writes, lost_writes: u64::try_from(lost.len()).ok(), ..Rpo::default() }
}

/// Rounded up, and never zero: an objective of zero is missed by any write that was lost, also by one
/// that was acknowledged after the fault.
fn loss_ms(oldest: Timestamp, fault: Timestamp) -> u64 {
    let age = fault.duration_since(oldest).as_nanos().max(0).unsigned_abs();
    u64::try_from(age.div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// The longest stretch without a good answer within a span of time: what clients felt of a switchover.
/// `None` when no good answer was seen in it.
#[must_use]
pub fn longest_pause(samples: &[ProbeSample], from: Timestamp, until: Timestamp) -> Option<Span> {
    let mut answers: Vec<Timestamp> = samples.iter().filter(|s| s.good && s.done >= from && s.done <= until).map(|s| s.done).collect();
    answers.sort_unstable();
    let (first, last) = (answers.first().copied()?, answers.last().copied()?);
    let edges = [first.duration_since(from), until.duration_since(last)];
    let gaps = answers.windows(2).filter_map(|w| Some(w.last()?.duration_since(*w.first()?)));
    let longest = gaps.chain(edges).max()?;
    u64::try_from(longest.as_millis()).ok().map(Span::from_ms)
}

/// The verdict that a region is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// When the last of the missed answers was missed.
    pub at: Timestamp,
    pub missed: u32,
    /// The last good answer to a question sent before the first of the missed ones.
    pub last_good: Option<Timestamp>,
}

/// Decides when a region is lost: so many consecutive probes, in the order of sending, without a good answer.
#[derive(Clone, Debug)]
pub struct Detector {
    good_probes_missed: u32,
    bad: BTreeSet<u64>,
    good: BTreeMap<u64, Timestamp>,
    verdict: Option<Lost>,
}

/// So many samples are remembered; far more than can be under way at a time.
const REMEMBERED: usize = 4_096;

impl Detector {
    #[must_use]
    pub fn new(good_probes_missed: u32) -> Self {
        Self { good_probes_missed: good_probes_missed.max(1), bad: BTreeSet::new(), good: BTreeMap::new(), verdict: None }
    }

    /// Takes samples in the order in which they end. Gives the verdict once, with the sample that makes it.
    pub fn feed(&mut self, sample: &ProbeSample) -> Option<Lost> {
        if sample.good {
            self.good.insert(sample.seq, sample.done);
            self.forget();
            return None;
        }
        self.bad.insert(sample.seq);
        self.forget();
        let (first, last) = self.run_around(sample.seq);
        let length = last - first + 1;
        if self.verdict.is_some() || length < u64::from(self.good_probes_missed) {
            return None;
        }
        let last_good = self.good.range(..first).map(|(_, done)| *done).max();
        self.verdict = Some(Lost { at: sample.done, missed: u32::try_from(length).unwrap_or(u32::MAX), last_good });
        self.verdict.clone()
    }

    #[must_use]
    pub fn verdict(&self) -> Option<&Lost> {
        self.verdict.as_ref()
    }

    /// The unbroken run of bad probes that `seq` is in; one still under way breaks it.
    fn run_around(&self, seq: u64) -> (u64, u64) {
        let first = (0..seq).rev().take_while(|s| self.bad.contains(s)).last().unwrap_or(seq);
        let last = (seq.saturating_add(1)..).take_while(|s| self.bad.contains(s)).last().unwrap_or(seq);
        (first, last)
    }

    fn forget(&mut self) {
        if self.bad.len() > REMEMBERED.max(self.good_probes_missed as usize) {
            self.bad.pop_first();
        }
        if self.good.len() > REMEMBERED {
            self.good.pop_first();
        }
    }
}

#[cfg(test)]
#[path = "measure_tests.rs"]
mod tests;
