//! Before something is changed: is every wheel that this run took still its own? The lock lies where the effects
//! land, so a run that was deposed there finds out here, whatever its own journal says.

use super::{Engine, work::key};
use crate::actions::contract::*;
use crate::model::{effect::*, ids::StepId, plan::*};
use crate::plan::state::RunState;
use serde_json::Value;
use std::time::Duration;

/// How long the look may take that precedes every change.
const LOOK: Duration = Duration::from_secs(10);

/// A wheel that the run holds: the step that took it, as it is looked at.
pub type Wheel = (ReadCx, Value);

/// The wheels that must still be this run's before something is changed: none for a read, nor for what takes or
/// releases one.
pub fn held(engine: &Engine, state: &RunState, planned: &PlanStep, cx: &ReadCx, action: &dyn DynAction) -> Vec<Wheel> {
    if action.effect(&planned.with) == Effect::Read || [WHEEL_TAKE, WHEEL_RELEASE].contains(&planned.kind.uses()) {
        return Vec::new();
    }
    let of = |step: &StepId| {
        let intent = state.step(step)?.intent.clone()?;
        let key = key(&cx.run, step);
        Some((ReadCx { step: step.clone(), key, world: engine.world.clone(), ..cx.clone() }, intent))
    };
    state.wheels().into_iter().filter_map(of).collect()
}

/// Is every one of them still this run's? If that cannot be seen, nothing is done: another may have it.
pub async fn steer(wheels: &[Wheel]) -> Result<(), ApplyError> {
    for (cx, intent) in wheels {
        let Some(take) = crate::actions::find(WHEEL_TAKE) else { continue };
        match tokio::time::timeout(LOOK, take.observe(cx, intent)).await {
            Ok(Seen::Done(_)) => {}
            Ok(Seen::Differs { found }) => return Err(lost(&found)),
            Ok(Seen::Absent | Seen::Pending { .. }) => return Err(lost("it is as it was before")),
            Ok(Seen::CannotTell { why }) => return Err(unseen(&cx.step, &why)),
            Err(_) => return Err(unseen(&cx.step, &format!("no answer within {} s", LOOK.as_secs()))),
        }
    }
    Ok(())
}

fn lost(why: &str) -> ApplyError {
    ApplyError::Definite(Failure::new("wheel_lost", format!("this run no longer has the wheel, and nothing was tried: {why}")))
}

fn unseen(step: &StepId, why: &str) -> ApplyError {
    let failure =
        Failure::new("wheel_unseen", format!("whether this run still has the wheel cannot be seen, and nothing was tried: {why}"));
    let failure = failure.remedy(format!("try again, or go on without it, on record, by skipping step `{step}`"));
    ApplyError::Retry { after: Duration::ZERO, failure }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::{
        contract_tests::{Bench, Fixture},
        wheel_take::Take,
    };

    /// Where it lies does not answer: nothing is tried, and it may answer soon. Where it answers that another has it, that is
    /// the end of it.
    #[tokio::test]
    async fn a_wheel_that_cannot_be_seen_is_looked_for_again_and_one_that_is_lost_is_not() {
        let bench = Bench::new(&Fixture::new(serde_json::json!({ "bucket": "models", "region": "west" })));
        let intent = serde_json::to_value(bench.intent::<Take>().await).expect("an intent");
        bench.run::<Take>().await.expect("taken");
        let wheels = [(bench.read.clone(), intent)];
        assert!(steer(&wheels).await.is_ok());
        bench.world.lock().down.insert("west".into());
        let unseen = steer(&wheels).await;
        assert!(matches!(&unseen, Err(ApplyError::Retry { failure, .. }) if failure.code == "wheel_unseen"), "{unseen:?}");
        bench.world.lock().down.clear();
        crate::actions::wheel_take::lie(&bench.world, Some("0191"));
        let lost = steer(&wheels).await;
        assert!(matches!(&lost, Err(ApplyError::Definite(failure)) if failure.code == "wheel_lost"), "{lost:?}");
    }
}
