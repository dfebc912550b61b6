//! `wheel.take`: be the only run that acts on a region, whatever journal the others use.
//!
//! **What it does.** It writes this run's name into an object in a bucket of the region that the run acts on, by
//! compare-and-swap: created only if it is absent, replaced only if its etag is still the one that was read. Who
//! finds another run there is refused before any step acts, and told whose it is. From then on the engine looks at
//! the object before everything that it applies or undoes: a run that was deposed finds out before its next step.
//!
//! **Half-done** it never is. It is recognised by its own content: this run's name stands there, or it does not.
//!
//! **Taken over** it is only by name: `take_over` names the run that holds it, so that two who take over at once
//! depose one another's predecessor and not one another. **Waived** it is by a reason in `no_wheel`, which stands
//! on the record. **Undone** it is by letting go, which the engine also does when the run ends; a run that stops
//! for a person keeps it.

use super::{contract::*, shared::*, wheel, wheel::Wheel};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// A bucket of the estate; its object in that region is the wheel.
    pub bucket: BucketName,
    /// The region that the run acts on: in a failover the one that survives.
    pub region: RegionName,
    /// The run that it is taken from, if one holds it; empty for none.
    #[serde(default)]
    pub take_over: String,
    /// Why the run does without it; empty to take it.
    #[serde(default)]
    pub no_wheel: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    pub bucket: BucketName,
    pub region: RegionName,
    waived: Option<String>,
    /// The etag that must still be there; none when nothing was.
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
            version: 1,
            summary: "Keep every other run from acting on a region, by a lock that lies in it",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(30),
            example: "id: wheel\nuses: wheel.take\nwith: { bucket: models, region: west }\non_failure: stop\n",
        }
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        reach(with, "region", Plane::Data).into_iter().chain([reach_here()]).collect()
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { bucket, region, take_over, no_wheel } = input;
        let mut wheel = Wheel { epoch: 1, run: Some(cx.run.clone()), by: cx.world.who(), since: cx.world.clock().now() };
        let what = format!("wheel of {region}");
        if !no_wheel.is_empty() {
            let notes = vec![format!("the wheel of {region} is not taken: {no_wheel}; nothing keeps another operator from acting too")];
            let change = vec![change(what, None, Some("not taken".into()))];
            return Ok(Prepared { intent: Intent { bucket, region, waived: Some(no_wheel), expect: None, wheel }, change, notes });
        }
        let objects = cx.world.objects(bucket.as_str(), region.as_str())?;
        let found = wheel::find(&*objects).await.map_err(|error| wheel::without(error.into()))?;
        let from = found.as_ref().map(|found| found.wheel.told(&bucket, &region));
        if let Some(found) = &found {
            let holder = found.wheel.run.as_ref().filter(|run| **run != cx.run && run.as_str() != take_over);
            if let Some(holder) = holder {
                return Err(Refusal::no("wheel_held", found.wheel.told(&bucket, &region)).remedy(format!(
                    "ask {} first; if that run goes no further, take it over by name with `-i take_over={holder}`",
                    found.wheel.by
                )));
            }
            wheel.epoch = found.wheel.epoch + u64::from(!found.wheel.is_of(&cx.run));
        }
        let to = Some(format!("run {}, epoch {}", cx.run, wheel.epoch));
        let expect = found.map(|found| found.etag);
        Ok(Prepared { intent: Intent { bucket, region, waived: None, expect, wheel }, change: vec![change(what, from, to)], notes: Vec::new() })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let objects = cx.world()?.objects_mut(intent.bucket.as_str(), intent.region.as_str())?;
        if intent.waived.is_some() {
            return Ok(output(intent));
        }
        match wheel::find(&*objects).await? {
            // Sent before, and heard.
            Some(found) if found.wheel == intent.wheel => return Ok(output(intent)),
            Some(found) if Some(&found.etag) != intent.expect.as_ref() => {
                return Err(fail("wheel_held", found.wheel.told(&intent.bucket, &intent.region)));
            }
            _ => {}
        }
        wheel::put(&*objects, &intent.wheel, intent.expect.as_deref()).await?;
        Ok(output(intent))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        if intent.waived.is_some() {
            return Seen::Done(output(intent));
        }
        let look = async {
            let objects = cx.world.objects(intent.bucket.as_str(), intent.region.as_str())?;
            wheel::find(&*objects).await
        };
        match look.await {
            Err(e) => cannot_tell(&e),
            Ok(Some(found)) if found.wheel.is_of(&cx.run) => Seen::Done(output(intent)),
            Ok(found) if found.as_ref().map(|found| &found.etag) == intent.expect.as_ref() => Seen::Absent,
            Ok(Some(found)) => Seen::Differs { found: found.wheel.told(&intent.bucket, &intent.region) },
            Ok(None) => Seen::Differs { found: format!("the wheel of `{}` is gone from bucket `{}`", intent.region, intent.bucket) },
        }
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        if intent.waived.is_some() {
            return Ok(());
        }
        wheel::let_go(cx, &intent.bucket, &intent.region).await.map(|_| ())
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
    async fn it_is_done_without_only_with_a_reason_and_a_place_that_is_down_says_so() {
        let bench = Bench::new(&Fixture::new(json!({ "bucket": "models", "region": "west" }))).down("west");
        let refusal = Take::prepare(&bench.read, serde_json::from_value(json!({ "bucket": "models", "region": "west" })).expect("input")).await;
        assert!(refusal.expect_err("refused").failure.to_string().contains("-i no_wheel=REASON"));
        let bench = Bench::new(&with(("no_wheel", "the store refuses writes"))).down("west");
        assert_eq!(bench.run::<Take>().await.expect("waived").waived.as_deref(), Some("the store refuses writes"));
    }
}
