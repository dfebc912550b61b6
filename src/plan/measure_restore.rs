//! What a restore took and how old the point was that it recovered: the two figures of a drill of kind `restore`.
//!
//! Nothing here knows an action. A step that brings something back says so in its output, by these fields, each an
//! instant as RFC 3339:
//!
//! | field | is |
//! | --- | --- |
//! | `recovered_point` | the instant at which what came back had stood; a step that has it is a *restoring* step |
//! | `first_file_at` | the first file, table or answer that was back and verified |
//! | `restored_at` | when all was back; what comes after it is verification |
//! | `verified_at` | when all of it was verified: every file compared, or the first query answered |
//! | `loss` | what was lost, if whoever had it was asked: an object with `lost_at`, `lost_ms`, `upper_bound`, `lost_bytes`, `lost_commits` |
//!
//! `verified_at` may come from another step, which checks what the restoring one brought back. With several restoring
//! steps the recovery is that of all: from the first one's begin to the last one's proof, to the oldest point.
//!
//! The moment of loss is the instant at which the steps asked for what there was to lose; where none did, the beginning of the
//! drill. The age of a point is never less than what was lost since, and is called an upper bound.

use crate::model::{
    objective::{Instants, Rpo, Rto, RtoParts},
    time::Span,
};
use jiff::Timestamp;
use serde_json::Value;

/// What a step's output says of a recovery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    pub point: Option<Timestamp>,
    pub first_file: Option<Timestamp>,
    pub restored: Option<Timestamp>,
    pub verified: Option<Timestamp>,
    pub loss: Option<Lost>,
}

/// What it says of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub at: Timestamp,
    pub ms: u64,
    pub upper_bound: bool,
    pub bytes: Option<u64>,
    pub commits: Option<u64>,
}

impl Lost {
    /// All of it, or nothing: half a word about a loss is none.
    fn of(said: &Value) -> Option<Self> {
        let number = |field: &str| said.get(field).and_then(Value::as_u64);
        Some(Self {
            at: said.get("lost_at")?.as_str()?.parse().ok()?,
            ms: number("lost_ms")?,
            upper_bound: said.get("upper_bound")?.as_bool()?,
            bytes: number("lost_bytes"),
            commits: number("lost_commits"),
        })
    }
}

impl Recovered {
    /// A field that is not there, or is no instant, is not measured.
    #[must_use]
    pub fn of(output: &Value) -> Self {
        let at = |field: &str| output.get(field)?.as_str()?.parse().ok();
        Self {
            point: at("recovered_point"),
            first_file: at("first_file_at"),
            restored: at("restored_at"),
            verified: at("verified_at"),
            loss: output.get("loss").and_then(Lost::of),
        }
    }
    /// What is not said here, from another word of the same step.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            point: self.point.or(other.point),
            first_file: self.first_file.or(other.first_file),
            restored: self.restored.or(other.restored),
            verified: self.verified.or(other.verified),
            loss: self.loss.or(other.loss),
        }
    }
}

/// One step of the run that succeeded, as its record has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepSeen {
    /// Of its first attempt.
    pub first_applying: Option<Timestamp>,
    /// When the other side had accepted it.
    pub applied: Option<Timestamp>,
    pub said: Recovered,
}

fn restoring(steps: &[StepSeen]) -> Vec<&StepSeen> {
    steps.iter().filter(|step| step.said.point.is_some()).collect()
}

/// The instants of a restore, as far as they are on record. `begun`: the drill, which is the moment of loss where no step has one.
#[must_use]
pub fn restore_instants(steps: &[StepSeen], begun: Timestamp) -> Instants {
    let restoring = restoring(steps);
    let asked = all(&restoring, |step| step.said.loss.map(|loss| loss.at)).into_iter().flatten().min();
    let others = steps.iter().filter(|step| step.said.point.is_none()).filter_map(|step| step.said.verified).max();
    Instants {
        lost: Some(asked.unwrap_or(begun)),
        first_applying: all(&restoring, |step| step.first_applying).into_iter().flatten().min(),
        recovered_point: all(&restoring, |step| step.said.point).into_iter().flatten().min(),
        first_back: restoring.iter().filter_map(|step| step.said.first_file).min(),
        restored: all(&restoring, back).into_iter().flatten().max(),
        recovered: all(&restoring, |step| step.said.verified.or(others.filter(|at| back(step).is_none_or(|back| *at >= back))))
            .into_iter()
            .flatten()
            .max(),
        ..Instants::default()
    }
}

fn back(step: &StepSeen) -> Option<Timestamp> {
    step.said.restored.or(step.applied)
}

/// The instant of each step; nothing at all when one of them has none: a figure over some of them would be too good.
fn all(steps: &[&StepSeen], of: impl Fn(&StepSeen) -> Option<Timestamp>) -> Option<Vec<Timestamp>> {
    steps.iter().map(|step| of(step)).collect()
}

/// From the first attempt to restore to the proof. `hole`: Muster itself was away meanwhile, which is no part of it.
#[must_use]
pub fn restore_rto(instants: &Instants, objective: Option<Span>, hole: bool) -> Rto {
    let objective_ms = objective.map(|o| o.ms);
    let ms = |at: Option<Timestamp>| at.map(Timestamp::as_millisecond);
    let (begun, restored, verified) = (ms(instants.first_applying), ms(instants.restored), ms(instants.recovered));
    let actual = begun.zip(verified).filter(|_| !hole).and_then(|(begun, verified)| u64::try_from(verified - begun).ok());
    let Some(actual) = actual else { return Rto { objective_ms, ..Rto::default() } };
    let parts_ms = RtoParts {
        act: begun.zip(restored).map(|(begun, restored)| restored - begun),
        verify: restored.zip(verified).map(|(restored, verified)| verified - restored),
        ..RtoParts::default()
    };
    Rto { objective_ms, actual_ms: Some(actual), met: objective_ms.map(|o| actual <= o), parts_ms }
}

/// What was lost: the most of what each restoring step says, or, where it says nothing, of the age of its point when the drill
/// began. A point after that moment recovers nothing that was lost: it was made by the drill itself, and says nothing of
/// what there would have been.
#[must_use]
pub fn restore_rpo(steps: &[StepSeen], begun: Timestamp, objective: Option<Span>) -> Rpo {
    let objective_ms = objective.map(|o| o.ms);
    let restoring = restoring(steps);
    let each: Option<Vec<(u64, bool)>> = restoring
        .iter()
        .map(|step| match step.said.loss {
            Some(loss) => Some((loss.ms, loss.upper_bound)),
            None => Some((age(step.said.point?, begun)?, true)),
        })
        .collect();
    let most = each.unwrap_or_default().into_iter().max();
    let sum = |of: fn(Lost) -> Option<u64>| {
        let each: Option<Vec<u64>> = restoring.iter().map(|step| step.said.loss.and_then(of)).collect();
        each.filter(|each| most.is_some() && !each.is_empty()).map(|each| each.iter().sum::<u64>())
    };
    let actual_ms = most.map(|(ms, _)| ms);
    Rpo {
        objective_ms,
        actual_ms,
        met: objective_ms.zip(actual_ms).map(|(objective, actual)| actual <= objective),
        upper_bound: most.map(|(_, upper_bound)| upper_bound),
        lost_bytes: sum(|loss| loss.bytes),
        lost_commits: sum(|loss| loss.commits),
        ..Rpo::default()
    }
}

/// Rounded up.
fn age(point: Timestamp, at: Timestamp) -> Option<u64> {
    let age = u128::try_from(at.duration_since(point).as_nanos()).ok()?;
    Some(u64::try_from(age.div_ceil(1_000_000)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
    }
    fn step(begun: i64, said: &Value) -> StepSeen {
        StepSeen { first_applying: Some(at(begun)), applied: Some(at(begun + 100)), said: Recovered::of(said) }
    }
    fn proof(point: i64, restored: i64, verified: i64) -> Value {
        json!({ "recovered_point": at(point), "restored_at": at(restored), "verified_at": at(verified), "files": 3 })
    }
    fn span(ms: u64) -> Option<Span> {
        Some(Span::from_ms(ms))
    }

    #[test]
    fn one_step_that_restores_and_proves() {
        let found = restore_instants(&[step(1_000, &proof(-60_000, 1_700, 1_900))], at(0));
        let rto = restore_rto(&found, span(900), false);
        assert_eq!((rto.actual_ms, rto.met, rto.parts_ms.act, rto.parts_ms.verify), (Some(900), Some(true), Some(700), Some(200)));
        assert_eq!((rto.parts_ms.detect, rto.parts_ms.decide, rto.parts_ms.propagate), (None, None, None));
        let rpo = restore_rpo(&[step(1_000, &proof(-60_000, 1_700, 1_900))], at(0), span(59_999));
        assert_eq!((rpo.actual_ms, rpo.met, rpo.lost_writes, rpo.upper_bound), (Some(60_000), Some(false), None, Some(true)));
    }

    fn asked(point: i64, lost_at: i64, lost_ms: u64, upper_bound: bool) -> Value {
        let mut said = proof(point, 1_700, 1_900);
        said["loss"] =
            json!({ "lost_at": at(lost_at), "lost_ms": lost_ms, "upper_bound": upper_bound, "lost_bytes": 4_096, "lost_commits": 3 });
        said
    }

    #[test]
    fn what_the_primary_had_counts_and_not_the_age_of_the_point() {
        // What it lost is old, for nothing was written since; and it was asked a little after the drill had begun.
        let steps = [step(1_000, &asked(-60_000, 40, 700, false))];
        let rpo = restore_rpo(&steps, at(0), span(800));
        assert_eq!((rpo.actual_ms, rpo.met, rpo.upper_bound), (Some(700), Some(true), Some(false)), "{rpo:?}");
        assert_eq!((rpo.lost_bytes, rpo.lost_commits), (Some(4_096), Some(3)));
        assert_eq!(restore_instants(&steps, at(0)).lost, Some(at(40)));
        // A commit between the two is no work of the drill's.
        assert_eq!(restore_rpo(&[step(1_000, &asked(20, 40, 0, false))], at(0), None).actual_ms, Some(0));
        let unknown = restore_rpo(&[step(1_000, &asked(-60_000, 40, 60_040, true))], at(0), None);
        assert_eq!((unknown.actual_ms, unknown.upper_bound), (Some(60_040), Some(true)));
    }

    #[test]
    fn of_several_losses_the_most_counts_and_nothing_is_summed_over_some() {
        let (told, untold) = (step(1_000, &asked(-60_000, 40, 700, false)), step(1_000, &proof(-90, 1_700, 1_900)));
        let rpo = restore_rpo(&[told, untold], at(0), None);
        assert_eq!((rpo.actual_ms, rpo.upper_bound, rpo.lost_bytes, rpo.lost_commits), (Some(700), Some(false), None, None), "{rpo:?}");
        assert_eq!(restore_instants(&[told, untold], at(0)).lost, Some(at(0)));
        let older = restore_rpo(&[told, step(1_000, &proof(-900, 1_700, 1_900))], at(0), None);
        assert_eq!((older.actual_ms, older.upper_bound), (Some(900), Some(true)));
        let both = restore_rpo(&[told, told], at(0), None);
        assert_eq!((both.lost_bytes, both.lost_commits), (Some(8_192), Some(6)));
        // Half a word.
        let mut half = asked(-60_000, 40, 700, false);
        half["loss"]["lost_ms"] = Value::Null;
        assert_eq!(restore_rpo(&[step(1_000, &half)], at(0), None).actual_ms, Some(60_000));
    }

    #[test]
    fn what_one_step_restores_another_may_verify() {
        let restore = step(1_000, &json!({ "recovered_point": at(-5) }));
        let check = step(2_000, &json!({ "verified_at": at(2_500) }));
        let rto = restore_rto(&restore_instants(&[restore, check], at(0)), None, false);
        // Without a word of its own, a step had restored when it was accepted.
        assert_eq!((rto.actual_ms, rto.parts_ms.act, rto.parts_ms.verify, rto.met), (Some(1_500), Some(100), Some(1_400), None));
        // A check that was made before is none of what came back.
        let early = step(0, &json!({ "verified_at": at(500) }));
        assert_eq!(restore_rto(&restore_instants(&[early, restore], at(0)), None, false).actual_ms, None);
    }

    #[test]
    fn of_several_the_slowest_and_the_oldest_count() {
        let steps = [step(1_000, &proof(-10, 1_100, 1_200)), step(1_500, &proof(-90, 1_600, 4_000))];
        let found = restore_instants(&steps, at(0));
        assert_eq!(restore_rto(&found, None, false).actual_ms, Some(3_000));
        assert_eq!(restore_rpo(&steps, at(0), None).actual_ms, Some(90));
        let unproven = [steps[0], step(1_500, &json!({ "recovered_point": at(-90) }))];
        assert_eq!(restore_rto(&restore_instants(&unproven, at(0)), None, false).actual_ms, None);
    }

    #[test]
    fn what_was_not_measured_is_null() {
        for steps in [vec![], vec![step(0, &json!({ "files": 3 }))], vec![step(0, &json!({ "recovered_point": "yesterday" }))]] {
            let found = restore_instants(&steps, at(0));
            assert_eq!(restore_rto(&found, span(1), false), Rto { objective_ms: Some(1), ..Rto::default() });
            assert_eq!(restore_rpo(&steps, at(0), span(1)), Rpo { objective_ms: Some(1), ..Rpo::default() });
        }
        let whole = restore_instants(&[step(1_000, &proof(-60_000, 1_700, 1_900))], at(0));
        assert_eq!(restore_rto(&whole, None, true), Rto::default(), "Muster was away");
        // A backup that the drill itself made.
        let own = restore_rpo(&[step(1_000, &proof(1, 1_700, 1_900))], at(0), span(1));
        assert_eq!((own.actual_ms, own.upper_bound), (None, None));
    }

    proptest! {
        #[test]
        fn the_parts_add_up(begun in 0i64..10_000, act in 0i64..10_000, verify in 0i64..10_000) {
            let found = restore_instants(&[step(begun, &proof(-1, begun + act, begun + act + verify))], at(0));
            let rto = restore_rto(&found, None, false);
            prop_assert_eq!(rto.actual_ms, u64::try_from(act + verify).ok());
            prop_assert_eq!((rto.parts_ms.act, rto.parts_ms.verify), (Some(act), Some(verify)));
        }
    }
}
