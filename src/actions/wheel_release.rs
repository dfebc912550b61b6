//! `wheel.release`: let another run act on a region again.
//!
//! **What it does.** It writes into the wheel's object or row that nobody holds it, by compare-and-swap, if it is this
//! run's. If it is not (another has taken it over, or the run did without it), nothing is changed, and the output
//! says so. It stays there, with its epoch.
//!
//! **Half-done** it never is: this run's name stands there, or it does not. **Undone** it is not: whoever needs
//! the wheel again takes it again.

use super::{
    contract::*,
    shared::*,
    wheel,
    wheel::Seat,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = wheel::places()))]
pub struct Input {
    /// With `region`: where the object is that is let go of.
    #[serde(default)]
    pub bucket: Option<BucketName>,
    #[serde(default)]
    pub region: Option<RegionName>,
    /// Instead of both: the database whose row it is.
    #[serde(default)]
    pub database: Option<DatabaseName>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    #[serde(flatten)]
    seat: Seat,
    /// This run held it.
    held: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// False when it was not this run's to release.
    pub released: bool,
}

pub struct Release;

impl Action for Release {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "wheel.release",
            version: 1,
            summary: "Let another run act on a region or a database again",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(30),
            example: "id: let_go\nuses: wheel.release\nwith: { bucket: models, region: west }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        wheel::reaches(with, estate)
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { bucket, region, database } = input;
        let seat = Seat::of(bucket, region, database)?;
        let found = wheel::find(cx, &seat).await?;
        let held = found.as_ref().is_some_and(|found| found.wheel.is_of(&cx.run));
        let changes = held.then(|| change(format!("wheel of {}", seat.over()), Some(format!("run {}", cx.run)), Some("nobody".into())));
        let notes = if held { Vec::new() } else { vec![format!("the wheel of {} is not this run's", seat.over())] };
        Ok(Prepared { intent: Intent { seat, held }, change: changes.into_iter().collect(), notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        wheel::let_go(cx, &intent.seat).await?;
        Ok(Output { released: intent.held })
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        match wheel::find(cx, &intent.seat).await {
            Err(e) => cannot_tell(&e),
            Ok(Some(found)) if found.wheel.is_of(&cx.run) => Seen::Absent,
            Ok(_) => Seen::Done(Output { released: intent.held }),
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "bucket": "models", "region": "west" }))
        .set(|world| super::wheel_take::lie(world, Some("0190")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    #[tokio::test]
    async fn what_is_another_runs_stays_its_own() {
        let fixture = Fixture::new(json!({ "bucket": "models", "region": "west" }));
        let bench = Bench::new(&fixture.set(|world| super::super::wheel_take::lie(world, Some("0180"))));
        assert!(!bench.run::<Release>().await.expect("nothing to do").released);
        let seat = Seat::Object { bucket: "models".into(), region: "west".into() };
        assert!(wheel::find(&bench.read, &seat).await.expect("found").expect("there").wheel.is_of(&"0180".into()));
    }
}
