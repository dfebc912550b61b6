//! `wheel.take`: be the only run that acts on a region, whatever journal the others use.
//!
//! **What it does.** It writes this run's name into an object in a bucket of the region that the run acts on, or into a row of
//! the database that it acts on, by compare-and-swap: created only if it is absent, replaced only if it is still as it was read. Who
//! finds another run there is refused before any step acts, and told whose it is. From then on the engine looks at
//! the object before everything that it applies or undoes: a run that was deposed finds out before its next step.
//!
//! **Half-done** it never is. It is recognised by its own content: this run's name stands there, or it does not.
//!
//! **Taken over** it is only by name: `take_over` names the run that holds it, so that two who take over at once
//! depose one another's predecessor and not one another. **Waived** it is by a reason in `no_wheel`, which stands
//! on the record. **Undone** it is by letting go, which the engine also does when the run ends; a run that stops
//! for a person keeps it.

use super::{
    contract::*,
    shared::*,
    wheel,
    wheel::{Seat, Wheel},
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = wheel::places()))]
pub struct Input {
    /// A bucket of the estate; its object in that region is the wheel.
    #[serde(default)]
    pub bucket: Option<BucketName>,
    /// The region that the run acts on: in a failover the one that survives. It goes with `bucket`.
    #[serde(default)]
    pub region: Option<RegionName>,
    /// Instead of both: a database; the row in it is the wheel. For what is planned, where there is no bucket: it needs the
    /// primary.
    #[serde(default)]
    pub database: Option<DatabaseName>,
    /// The run that it is taken from, if one holds it; empty for none.
    #[serde(default)]
    pub take_over: String,
    /// Why the run does without it; empty to take it.
    #[serde(default)]
    pub no_wheel: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    #[serde(flatten)]
    seat: Seat,
    waived: Option<String>,
    /// The etag, or the row's content, that must still be there; none when nothing was.
    expect: Option<String>,
    wheel: Wheel,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// `null` when the run does without it.
    pub epoch: Option<u64>,
    /// Why it does.
    pub waived: Option<String>,
}

pub struct Take;

impl Action for Take {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "wheel.take",
            version: 2,
            summary: "Keep every other run from acting on a region or a database, by a lock that lies in it",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(30),
            example: "id: wheel\nuses: wheel.take\nwith: { bucket: models, region: west }\non_failure: stop\n",
        }
    }
    fn measured() -> &'static [&'static str] {
        // Who sits here, and when. Whose it becomes is the run.
        &["wheel.by", "wheel.since"]
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        wheel::reaches(with, estate)
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { bucket, region, database, take_over, no_wheel } = input;
        let seat = Seat::of(bucket, region, database)?;
        let mut wheel = Wheel { epoch: 1, run: Some(cx.run.clone()), by: cx.world.who(), since: cx.world.clock().now() };
        let over = seat.over();
        let what = format!("wheel of {over}");
        if !no_wheel.is_empty() {
            let notes = vec![format!("the wheel of {over} is not taken: {no_wheel}; nothing keeps another operator from acting too")];
            let change = vec![change(what, None, Some("not taken".into()))];
            return Ok(Prepared { intent: Intent { seat, waived: Some(no_wheel), expect: None, wheel }, change, notes });
        }
        let found = wheel::find(cx, &seat).await.map_err(|error| wheel::without(error.into()))?;
        let from = found.as_ref().map(|found| found.wheel.told(&seat));
        if let Some(found) = &found {
            let holder = found.wheel.run.as_ref().filter(|run| **run != cx.run && run.as_str() != take_over);
            if let Some(holder) = holder {
                return Err(Refusal::no("wheel_held", found.wheel.told(&seat)).remedy(format!(
                    "ask {} first; if that run goes no further, take it over by name with `-i take_over={holder}`",
                    found.wheel.by
                )));
            }
            wheel.epoch = found.wheel.epoch + u64::from(!found.wheel.is_of(&cx.run));
        }
        let to = Some(format!("run {}, epoch {}", cx.run, wheel.epoch));
        let expect = found.map(|found| found.mark);
        Ok(Prepared { intent: Intent { seat, waived: None, expect, wheel }, change: vec![change(what, from, to)], notes: Vec::new() })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        cx.world()?;
        if intent.waived.is_some() {
            return Ok(output(intent));
        }
        match wheel::find(cx, &intent.seat).await? {
            // Sent before, and heard.
            Some(found) if found.wheel == intent.wheel => return Ok(output(intent)),
            Some(found) if Some(&found.mark) != intent.expect.as_ref() => {
                return Err(fail("wheel_held", found.wheel.told(&intent.seat)));
            }
            _ => {}
        }
        wheel::put(cx, &intent.seat, &intent.wheel, intent.expect.as_deref()).await?;
        Ok(output(intent))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        if intent.waived.is_some() {
            return Seen::Done(output(intent));
        }
        match wheel::find(cx, &intent.seat).await {
            Err(e) => cannot_tell(&e),
            Ok(Some(found)) if found.wheel.is_of(&cx.run) => Seen::Done(output(intent)),
            Ok(found) if found.as_ref().map(|found| &found.mark) == intent.expect.as_ref() => Seen::Absent,
            Ok(Some(found)) => Seen::Differs { found: found.wheel.told(&intent.seat) },
            Ok(None) => Seen::Differs { found: format!("the wheel of `{}` is gone", intent.seat.over()) },
        }
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        if intent.waived.is_some() {
            return Ok(());
        }
        wheel::let_go(cx, &intent.seat).await.map(|_| ())
    }
}

fn output(intent: &Intent) -> Output {
    Output { epoch: intent.waived.is_none().then_some(intent.wheel.epoch), waived: intent.waived.clone() }
}

#[cfg(test)]
pub(crate) fn lie(world: &crate::providers::sim::SimWorld, run: Option<&str>) {
    let now = crate::providers::clock::Clock::now(&*world.time());
    let wheel = Wheel { epoch: 4, run: run.map(Into::into), by: "ben@elsewhere".into(), since: now };
    world.lock().object("models", "west", wheel::KEY, &serde_json::to_vec(&wheel).expect("bytes"), now);
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "bucket": "models", "region": "west" })).set(|world| lie(world, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    fn with(extra: (&str, &str)) -> Fixture {
        let mut with = json!({ "bucket": "models", "region": "west" });
        with[extra.0] = json!(extra.1);
        Fixture::new(with)
    }

    #[tokio::test]
    async fn the_first_takes_it_and_the_second_is_told_whose_it_is() {
        let mut bench = Bench::new(&Fixture::new(json!({ "bucket": "models", "region": "west" })));
        assert_eq!(bench.run::<Take>().await.expect("taken").epoch, Some(1));
        bench.another_run("0191");
        let refusal = Take::prepare(&bench.read, serde_json::from_value(json!({ "bucket": "models", "region": "west" })).expect("input")).await;
        let failure = refusal.expect_err("refused").failure;
        assert_eq!(failure.code, "wheel_held");
        assert!(failure.to_string().contains("run 0190") && failure.to_string().contains("take_over=0190"), "{failure}");
    }

    #[tokio::test]
    async fn it_is_taken_over_by_the_name_of_its_holder_alone() {
        let held = |take_over| Bench::new(&with(("take_over", take_over)).set(|world| lie(world, Some("0180"))));
        assert_eq!(held("0179").refused::<Take>().await, "wheel_held");
        let bench = held("0180");
        let old = bench.intent::<Take>().await;
        assert_eq!(bench.run::<Take>().await.expect("taken over").epoch, Some(5));
        // Another run finds out, and so does whoever prepared before it changed hands.
        let mut other = bench;
        other.another_run("0192");
        assert!(matches!(Take::observe(&other.read, &old).await, Seen::Differs { found } if found.contains("run 0190")));
        assert!(matches!(Take::apply(&other.write, &Intent { wheel: Wheel { epoch: 9, ..old.wheel.clone() }, ..old }).await, Err(ApplyError::Definite(f)) if f.code == "wheel_held"));
    }

    #[tokio::test]
    async fn one_in_a_database_is_as_good_and_is_read_while_no_primary_lives() {
        let with = || serde_json::from_value(json!({ "database": "orders" })).expect("input");
        let mut bench = Bench::new(&Fixture::new(json!({ "database": "orders" })));
        let intent = bench.intent::<Take>().await;
        assert_eq!(bench.run::<Take>().await.expect("taken").epoch, Some(1));
        assert!(matches!(Take::observe(&bench.read, &intent).await, Seen::Done(_)));
        // In the middle of a switchover: east has stopped, west is not promoted yet.
        let east = ("orders".to_owned(), "east".to_owned());
        let runs = |bench: &Bench, runs| bench.world.lock().machines.get_mut(&east).expect("east").running = runs;
        runs(&bench, false);
        assert!(matches!(Take::observe(&bench.read, &intent).await, Seen::Done(_)));
        assert!(matches!(Take::undo(&bench.write, &intent, None).await, Err(ApplyError::Retry { failure, .. }) if failure.code == "no_primary"));
        runs(&bench, true);
        bench.another_run("0191");
        let failure = Take::prepare(&bench.read, with()).await.expect_err("refused").failure;
        assert!(failure.code == "wheel_held" && failure.to_string().contains("run 0190"), "{failure}");
        // A primary that is silent may still be one.
        let bench = Bench::new(&Fixture::new(json!({ "database": "orders" }))).down("east");
        let failure = Take::prepare(&bench.read, with()).await.expect_err("refused").failure;
        assert!(failure.to_string().contains("cannot be seen") && failure.to_string().contains("no_wheel"), "{failure}");
        let both = serde_json::from_value(json!({ "database": "orders", "bucket": "models", "region": "west" })).expect("input");
        assert_eq!(Take::prepare(&bench.read, both).await.expect_err("refused").failure.code, "input");
    }

    #[tokio::test]
    async fn it_is_done_without_only_with_a_reason_and_a_place_that_is_down_says_so() {
        let bench = Bench::new(&Fixture::new(json!({ "bucket": "models", "region": "west" }))).down("west");
        let refusal = Take::prepare(&bench.read, serde_json::from_value(json!({ "bucket": "models", "region": "west" })).expect("input")).await;
        assert!(refusal.expect_err("refused").failure.to_string().contains("-i no_wheel=REASON"));
        let bench = Bench::new(&with(("no_wheel", "the store refuses writes"))).down("west");
        assert_eq!(bench.run::<Take>().await.expect("waived").waived.as_deref(), Some("the store refuses writes"));
    }
}
